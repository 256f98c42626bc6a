"""The continuous bound where densities are known: it is tight for the exact score, term by term."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian, standardized_mixture
from jax.tree_util import Partial

from bounds.continuous import ContinuousBoundOptions, continuous_bound, decoder_step
from denoising import Denoiser
from errors import BoundError
from sde_lib import VESDE, VPSDE, SubVPSDE

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=10.0)}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
T_MIN, COPIES = 1e-3, 4000
SCALES = np.array([0.3, 1.0])
DATA = gaussian(np.zeros(2), np.diag(SCALES**2))
POINT = np.array([0.4, -1.5])


def agrees(values, truth, *, tolerance=0.0):
    """Whether the mean of independent values is within 4 standard errors of the truth."""
    values = np.asarray(values, np.float64)
    allowed = 4 * values.std() / math.sqrt(values.size) + tolerance
    return abs(values.mean() - truth) < allowed


@functools.cache
def bound_of_point(name, importance):
    """Of as many copies of one point, each with times and noise of its own."""
    options = ContinuousBoundOptions(num_times=8, importance=importance, t_min=T_MIN)
    x0 = jnp.asarray(np.tile(POINT, (COPIES, 1)), jnp.float32)
    bound = continuous_bound(KEY, DATA.denoiser(PROCESSES[name]), x0, options=options)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), bound)


def log_densities(sde, t):
    """Means over q(x_t | POINT) of log q itself, log p_t and the prior's, and of |eps - eps^|^2."""
    alpha, sigma = (float(c(jnp.float32(t))) for c in (sde.alpha, sde.sigma))
    second = alpha**2 * POINT**2 + sigma**2

    def mean_log(variance, second):
        return -0.5 * np.sum(np.log(2 * math.pi * variance) + second / variance)

    of_q = mean_log(np.full(2, sigma**2), np.full(2, sigma**2))
    variance = alpha**2 * SCALES**2 + sigma**2
    of_prior = mean_log(np.full(2, sde.prior_std**2), second)
    # eps_hat = sigma x_t / variance
    share = sigma**2 / variance
    errors = np.sum((1 - share) ** 2 + (share * alpha * POINT / sigma) ** 2)
    return of_q, mean_log(variance, second), of_prior, errors, alpha, sigma


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "importance"),
    [("vp", "uniform"), ("ve", "log_snr")],
)
def test_every_term_has_its_expectation_at_a_point(name, importance):
    """With the exact score, paths of the reverse process have the data's own probabilities.

    So prior + diffusion is E[log q(x_t | x0) - log p_t(x_t)] at t_min, and at t = 1 the mean of
    log p_1 - log prior is added for the prior's mismatch.
    """
    sde, bound = PROCESSES[name], bound_of_point(name, importance)
    of_q, of_p, _, errors, alpha, sigma = log_densities(sde, T_MIN)
    last_q, last_p, last_prior, *_ = log_densities(sde, 1.0)
    np.testing.assert_allclose(bound.prior, last_q - last_prior, rtol=1e-4, atol=1e-6)
    assert agrees(bound.prior + bound.diffusion, of_q - of_p + last_p - last_prior)
    tweedie = math.log(2 * math.pi * (sigma / alpha) ** 2) + errors / 2
    assert agrees(bound.decoder, tweedie)
    total = bound.prior + bound.diffusion + bound.decoder
    np.testing.assert_allclose(bound.total, total, rtol=1e-5, atol=1e-5)
    assert bound.nfe == 9


@pytest.mark.slow
def test_mean_over_a_mixture_is_its_entropy_and_the_priors_mismatch():
    sde, mixture = PROCESSES["subvp"], standardized_mixture()
    x0, options = mixture.sample(0, COPIES), ContinuousBoundOptions(num_times=16)
    bound = continuous_bound(
        KEY, mixture.denoiser(sde), jnp.asarray(x0, jnp.float32), options=options
    )
    last = mixture.marginal(sde, 1.0)
    x = last.sample(1, 100_000)
    mismatch = np.mean(last.log_prob(x) - sde.prior_log_prob(jnp.asarray(x, jnp.float32)))
    excess = bound.total + mixture.log_prob(x0)
    assert np.std(excess) < 6, "the test should be a sharp one"
    assert agrees(excess, mismatch, tolerance=1e-3)


@pytest.mark.slow
def test_standard_error_is_that_of_the_draws_or_a_little_more():
    for importance in ("log_snr", "uniform"):
        bound = bound_of_point("vp", importance)
        ratio = np.sqrt(np.mean(bound.error**2)) / bound.diffusion.std()
        assert 0.95 < ratio < 1.3, importance
    assert np.mean(bound.error**2) > 4 * np.mean(bound_of_point("vp", "log_snr").error ** 2)


def silent(threshold, x, t):
    """Predicts no noise, and NaN after a time."""
    return jnp.where(t > threshold, jnp.nan, 0 * x.T).T


@pytest.mark.slow
def test_error_is_small_where_no_noise_is_predictable_and_nan_is_an_error_with_its_time():
    """||eps||^2 / 2 alone would leave log_snr(t_min) - log_snr(1) times sqrt(D / 2 / times)."""
    sde, x0 = PROCESSES["vp"], jnp.zeros((64, 500))
    denoiser = Denoiser(sde=sde, network=Partial(silent, 1.0), conditioning="t")
    options = ContinuousBoundOptions(num_times=8, t_min=T_MIN)
    bound = continuous_bound(KEY, denoiser, x0, options=options)
    low, high = sde.log_snr(jnp.array([1.0, T_MIN]))
    alone = (high - low) * math.sqrt(500 / 2 / 8)
    assert np.std(bound.diffusion) < 0.15 * alone
    assert agrees(bound.diffusion, (high - low) * 500 / 2)
    denoiser = Denoiser(sde=sde, network=Partial(silent, 0.3), conditioning="t")
    with pytest.raises(BoundError, match=r"64 of 64 samples .* the first at t=(0\.[3-9]|1;)"):
        continuous_bound(KEY, denoiser, x0, options=options)
    denoiser = Denoiser(sde=sde, network=Partial(silent, 0.0), conditioning="t")
    with pytest.raises(BoundError, match=r"the first at t=0\.001; check the network"):
        decoder_step(KEY, denoiser, x0, t_min=T_MIN)


@every_process
@pytest.mark.slow
def test_last_step_bounds_the_density_of_data_by_that_of_noisy_data(sde):
    x0 = jnp.asarray(np.tile(POINT, (COPIES, 1)), jnp.float32)
    t_min = 0.05
    step = decoder_step(KEY, DATA.denoiser(sde), x0, t_min=t_min)
    _, of_p, _, errors, alpha, sigma = log_densities(sde, t_min)
    assert agrees(step.nats, 2 * math.log(alpha) + 1 - errors / 2)
    noisy = DATA.marginal(sde, t_min).log_prob(step.x)
    assert agrees(noisy, of_p)
    bound = noisy.mean() + np.mean(step.nats)
    assert bound < DATA.log_prob(POINT[None])[0] + 0.05
    # log p(x0 | x_t) - log q(x_t | x0), from the densities themselves.
    x = np.asarray(step.x[:5], np.float64)
    share = alpha * SCALES**2 / (alpha**2 * SCALES**2 + sigma**2)
    pairs = (np.asarray(x0[:5]) - share * x, sigma / alpha), (x - alpha * POINT, sigma)
    logs = [np.sum(-0.5 * (gap / std) ** 2 - math.log(std), axis=1) for gap, std in pairs]
    np.testing.assert_allclose(step.nats[:5], logs[0] - logs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_bound_is_a_function_of_key_number_and_sample_alone():
    sde, options = PROCESSES["vp"], ContinuousBoundOptions(num_times=4)
    points = np.float32([[0.1, 0.2], [1.0, -1.0], [0.5, 0.5]])

    def bound(rows, indices=None):
        denoiser = Denoiser(
            sde=sde,
            network=lambda x, t, labels: jnp.sin(x * (1 + labels[:, None])),
            labels=jnp.asarray(rows),
        )
        return continuous_bound(
            KEY, denoiser, jnp.asarray(points[rows]), options=options, indices=indices
        )

    first, second = bound([0, 1, 2]), bound([1, 2, 1], jnp.array([1, 7, 2]))
    for one, other in zip(first[:-1], second[:-1], strict=True):
        np.testing.assert_allclose(other[0], one[1], rtol=1e-4)
    assert abs(second.diffusion[2] - first.diffusion[1]) > 1e-3
    assert abs(second.decoder[2] - first.decoder[1]) > 1e-3
    assert abs(second.diffusion[1] - first.diffusion[2]) > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"importance": "no"}, "importance='no' is unknown; choose one of: log_snr, uniform"),
        ({"num_times": 3}, "num_times=3 must be an even number, at least 2"),
        ({"num_times": 0}, "num_times=0 must be an even number, at least 2"),
        ({"t_min": 1.0}, r"t_min=1\.0 must lie in \(0, 1\)"),
    ],
)
def test_invalid_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ContinuousBoundOptions(**fields)
