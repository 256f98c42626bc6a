"""Expectations of pairs of times and weights that theory says are equal, by quadrature.

The random numbers behind the times are replaced by nodes, and the mean of the losses by their
weighted sum. The network's error is a known function of the time, so nothing else is random.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

from denoising import Denoiser
from losses import ScoreMatching
from objectives.times import (
    LogitNormal,
    LogNormal,
    LogSNR,
    LossAware,
    LossAwareBins,
    LossHistory,
    Uniform,
)
from objectives.weights import G2, WEIGHTS, MinSNR, Sigma2
from sde_lib import VPSDE, DiscreteVPSDE
from training.objective import Context

T_MIN, LEVELS = 1e-3, 8
VP, CHAIN = VPSDE(), DiscreteVPSDE(schedule="cosine", num_timesteps=LEVELS)
HISTORY = LossHistory(
    jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, size=(LEVELS, 3))),
    jnp.full(LEVELS, 3, jnp.int32),
)


def nodes(low, high, panels=200):
    """Nodes and weights of an integral from low to high, by Gauss and Legendre on panels."""
    x, weights = np.polynomial.legendre.leggauss(8)
    ends = np.linspace(low, high, panels + 1)
    half = np.diff(ends)[:, None] / 2
    return (ends[:-1, None] + half * (x + 1)).ravel(), (half * weights).ravel()


def error(t):
    """The squared error of the network's noise: as irregular as the losses of a network."""
    return 1.5 + jnp.cos(3 * t) / (0.1 + t)


def perfect_but_for(sde):
    """A denoiser of the data 0 whose squared error is `error`."""

    def network(x, t):
        return x / sde.sigma(t)[:, None] + jnp.sqrt(error(t))[:, None]

    return Denoiser(sde=sde, network=Partial(network), parameterization="eps", conditioning="t")


def losses(times, weight, sde, numbers, state=()):
    """The losses at the times that are drawn from `numbers`, in place of random ones."""
    given, original = iter(numbers), {n: getattr(jax.random, n) for n in ("normal", "uniform")}

    def draw(name):
        def drawn(key, shape=(), *more):
            if len(shape) == 2:  # the noise of the images, which the network knows
                return original[name](key, shape, *more)
            return jnp.asarray(next(given))

        return drawn

    with mock.patch.multiple(jax.random, **{name: draw(name) for name in original}):
        loss = ScoreMatching(times=times, weight=weight)
        count = 1 if isinstance(times, LogSNR) else len(numbers[0])  # its numbers are offsets
        t = times.draw(jax.random.key(0), count, sde, state)
    x0, model = jnp.zeros((len(t), 1)), perfect_but_for(sde)
    noise = loss.draw(jax.random.key(1), model, x0, Context())._replace(t=t)
    values = loss.evaluate(jax.random.key(0), noise, model, x0, Context())
    return np.asarray(loss.weighted(noise, values, model, Context(state=state)).values)


def of_normal(times, sde):
    """Nodes and weights for the times inside [t_min, 1], which depend on a normal number."""
    if isinstance(times, LogNormal):
        low, high = (-np.asarray(sde.log_snr(jnp.array([T_MIN, 1.0]))) / 2 - times.mean) / times.std
    else:
        low, high = -14.0, 14.0
    z, weights = nodes(low, high)
    return [z], weights * scipy.stats.norm.pdf(z)


def of_uniform(times, sde):
    u, weights = nodes(0, 1)
    return [u], weights


def of_levels(times, sde):
    """Each level once, at its probability; in bins, with the nodes of one of them."""
    probabilities = np.asarray(times.probabilities(HISTORY))
    u = np.cumsum(probabilities) - probabilities / 2
    if isinstance(times, LossAware):
        return [u], probabilities
    place, weights = nodes(0, 1, panels=20)
    columns = np.repeat(u, len(place)), np.tile(place, LEVELS)
    return list(columns), np.outer(probabilities, weights).ravel()


def uniform_expectation(weight, times, sde):
    """The mean over uniform times of weight times error, without the code of objectives."""
    if times.num_timesteps:
        t, measure = np.arange(LEVELS) / (LEVELS - 1), np.full(LEVELS, 1 / LEVELS)
    else:
        log_t, weights = nodes(np.log(T_MIN), 0)
        t = np.exp(log_t)
        measure = weights * t / (1 - T_MIN)
    return np.sum(measure * np.asarray(weight(sde, jnp.asarray(t)) * error(jnp.asarray(t))))


DIVIDED = [
    (LogSNR(t_min=T_MIN), VP, (), of_uniform),
    (LogNormal(mean=-1.0, std=2.0, t_min=T_MIN, divide_density=True), VP, (), of_normal),
    (LogitNormal(mean=0.3, std=1.2, t_min=T_MIN, divide_density=True), VP, (), of_normal),
    (LossAwareBins(bins=LEVELS, history=3, t_min=T_MIN), VP, HISTORY, of_levels),
    (LossAware(num_timesteps=LEVELS, history=3), CHAIN, HISTORY, of_levels),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "sde", "state", "rule"), DIVIDED, ids=[type(row[0]).__name__ for row in DIVIDED]
)
def test_times_whose_density_is_divided_out_have_the_expectation_of_uniform_ones(
    x64, times, sde, state, rule
):
    """With every weight."""
    numbers, measure = rule(times, sde)
    for name, kind in WEIGHTS.items():
        weight = MinSNR(gamma=5.0) if kind is MinSNR else kind()
        found = measure @ losses(times, weight, sde, numbers, state)
        expected = uniform_expectation(weight, times, sde)
        assert found == pytest.approx(expected, rel=1e-5), name


@pytest.mark.slow
def test_uniform_log_snr_without_division_is_likelihood_weighting(x64):
    """E over log-SNR of the error is E over t of g^2 / sigma^2 times it, over a constant."""
    (u, measure), times = nodes(0, 1), LogSNR(t_min=T_MIN, divide_density=False)
    by_log_snr = measure @ losses(times, Sigma2(), VP, [u])
    by_time = measure @ losses(Uniform(t_min=T_MIN), G2(), VP, [u])
    low, high = np.asarray(VP.log_snr(jnp.array([1.0, T_MIN])))
    assert (high - low) / (1 - T_MIN) * by_log_snr == pytest.approx(by_time, rel=1e-6)
