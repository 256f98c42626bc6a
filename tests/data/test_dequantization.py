"""Dequantization of one pixel whose true probabilities are known: bounds, gaps and densities."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from data.dequantization import DEQUANTIZATIONS, centers, truncated_normal_noise
from data.scaling import Quantizer

# Every uniform number that the batches can draw, once: means over them are integrals over u.
ALL = (np.arange(2**16) * np.float32(2**-16)).reshape(-1, 1, 1, 1)
WIDTHS = [1 / 60, 1 / 6, 0.5, 20.0]  # tau = 30, 3, 1, 0.025
LEVELS = np.array([0.5, 0.1, 0.3, 0.1])  # the true probabilities of four gray levels


def log_density(x, width):
    """A model of the levels: a mixture of Gaussians around the bin centers, in gray levels."""
    middles = np.arange(len(LEVELS)) + 0.5
    parts = stats.norm.logpdf(np.asarray(x)[..., None], middles, width) + np.log(LEVELS)
    return np.logaddexp.reduce(parts, axis=-1)


def density_of_noise(u, width):
    """The truncated normal by its definition."""
    tau = 0.5 / width
    return stats.truncnorm.pdf(u, -tau, tau, loc=0.5, scale=width)


@pytest.mark.parametrize("width", WIDTHS)
def test_truncated_normal_noise_has_its_density(width):
    u, log_q = truncated_normal_noise(ALL, width)
    assert 0 < u.min() < u.max() < 1
    np.testing.assert_allclose(u[:, 0, 0, 0], 1 - u[::-1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(np.exp(log_q), density_of_noise(u.ravel(), width), rtol=1e-9)
    tau = 0.5 / width
    grid = (ALL.ravel().astype(float) + 2**-17)[::1000]
    expected = stats.truncnorm.ppf(grid, -tau, tau, loc=0.5, scale=width)
    np.testing.assert_allclose(u.ravel()[::1000], expected, atol=1e-9)


@pytest.mark.parametrize("width", WIDTHS)
def test_entropy_of_truncated_normal_noise_is_its_closed_form(width):
    def integrand(u):
        density = density_of_noise(u, width)
        return -density * math.log(density) if density > 0 else 0.0

    inner = [0.5 - 4 * width, 0.5, 0.5 + 4 * width] if width < 0.1 else [0.5]
    quadrature, _ = integrate.quad(integrand, 0, 1, points=inner, limit=200)
    tau = 0.5 / width
    mass = math.erf(tau / math.sqrt(2))
    whole = math.log(width * math.sqrt(2 * math.pi * math.e) * mass)
    assert whole - tau * stats.norm.pdf(tau) / mass == pytest.approx(quadrature, abs=1e-7)
    _, log_q = truncated_normal_noise(ALL, width)
    assert -log_q.mean() == pytest.approx(quadrature, abs=2e-4)


def test_wide_truncated_normal_noise_is_uniform():
    u, log_q = truncated_normal_noise(ALL, 1e4)
    np.testing.assert_allclose(u, ALL + 2**-17, atol=1e-8)
    np.testing.assert_allclose(log_q, 0, atol=1e-8)
    with pytest.raises(ValueError, match=r"width=0\.0 must be above 0"):
        truncated_normal_noise(ALL, 0.0)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("name", ["uniform", "truncated_normal"])
def test_bound_is_below_the_probability_by_the_divergence_of_the_noise(name, level):
    """The gap is KL(q || p(u | k)); for tau = 3 the truncated normal loses nearly nothing."""
    width = 1 / 6
    mass, _ = integrate.quad(lambda u: math.exp(log_density(level + u, width)), 0, 1)
    u, log_q = DEQUANTIZATIONS[name].noise(ALL, width)
    bound = (log_density(level + u.ravel().astype(float), width) - log_q).mean()

    def divergence(u):
        q = density_of_noise(u, width) if name == "truncated_normal" else 1.0
        return q * (math.log(q) - log_density(level + u, width) + math.log(mass))

    gap, _ = integrate.quad(divergence, 0, 1)
    assert bound < math.log(mass)
    assert math.log(mass) - bound == pytest.approx(gap, abs=3e-4)
    # The model's own mass in the bin is the level's probability, but for the tails beyond 3 sigma.
    assert mass == pytest.approx(LEVELS[level], abs=2e-3)
    true = math.log(LEVELS[level])
    if name == "truncated_normal":
        assert true - 0.01 < bound
    else:
        assert bound < true - 0.4


def test_images_of_training_lie_on_levels_centers_or_anywhere_in_their_bins():
    quantizer = Quantizer(gray_levels=4)
    stored = np.arange(4, dtype=np.uint8).reshape(-1, 1, 1, 1)
    noise = np.full(stored.shape, 0.25, np.float32)
    expected = {
        "none": stored / 3,
        "uniform": (stored + 0.25) / 4,
        "truncated_normal": (stored + 0.5) / 4,
        "variational": (stored + 0.25) / 4,
    }
    assert expected.keys() == DEQUANTIZATIONS.keys()
    for name, x in expected.items():
        how = DEQUANTIZATIONS[name]
        found = how.training(quantizer, stored, noise if how.noisy else None)
        np.testing.assert_allclose(found, x, atol=1e-7, err_msg=name)
        levels = quantizer.quantize(found, dequantized=how.in_bins)
        np.testing.assert_array_equal(levels, stored)
    np.testing.assert_array_equal(centers(quantizer, stored), expected["truncated_normal"])
