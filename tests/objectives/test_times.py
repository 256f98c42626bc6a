"""Distributions of times: their laws, their densities, and the histories of loss-aware ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from denoising import Denoiser
from losses import ScoreMatching
from objectives.times import (
    LogitNormal,
    LogNormal,
    LogSNR,
    LossAware,
    LossAwareBins,
    LossHistory,
)
from sde_lib import EDMSDE, VPSDE

KEY, MANY = jax.random.key(0), 20_000
T_MIN = 1e-3


def drawn(times, sde, state=(), key=KEY):
    return np.asarray(jax.jit(lambda key: times.draw(key, MANY, sde, state))(key))


def test_log_normal_times_have_a_normal_log_noise_level():
    sde = EDMSDE()
    t = drawn(LogNormal(mean=-1.2, std=1.2, t_min=1e-5), sde)
    level = -np.asarray(sde.log_snr(jnp.asarray(t))) / 2
    assert scipy.stats.kstest((level + 1.2) / 1.2, "norm").pvalue > 1e-3


def test_log_normal_times_beyond_the_process_are_at_its_ends():
    t = drawn(LogNormal(mean=3.0, std=3.0, t_min=0.1), VPSDE())
    assert t.min() == pytest.approx(0.1)
    assert t.max() == 1.0


def test_logit_normal_times_have_a_normal_logit():
    t = drawn(LogitNormal(mean=0.5, std=0.8, t_min=T_MIN), VPSDE()).astype(np.float64)
    u = (t - T_MIN) / (1 - T_MIN)
    assert scipy.stats.kstest((np.log(u / (1 - u)) - 0.5) / 0.8, "norm").pvalue > 1e-3


FULL = LossHistory(
    jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, size=(8, 3)), jnp.float32),
    jnp.full(8, 3, jnp.int32),
)


@pytest.mark.parametrize(
    ("times", "state"),
    [
        (LogSNR(t_min=T_MIN), ()),
        (LogNormal(mean=-1.0, std=2.0, t_min=T_MIN, divide_density=True), ()),
        (LogitNormal(mean=0.3, std=1.2, t_min=T_MIN, divide_density=True), ()),
        (LossAwareBins(bins=8, history=3, t_min=T_MIN), FULL),
        (LossAware(num_timesteps=8, history=3), FULL),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.slow
def test_losses_divided_by_the_density_have_the_expectation_of_uniform_times(times, state):
    sde = VPSDE()
    t = drawn(times, sde, state)
    density = np.asarray(times.density(sde, jnp.asarray(t), state), np.float64)
    inside = (t > T_MIN) & (t < 1) | (times.num_timesteps is not None)
    values = np.where(inside, np.cos(3 * t) / density, 0)
    if times.num_timesteps:
        expected = np.mean(np.cos(3 * np.arange(8) / 7))
    else:
        expected = (math.sin(3) - math.sin(3 * T_MIN)) / 3 / (1 - T_MIN)
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(MANY)


@pytest.mark.slow
def test_density_of_log_normal_times_integrates_to_the_mass_inside():
    sde = VPSDE()
    times = LogNormal(mean=-1.0, std=1.0, t_min=T_MIN, divide_density=True)
    t = np.geomspace(T_MIN, 1, 4001)
    density = np.asarray(times.density(sde, jnp.asarray(t, jnp.float32)), np.float64)
    ends = -np.asarray(sde.log_snr(jnp.array([T_MIN, 1.0]))) / 2
    mass = np.diff(scipy.stats.norm.cdf(ends + 1))[0]
    assert scipy.integrate.trapezoid(density, t) / (1 - T_MIN) == pytest.approx(mass, rel=2e-3)


def published_history(losses, count, level, new):
    """Append losses one by one; where a level is full, the oldest one falls out."""
    losses = [list(row[:n]) for row, n in zip(losses, count, strict=True)]
    for i, value in zip(level, new, strict=True):
        losses[i] = [*losses[i], value][-len(FULL.losses[0]) :]
    return losses


def test_history_keeps_the_latest_losses_of_each_level_in_their_order():
    times, rng = LossAware(num_timesteps=8, history=3), np.random.default_rng(1)
    state, expected = times.init_state(), [[] for _ in range(8)]
    update = jax.jit(times.updated)
    for batch in range(6):
        # Some levels come more often than the history is long.
        level = rng.integers(0, 8 if batch % 2 else 3, size=16)
        new = rng.uniform(size=16).astype(np.float32)
        state = update(state, jnp.asarray(level / 7), jnp.asarray(new))
        expected = published_history(expected, [3] * 8, level, new)
        for row, count, latest in zip(state.losses, state.count, expected, strict=True):
            assert sorted(np.asarray(row)[: min(int(count), 3)]) == sorted(latest)


def test_probabilities_are_uniform_until_each_level_is_full():
    times = LossAware(num_timesteps=8, history=3, uniform=0.01)
    missing = FULL._replace(count=FULL.count.at[5].set(2))
    for state in ((), times.init_state(), missing):
        np.testing.assert_allclose(times.probabilities(state), 1 / 8, rtol=1e-6)
    size = np.sqrt(np.mean(np.asarray(FULL.losses, np.float64) ** 2, axis=1))
    expected = 0.99 * size / size.sum() + 0.01 / 8
    np.testing.assert_allclose(times.probabilities(FULL), expected, rtol=1e-6)
    t = drawn(times, VPSDE(), FULL)
    counts = np.bincount(np.rint(t * 7).astype(int), minlength=8)
    assert scipy.stats.chisquare(counts, expected / expected.sum() * MANY).pvalue > 1e-3


@pytest.mark.slow
def test_an_evaluation_draws_uniform_times_and_keeps_no_history():
    loss = ScoreMatching(times=LossAwareBins(bins=4))
    denoiser = Denoiser(sde=VPSDE(), network=lambda x, t: 0 * x, conditioning="t")
    found = loss(KEY, denoiser, jnp.zeros((5, 2)))
    assert found.state == ()
    assert np.all(np.isfinite(found.values))


def test_loss_aware_times_lower_the_variance_of_the_mean():
    """With losses known at each level, the density proportional to them has no variance left."""
    times, losses = LossAware(num_timesteps=8, history=3, uniform=1e-9), np.geomspace(1, 1e3, 8)
    state = LossHistory(jnp.tile(jnp.asarray(losses, jnp.float32)[:, None], 3), FULL.count)
    level = np.rint(drawn(times, VPSDE(), state) * 7).astype(int)
    values = losses[level] / np.asarray(times.density(VPSDE(), jnp.asarray(level / 7), state))
    np.testing.assert_allclose(values, losses.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(std=0.0), "std=0.0 must be above 0"),
        (lambda: LogNormal(mean=math.nan), "mean=nan"),
        (lambda: LogitNormal(t_min=1.0), r"t_min=1\.0 must lie in \(0, 1\)"),
        (lambda: LossAware(history=0), "history=0 must be at least 1"),
        (lambda: LossAware(uniform=0.0), r"uniform=0\.0 must lie in \(0, 1\]"),
        (lambda: LossAwareBins(bins=1), "bins=1 must be at least 2"),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
