"""The unbiased MMD^2 is its closed form for Gaussians, and near 0 for equal distributions."""

import numpy as np
import pytest

from metrics.mmd import mmd_squared


def expected_kernel(shift, variance, width, dims):
    """E exp(-|d|^2 / (2 h^2)) for d ~ N(shift, variance I)."""
    total = width**2 + variance
    return (width**2 / total) ** (dims / 2) * np.exp(-(shift @ shift) / (2 * total))


def test_it_is_the_closed_form_between_gaussians():
    rng, dims, widths = np.random.default_rng(0), 2, (0.5, 2.0)
    shift, s, r = np.array([0.7, -0.4]), 1.0, 0.6
    found = [
        mmd_squared(
            s * rng.standard_normal((300, dims)),
            shift + r * rng.standard_normal((300, dims)),
            widths=widths,
        )
        for _ in range(16)
    ]
    zero = np.zeros(dims)
    truth = np.mean(
        [
            expected_kernel(zero, 2 * s**2, h, dims)
            + expected_kernel(zero, 2 * r**2, h, dims)
            - 2 * expected_kernel(shift, s**2 + r**2, h, dims)
            for h in widths
        ]
    )
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - truth) < 4 * error
    assert error < 0.1 * truth


def test_it_has_mean_0_for_equal_distributions_and_may_be_negative():
    rng = np.random.default_rng(1)
    found = [mmd_squared(*rng.standard_normal((2, 200, 3))) for _ in range(40)]
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 4 * np.std(found, ddof=1) / np.sqrt(len(found))


def test_it_equals_the_sums_over_pairs():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((4, 2)), rng.standard_normal((5, 2))

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / 2)

    xx = [k(x[i], x[j]) for i in range(4) for j in range(4) if i != j]
    yy = [k(y[i], y[j]) for i in range(5) for j in range(5) if i != j]
    truth = np.mean(xx) + np.mean(yy) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert mmd_squared(x, y, widths=(1.0,)) == pytest.approx(truth)


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="must be at least 2"):
        mmd_squared(np.ones((1, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="features differ in number: 2 and 3"):
        mmd_squared(np.ones((4, 2)), np.ones((4, 3)))
