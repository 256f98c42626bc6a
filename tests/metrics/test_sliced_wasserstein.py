"""The sliced Wasserstein distance of Gaussians is its closed form, and sets of unequal size."""

import numpy as np
import pytest

from metrics.sliced_wasserstein import sliced_wasserstein


def test_it_is_the_closed_form_between_isotropic_gaussians():
    rng, dims = np.random.default_rng(0), 3
    mean = np.array([1.0, -0.5, 2.0])
    x = 0.5 * rng.standard_normal((2000, dims))
    y = mean + 1.2 * rng.standard_normal((2000, dims))
    truth = np.sqrt(mean @ mean / dims + (1.2 - 0.5) ** 2)
    assert sliced_wasserstein(x, y, directions=1000) == pytest.approx(truth, rel=0.05)


def test_it_is_the_distance_of_sorted_numbers_in_one_dimension():
    x, y = np.array([[3.0], [1.0]]), np.array([[0.0], [5.0]])
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt((1 + 4) / 2))
    assert sliced_wasserstein(x, np.repeat(x, 3, axis=0)) == pytest.approx(0, abs=1e-9)


def test_a_shift_has_its_length_over_the_root_of_the_dimension():
    x = np.random.default_rng(1).standard_normal((50, 4))
    found = sliced_wasserstein(x, x + np.array([2, 0, 0, 0]), directions=20_000)
    assert found == pytest.approx(2 / np.sqrt(4), rel=0.02)


def test_sets_of_unequal_size_are_compared_by_quantiles():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((800, 2)), rng.standard_normal((300, 2))
    assert sliced_wasserstein(x, y) < 0.2
    assert sliced_wasserstein(x, y + 3) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 3)), "features differ in number: 2 and 3"),
        (np.ones((4, 2)), np.full((4, 2), np.nan), "are not finite"),
        (np.ones((0, 2)), np.ones((4, 2)), "must be at least 1"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(x, y)
