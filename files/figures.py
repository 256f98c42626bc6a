"""Pictures of points and series as uint8 arrays, for PNG files, animations and TensorBoard.

Points of the plane are a scatter plot; of more coordinates, the first two are shown, and of one, a
histogram. Series are lines. All frames of an animation have the same axes.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from files.plots import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = UInt8[np.ndarray, "_ _ 3"]
Points = Float[np.ndarray, "_ d"]

_DPI, _SIDE = 100, 4.0  # inches
_FRAME_SIDE = 3.0  # of a panel of an animation of three
_SERIES = 16  # series that a figure shows
_GRID = 18  # arrows along each side
_LINES = 400  # of translations
_TEXT, _FAINT = "#222222", "#888888"
_QUANTILE = 0.002  # of coordinates outside the axes, on each side


class Drift(NamedTuple):
    """Arrows at places of the plane: where they begin, and where they point."""

    at: Float[np.ndarray, "k 2"]
    to: Float[np.ndarray, "k 2"]


class Processes(NamedTuple):
    """The processes of points of the plane, with an entry per time.

    Attributes:
        times: ascending.
        forward: data that become noise, at `times`.
        reverse: noise that becomes samples, at `times` from the last to the first.
        drifts: of the reverse process, at the times of `reverse`.
    """

    times: Sequence[float]
    forward: Sequence[Points]
    reverse: Sequence[Points]
    drifts: Sequence[Drift]

    @property
    def limits(self) -> list[tuple[float, float]]:
        """The limits of the axes, which show the forward process at all times."""
        return [_limits(np.concatenate(self.forward)[:, axis]) for axis in (0, 1)]


def grid_of(points: Points) -> Float[np.ndarray, "k 2"]:
    """Return places on a grid over the axes that show these points."""
    sides = [np.linspace(*_limits(points[:, axis]), _GRID) for axis in (0, 1)]
    return np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)


def point_pictures(frames: Sequence[Points]) -> list[Picture]:
    """Return a scatter plot of each frame, or a histogram of points of one coordinate.

    The axes show the points of the last frame and the middle of the first.
    """
    if frames[0].shape[1] == 1:
        return _pictures(frames, _draw_histogram, columns=1, rows=1)
    return _pictures(frames, _draw_points, columns=1, rows=1)


def series_pictures(frames: Sequence[Float[np.ndarray, "n length channels"]]) -> list[Picture]:
    """Return line plots of the first series of each frame, a line per channel."""
    count = min(len(frames[0]), _SERIES)
    columns = math.ceil(math.sqrt(count))
    return _pictures(frames, _draw_series, columns=columns, rows=-(-count // columns))


def process_picture(processes: Processes) -> Picture:
    """Return three rows: data that become noise, noise that becomes samples, and the drift.

    The rows follow Sohl-Dickstein et al. 2015 (arXiv:1503.03585, Figure 1). In a row, time advances
    to the right.
    """
    count, limits = len(processes.times), processes.limits
    figure, canvas = _figure(count, 3, side=2.2)
    for column in range(count):
        axes = [figure.add_subplot(3, count, row * count + column + 1) for row in range(3)]
        _draw_processes(axes, processes, column, limits, size=1.0)
    return _to_array(canvas)


def process_frames(processes: Processes) -> list[Picture]:
    """Return the rows of `process_picture` side by side, as an animation: a frame per time."""
    figure, canvas = _figure(3, 1, side=_FRAME_SIDE)
    axes = [figure.add_subplot(1, 3, column + 1) for column in range(3)]
    limits, frames = processes.limits, []
    for number in range(len(processes.times)):
        for each in axes:
            each.clear()
        _draw_processes(axes, processes, number, limits, size=2.0)
        frames.append(_to_array(canvas))
    return frames


def _draw_processes(
    axes: Sequence["Axes"],
    processes: Processes,
    number: int,
    limits: list[tuple[float, float]],
    *,
    size: float,
) -> None:
    """Draw entry `number` of each process into its axes."""
    start, end = processes.times[number], processes.times[-1 - number]
    for each, title, points in (
        (axes[0], f"forward, t = {start:.2g}", processes.forward[number]),
        (axes[1], f"reverse, t = {end:.2g}", processes.reverse[number]),
    ):
        _scatter(each, points, limits, size=size)
        each.set_title(title, fontsize=9, color=_TEXT)
    _bare(axes[2], limits)
    drift = processes.drifts[number]
    axes[2].quiver(*drift.at.T, *drift.to.T, color=COLORS[1], width=0.006)
    axes[2].set_title(f"drift, t = {end:.2g}", fontsize=9, color=_TEXT)


def density_picture(
    data: Points,
    samples: Points,
    density: Float[np.ndarray, "side side"],
    corners: Float[np.ndarray, "2 2"],
    t: float,
) -> Picture:
    """Return three panels with the same axes: data, samples, and the density at time t.

    `corners` are the lowest and the highest place of the rectangle that the density covers, by row
    and column.
    """
    figure, canvas = _figure(3, 1, side=_SIDE)
    limits = [_limits(np.concatenate([data, samples])[:, axis]) for axis in (0, 1)]
    axes = [figure.add_subplot(1, 3, column + 1) for column in range(3)]
    for each, name, points in zip(axes, ("data", "samples"), (data, samples), strict=False):
        _scatter(each, points, limits, size=min(12.0, max(1.5, 4000 / len(points))))
        each.set_title(name, fontsize=9, color=_TEXT)
    (left, bottom), (right, top) = corners.tolist()
    extent = (left, right, bottom, top)
    axes[2].imshow(density, origin="lower", extent=extent, aspect="auto", cmap="Blues")
    _bare(axes[2], limits)
    axes[2].set_title(f"learned density, t = {t:.2g}", fontsize=9, color=_TEXT)
    return _to_array(canvas)


def translation_picture(inputs: Points, samples: Points) -> Picture:
    """Return points of the plane, lines to their translations, and the translations."""
    figure, canvas = _figure(3, 1, side=_SIDE)
    limits = [_limits(np.concatenate([inputs, samples])[:, axis]) for axis in (0, 1)]
    for column, title in enumerate(("input", "from input to output", "output")):
        axes = figure.add_subplot(1, 3, column + 1)
        if column == 1:
            _bare(axes, limits)
            shown = slice(_LINES)
            ends = np.stack([inputs[shown], samples[shown]], axis=1)
            axes.plot(*ends.transpose(2, 1, 0), color=COLORS[0], linewidth=0.4, alpha=0.5)
        else:
            _scatter(axes, samples if column else inputs, limits, size=1.5)
        axes.set_title(title, fontsize=10, color=_TEXT)
    return _to_array(canvas)


def _figure(columns: int, rows: int, *, side: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (side * columns, side * rows)
    layout: Any = "none"  # whatever the user's figures have; a layout forbids subplots_adjust
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout=layout)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.93, wspace=0.06, hspace=0.2)
    return figure, FigureCanvasAgg(figure)


def _to_array(canvas: Any) -> Picture:
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _pictures(frames: Sequence[np.ndarray], draw: Any, *, columns: int, rows: int) -> list[Picture]:
    side = _SIDE if columns == 1 else _SIDE / math.sqrt(columns)
    figure, canvas = _figure(columns, rows, side=side)
    axes = [figure.add_subplot(rows, columns, k + 1) for k in range(rows * columns)]
    limits = _limits_of(frames)
    pictures = []
    for frame in frames:
        for each in axes:
            each.clear()
        draw(axes, frame, limits)
        pictures.append(_to_array(canvas))
    return pictures


def _limits_of(frames: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Return the limits of each entry of the last axis over the first and the last frame."""
    ends = np.concatenate([frame.reshape(-1, frame.shape[-1]) for frame in (frames[0], frames[-1])])
    return [_limits(column) for column in ends.T]


def _limits(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    low, high = np.quantile(values, [_QUANTILE, 1 - _QUANTILE])
    margin = 0.08 * max(high - low, 1e-6)
    return float(low - margin), float(high + margin)


def _bare(axes: "Axes", limits: Sequence[tuple[float, float]]) -> None:
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_FAINT)


def _scatter(
    axes: "Axes", points: Points, limits: Sequence[tuple[float, float]], *, size: float
) -> None:
    _bare(axes, limits)
    axes.scatter(points[:, 0], points[:, 1], s=size, color=COLORS[0], linewidths=0)


def _draw_points(axes: list["Axes"], points: Points, limits: list[tuple[float, float]]) -> None:
    size = min(12.0, max(1.5, 4000 / len(points)))
    _scatter(axes[0], points, limits, size=size)
    if points.shape[1] > 2:
        title = f"coordinates 1 and 2 of {points.shape[1]}"
        axes[0].set_title(title, fontsize=9, color=_TEXT)


def _draw_histogram(axes: list["Axes"], points: Points, limits: list[tuple[float, float]]) -> None:
    axes[0].hist(points[:, 0], bins=60, range=limits[0], color=COLORS[0], density=True)
    axes[0].set_yticks([])


def _draw_series(
    axes: list["Axes"], series: Float[np.ndarray, "n l c"], limits: list[tuple[float, float]]
) -> None:
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for each, values in zip(axes, series, strict=False):
        for channel, line in enumerate(values.T):
            each.plot(line, color=COLORS[channel % len(COLORS)], linewidth=1.2)
        _bare(each, [(0, len(values) - 1), (low, high)])
