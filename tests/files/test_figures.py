"""Pictures of points and series: one per frame, the same axes in all, marks where points are."""

import matplotlib
import numpy as np
import pytest

from files.figures import (
    Drift,
    Processes,
    grid_of,
    point_pictures,
    process_frames,
    process_picture,
    series_pictures,
)

WHITE = 255


def inked(picture):
    """Whether there is color, and not only gray."""
    return picture.max(axis=-1) - picture.min(axis=-1).astype(int) > 60


def test_points_are_where_they_belong_and_frames_share_their_axes():
    rng = np.random.default_rng(0)
    wide = rng.uniform(-1, 1, (300, 2))
    left = np.column_stack([rng.uniform(-1, -0.6, 200), rng.uniform(-1, 1, 200)])
    first, second = point_pictures([wide, left])
    assert first.shape == second.shape
    assert first.dtype == np.uint8
    columns = np.flatnonzero(inked(second).any(axis=0))
    width = first.shape[1]
    assert columns.max() < 0.35 * width  # the axes still hold the first frame
    assert np.flatnonzero(inked(first).any(axis=0)).max() > 0.85 * width


@pytest.mark.parametrize("coordinates", [1, 5])
def test_points_of_any_number_of_coordinates_are_drawn(coordinates):
    (picture,) = point_pictures([np.random.default_rng(0).normal(size=(50, coordinates))])
    assert inked(picture).mean() > 0.001


def test_series_are_lines():
    (picture,) = series_pictures([np.random.default_rng(0).normal(size=(3, 8, 2))])
    assert inked(picture).mean() > 0.005


def test_processes_are_three_rows():
    points = np.random.default_rng(0).normal(size=(60, 2))
    places = grid_of(points)
    drift = Drift(places, -places)
    far = [points, 3 * points]
    processes = Processes([0.1, 1.0], far, far[::-1], [drift, drift])
    rows = np.array_split(inked(process_picture(processes)), 3)
    assert all(row.mean() > 0.001 for row in rows)
    frames = process_frames(processes)
    assert len(frames) == 2
    # With the same axes in both: the forward process spreads, and the reverse one contracts.
    forward, reverse, drift = (
        [inked(f)[:, 300 * k : 300 * (k + 1)] for f in frames] for k in range(3)
    )
    width = [[np.flatnonzero(f.any(axis=0)).std() for f in row] for row in (forward, reverse)]
    assert width[0][0] < 0.7 * width[0][1]
    assert width[1][1] < 0.7 * width[1][0]
    assert (drift[0] & drift[1]).mean() > 0.001
    low, high = places.min(axis=0), places.max(axis=0)
    assert (low < np.quantile(points, 0.01, axis=0)).all()
    assert (high > np.quantile(points, 0.99, axis=0)).all()


def test_layout_of_the_users_figures_changes_nothing(recwarn):
    points = np.random.default_rng(0).normal(size=(60, 2))
    (plain,) = point_pictures([points])
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        (picture,) = point_pictures([points])
    assert not recwarn.list
    np.testing.assert_array_equal(picture, plain)
