"""The objective on Gaussian data, where its minimum, its slope and its weights are known.

The estimators by traces are compared with the brute-force Jacobian of any network.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from analytic import gaussian
from jax.tree_util import Partial
from networks import quick_jit

from denoising import Denoiser
from losses import (
    LOSSES,
    REDUCTIONS,
    ExactScoreMatching,
    FisherDivergence,
    ScoreMatching,
    SlicedScoreMatching,
)
from objectives.times import LogSNR, Stratified, Timesteps, Uniform
from objectives.weights import G2, Sigma2
from sde_lib import VESDE, VPSDE, SubVPSDE
from training.parallel import DataParallel

SCALE, DIMS, BATCH, T_MIN = 0.7, 4, 20_000, 0.01
DATA = gaussian(np.zeros(DIMS), SCALE**2 * np.eye(DIMS))
PROCESSES = [
    pytest.param(VPSDE(), id="vp"),
    pytest.param(SubVPSDE(), id="subvp"),
    pytest.param(VESDE(sigma_max=10.0), id="ve"),
]
every_process = pytest.mark.parametrize("sde", PROCESSES)
UNIFORM = {"uniform": Uniform, "stratified": Stratified}
both_weights = pytest.mark.parametrize("weight", [Sigma2(), G2()], ids=["sigma2", "g2"])


def exact_eps(theta, sde, x, t):
    """The best prediction of the noise in x_t of N(0, SCALE^2 I), off by a factor 1 + theta."""
    sigma, alpha = sde.sigma(t)[:, None], sde.alpha(t)[:, None]
    return (1 + theta) * sigma * x / (alpha**2 * SCALE**2 + sigma**2)


def closed_form(sde, weight, integrand):
    """E over t of lambda / sigma^2 times a function of (alpha^2 SCALE^2, sigma^2)."""
    # The variable is log t, because the likelihood weight grows as 1 / t.
    log_t = np.linspace(math.log(T_MIN), 0, 401)
    t = jnp.asarray(np.exp(log_t), jnp.float32)
    signal, noise = np.asarray(sde.alpha(t)) ** 2 * SCALE**2, np.asarray(sde.sigma(t)) ** 2
    scale = np.asarray(weight(sde, t))
    values = np.float64(scale * integrand(signal, noise)) * np.exp(log_t)
    return scipy.integrate.simpson(values, x=log_t) / (1 - T_MIN)


def agrees(values, truth, deviations=4):
    """Whether the mean of independent values is within `deviations` standard errors of `truth`."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - truth) < deviations * values.std() / math.sqrt(values.size)


@functools.partial(jax.jit, static_argnames="loss")
def values_and_slopes(loss, sde, theta, key, x0):
    def values(theta):
        network = Partial(exact_eps, theta, sde)
        denoiser = Denoiser(sde=sde, network=network, parameterization="eps", conditioning="t")
        return loss(key, denoiser, x0).values

    return jax.jvp(values, (theta,), (jnp.ones_like(theta),))


@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_discrete_times_are_the_timesteps_equally_often(num_timesteps):
    times = Timesteps(num_timesteps=num_timesteps)
    t = np.asarray(times.draw(jax.random.key(0), BATCH, VPSDE()), np.float64)
    index = np.rint(t * (num_timesteps - 1))
    np.testing.assert_allclose(t, index / (num_timesteps - 1), rtol=1e-6)
    counts = np.bincount(index.astype(int), minlength=num_timesteps)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.slow
def test_discrete_smld_loss_is_the_published_one():
    """Half the sum of (sigma_i score + eps)^2 over the terms of a geometric sequence."""
    sde = VESDE()
    loss = ScoreMatching(times=Timesteps(num_timesteps=232), reduction="half_sum")
    sigmas = np.geomspace(0.01, 50.0, 232)
    seen = []

    def network(x, index):
        seen.append((x, index))
        return 0 * x

    denoiser = Denoiser(
        sde=sde,
        network=network,
        parameterization="scaled_score",
        conditioning="reversed_timestep",
        num_timesteps=232,
    )
    values = loss(jax.random.key(0), denoiser, jnp.zeros((BATCH, DIMS))).values
    ((x, index),) = seen
    sigma = sigmas[::-1][np.asarray(index).astype(int)]
    eps = (np.asarray(x, np.float64) + 1) / 2 / sigma[:, None]
    np.testing.assert_allclose(values, 0.5 * (eps**2).sum(axis=1), rtol=1e-3)
    assert agrees(eps**2, 1.0)


@pytest.mark.slow
@both_weights
@every_process
def test_exact_score_attains_the_known_minimum_with_slope_zero(sde, weight):
    loss = ScoreMatching(weight=weight, times=Uniform(t_min=T_MIN))
    x0 = jnp.asarray(DATA.sample(0, BATCH), jnp.float32)
    values, slopes = values_and_slopes(loss, sde, jnp.float32(0), jax.random.key(0), x0)
    # E (eps - eps_hat)^2 = alpha^2 s^2 / (alpha^2 s^2 + sigma^2) in each dimension
    assert agrees(values, closed_form(sde, weight, lambda signal, noise: signal / (signal + noise)))
    assert agrees(slopes, 0.0)


@both_weights
@every_process
def test_wrong_score_costs_its_squared_error(sde, weight):
    loss = ScoreMatching(weight=weight, times=Uniform(t_min=T_MIN))
    x0 = jnp.asarray(DATA.sample(1, BATCH), jnp.float32)
    theta, key = jnp.float32(0.5), jax.random.key(1)
    values, slopes = values_and_slopes(loss, sde, theta, key, x0)
    best, _ = values_and_slopes(loss, sde, jnp.float32(0), key, x0)
    # The excess is theta^2 E eps_hat^2, of which the slope is 2 theta E eps_hat^2.
    squared = closed_form(sde, weight, lambda signal, noise: noise / (signal + noise))
    assert agrees(values - best, 0.25 * squared)
    assert agrees(slopes, squared)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@both_weights
@every_process
def test_loss_of_a_sample_is_the_formula(sde, weight, reduction):
    """Recomputed from what the network saw: lambda || s - grad log p(x_t | x_0) ||^2."""
    seen = []

    def network(x, t):
        seen.append((np.asarray(x, np.float64), t))
        return jnp.sin(x)  # as a score

    denoiser = Denoiser(sde=sde, network=network, parameterization="score", conditioning="t")
    loss = ScoreMatching(weight=weight, reduction=reduction, times=Uniform(t_min=0.1))
    x0 = jax.random.normal(jax.random.key(2), (5, 2, 3))
    ours = loss(jax.random.key(3), denoiser, x0).values
    ((x, t),) = seen
    alpha, sigma = (np.asarray(c(t), np.float64)[:, None, None] for c in (sde.alpha, sde.sigma))
    target = -(x - alpha * x0) / sigma**2
    weights = sde.sigma(t) ** 2 if weight == Sigma2() else sde.squared_diffusion(t)
    norms = np.sum((np.sin(x) - target) ** 2, axis=(1, 2))
    expected = weights * norms * {"mean": 1 / 6, "sum": 1, "half_sum": 1 / 2}[reduction]
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


@pytest.mark.parametrize("times", UNIFORM)
def test_each_time_is_uniform(times):
    keys = jax.random.split(jax.random.key(4), 2000)
    draw = UNIFORM[times](t_min=1e-9).draw
    drawn = jax.vmap(lambda key: draw(key, 4, VPSDE()))(keys)
    for slot in np.asarray(drawn).T:
        assert scipy.stats.kstest(slot, "uniform").pvalue > 1e-3


def test_stratified_times_cover_the_interval_and_lower_the_variance():
    keys = jax.random.split(jax.random.key(5), 500)
    drawn = {
        name: np.asarray(jax.vmap(lambda key, cls=cls: cls(t_min=1e-9).draw(key, 8, VPSDE()))(keys))
        for name, cls in UNIFORM.items()
    }
    gaps = np.diff(np.sort(drawn["stratified"]), axis=1)
    np.testing.assert_allclose(gaps, 1 / 8, atol=1e-6)
    spread = {name: np.mean(times**2, axis=1).std() for name, times in drawn.items()}
    assert spread["stratified"] < 0.5 * spread["uniform"]


@pytest.mark.slow
@every_process
def test_times_of_log_snr_have_stratified_log_snr(sde):
    t = LogSNR(t_min=1e-5).draw(jax.random.key(8), 64, sde)
    assert 1e-5 <= t.min() < t.max() <= 1
    low, high = sde.log_snr(jnp.array([1.0, 1e-5]))
    position = np.sort((sde.log_snr(t) - low) / (high - low))
    np.testing.assert_allclose(np.diff(position), 1 / 64, rtol=0.01)
    assert position[0] < 1 / 64
    assert position[-1] > 63 / 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "weight", "least", "most"),
    [
        (VPSDE(), G2(), 0.4, 0.55),
        (SubVPSDE(), Sigma2(), 0.0, math.inf),
        # Its log-SNR is linear in t: the same times.
        (VESDE(sigma_max=10.0), G2(), 0.95, 1.05),
    ],
    ids=["vp-g2", "subvp-sigma2", "ve-g2"],
)
def test_uniform_log_snr_has_the_expectation_of_uniform_times(sde, weight, least, most):
    """With weight="g2" the standard deviation is smaller, by a factor from `least` to `most`."""
    x0, key = jnp.asarray(DATA.sample(0, BATCH), jnp.float32), jax.random.key(9)
    uniform = ScoreMatching(weight=weight, times=Uniform(t_min=T_MIN))
    even, _ = values_and_slopes(uniform, sde, jnp.float32(0), key, x0)
    loss = dataclasses.replace(uniform, times=LogSNR(t_min=T_MIN))
    values = jax.jit(loss)(key, DATA.denoiser(sde), x0).values
    assert agrees(values, closed_form(sde, weight, lambda signal, noise: signal / (signal + noise)))
    assert least < np.std(values) / np.std(even) < most


@pytest.mark.slow
@pytest.mark.parametrize("times", UNIFORM)
def test_times_lie_between_t_min_and_one_and_noise_is_normal_and_independent(times):
    seen = []

    def network(x, t):
        seen.append((np.asarray(x), np.asarray(t)))
        return x

    sde = VPSDE()
    denoiser = Denoiser(sde=sde, network=network, conditioning="t")
    loss = ScoreMatching(times=UNIFORM[times](t_min=0.5))
    loss(jax.random.key(6), denoiser, jnp.zeros((500, 1)))
    ((x, t),) = seen
    assert 0.5 <= t.min() < 0.51
    assert 0.99 < t.max() <= 1
    eps = x / np.asarray(sde.sigma(jnp.asarray(t)))[:, None]
    assert scipy.stats.kstest(eps.ravel(), "norm").pvalue > 1e-3
    correlation = scipy.stats.spearmanr(t, eps.ravel())
    assert correlation.pvalue > 1e-3  # pyright: ignore[reportAttributeAccessIssue]  (SciPy's stubs)


@pytest.mark.slow
def test_loss_is_the_same_on_one_device_and_on_four():
    parallel, sde = DataParallel.over_all_devices(), VPSDE()
    assert parallel.devices == 4
    x0 = DATA.sample(2, 64).astype(np.float32)
    run = functools.partial(values_and_slopes, ScoreMatching(times=Stratified()), sde)
    theta, key = jnp.float32(0.1), jax.random.key(7)
    alone, _ = run(theta, key, jnp.asarray(x0))
    together, _ = run(theta, key, parallel.split_rows(x0))
    assert len(together.sharding.device_set) == 4
    np.testing.assert_allclose(together, alone, rtol=1e-5)


ESTIMATORS = {
    "exact": (VPSDE(), ExactScoreMatching(times=Uniform(t_min=T_MIN))),
    "sliced": (VESDE(sigma_max=10.0), SlicedScoreMatching(times=Uniform(t_min=T_MIN))),
    "sliced-plain": (
        SubVPSDE(),
        SlicedScoreMatching(times=Uniform(t_min=T_MIN), variance_reduced=False),
    ),
    "sliced-gaussian-g2": (
        VPSDE(),
        SlicedScoreMatching(times=LogSNR(t_min=T_MIN), weight=G2(), directions="gaussian"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "loss"), ESTIMATORS.values(), ids=ESTIMATORS)
def test_estimators_have_the_expectation_of_denoising_and_its_minimum(sde, loss):
    """The constant agrees too, at the exact score, where the slope is zero, and at a wrong one."""
    x0 = jnp.asarray(DATA.sample(3, BATCH), jnp.float32)
    best = closed_form(sde, loss.weight, lambda signal, noise: signal / (signal + noise))
    squared = closed_form(sde, loss.weight, lambda signal, noise: noise / (signal + noise))
    for theta in (0.0, 0.5):
        run = functools.partial(values_and_slopes, loss, sde, jnp.float32(theta))
        values, slopes = run(jax.random.key(10), x0)
        assert agrees(values, best + theta**2 * squared)
        assert agrees(slopes, 2 * theta * squared)


def mixing(theta, x, t):
    """A network whose Jacobian is full, not symmetric, and different for each image and time."""
    flat = x.reshape(len(x), -1)
    rows = jnp.sin(theta * jnp.arange(flat.shape[1] ** 2, dtype=x.dtype))
    mixed = flat @ rows.reshape(flat.shape[1], -1)
    return jnp.tanh(mixed * (1 + t[:, None])).reshape(x.shape)


X0 = np.random.default_rng(4).normal(size=(3, 5, 7, 2))


def test_exact_form_of_a_sample_is_the_formula(x64):
    """|| eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D of the network's input, an image.

    It has more dimensions than one batch of directions.
    """

    @quick_jit
    def compare(x0):
        def network(x, t):
            seen.append((x, t))
            return mixing(0.7, x, t)

        def formula(x, t):
            def network(x):
                return mixing(0.7, x[None], t[None]).ravel()

            eps, slopes = network(x), jax.jacfwd(network)(x)
            return eps @ eps - 2 * sde.sigma(t) * jnp.trace(slopes.reshape(70, 70)) + 70

        sde, key, seen, times = VPSDE(), jax.random.key(11), [], Uniform(t_min=0.1)
        denoiser = Denoiser(sde=sde, network=network, conditioning="t")
        ScoreMatching(times=times)(key, denoiser, x0)
        ((x, t),) = seen  # times and noise do not depend on the estimator
        exact = ExactScoreMatching(times=times)(key, denoiser, x0).values
        return exact, jax.vmap(formula)(x, t) / 70

    np.testing.assert_allclose(*compare(X0), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("directions", ["rademacher", "gaussian"])
def test_sliced_forms_are_unbiased_and_the_reduced_one_varies_less(directions, x64):
    """They scatter about the exact form at the same times and noise."""
    copies, spread = 2000, {}
    one = jnp.asarray(X0[:, :2, :3])
    many = jnp.repeat(one, copies, axis=0)
    t = jnp.array([0.1, 0.4, 0.9])
    denoiser = Denoiser(sde=VPSDE(), network=Partial(mixing, 0.7), conditioning="t")

    @functools.partial(quick_jit, static_argnums=0)
    def estimate(loss, x, t):
        return loss.estimate(jax.random.key(12), denoiser, x, t, x)

    exact = np.asarray(estimate(ExactScoreMatching(), one, t))
    for reduced in (True, False):
        loss = SlicedScoreMatching(directions=directions, variance_reduced=reduced)
        values = np.reshape(estimate(loss, many, jnp.repeat(t, copies)), (3, copies))
        assert all(map(agrees, values, exact))
        spread[reduced] = np.std(values, axis=1)
        # As many probes of each sample: their mean.
        mean = estimate(dataclasses.replace(loss, probes=copies), one, t)
        assert np.all(np.abs(mean - exact) < 4 * spread[reduced] / math.sqrt(copies))
        assert np.all(mean != exact)
    assert np.all(spread[True] < 0.9 * spread[False])


@pytest.mark.slow
def test_gradients_in_the_parameters_are_those_of_the_values(x64):
    """They are taken by reverse mode, as in training, with the trace in several parts."""

    times = Uniform(t_min=0.1)

    def means(theta):
        denoiser = Denoiser(sde=VPSDE(), network=Partial(mixing, theta), conditioning="t")
        return {
            name: jnp.mean(loss(times=times)(jax.random.key(11), denoiser, jnp.asarray(X0)).values)
            for name, loss in LOSSES.items()
            if issubclass(loss, FisherDivergence)
        }

    slopes, values = quick_jit(jax.jacrev(means))(0.7), quick_jit(means)
    # The weights of `mixing` turn up to 4900 times as fast as theta: a larger step is too coarse.
    step = 1e-8
    above, below = values(0.7 + step), values(0.7 - step)
    for name, slope in slopes.items():
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(slope, (above[name] - below[name]) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reduction": "no"}, "reduction='no' is unknown; choose one of: half_sum, mean, sum"),
    ],
)
def test_invalid_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatching(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probes": 0}, "probes=0 must be at least 1"),
        ({"directions": "no"}, "directions='no' is unknown; choose one of: gaussian, rademacher"),
    ],
)
def test_invalid_field_of_the_sliced_form_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SlicedScoreMatching(**fields)
