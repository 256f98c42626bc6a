"""Batches in parts and steps in groups, against whole batches and single steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.tree_util import Partial

from denoising import Denoiser
from losses import ScoreMatching
from objectives.times import LossAwareBins
from sde_lib import VPSDE
from training.averages import MovingAverage
from training.objective import Context, Losses, Objective
from training.optimizers import Lion, Optimizer, ScheduleFreeAdamW
from training.parallel import DataParallel
from training.schedules import Constant
from training.step import Trainer

KEY = jax.random.key(0)
FOUR = DataParallel.over_all_devices()
ONE = DataParallel(Mesh(jax.devices()[:1], ("data",), axis_types=(AxisType.Auto,)))
LOSS_AWARE = ScoreMatching(times=LossAwareBins(bins=3, history=2))


def network(params, x, t, labels, augment_labels):
    return x @ params["kernel"] + params["bias"][labels] + augment_labels + t[:, None] / 1000


def augment(key, x):
    """Batches and labels that depend on the place in the batch."""
    labels = jax.random.normal(key, x.shape, x.dtype)
    return x + labels, labels


def denoiser(params, dropout=None):
    return Denoiser(sde=VPSDE(), network=Partial(network, params))


def make_trainer(parallel=ONE, **fields):
    return Trainer(
        init=lambda key: {"kernel": jax.random.normal(key, (3, 3)), "bias": jnp.ones((5, 3))},
        denoiser=denoiser,
        loss=ScoreMatching(),
        optimizer=Optimizer(rule=Lion(), learning_rate=Constant(lr=1e-2, warmup=0)),
        average=MovingAverage(),
        parallel=parallel,
        classes=4,
        label_dropout=0.25,
        augment=augment,
        **fields,
    )


def batches(count, rows=16):
    """Images and labels of `count` steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, rows, 3)).astype(jnp.result_type(float))
    return x, rng.integers(0, 4, (count, rows)).astype(np.int32)


def run(trainer, count):
    step, state, scalars = trainer.compiled_step(), trainer.init_state(KEY), []
    for given in zip(*batches(count), strict=True):
        state, said = step(KEY, state, *map(trainer.parallel.put_batch, given))
        scalars.append(said)
    return state, scalars


def close(found, expected, rtol):
    compare = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol)
    jax.tree.map(compare, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "parts"), [(ONE, 8), (FOUR, 2)], ids=["one", "four"])
def test_gradient_of_parts_is_that_of_the_batch(parallel, parts, x64):
    """With times that adapt to the losses, labels of which some are dropped, and augmentation."""
    whole = dataclasses.replace(make_trainer(parallel), loss=LOSS_AWARE)
    split = dataclasses.replace(whole, accumulate=parts)
    x, labels = (parallel.put_batch(each[0]) for each in batches(1))
    state = whole.init_state(KEY)
    context = Context(step=state.step, state=state.objective)
    found, expected = (
        jax.jit(functools.partial(trainer.gradient, context=context))(state.params, KEY, x, labels)
        for trainer in (split, whole)
    )
    close(found, expected, rtol=1e-12)
    assert float(jnp.sum(expected[0][1].count)) == 16  # the losses of all images, once
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected[1]))


@pytest.mark.slow
def test_gradient_of_parts_of_pairs_is_that_of_the_batch(x64):
    """Each image keeps the end of its own path."""
    whole = make_trainer(coupled=True)
    x, labels = (each[0] for each in batches(1))
    pairs = np.stack([x, 2 * x[::-1]], axis=1)
    params = whole.init_state(KEY).params
    found, expected, other = (
        jax.jit(trainer.gradient)(params, KEY, each, labels, Context())
        for trainer, each in (
            (dataclasses.replace(whole, accumulate=4), pairs),
            (whole, pairs),
            (whole, np.stack([x, 2 * x], axis=1)),
        )
    )
    close(found, expected, rtol=1e-12)
    assert abs(float(other[0][0] - expected[0][0])) > 1e-3


class Echo(Objective):
    """A loss that is a random number of its network, which here is the key of its dropout."""

    def draw(self, key, model, x0, context):
        return jnp.zeros(len(x0))

    def evaluate(self, key, drawn, model, x0, context):
        return drawn + jax.random.uniform(model)

    def weighted(self, drawn, losses, model, context):
        return Losses(losses, losses)


def test_dropout_differs_between_parts():
    trainer = dataclasses.replace(
        make_trainer(accumulate=4),
        denoiser=lambda params, dropout: dropout,
        loss=Echo(),
        augment=None,
    )
    x, _ = batches(1)
    (_, losses), _ = trainer.gradient(jnp.zeros(1), KEY, jnp.asarray(x[0]), None, Context())
    np.testing.assert_array_equal(losses, np.repeat(losses[::4], 4))
    assert len(np.unique(losses)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [ONE, FOUR], ids=["one", "four"])
def test_steps_of_one_call_are_single_steps_to_rounding(parallel):
    optimizer = Optimizer(rule=ScheduleFreeAdamW(), learning_rate=Constant(lr=1e-2, warmup=2))
    trainer = dataclasses.replace(make_trainer(parallel, accumulate=2), optimizer=optimizer)
    state, scalars = run(trainer, 6)
    together = trainer.init_state(KEY)
    several, said = trainer.compiled_steps(), []
    for rows in (slice(0, 3), slice(3, 6)):
        given = (parallel.put_batches(each[rows]) for each in batches(6))
        together, each = several(KEY, together, *given)
        said += [jax.tree.map(lambda value, k=k: value[k], each) for k in range(3)]
    close(together, state, rtol=1e-6)
    close(said, scalars, rtol=1e-6)
    assert len({float(row["loss"]) for row in said}) == 6


@pytest.mark.slow
def test_average_follows_the_parameters_that_are_evaluated():
    """With rate 0 it is the mean of schedule-free steps, not the parameters that are trained."""
    optimizer = Optimizer(rule=ScheduleFreeAdamW(), learning_rate=Constant(lr=1e-2, warmup=0))
    average = MovingAverage(rate=0.0)
    trainer = dataclasses.replace(make_trainer(), optimizer=optimizer, average=average)
    state, _ = run(trainer, 4)
    expected = optimizer.evaluation_params(state.opt_state, state.params)
    close(state.ema_params, expected, rtol=1e-6)
    assert np.any(np.abs(state.ema_params["kernel"] - state.params["kernel"]) > 1e-4)


@pytest.mark.slow
def test_activations_are_those_of_one_part():
    """By XLA's own plan, where they are most of the memory."""

    def wide(params, x, t):
        hidden = jnp.tile(x, (1, 2048))
        for _ in range(4):
            hidden = jnp.tanh(params["bias"] * hidden)
        return hidden[:, :3]

    def denoiser(params, dropout=None):
        return Denoiser(sde=VPSDE(), network=Partial(wide, params))

    def temporary(accumulate):
        trainer = dataclasses.replace(
            make_trainer(accumulate=accumulate),
            init=lambda key: {"bias": jnp.ones((1, 1))},
            denoiser=denoiser,
            classes=0,
            augment=None,
        )
        batch = jnp.zeros((64, 3))
        program = trainer.compiled_step().lower(KEY, trainer.abstract_state(), batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 6
