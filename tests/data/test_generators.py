"""Generated points and series have the properties that their formulas state."""

import numpy as np
import pytest

from data.generators import POINTS, SERIES

COUNT = 20_000


def draw(generator, count=COUNT, seed=0):
    return generator.draw(np.random.default_rng(seed), count)


@pytest.mark.parametrize(("name", "generator"), [*POINTS.items(), *SERIES.items()])
def test_rows_are_seeded_and_have_their_shape_and_equally_likely_classes(name, generator):
    rows, labels = draw(generator)
    again, other = draw(generator), draw(generator, seed=1)
    assert rows.shape == (COUNT, *generator.shape)
    np.testing.assert_array_equal(rows, again.rows)
    assert not np.array_equal(rows, other.rows)
    assert (labels is None) == (generator.classes == 0)
    if labels is not None:
        share = np.bincount(labels, minlength=generator.classes) / COUNT
        assert len(share) == generator.classes
        error = np.sqrt(1 / generator.classes / COUNT)
        assert np.abs(share - 1 / generator.classes).max() < 5 * error


def test_a_swiss_roll_winds_once_around_with_a_radius_that_grows_as_the_angle():
    rows = draw(POINTS["swiss_roll"]).rows
    radius = 15 * np.linalg.norm(rows, axis=1)
    angle = np.arctan2(rows[:, 1], rows[:, 0])
    turns = np.rint((radius - angle) / (2 * np.pi))
    residual = radius - angle - 2 * np.pi * turns
    assert residual.std() == pytest.approx(15 * 0.02, rel=0.1)
    assert (np.quantile(radius, 0.01), np.quantile(radius, 0.99)) == pytest.approx(
        (1.5 * np.pi, 4.5 * np.pi), rel=0.05
    )


def test_moons_are_half_circles_around_two_centers():
    rows, labels = draw(POINTS["moons"])
    for label, center, side in ((0, (0, 0), 1), (1, (1, 0.5), -1)):
        moon = rows[labels == label] - center
        radius = np.linalg.norm(moon, axis=1)
        assert radius.mean() == pytest.approx(1, abs=0.01)
        assert radius.std() == pytest.approx(0.08, rel=0.05)
        assert (side * moon[:, 1] > -0.4).all()


def test_eight_gaussians_have_their_means_and_deviation():
    rows, labels = draw(POINTS["eight_gaussians"])
    for label in range(8):
        cloud = rows[labels == label]
        center = 2 * np.array([np.cos(label * np.pi / 4), np.sin(label * np.pi / 4)])
        np.testing.assert_allclose(cloud.mean(axis=0), center, atol=0.02)
        np.testing.assert_allclose(np.cov(cloud.T), 0.04 * np.eye(2), atol=0.004)


def test_a_checkerboard_fills_its_dark_squares_evenly():
    rows = draw(POINTS["checkerboard"]).rows
    square = np.floor(rows).astype(int) + 2
    assert (square.sum(axis=1) % 2 == 0).all()
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(square.T), 1)
    filled = counts[counts > 0]
    assert len(filled) == 8
    assert np.abs(filled / COUNT - 1 / 8).max() < 5 * np.sqrt(1 / 8 / COUNT)


def test_rings_have_their_radii():
    rows, labels = draw(POINTS["rings"])
    radius = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(radius, (labels + 1) / 4, atol=0.02 * 5)
    assert np.abs(rows.mean(axis=0)).max() < 0.02


def test_waves_are_periodic_and_only_square_waves_have_two_values():
    rows, labels = draw(SERIES["waves"], 3000)
    series = rows[..., 0]
    level = np.median(np.abs(series), axis=1, keepdims=True)  # of a square wave, its amplitude
    near = (np.abs(np.abs(series) - level) < 0.2).mean(axis=1)
    assert near[labels == 2].min() > 0.95
    assert near[labels != 2].mean() < 0.6
    top = np.abs(series).max(axis=1)
    assert 0.3 < top.min() < top.max() < 1.25
