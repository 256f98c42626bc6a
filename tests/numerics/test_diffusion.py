"""Paths and densities of diffusions against closed forms: Gaussians, mixtures, linear maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from numerics.arrays import sample_keys
from numerics.diffusion import (
    fisher_divergence,
    fokker_planck,
    ornstein_uhlenbeck_paths,
    relative_entropy,
    simulate,
    transported,
    wiener_paths,
)
from numerics.mixture import Mixture

KEYS = sample_keys(jax.random.key(0), jnp.arange(4000))
TIMES = jnp.array([0.0, 0.2, 0.5, 1.0])
POINTS = np.random.default_rng(0).normal(size=(12, 2))
MIXTURE = Mixture(means=np.array([[1.0, 0.5], [-1.0, 0.0]]), weights=np.array([0.3, 0.7]), std=0.4)


def log_normal(mean, variance):
    return lambda x: -((x - mean) ** 2) / (2 * variance) - 0.5 * jnp.log(2 * jnp.pi * variance)


def test_increments_of_a_wiener_process_are_independent_normals():
    paths = np.asarray(wiener_paths(KEYS, TIMES, 2))
    assert np.all(paths[0] == 0)
    increments = np.diff(paths, axis=0) / np.sqrt(np.diff(TIMES))[:, None, None]
    values = np.moveaxis(increments, 1, 0).reshape(len(KEYS), -1)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=4.5 / np.sqrt(len(KEYS)))
    np.testing.assert_allclose(np.cov(values.T), np.eye(6), atol=6.5 / np.sqrt(len(KEYS)))


def test_a_path_depends_on_its_key_alone():
    few = wiener_paths(KEYS[5:7], TIMES, 2)
    np.testing.assert_array_equal(few, wiener_paths(KEYS[:10], TIMES, 2)[:, 5:7])


def test_ornstein_uhlenbeck_paths_have_the_exact_moments_at_few_times():
    theta, g = 1.5, 0.8
    start = jnp.full((len(KEYS), 1), 2.0)
    paths = np.asarray(ornstein_uhlenbeck_paths(KEYS, start, TIMES, theta=theta, diffusion=g))
    for t, states in zip(TIMES[1:], paths[1:, :, 0], strict=True):
        variance = g**2 * (1 - np.exp(-2 * theta * t)) / (2 * theta)
        error = np.sqrt(variance / len(KEYS))
        assert abs(states.mean() - 2 * np.exp(-theta * t)) < 4.5 * error
        assert abs(states.var() / variance - 1) < 4.5 * np.sqrt(2 / len(KEYS))


def test_coupled_ornstein_uhlenbeck_paths_contract_exponentially():
    theta = 1.5
    starts = jnp.array([[2.0, 0.0]]), jnp.array([[-1.0, 3.0]])
    first, second = (
        ornstein_uhlenbeck_paths(KEYS[:1], x, TIMES, theta=theta, diffusion=0.8) for x in starts
    )
    distance = np.linalg.norm(first - second, axis=-1)[:, 0]
    np.testing.assert_allclose(distance, distance[0] * np.exp(-theta * TIMES), rtol=1e-5)
    with pytest.raises(ValueError, match="theta=0 must be above 0"):
        ornstein_uhlenbeck_paths(KEYS[:1], starts[0], TIMES, theta=0, diffusion=1.0)


@pytest.mark.slow
def test_euler_maruyama_without_noise_has_the_order_one():
    start, errors = jnp.ones((1, 1)), []
    for steps in (20, 40):
        times = jnp.linspace(0, 1, steps + 1)
        path = simulate(
            KEYS[:1], start, times, drift=lambda x, t: -2 * t * x, diffusion=jnp.zeros_like
        )
        errors.append(abs(float(path[-1, 0, 0]) - np.exp(-1)))
    assert 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.slow
def test_euler_maruyama_backward_returns_the_data_of_a_gaussian():
    """The reverse SDE of N(0, 4) under dx = dw, whose score is -x / (4 + t)."""
    start = np.sqrt(5.0) * wiener_paths(KEYS, jnp.array([0.0, 1.0]), 1)[1]
    keys = sample_keys(jax.random.key(1), jnp.arange(len(KEYS)))
    times = jnp.linspace(1, 0, 101)
    path = simulate(keys, start, times, drift=lambda x, t: x / (4 + t), diffusion=jnp.ones_like)
    assert abs(float(path[-1].var()) / 4 - 1) < 4.5 * np.sqrt(2 / len(KEYS)) + 0.01


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
@pytest.mark.slow
def test_reverse_processes_of_any_churn_have_the_marginals_of_the_forward_one(name):
    sde, x, t = sde_lib.SDES[name](), jnp.asarray(POINTS), jnp.asarray(0.3)

    def log_p(x, t):
        return MIXTURE.log_prob(x, sde.alpha(t), sde.sigma(t))

    def forward(x, t):
        return sde.drift_coefficient(t) * x

    @jax.jit
    def backward(churn, scale):
        """Both sides for the reverse process, with `scale` times its noise."""

        def drift(x, t):
            return sde_lib.reverse_drift(sde, jax.grad(log_p)(x, t), x, t, churn)

        def noise(t):
            return -scale * churn**2 * sde.squared_diffusion(t)

        return fokker_planck(log_p, drift, noise, x, t)

    change, right = jax.jit(lambda: fokker_planck(log_p, forward, sde.squared_diffusion, x, t))()
    size = float(jnp.abs(change).max())
    np.testing.assert_allclose(right, change, atol=1e-10 * size)
    for churn in (0.0, 0.6, 1.0):
        again, right = backward(churn, 1.0)
        np.testing.assert_allclose(again, change, atol=1e-12 * size)
        np.testing.assert_allclose(right, change, atol=1e-10 * size)
    _, wrong = backward(1.0, 0.9)
    assert np.abs(wrong - change).max() > 0.01 * size


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_transported_density_of_a_linear_flow_is_a_gaussian_and_obeys_continuity():
    """The flow of A = a I + b J turns by b t and grows by exp(a t)."""
    grow, turn = -0.2, 1.3
    matrix = jnp.array([[grow, -turn], [turn, grow]])

    def moved(x, t):
        cos, sin = jnp.cos(turn * t), jnp.sin(turn * t)
        return jnp.exp(grow * t) * jnp.array([cos * x[0] - sin * x[1], sin * x[0] + cos * x[1]])

    variances = jnp.array([1.0, 0.3])

    def log_p(x, t):
        start = log_normal(0.0, variances)
        return transported(lambda x: start(x).sum(), lambda x: moved(x, -t))(x)

    x, t = jnp.asarray(POINTS), jnp.asarray(0.8)
    forward = np.stack([moved(row, 0.8) for row in jnp.eye(2)], axis=1)
    covariance = forward @ np.diag(variances) @ forward.T
    squares = np.einsum("bi,ij,bj->b", POINTS, np.linalg.inv(covariance), POINTS)
    expected = -0.5 * squares - 0.5 * np.log(np.linalg.det(2 * np.pi * covariance))
    np.testing.assert_allclose(jax.vmap(log_p, (0, None))(x, t), expected, rtol=1e-10)
    change, transport = jax.jit(
        lambda: fokker_planck(log_p, lambda x, t: matrix @ x, jnp.zeros_like, x, t)
    )()
    np.testing.assert_allclose(transport, change, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_entropy_and_fisher_divergence_of_gaussians_are_the_closed_forms():
    line = jnp.linspace(-12, 12, 2001)
    q, p = log_normal(0.5, 0.6), log_normal(0.0, 1.0)
    np.testing.assert_allclose(
        relative_entropy(q, p, line), 0.5 * (0.6 + 0.25 - 1 - np.log(0.6)), rtol=1e-8
    )
    # The difference of scores is x - (x - 0.5) / 0.6.
    slope = 1 - 1 / 0.6
    mean = slope * 0.5 + 0.5 / 0.6
    expected = mean**2 + slope**2 * 0.6
    np.testing.assert_allclose(fisher_divergence(q, p, line), expected, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_entropy_falls_along_langevin_dynamics_at_the_rate_of_the_fisher_divergence():
    """For p = N(0, 1) the dynamics are an Ornstein-Uhlenbeck process, so q is a mixture."""
    line = jnp.linspace(-12, 12, 1001)
    start = Mixture(means=np.array([[2.5], [-1.0]]), weights=np.array([0.4, 0.6]), std=0.5)

    def log_q(tau):
        alpha = jnp.exp(-tau)
        return lambda x: start.log_prob(x[None], alpha, jnp.sqrt(1 - alpha**2))

    p, tau = log_normal(0.0, 1.0), jnp.asarray(0.3)
    rate = jax.jit(jax.grad(lambda tau: relative_entropy(log_q(tau), p, line)))(tau)
    divergence = jax.jit(lambda tau: fisher_divergence(log_q(tau), p, line))(tau)
    np.testing.assert_allclose(rate, -divergence, rtol=1e-8)
