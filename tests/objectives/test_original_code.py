"""Losses of the original code of consistency models on the same numbers, in double precision.

Recorded from openai/consistency_models, `KarrasDenoiser.consistency_losses` and `progdist_losses`
with loss_norm="l2", whose arithmetic was run by NumPy on the inputs below.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from denoising import Denoiser
from objectives.consistency import (
    ConsistencyDistillation,
    ConsistencyTraining,
    Interval,
    time_of,
)
from objectives.distillation import Noise, ProgressiveDistillation
from objectives.weights import TruncatedSNR, V
from sde_lib import EDMSDE
from training.objective import Context

DISTILLATION = [
    1.48962889027e-05,
    9.7255121792e-06,
    0.00962727552635,
    2.17706494274e-05,
]
TRAINING = [
    1.89731262234e-05,
    0.000127653196441,
    0.0424223483922,
    2.7405674419e-05,
]
TRUNCATED_SNR = [0.108351743457, 0.0561031434818, 0.0764391290072, 0.329820201877]
SNR_PLUS_ONE = [0.108368673417, 0.0562857561043, 0.088521832774, 0.33932430024]

SDE, RHO = EDMSDE(), 7
X0 = np.cos(np.arange(24.0)).reshape(4, 6, 1, 1) * 0.5
EPS = np.sin(1 + 3 * np.arange(24.0)).reshape(X0.shape)
INDEX = np.array([0, 5, 11, 16])  # of 18 levels, counted from the largest


def student(x, condition):
    return jnp.sin(2 * x) * 0.7 + 0.1 * condition[:, None, None, None]


def teacher(x, condition):
    return jnp.cos(x) * 0.5 - 0.05 * condition[:, None, None, None]


def denoiser(network, parameterization):
    return Denoiser(
        sde=SDE,
        network=Partial(network),
        parameterization=parameterization,
        conditioning="edm",
    )


def level(index, count):
    largest, smallest = 80 ** (1 / RHO), 0.002 ** (1 / RHO)
    return jnp.asarray((largest + index / count * (smallest - largest)) ** RHO)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "recorded"),
    [
        (ConsistencyDistillation(teacher="recorded"), DISTILLATION),
        (ConsistencyTraining(), TRAINING),
    ],
    ids=["distillation", "training"],
)
def test_distance_of_the_two_predictions_is_the_original_one(x64, loss, recorded):
    high, low = level(INDEX, 17), level(INDEX + 1, 17)
    drawn = Interval(time_of(SDE, high), high, time_of(SDE, low), low, jnp.asarray(EPS))
    context = Context(teacher=denoiser(teacher, "edm"))
    model = denoiser(student, "consistency")
    values = loss.evaluate(jax.random.key(0), drawn, model, jnp.asarray(X0), context)
    # Without the weight, and from the pseudo-Huber distance to the mean square.
    c = loss.huber * np.sqrt(6)
    squares = ((values * (high - low) + c) ** 2 - c**2) / 6
    np.testing.assert_allclose(squares, recorded, rtol=1e-9)


@pytest.mark.parametrize(
    ("weight", "recorded"), [(TruncatedSNR(), TRUNCATED_SNR), (V(), SNR_PLUS_ONE)]
)
@pytest.mark.slow
def test_progressive_distillation_is_the_original_one(x64, weight, recorded):
    loss = ProgressiveDistillation(
        teacher="recorded", student_steps=4, grid="karras", t_min=2.5e-5, weight=weight
    )
    times = jnp.asarray(loss.teacher_times(SDE))
    drawn = Noise(times[:-1:2], times[1::2], times[2::2], jnp.asarray(EPS))
    context = Context(teacher=denoiser(teacher, "edm"))
    model = denoiser(student, "edm")
    values = loss.evaluate(jax.random.key(0), drawn, model, jnp.asarray(X0), context)
    np.testing.assert_allclose(values, recorded, rtol=1e-9)
