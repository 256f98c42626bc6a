"""Plots as PNG files: series with labels and error bars, or pictures, in panels side by side.

Matplotlib is imported when a plot is drawn, and its global state stays as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from errors import require_choice, require_in
from files.paths import AnyPath
from files.writing import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Colors that people with any color vision tell apart (Okabe & Ito 2008), in a fixed order.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9")
# So that color is never the only difference.
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GRID, _SPAN, _TEXT, _FAINT = "#d9d9d9", "#f0f0f0", "#222222", "#666666"
# In inches. A layout that matplotlib computes takes twice as long as all of the drawing.
_SIZE = (4.4, 2.9)  # of a pair of axes
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN, _LABEL = 0.75, 0.2, 0.55, 0.6, 1.1, 0.25
_DPI = 110
_MANY = 40  # points, above which a series has no markers


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a panel.

    Args:
        label: its name in the legend; "" for none.
        x: positions.
        y: values; those that are NaN leave a gap.
        error: half the length of the error bars; None for none.
        color: None for the next one of COLORS.
        joined: whether a line connects the points.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    error: Sequence[float] | np.ndarray | None = None
    color: str | None = None
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Args:
        title: what the panel shows.
        x_label: the quantity along x, with its unit.
        y_label: the quantity along y, with its unit; "" where the title says it.
        series: the lines.
        levels: horizontal lines to compare with: label, y.
        spans: shaded intervals of x: label, start, end.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is logarithmic; it is not where a value is 0 or less.
        from_zero: whether a linear y axis begins at 0.
        note: a line of text below the title; "" for none.

    Raises:
        ValueError: for series whose x, y and error differ in length.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    y_label: str = ""
    levels: tuple[tuple[str, float], ...] = ()
    spans: tuple[tuple[str, float, float], ...] = ()
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        for series in self.series:
            lengths = {len(series.x), len(series.y)}
            lengths |= set() if series.error is None else {len(series.error)}
            if len(lengths) > 1:
                raise ValueError(f"series {series.label!r} has x, y and error of unequal length")


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A picture of columns in place of axes, with a label below each.

    Args:
        title: what it shows.
        x_label: what the labels are, with the unit.
        picture: its columns are equally wide; gray or RGB.
        labels: of the columns.
        note: a line of text below the title; "" for none.
    """

    title: str
    x_label: str
    picture: UInt8[np.ndarray, "h w c"]
    labels: Sequence[str]
    note: str = ""


def shades(count: int) -> list[str]:
    """Return blues from light to dark for series in an order, such as steps of training."""
    light, dark = np.array([0.67, 0.83, 0.95]), np.array([0.02, 0.16, 0.35])
    fractions = np.linspace(0, 1, count) if count > 1 else np.ones(count)
    colors = light + fractions[:, None] * (dark - light)
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in colors]


def write_plot(
    path: AnyPath, panels: Sequence[Panel | Strip], *, columns: int | None = None, title: str = ""
) -> None:
    """Draw panels in reading order and write them as a PNG, whole or not at all.

    Args:
        path: the PNG file.
        panels: at least one.
        columns: panels per row; None for a roughly square figure.
        title: one line above all panels; "" for none.

    Raises:
        ValueError: for no panel, or a path that does not end in .png.
        OSError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    require_choice("suffix", path.suffix, (".png",))
    require_in("number of panels", len(panels), "[1, inf)")
    columns = min(columns or math.ceil(math.sqrt(len(panels))), len(panels))
    rows = math.ceil(len(panels) / columns)
    labelled = any(isinstance(panel, Panel) and panel.y_label for panel in panels)
    left = _LEFT + (_LABEL if labelled else 0)
    top = _TOP + (_LABEL if title else 0)
    width = columns * (left + _SIZE[0]) + _RIGHT
    height = rows * _SIZE[1] + (rows - 1) * _BETWEEN + top + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("none")  # the boxes are given, whatever layout the user's figures have
    canvas = FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        x = column * (left + _SIZE[0]) + left
        y = height - top - row * (_SIZE[1] + _BETWEEN) - _SIZE[1]
        box = (x / width, y / height, _SIZE[0] / width, _SIZE[1] / height)
        axes = figure.add_axes(box)
        _draw_title(axes, panel)
        if isinstance(panel, Strip):
            _draw_strip(axes, panel)
        else:
            _draw(axes, panel)
    if title:
        figure.text(0.5, 1 - 0.12 / height, title, fontsize=12, color=_TEXT, ha="center", va="top")
    write_file(path, lambda temporary: canvas.print_png(temporary))


def _draw_title(axes: "Axes", panel: Panel | Strip) -> None:
    # At a given y: to look for room takes matplotlib a fifth of the time of drawing.
    pad = 20 if panel.note else 7
    axes.set_title(panel.title, fontsize=12, color=_TEXT, loc="left", y=1.0, pad=pad)
    if panel.note:
        axes.text(0, 1.025, panel.note, fontsize=9, color=_FAINT, transform=axes.transAxes)
    axes.set_xlabel(panel.x_label, fontsize=10, color=_TEXT)
    axes.tick_params(which="both", labelsize=9, colors=_FAINT)


def _draw_strip(axes: "Axes", strip: Strip) -> None:
    axes.imshow(strip.picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_anchor("N")  # so that its title is level with those of its neighbors
    width = strip.picture.shape[1] / len(strip.labels)
    axes.set_xticks([(k + 0.5) * width - 0.5 for k in range(len(strip.labels))], strip.labels)
    axes.tick_params(length=0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw(axes: "Axes", panel: Panel) -> None:
    axes.set_ylabel(panel.y_label, fontsize=10, color=_TEXT)
    axes.set_axisbelow(True)
    axes.grid(color=_GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for number, series in enumerate(panel.series):
        _draw_series(axes, series, number)
    for label, start, end in panel.spans:
        axes.axvspan(start, end, color=_SPAN, zorder=0, linewidth=0, label=label)
    for label, value in panel.levels:
        axes.axhline(value, color=_FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label=label)
    if panel.log_x and _positive(series.x for series in panel.series):
        axes.set_xscale("log")
        _label_plainly(axes.xaxis)
    values = [series.y for series in panel.series] + [[value] for _, value in panel.levels]
    if panel.log_y and _positive(values):
        axes.set_yscale("log")
        _label_plainly(axes.yaxis)
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    if not any(len(series.x) for series in panel.series):
        middle: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "nothing measured yet", fontsize=10, color=_FAINT, **middle)
    _, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(fontsize=9, frameon=False, labelcolor=_TEXT)


def _draw_series(axes: "Axes", series: Series, number: int) -> None:
    axes.errorbar(
        np.asarray(series.x, np.float64),
        np.asarray(series.y, np.float64),
        yerr=None if series.error is None else np.asarray(series.error, np.float64),
        color=series.color or COLORS[number % len(COLORS)],
        marker=_MARKERS[number % len(_MARKERS)] if len(series.x) <= _MANY else "",
        markersize=4,
        linestyle="-" if series.joined else "",
        linewidth=1.6,
        elinewidth=1.1,
        capsize=2.5,
        label=series.label or None,
    )


def _label_plainly(axis: "Axis") -> None:
    """Write 0.06, not 6 x 10^-2, at the ticks of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    low, high = axis.get_view_interval()
    subdivisions = (1, 2, 3, 5) if high < 100 * low else (1,)
    near = high < 5 * low  # where powers of ten and their like may leave no tick, or one
    axis.set_major_locator(MaxNLocator(5) if near else LogLocator(subs=subdivisions))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _positive(values: Any) -> bool:
    """Return whether values are all above 0 where they are numbers."""
    arrays = [np.asarray(each, np.float64) for each in values]
    return all(np.all((array > 0) | np.isnan(array)) for array in arrays)
