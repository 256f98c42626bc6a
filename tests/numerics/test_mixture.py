"""The importable mixture against the reference of the tests, and the heat kernel."""

import analytic
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from numerics.mixture import Mixture

MEANS = np.array([[1.0, 0.5], [-1.0, 0.0], [0.2, -1.5]])
WEIGHTS = np.array([0.2, 0.3, 0.5])
MIXTURE = Mixture(means=MEANS, weights=WEIGHTS, std=0.3)
TRUTH = analytic.Mixture(WEIGHTS, MEANS, np.stack([0.09 * np.eye(2)] * 3))
POINTS = np.random.default_rng(0).normal(size=(20, 2))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", [0.05, 0.4])
@pytest.mark.slow
def test_density_and_score_at_a_noise_level_are_those_of_the_reference(t):
    sde = sde_lib.VPSDE()
    alpha, sigma = sde.alpha(jnp.asarray(t)), sde.sigma(jnp.asarray(t))
    noisy = TRUTH.marginal(sde, t)
    log_prob, score = jax.jit(MIXTURE.log_prob), jax.jit(MIXTURE.score)
    np.testing.assert_allclose(log_prob(POINTS, alpha, sigma), noisy.log_prob(POINTS), 1e-10)
    np.testing.assert_allclose(score(POINTS, alpha, sigma), noisy.score(POINTS), 1e-10)


@pytest.mark.slow
def test_samples_follow_it():
    analytic.assert_samples_follow(MIXTURE.sample(jax.random.key(0), 20_000), TRUTH)


@pytest.mark.slow
def test_one_point_with_noise_is_the_heat_kernel():
    x, t = jnp.linspace(-2, 2, 9)[:, None], 0.7
    expected = -(x[:, 0] ** 2) / (2 * t) - 0.5 * np.log(2 * np.pi * t)
    kernel = Mixture(means=[[0.0]])
    np.testing.assert_allclose(kernel.log_prob(x, sigma=np.sqrt(t)), expected, atol=1e-5)


@pytest.mark.slow
def test_it_passes_through_jit_with_its_numbers_traced():
    density = jax.jit(lambda mixture, x: mixture.log_prob(x))
    wider = Mixture(means=MEANS, weights=WEIGHTS, std=0.6)
    x = jnp.asarray(POINTS, jnp.float32)
    for mixture in (MIXTURE, wider):
        np.testing.assert_allclose(density(mixture, x), mixture.log_prob(x), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"means": [0.0, 1.0]}, r"means \(2,\) must have the shape"),
        ({"means": MEANS, "weights": [0.5, 0.5]}, "must be 3 positive numbers that sum to 1"),
        ({"means": MEANS, "weights": [0.5, 0.5, 0.5]}, "must be 3 positive numbers"),
        ({"means": MEANS, "std": -1.0}, r"std=-1.0 must be at least 0"),
    ],
)
def test_bad_numbers_are_named(fields, problem):
    with pytest.raises(ValueError, match=problem):
        Mixture(**fields)
