"""Bits/dim against known densities and entropies, and its errors against SciPy's."""

import math

import numpy as np
import pytest
import scipy.stats

from metrics.bits_per_dim import bits_per_dim, estimate, importance_weighted

RNG_SEED = 0


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_images_cost_log2_of_the_levels(levels):
    """Scaled to y in [-1, 1), uniform levels have density 2^-D and dy/dk = 2 / levels."""
    dims = 12
    nats = np.full((3, 5), -dims * math.log(2))
    bits = bits_per_dim(nats, log_det=dims * math.log(2 / levels), dims=dims)
    assert bits.shape == (3, 5)
    np.testing.assert_allclose(bits, math.log2(levels), rtol=1e-12)


def test_bits_are_invariant_to_the_scale_of_the_data():
    rng = np.random.default_rng(RNG_SEED)
    levels, dims = rng.integers(0, 16, (4, 6)) + rng.uniform(size=(4, 6)), 6
    density = scipy.stats.norm(8, 3)
    bits = []
    for scale in (1.0, 1 / 16, 2 / 16):
        scaled = scipy.stats.norm(8 * scale, 3 * scale).logpdf(levels * scale).sum(axis=1)
        bits.append(bits_per_dim(scaled, log_det=dims * math.log(scale), dims=dims))
    np.testing.assert_allclose(bits[0], -density.logpdf(levels).mean(axis=1) / math.log(2))
    np.testing.assert_allclose(bits[1:], [bits[0]] * 2, rtol=1e-12)


def test_dequantization_bounds_the_entropy_of_the_levels_from_above():
    """A continuous model that is exact, p(y) = P(floor y), attains the entropy."""
    share = np.array([0.5, 0.25, 0.125, 0.125])
    levels = np.random.default_rng(RNG_SEED).choice(4, 100_000, p=share)
    bits = bits_per_dim(np.log(share[levels]), log_det=0.0, dims=1)
    assert abs(bits.mean() - 1.75) < 4 * bits.std() / math.sqrt(bits.size)


def test_standard_errors_tell_images_draws_and_probes_apart():
    """values = image + draw + probe effects, independent: the means of tables scatter so."""
    rng, shape = np.random.default_rng(RNG_SEED), (3, 40, 4)
    draw_std, probe_std, tables = 0.2, 0.3, 2000
    image = rng.normal(size=(1, 40, 1))
    found = []
    for _ in range(tables):
        draws = draw_std * rng.normal(size=(3, 40, 1))
        found.append(estimate(image + draws + probe_std * rng.normal(size=shape)))
    both = math.hypot(draw_std / math.sqrt(3 * 40), probe_std / math.sqrt(3 * 40 * 4))
    assert np.std([e.mean for e in found]) == pytest.approx(both, rel=0.05)
    over_draws = np.sqrt(np.mean([e.over_draws**2 for e in found]))
    over_probes = np.sqrt(np.mean([e.over_probes**2 for e in found]))
    assert over_draws == pytest.approx(draw_std / math.sqrt(3 * 40), rel=0.05)
    assert over_probes == pytest.approx(probe_std / math.sqrt(3 * 40 * 4), rel=0.05)
    assert found[0].over_images == pytest.approx(scipy.stats.sem(image.ravel()), rel=0.2)


def test_what_a_single_one_cannot_tell_is_none():
    assert estimate(np.ones((1, 5, 2))).over_draws is None
    assert estimate(np.ones((1, 5, 2))).over_probes == 0
    assert estimate(np.ones((5, 1, 2))).over_images is None
    assert estimate(np.ones((5, 2, 1))).over_probes is None
    assert estimate(np.ones((5, 2, 1)), exact=True).over_probes == 0


def test_importance_weighting_tightens_the_bound_and_reaches_the_probability():
    """A density that is uneven within its cells: the mean over many draws is the cell's mass."""
    density, rng = scipy.stats.norm(0.5, 0.4), np.random.default_rng(RNG_SEED)
    levels = rng.integers(0, 2, 20)
    nats = density.logpdf(levels + rng.uniform(size=(50_000, 20)))
    mass = np.log(density.cdf(levels + 1) - density.cdf(levels))
    together = importance_weighted(nats)
    np.testing.assert_allclose(together, mass, atol=0.02)
    assert np.all(together > nats.mean(axis=0))
    np.testing.assert_allclose(importance_weighted(nats[:1] - 1e4), nats[0] - 1e4)
