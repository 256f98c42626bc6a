"""Metrics against closed forms: known densities, Gaussians, and sums that must not cancel."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from metrics.bits_per_dim import bits_per_dim, estimate
from metrics.frechet import Statistics, frechet_distance, pixels

RNG_SEED = 0


def random_covariance(rng, dims):
    factor = rng.normal(size=(dims, dims))
    return factor @ factor.T + 0.1 * np.eye(dims)


def textbook(a, b):
    """The distance as Heusel et al. print it, by a general matrix square root."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    squares = np.sum((a.mean - b.mean) ** 2)
    return squares + np.trace(a.covariance + b.covariance - 2 * root)


# --- bits/dim -----------------------------------------------------------------------------------


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


def test_standard_errors_tell_images_from_draws():
    """values = image effect + draw effect: each error is its own effect's, over the root."""
    rng = np.random.default_rng(RNG_SEED)
    images, draws = rng.normal(size=400), 0.1 * rng.normal(size=300)
    ours = estimate(draws[:, None] + images[None])
    assert ours.mean == pytest.approx(images.mean() + draws.mean())
    assert ours.over_images == pytest.approx(scipy.stats.sem(images))
    assert ours.over_draws == pytest.approx(scipy.stats.sem(draws))


def test_single_draw_or_image_has_no_error():
    assert math.isnan(estimate(np.ones((1, 5))).over_draws)
    assert estimate(np.ones((1, 5))).over_images == 0
    assert math.isnan(estimate(np.ones((5, 1))).over_images)


# --- Frechet distance ---------------------------------------------------------------------------


def test_commuting_covariances_have_a_closed_form():
    a = Statistics(9, np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Statistics(9, np.array([4.0, 6.0]), np.diag([1.0, 25.0]))
    # |m|^2 and the squared differences of the standard deviations
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)


@pytest.mark.parametrize("dims", [1, 3, 20])
def test_general_covariances_agree_with_the_matrix_square_root(dims):
    rng = np.random.default_rng(RNG_SEED)
    a, b = (Statistics(9, rng.normal(size=dims), random_covariance(rng, dims)) for _ in range(2))
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_distance_to_itself_is_zero():
    rng = np.random.default_rng(RNG_SEED)
    a = Statistics(9, rng.normal(size=10), random_covariance(rng, 10))
    assert 0 <= frechet_distance(a, a) < 1e-9


def test_distance_is_invariant_to_rotations():
    rng = np.random.default_rng(RNG_SEED)
    a, b = (Statistics(9, rng.normal(size=5), random_covariance(rng, 5)) for _ in range(2))
    rotation = scipy.stats.ortho_group.rvs(5, random_state=1)
    turn_a, turn_b = (
        Statistics(9, rotation @ s.mean, rotation @ s.covariance @ rotation.T) for s in (a, b)
    )
    assert frechet_distance(turn_a, turn_b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_singular_covariances_are_fine():
    line = Statistics(9, np.zeros(3), np.diag([1.0, 0.0, 0.0]))
    other = Statistics(9, np.zeros(3), np.diag([0.0, 4.0, 0.0]))
    assert frechet_distance(line, other) == pytest.approx(5)
    low_rank = Statistics.of([images(4)], pixels)  # rank 3 in 6 dimensions
    assert 0 <= frechet_distance(low_rank, low_rank) < 1e-6


def test_different_features_are_refused():
    with pytest.raises(ValueError, match="features differ in number: 2 and 3"):
        frechet_distance(
            Statistics(9, np.zeros(2), np.eye(2)), Statistics(9, np.zeros(3), np.eye(3))
        )


def images(count):
    return np.random.default_rng(RNG_SEED).integers(0, 256, (count, 3, 2, 1), dtype=np.uint8)


@pytest.mark.parametrize("cuts", [[], [1], [7, 20], [5, 6, 30]])
def test_streamed_statistics_are_those_of_one_pass(cuts):
    everything = images(40)
    ours = Statistics.of(np.split(everything, cuts), pixels)
    features = everything.reshape(40, -1) / 255
    assert ours.count == 40
    np.testing.assert_allclose(ours.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, np.cov(features.T), rtol=1e-10)


def test_large_means_do_not_cancel():
    """Features of mean 1e8 and variance 1: naive sums of squares would lose every digit."""
    noise = np.random.default_rng(RNG_SEED).normal(size=(50, 4))
    batches = iter(np.split(1e8 + noise, 5))
    ours = Statistics.of([images(10)] * 5, lambda _: next(batches))
    np.testing.assert_allclose(ours.covariance, np.cov(noise.T), atol=1e-6)


def test_pixels_are_in_the_unit_interval():
    everything = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(pixels(everything), [[0], [0.2], [1]])


@pytest.mark.parametrize("batches", [[], [images(1)]])
def test_too_few_images_are_refused(batches):
    message = f"at least 2 images, got {sum(map(len, batches))}"
    with pytest.raises(ValueError, match=message):
        Statistics.of(batches, pixels)
