"""The bound of a chain in training, against the published formulas in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from command_line import TINY, configuration
from networks import quick_jit

from denoising import Denoiser, Prediction
from errors import ConfigError
from experiment.build import build
from losses import Hybrid, Noise, ScoreMatching, VariationalBound
from numerics.pixel_levels import PixelLevels
from objectives.times import Timesteps
from objectives.variational import step_divergence
from sde_lib import DiscreteVPSDE
from training.objective import FIRST

N, LEVELS = 30, PixelLevels(gray_levels=256)
SDE = DiscreteVPSDE(schedule="cosine", num_timesteps=N)
RNG = np.random.default_rng(0)
X0 = 2 * RNG.integers(0, 256, size=(N, 3, 2)) / 255 - 1
EPS, OUTPUT = RNG.normal(size=(N, 3, 2)), RNG.normal(size=(N, 3, 4))
CHAIN = {"times": Timesteps(num_timesteps=N), "sde": SDE, "pixel_levels": LEVELS}


def model(output):
    return Denoiser(
        sde=SDE,
        network=lambda x, t: output,
        parameterization="eps_learned_variance",
        conditioning="timestep",
        num_timesteps=N,
    )


def losses(objective, output):
    """The losses of all images, each at its timestep."""
    drawn = Noise(jnp.arange(N) / (N - 1), jnp.asarray(EPS))
    return objective.evaluate(jax.random.key(0), drawn, model(output), jnp.asarray(X0), FIRST)


evaluate = quick_jit(losses, static_argnums=0)


def published_bound(eps, eps_hat, fraction):
    """L_(t-1) or L_0 of each timestep in bits/dim, from the betas, as the papers write them."""
    f = np.cos((np.arange(N + 1) / N + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    alpha_bar = np.cumprod(1 - betas)
    previous = np.append(1.0, alpha_bar[:-1])
    small = betas * (1 - previous) / (1 - alpha_bar)
    log_small = np.log(np.append(small[1], small[1:]))
    from_x0 = betas * np.sqrt(previous) / (1 - alpha_bar)
    from_x = (1 - previous) * np.sqrt(1 - betas) / (1 - alpha_bar)
    column = (slice(None), None, None)
    x = np.sqrt(alpha_bar)[column] * X0 + np.sqrt(1 - alpha_bar)[column] * eps
    x0_hat = (x - np.sqrt(1 - alpha_bar)[column] * eps_hat) / np.sqrt(alpha_bar)[column]
    true_mean = from_x0[column] * X0 + from_x[column] * x
    mean = from_x0[column] * x0_hat + from_x[column] * x
    log_variance = fraction * np.log(betas)[column] + (1 - fraction) * log_small[column]
    ratio = log_small[column] - log_variance
    kl = 0.5 * (-1 - ratio + np.exp(ratio) + (true_mean - mean) ** 2 * np.exp(-log_variance))
    normal = scipy.stats.norm(mean[0], np.exp(log_variance[0] / 2))
    upper = np.where(X0[0] > 0.999, 1, normal.cdf(X0[0] + 1 / 255))
    lower = np.where(X0[0] < -0.999, 0, normal.cdf(X0[0] - 1 / 255))
    kl[0] = -np.log(upper - lower)
    return kl.mean(axis=(1, 2)) / math.log(2)


@pytest.mark.slow
def test_bound_and_hybrid_are_the_published_ones_at_each_timestep(x64):
    output = OUTPUT.copy()
    output[..., :2] = EPS + 0.1 * output[..., :2]  # near the truth, as the decoder needs
    eps_hat, fraction = output[..., :2], (output[..., 2:] + 1) / 2
    expected = N * published_bound(EPS, eps_hat, fraction)
    found = evaluate(VariationalBound(**CHAIN), output)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    simple = np.mean((eps_hat - EPS) ** 2, axis=(1, 2))
    found = evaluate(Hybrid(**CHAIN, coefficient=0.003), output)
    np.testing.assert_allclose(found, simple + 0.003 * expected, rtol=1e-8)


@pytest.mark.slow
def test_hybrid_trains_the_noise_by_the_first_term_and_the_variance_by_the_bound(x64):
    objectives = Hybrid(**CHAIN), ScoreMatching(times=CHAIN["times"]), VariationalBound(**CHAIN)

    @quick_jit
    def gradients(output):
        return [
            jax.grad(lambda output, loss=loss: jnp.sum(losses(loss, output)))(output)
            for loss in objectives
        ]

    hybrid, denoising, bound = map(np.asarray, gradients(jnp.asarray(OUTPUT)))
    np.testing.assert_allclose(hybrid[..., :2], denoising[..., :2], rtol=1e-10)
    np.testing.assert_allclose(hybrid[..., 2:], 0.001 * bound[..., 2:], rtol=1e-10)
    assert np.all(denoising[..., 2:] == 0)
    assert np.all(np.isfinite(bound))
    assert np.all(bound != 0)


SPREAD = 0.6  # of Gaussian data


def coefficients(t):
    return (np.asarray(c(jnp.asarray(t))) for c in (SDE.alpha, SDE.sigma))


def best_fraction(t, s):
    """The fraction at which the variance of p(x_s | x_t) is the true one, for steps from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    # p(x_s | x_t) of jointly Gaussian x_s, x_t = (alpha_t / alpha_s) x_s + noise.
    a = alpha_t / alpha_s
    before = alpha_s**2 * SPREAD**2 + sigma_s**2
    b2 = sigma_t**2 - a**2 * sigma_s**2
    true_variance = before * b2 / (a**2 * before + b2)
    small, log_range = b2 * sigma_s**2 / sigma_t**2, np.log(sigma_t**2 / sigma_s**2)
    return np.log(true_variance / small) / log_range


@pytest.mark.slow
def test_best_learned_variance_is_that_of_the_reverse_of_gaussian_data(x64):
    """Its fraction has no slope where the variance of p(x_s | x_t) is the true one."""
    t, s = np.array([0.9, 0.5, 0.2]), np.array([0.8, 0.4, 0.1])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    signal = alpha_t**2 * SPREAD**2
    mean_square = signal / (signal + sigma_t**2)  # of the error of the best eps_hat
    log_range = np.log(sigma_t**2 / sigma_s**2)
    best = best_fraction(t, s)
    assert np.all((best > 0) & (best < 1))
    growth = (alpha_s / sigma_s) ** 2 / (alpha_t / sigma_t) ** 2 - 1

    def expected(fraction):
        error = jnp.sqrt(mean_square)
        given = Prediction(error, error, fraction)
        steps = jnp.asarray(growth), jnp.asarray(log_range)
        return jnp.sum(step_divergence(given, 0 * error, *steps, "learned"))

    np.testing.assert_allclose(quick_jit(jax.grad(expected))(best), 0, atol=1e-12)


@pytest.mark.slow
def test_hybrid_learns_the_variance_of_the_reverse_of_gaussian_data(x64):
    """At every timestep that has a step: the minimum is found without knowing it."""
    # The loss is quadratic in data and noise, and these four points have their second moments.
    x0, eps = SPREAD * np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    t = np.arange(1, N) / (N - 1)
    x0, eps, times = np.tile(x0, N - 1)[:, None], np.tile(eps, N - 1)[:, None], np.repeat(t, 4)
    alpha, sigma = (c[:, None] for c in coefficients(times))
    eps_hat = jnp.asarray(sigma * (alpha * x0 + sigma * eps) / (alpha**2 * SPREAD**2 + sigma**2))

    @quick_jit
    @jax.grad
    def slope(fraction):
        output = jnp.concatenate([eps_hat, jnp.repeat(2 * fraction - 1, 4)[:, None]], axis=1)
        drawn = Noise(jnp.asarray(times), jnp.asarray(eps))
        values = Hybrid(**CHAIN).evaluate(
            jax.random.key(0), drawn, model(output), jnp.asarray(x0), FIRST
        )
        return jnp.sum(values)

    low, high = np.zeros(N - 1), np.ones(N - 1)
    for _ in range(40):  # the loss is convex
        middle = (low + high) / 2
        rises = np.asarray(slope(jnp.asarray(middle))) > 0
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    best = best_fraction(t, t - 1 / (N - 1))
    assert np.all((best > 0.01) & (best < 0.99))
    np.testing.assert_allclose(low, best, atol=1e-7)


LEARNED = {
    "denoiser.parameterization": "eps_learned_variance",
    "model.learned_variance": True,
}
FIELDS = {
    "sde.name": "ddpm",
    "data.dequantization": "none",
    "loss.name": "hybrid",
    "times.name": "timesteps",
    "denoiser.conditioning": "timestep",
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (LEARNED, r"config\.loss\.name='denoising' does not train the variance .* choose hybrid"),
        (
            FIELDS | LEARNED | {"loss.name": "vlb", "loss.variance": "small"},
            r"config\.loss\.name='vlb' does not train the variance .* vlb with variance=learned",
        ),
        (
            FIELDS,
            r"config\.loss\.name='hybrid' trains a variance, .*=eps_learned_variance and "
            r"config\.model\.learned_variance=True, or config\.loss\.name=vlb with variance=small",
        ),
        (
            FIELDS | LEARNED | {"times.name": "uniform"},
            r"config\.loss\.name='vlb' and 'hybrid' .*choose config\.times\.name=timesteps or loss",
        ),
        (
            FIELDS | LEARNED | {"sde.name": "vp"},
            r"config\.times\.name='timesteps' trains at t = 0 too, where config\.sde\.name='vp'",
        ),
        (
            FIELDS | LEARNED | {"loss.coefficient": 0.0},
            r"config\.loss\.coefficient=0\.0 must be ab",
        ),
        ({"weight.name": "min_snr"}, r"config\.weight\.gamma must be given"),
    ],
)
def test_objective_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(TINY | fields))


@pytest.mark.slow
def test_bound_is_trained_on_gray_levels_and_evaluated_with_any_noise():
    fields = TINY | FIELDS | {"loss.name": "vlb", "loss.variance": "small"}
    noisy = build(configuration(fields | {"data.dequantization": "uniform"}))
    with pytest.raises(ConfigError, match=r"'vlb' needs images on .*\.dequantization=none or"):
        noisy.require_trainable()
    for given in (fields, TINY):
        build(configuration(given)).require_trainable()
