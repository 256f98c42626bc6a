"""Plots hold what they are given, and are PNG files, whole or not there."""

import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageColor

from files.plots import COLORS, Panel, Series, Strip, shades, write_plot


def panel(*series, **fields):
    return Panel(title="a title", x_label="step", series=series, **fields)


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def share_of(image, color, tolerance=8):
    """The fraction of pixels that have a color."""
    distance = np.abs(image - ImageColor.getrgb(color)).max(axis=-1)
    return np.mean(distance < tolerance)


@pytest.mark.slow
def test_every_series_is_drawn_in_its_color_and_error_bars_add_ink(tmp_path):
    x, y = np.arange(5.0), np.linspace(0.1, 1, 5)
    lines = [Series(label=f"series {k}", x=x, y=y + k) for k in range(3)]
    write_plot(tmp_path / "lines.png", [panel(*lines)])
    image = picture(tmp_path / "lines.png")
    assert all(share_of(image, color) > 5e-4 for color in COLORS[:3])
    assert share_of(image, COLORS[3]) == 0
    with_bars = Series(label="series 0", x=x, y=y + 0.4, error=np.full(5, 0.4))
    write_plot(tmp_path / "bars.png", [panel(with_bars, *lines[1:])])
    ink = [share_of(each, COLORS[0], 100) for each in (picture(tmp_path / "bars.png"), image)]
    assert ink[0] > 1.1 * ink[1], "thin lines are paler"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bars.png", "lines.png"]


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, None, (1, 1)), (5, 3, (2, 3))])
def test_panels_fill_rows(tmp_path, count, columns, shape):
    lines = Series(label="", x=[1, 10, 100], y=[1.0, np.nan, 3.0])
    panels = [panel(lines, log_x=True, log_y=True, note="a note") for _ in range(count)]
    write_plot(tmp_path / "a.png", panels, columns=columns)
    height, width, _ = picture(tmp_path / "a.png").shape
    assert (round(height / 440), round(width / 570)) == shape


def test_panels_without_numbers_or_with_zeros_on_a_logarithmic_axis_are_drawn(tmp_path):
    zero = Series(label="zero", x=[0, 1], y=[0.0, 1.0])
    write_plot(tmp_path / "a.png", [panel(), panel(zero, log_x=True, log_y=True)], title="both")
    assert share_of(picture(tmp_path / "a.png"), COLORS[0]) > 5e-4


def test_a_strip_shows_its_columns_beside_a_panel(tmp_path):
    red, blue = (213, 94, 0), (0, 114, 178)
    columns = np.array([[red, blue], [red, blue]], np.uint8)
    strip = Strip(title="colors", x_label="which", picture=columns, labels=["red", "blue"])
    write_plot(tmp_path / "a.png", [panel(), strip], columns=2)
    image = picture(tmp_path / "a.png")
    places = [np.flatnonzero((np.abs(image - c).max(axis=-1) < 8).any(axis=0)) for c in (red, blue)]
    assert image.shape[1] / 2 < places[0].min()
    assert places[0].max() < places[1].min()
    assert len(places[0]) == pytest.approx(len(places[1]), abs=2)
    assert len(places[0]) > 100


def test_shades_become_darker():
    colors = [sum(ImageColor.getrgb(color)) for color in shades(6)]
    assert colors == sorted(colors, reverse=True)
    assert len(set(colors)) == 6
    assert shades(1) == [shades(6)[-1]]


def test_drawing_leaves_pyplot_alone(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    write_plot(tmp_path / "a.png", [panel()])
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"series 'a' has x, y and error of unequal length"):
        panel(Series(label="a", x=[1, 2], y=[1.0]))
    with pytest.raises(ValueError, match="number of panels=0 must be at least 1"):
        write_plot(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match=r"suffix='.jpg' is unknown; choose one of: .png"):
        write_plot(tmp_path / "a.jpg", [panel()])


def test_layout_of_the_users_figures_changes_nothing(tmp_path, recwarn):
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        write_plot(tmp_path / "a.png", [panel(Series(label="", x=[1.0, 2.0], y=[1.0, 2.0]))])
    assert not recwarn.list
