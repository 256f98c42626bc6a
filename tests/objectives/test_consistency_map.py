"""Networks trained on a mixture of one dimension learn the map of its probability-flow ODE.

In one dimension the map keeps quantiles, so distribution functions give it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from analytic import Mixture
from jax.tree_util import Partial

from denoising import Denoiser
from objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from objectives.distillation import ProgressiveDistillation
from sde_lib import EDMSDE
from solvers.ddim import decode
from training.objective import Context

SDE, SIGMA_MIN, STEPS, BATCH = EDMSDE(sigma_max=10.0), 0.02, 500, 256
SETTINGS = {"total_steps": STEPS, "level_mean": 0.5, "huber": 0.1}
FIELDS = {"consistency": {"sigma_min": SIGMA_MIN}, "edm": {"sigma_data": 0.75}}
WEIGHTS, MEANS, SPREAD = np.array([0.3, 0.7]), np.array([-1.0, 0.6]), 0.15
DATA = Mixture(WEIGHTS, MEANS[:, None], np.full((2, 1, 1), SPREAD**2))


def distribution(y, level):
    scale = np.hypot(SPREAD, level)
    return scipy.stats.norm.cdf((y[:, None] - MEANS) / scale) @ WEIGHTS


def known_map(y, level):
    """The end at SIGMA_MIN of the paths through y at a level."""
    ends = np.linspace(-2, 2, 20_001)
    return np.interp(distribution(y, level), distribution(ends, SIGMA_MIN), ends)


def network(params, x, t):
    hidden = jnp.concatenate([x, jnp.log(t)[:, None] / 4], axis=1)
    for kernel, bias in params[:-1]:
        hidden = jax.nn.silu(hidden @ kernel + bias[None])
    kernel, bias = params[-1]
    return hidden @ kernel + bias[None]


def first_params():
    sizes = (2, 64, 64, 1)
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    return [
        (jax.random.normal(key, (n, m)) / np.sqrt(n), jnp.zeros(m))
        for key, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


def model(params, parameterization="consistency"):
    return Denoiser(
        sde=SDE,
        network=Partial(network, params),
        parameterization=parameterization,
        conditioning="t",
        **FIELDS[parameterization],
    )


@functools.partial(jax.jit, static_argnames=("loss", "parameterization"))
def trained(loss, params, x0, teacher, parameterization="consistency"):
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def mean_loss(params, step):
        key, rows = jax.random.fold_in(jax.random.key(1), step), jax.random.key(2)
        chosen = jax.random.randint(jax.random.fold_in(rows, step), (BATCH,), 0, len(x0))
        context = Context(step=step, teacher=teacher)
        denoiser = model(params, parameterization)
        return jnp.mean(loss(key, denoiser, x0[chosen], context).values)

    def update(carry, step):
        params, state = carry
        updates, state = optimizer.update(jax.grad(mean_loss)(params, step), state)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(update, start, jnp.arange(STEPS))[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "bound"),
    [
        (ConsistencyDistillation(teacher="exact", **SETTINGS), 0.17),
        (ConsistencyTraining(last_intervals=160, **SETTINGS), 0.17),
    ],
    ids=["distillation", "training"],
)
def test_trained_network_is_near_the_known_map(loss, bound):
    x0 = jnp.asarray(DATA.sample(0, 4096), jnp.float32)
    params = trained(loss, first_params(), x0, DATA.denoiser(SDE))
    y = 10 * np.random.default_rng(3).normal(size=2000)
    found = model(params).predict(jnp.asarray(y[:, None], jnp.float32), 1.0).x0[:, 0]
    known = known_map(y, 10.0)
    assert np.abs(known - known.mean()).mean() > 0.65
    assert np.abs(np.asarray(found) - known).mean() < bound


@pytest.mark.slow
def test_student_of_progressive_distillation_takes_the_steps_of_its_teacher():
    """Its 4 steps are as near to the known map as 8 of the exact denoiser; 4 of that are not."""
    loss = ProgressiveDistillation(
        teacher="exact", student_steps=4, grid="log_snr", t_min=SIGMA_MIN / SDE.sigma_max
    )
    exact, x0 = DATA.denoiser(SDE), jnp.asarray(DATA.sample(0, 4096), jnp.float32)
    student = model(trained(loss, first_params(), x0, exact, "edm"), "edm")
    y = jnp.asarray(10 * np.random.default_rng(3).normal(size=(2000, 1)), jnp.float32)
    fine = dataclasses.replace(loss.schedule, steps=8)
    found, teacher, untaught = (
        np.asarray(decode(denoiser, y, schedule=schedule))
        for denoiser, schedule in ((student, loss.schedule), (exact, fine), (exact, loss.schedule))
    )
    known = known_map(np.asarray(y[:, 0], np.float64), 10.0)[:, None]
    errors = [np.abs(x - known).mean() for x in (found, teacher, untaught)]
    assert errors[0] < 1.15 * errors[1] < 0.6 * errors[2]
    assert np.abs(found - teacher).mean() < 0.6 * np.abs(untaught - teacher).mean()
