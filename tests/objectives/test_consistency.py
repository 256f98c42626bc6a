"""Consistency models on Gaussian data, whose probability-flow ODE has a known solution.

With y = x / alpha and s = sigma / alpha, a path of N(0, c^2) has y / sqrt(c^2 + s^2) constant.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from analytic import gaussian
from jax.tree_util import Partial

from denoising import Denoiser
from objectives.consistency import (
    ConsistencyDistillation,
    ConsistencyTraining,
    Interval,
    time_of,
)
from sde_lib import EDMSDE, VPSDE, LinearPathSDE, SubVPSDE
from training.objective import Context

SPREAD, SIGMA_MIN, DIMS = 0.8, 0.002, 3
PROCESSES = [
    pytest.param(VPSDE(), id="vp"),
    pytest.param(SubVPSDE(), id="subvp"),
    pytest.param(EDMSDE(), id="edm"),
    pytest.param(LinearPathSDE(), id="linear"),
]
every_process = pytest.mark.parametrize("sde", PROCESSES)
DATA = gaussian(np.zeros(DIMS), SPREAD**2 * np.eye(DIMS))


def level_of(sde, t):
    return jnp.exp(-sde.log_snr(t) / 2)


def end_of_path(y, s):
    return y * math.hypot(SPREAD, SIGMA_MIN) / jnp.sqrt(SPREAD**2 + s**2)


def exact_network(sde, shown, t):
    """The output with which the parameterization is the exact consistency function."""
    s = level_of(sde, t)[:, None]
    y = shown * jnp.sqrt(s**2 + 0.25)
    r = s - SIGMA_MIN
    skip, out = 0.25 / (r**2 + 0.25), r * 0.5 / jnp.sqrt(s**2 + 0.25)
    return (end_of_path(y, s) - skip * y) / jnp.where(r == 0, 1, out)


def consistency_model(sde, network=None):
    return Denoiser(
        sde=sde,
        network=Partial(exact_network, sde) if network is None else network,
        parameterization="consistency",
        conditioning="t",
    )


def test_number_of_levels_doubles_as_published():
    """arXiv:2310.14189, Table 1: N(k) = min(s_0 2^floor(k / K'), s_1) + 1."""
    loss = ConsistencyTraining(total_steps=400_000)
    found = [int(loss.intervals(k)) for k in (0, 49_999, 50_000, 349_999, 350_000, 399_999, 10**6)]
    assert found == [10, 10, 20, 640, 1280, 1280, 1280]
    odd = ConsistencyTraining(first_intervals=3, last_intervals=20, total_steps=100)
    stage = math.floor(100 / (math.log2(20 // 3) + 1))
    steps = np.arange(130)
    expected = np.minimum(3 * 2.0 ** (steps // stage), 20)
    np.testing.assert_array_equal(jax.vmap(odd.intervals)(steps), expected)


@every_process
@pytest.mark.slow
def test_intervals_have_the_published_ends_and_probabilities(sde):
    """arXiv:2310.14189, Table 1: levels of Karras, probabilities by the error function."""
    count, draws = 8, 20_000
    loss = ConsistencyTraining(first_intervals=count, last_intervals=count)
    model = consistency_model(sde)
    drawn = loss.draw(jax.random.key(0), model, jnp.zeros((draws, 1)), Context())
    largest = float(level_of(sde, jnp.ones(())))
    ends = (SIGMA_MIN ** (1 / 7), largest ** (1 / 7))
    levels = np.linspace(*ends, count + 1) ** 7
    index = np.abs(levels - np.asarray(drawn.level_low)[:, None]).argmin(axis=1)
    np.testing.assert_allclose(drawn.level_low, levels[index], rtol=2e-5)
    np.testing.assert_allclose(drawn.level, levels[index + 1], rtol=2e-5)
    np.testing.assert_allclose(level_of(sde, drawn.t), drawn.level, rtol=1e-4)
    np.testing.assert_allclose(level_of(sde, drawn.t_low), drawn.level_low, rtol=1e-4)
    mass = np.diff(scipy.special.erf((np.log(levels) + 1.1) / (2.0 * math.sqrt(2))))
    counts = np.bincount(index, minlength=count)
    assert scipy.stats.chisquare(counts, draws * mass / mass.sum()).pvalue > 1e-4


@pytest.mark.slow
@every_process
def test_loss_is_the_published_one(x64, sde):
    """The pseudo-Huber distance of two states with one noise, divided by the levels' difference."""
    network = Partial(lambda shown, t: jnp.sin(3 * shown) + t[:, None])
    model = consistency_model(sde, network)
    loss, key = ConsistencyTraining(huber=0.02), jax.random.key(1)
    x0 = jax.random.normal(jax.random.key(2), (6, DIMS))
    drawn = loss.draw(key, model, x0, Context())
    found = loss(key, model, x0).values

    def function(t, s):
        alpha = np.asarray(sde.alpha(t))[:, None]
        s = np.asarray(s)[:, None]
        y = np.asarray(x0) + s * np.asarray(drawn.eps)
        skip = 0.25 / ((s - SIGMA_MIN) ** 2 + 0.25)
        out = (s - SIGMA_MIN) * 0.5 / np.sqrt(s**2 + 0.25)
        assert np.all(alpha > 0)
        return skip * y + out * (np.sin(3 * y / np.sqrt(s**2 + 0.25)) + np.asarray(t)[:, None])

    difference = function(drawn.t, drawn.level) - function(drawn.t_low, drawn.level_low)
    c = 0.02 * math.sqrt(DIMS)
    expected = np.sqrt((difference**2).sum(axis=1) + c**2) - c
    expected /= np.asarray(drawn.level - drawn.level_low)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_gradient_flows_through_the_noisier_state_only(x64):
    """With F = theta, the derivative is that of the distance in its first argument."""
    sde, key = VPSDE(), jax.random.key(0)
    loss = ConsistencyTraining()
    x0 = jax.random.normal(jax.random.key(2), (5, DIMS))

    def total(theta):
        network = Partial(lambda theta, shown, t: theta + 0 * shown, theta)
        return jnp.sum(loss(key, consistency_model(sde, network), x0).values)

    drawn = loss.draw(key, consistency_model(sde), x0, Context())
    low, high = (np.asarray(s)[:, None] for s in (drawn.level_low, drawn.level))
    eps = np.asarray(drawn.eps)

    def parts(s):
        skip = 0.25 / ((s - SIGMA_MIN) ** 2 + 0.25)
        return skip * (np.asarray(x0) + s * eps), (s - SIGMA_MIN) * 0.5 / np.sqrt(s**2 + 0.25)

    (a, out), (b, out_low) = parts(high), parts(low)
    difference = a - b + 0.3 * (out - out_low)
    c = 0.00054 * math.sqrt(DIMS)
    norm = np.sqrt((difference**2).sum(axis=1, keepdims=True) + c**2)
    expected = np.sum(difference * out / norm / (high - low))
    np.testing.assert_allclose(jax.grad(total)(0.3), expected, rtol=1e-6)


@pytest.mark.slow
@every_process
def test_exact_function_has_no_distillation_loss_up_to_the_order_of_the_step(x64, sde):
    """Halving an interval divides the error of a step by 8 for Heun, by 4 for Euler."""
    teacher, model = DATA.denoiser(sde), consistency_model(sde)
    x0 = jax.random.normal(jax.random.key(2), (64, DIMS)) * SPREAD
    for name, order in (("heun", 3), ("euler", 2)):
        distances = []
        for count in (200, 400):
            loss = ConsistencyDistillation(
                teacher="runs/teacher",
                ode_step=name,
                first_intervals=count,
                last_intervals=count,
                huber=1e-12,
            )
            u = jnp.linspace(0.3, 0.7, 64)
            first, last = SIGMA_MIN ** (1 / 7), level_of(sde, jnp.ones(())) ** (1 / 7)
            high, low = ((first + v * (last - first)) ** 7 for v in (u, u - 1 / count))
            drawn = Interval(
                time_of(sde, high),
                high,
                time_of(sde, low),
                low,
                jax.random.normal(jax.random.key(0), x0.shape),
            )
            context = Context(teacher=teacher)
            losses = loss.evaluate(jax.random.key(0), drawn, model, x0, context)
            distances.append(float(jnp.mean(losses * (high - low))))
        assert math.log2(distances[0] / distances[1]) == pytest.approx(order, abs=0.1)
