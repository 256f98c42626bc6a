"""The training step against hand-written Adam, and the same numbers on one device and on four."""

import dataclasses
import functools
import math
from collections.abc import Callable

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
from training.averages import MoreAverages, MovingAverage
from training.objective import Objective
from training.optimizers import Adam, Optimizer
from training.parallel import DataParallel
from training.schedules import Constant
from training.step import Trainer, TrainState

KEY = jax.random.key(0)
FOUR = DataParallel.over_all_devices()
ONE = DataParallel(Mesh(jax.devices()[:1], ("data",), axis_types=(AxisType.Auto,)))
DIMS = 3


def linear(params, x, t):
    return x @ params["kernel"] + params["bias"][None]


def first_params(key):
    return {"kernel": jax.random.normal(key, (DIMS, DIMS)), "bias": jnp.zeros(DIMS)}


def denoiser(params, dropout=None):
    return Denoiser(sde=VPSDE(), network=Partial(linear, params))


@dataclasses.dataclass(frozen=True)
class Plain(Objective):
    """An objective from a function of (key, model, batch), without a state."""

    function: Callable

    def draw(self, key, model, x0, context):
        return ()

    def evaluate(self, key, drawn, model, x0, context):
        return self.function(key, model, x0)


def adam(*, lr, **fields):
    return Optimizer(rule=Adam(**fields), learning_rate=Constant(lr=lr, warmup=0))


def make_trainer(*, parallel=ONE, optimizer=None, average=None, loss=None):
    return Trainer(
        init=first_params,
        denoiser=denoiser,
        loss=Plain(loss) if loss else ScoreMatching(),
        optimizer=optimizer or adam(lr=1e-2),
        average=average or MovingAverage(),
        parallel=parallel,
    )


def batch_of(step, rows=8):
    return np.random.default_rng(step).normal(size=(rows, DIMS)).astype(np.float32)


def run(trainer, steps, state=None, key=KEY):
    """The state after `steps` steps, and their losses."""
    step, losses = trainer.compiled_step(), []
    state = trainer.init_state(KEY) if state is None else state
    for _ in range(steps):
        state, scalars = step(key, state, trainer.parallel.put_batch(batch_of(int(state.step))))
        losses.append(float(scalars["loss"]))
    return state, losses


@pytest.mark.slow
def test_classes_reach_the_network_except_for_the_dropped_ones():
    seen = []

    def loss(key, denoiser, batch):
        seen.append(denoiser.labels)
        return jnp.zeros(len(batch))

    rows = 4000
    labels = jnp.arange(rows) % 5
    trainer = dataclasses.replace(make_trainer(loss=loss), classes=5, label_dropout=0.25)
    for seed in (0, 1):
        trainer.objective({}, jax.random.key(seed), jnp.zeros((rows, DIMS)), labels)
    for given in seen:
        dropped = given == 5
        assert abs(float(dropped.mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / rows)
        np.testing.assert_array_equal(given[~dropped], labels[~dropped])
    assert np.any(seen[0] != seen[1])


@pytest.mark.slow
def test_step_with_classes_takes_them_on_any_number_of_devices():
    def biased(params, x, t, labels):
        return x @ params["kernel"] + params["bias"][None] + labels[:, None]

    def conditional(params, dropout=None):
        return Denoiser(sde=VPSDE(), network=Partial(biased, params))

    losses = []
    for parallel in (ONE, FOUR):
        trainer = dataclasses.replace(
            make_trainer(parallel=parallel), classes=5, denoiser=conditional
        )
        labels = np.arange(8, dtype=np.int32) % 5
        batch = parallel.put_batch(batch_of(0)), parallel.put_batch(labels)
        _, scalars = trainer.compiled_step()(KEY, trainer.init_state(KEY), *batch)
        losses.append(float(scalars["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 1.5  # the labels are errors


def test_step_is_hand_written_adam_with_the_gradients_clipped():
    """Kingma & Ba 2015, Algorithm 1, on a quadratic with gradient bias - batch mean."""
    lr, clip, beta1, beta2, eps = 0.1, 0.5, 0.8, 0.95, 1e-8

    def quadratic(key, denoiser, batch):
        (params,) = denoiser.network.args
        return 0.5 * jnp.sum((params["bias"][None] - batch) ** 2, axis=-1)

    optimizer = adam(lr=lr, grad_clip=clip, beta1=beta1, beta2=beta2, eps=eps)
    trainer = make_trainer(optimizer=optimizer, loss=quadratic)
    bias, m, v = np.zeros(DIMS), np.zeros(DIMS), np.zeros(DIMS)
    state, step = trainer.init_state(KEY), trainer.compiled_step()
    for k in range(1, 4):
        batch = batch_of(k)
        gradient = bias - batch.mean(axis=0)
        norm = np.linalg.norm(gradient)
        loss = 0.5 * np.sum((bias - batch) ** 2, axis=1).mean()
        clipped = gradient * min(1, clip / norm)
        m, v = beta1 * m + (1 - beta1) * clipped, beta2 * v + (1 - beta2) * clipped**2
        change = lr * (m / (1 - beta1**k)) / (np.sqrt(v / (1 - beta2**k)) + eps)
        bias = bias - change
        state, scalars = step(KEY, state, ONE.put_batch(batch))
        np.testing.assert_allclose(state.params["bias"], bias, rtol=1e-5)
        np.testing.assert_allclose(scalars["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(scalars["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(scalars["lr"], lr, rtol=1e-6)
        # The loss moves the bias alone.
        parameters = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.params)])
        ratio = np.linalg.norm(change) / np.linalg.norm(parameters)
        np.testing.assert_allclose(scalars["update_ratio"], ratio, rtol=1e-4)
        assert int(state.step) == k


def test_the_update_of_parameters_that_are_0_and_stay_so_is_0_of_them():
    def nothing(key, denoiser, batch):
        (params,) = denoiser.network.args
        return jnp.sum(params["bias"][None] * 0 * batch, axis=-1)

    trainer = make_trainer(optimizer=adam(lr=0.1), loss=nothing)
    state = trainer.init_state(KEY)
    state, scalars = trainer.compiled_step()(KEY, state, ONE.put_batch(batch_of(1)))
    assert not np.any(state.params["bias"])
    assert scalars["update_ratio"] == 0


def test_the_augmented_batch_is_trained_on_with_its_labels():
    seen = []

    def augment(key, batch):
        seen.append(key)
        return -batch, jnp.arange(len(batch) * 2.0).reshape(-1, 2)

    def loss(key, denoiser, batch):
        np.testing.assert_array_equal(batch, -jnp.asarray(batch_of(0)))
        np.testing.assert_array_equal(denoiser.augment_labels[:, 0], 2 * np.arange(len(batch)))
        seen.append(key)
        return jnp.zeros(len(batch))

    trainer = dataclasses.replace(make_trainer(loss=loss), augment=augment)
    trainer.objective({}, KEY, jnp.asarray(batch_of(0)))
    bits = np.stack([jax.random.key_data(key) for key in (KEY, *jax.random.split(KEY), *seen)])
    assert len(np.unique(bits, axis=0)) == 4, "the loss has the first half, the labels their own"


@pytest.mark.slow
def test_training_learns_the_best_linear_denoiser():
    """On N(0, I) the noise in x_t is best predicted by sigma x_t, and mostly by x_t."""
    _, losses = run(make_trainer(optimizer=adam(lr=3e-2)), 150)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.slow
def test_step_is_a_function_of_key_step_and_batch():
    trainer = make_trainer()
    through, losses = run(trainer, 6)
    halfway, early = run(trainer, 3)
    resumed, late = run(trainer, 3, state=halfway)
    assert early + late == losses
    jax.tree.map(np.testing.assert_array_equal, resumed, through)
    _, other = run(trainer, 1, key=jax.random.key(1))
    assert other[0] != losses[0]


def test_each_step_draws_fresh_noise():
    """With the learning rate negligible and one batch, losses differ by their times and noise."""
    trainer = make_trainer(optimizer=adam(lr=1e-20))
    state, step, losses = trainer.init_state(KEY), trainer.compiled_step(), []
    for _ in range(5):
        state, scalars = step(KEY, state, ONE.put_batch(batch_of(0)))
        losses.append(float(scalars["loss"]))
    assert len(set(losses)) == 5


def test_objective_gives_loss_and_dropout_keys_of_their_own():
    seen = []

    def loss(key, denoiser, batch):
        seen.append(key)
        return jnp.zeros(len(batch))

    def denoiser(params, dropout):
        seen.append(dropout)

    trainer = Trainer(
        init=first_params,
        denoiser=denoiser,
        loss=Plain(loss),
        optimizer=Optimizer(),
        average=MovingAverage(),
        parallel=ONE,
    )
    trainer.objective({}, KEY, jnp.zeros((2, DIMS)))
    bits = np.stack([jax.random.key_data(key) for key in (KEY, *seen)])
    assert len(np.unique(bits, axis=0)) == 3


@pytest.mark.slow
def test_losses_seen_by_loss_aware_times_are_part_of_the_state():
    """Half the steps, then the other half from a copy, are all steps; on four devices too."""
    loss = ScoreMatching(times=LossAwareBins(bins=4, history=2))
    runs = []
    for parallel in (ONE, FOUR):
        trainer = dataclasses.replace(make_trainer(parallel=parallel), loss=loss)
        through, losses = run(trainer, 6)
        half, early = run(trainer, 3)
        resumed, late = run(trainer, 3, jax.tree.map(jnp.copy, half))
        assert early + late == losses
        jax.tree.map(np.testing.assert_array_equal, resumed, through)
        assert int(through.objective.count.sum()) == 6 * 8
        runs.append(through)
    np.testing.assert_array_equal(runs[0].objective.count, runs[1].objective.count)
    np.testing.assert_allclose(runs[0].objective.losses, runs[1].objective.losses, rtol=1e-4)


@pytest.mark.slow
def test_one_device_and_four_train_alike():
    alone, losses = run(make_trainer(parallel=ONE), 5)
    together, sharded = run(make_trainer(parallel=FOUR), 5)
    assert FOUR.devices == 4
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(together))
    np.testing.assert_allclose(sharded, losses, rtol=1e-5)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(compare, together, alone)


@pytest.mark.slow
def test_step_consumes_its_state_and_returns_one_of_its_own():
    trainer = make_trainer(parallel=FOUR)
    first = trainer.init_state(KEY)
    second, _ = trainer.compiled_step()(KEY, first, FOUR.put_batch(batch_of(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first.params, first.ema_params)))
    # Buffers of their own: a second step may consume them in turn.
    trainer.compiled_step()(KEY, second, FOUR.put_batch(batch_of(1)))


def test_first_average_is_the_first_parameters():
    state = make_trainer().init_state(KEY)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    assert int(state.step) == 0


def test_abstract_state_is_the_shape_of_the_first():
    trainer = make_trainer(parallel=FOUR)
    first, abstract = trainer.init_state(KEY), trainer.abstract_state()
    assert jax.tree.structure(first) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(first), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)


@pytest.mark.slow
def test_step_averages_the_new_parameters():
    trainer = make_trainer(average=MovingAverage(rate=0.75, warmup=False))
    start = jax.tree.map(np.asarray, trainer.init_state(KEY).params)
    state, _ = run(trainer, 1)
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, start, state.params)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(compare, state.ema_params, expected)


@pytest.mark.slow
def test_more_averages_change_nothing_else_and_resume_bit_for_bit():
    more = MoreAverages(more_rates=(0.5,), snapshot_every=1)
    trainer = dataclasses.replace(make_trainer(), more_averages=more)
    whole, _ = run(trainer, 6)
    halfway, _ = run(trainer, 3)
    resumed, _ = run(trainer, 3, state=halfway)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert set(whole.averages) == {"rate_0.5", "length_0.05", "length_0.1"}
    alone, _ = run(make_trainer(), 6)
    assert alone.averages == {}
    jax.tree.map(np.testing.assert_array_equal, whole._replace(averages={}), alone)
    before, _ = run(trainer, 5)
    before, step = before.averages["length_0.1"], jnp.int32(5)
    expected = more.powers["length_0.1"].update(before, whole.params, step)
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(compare, whole.averages["length_0.1"], expected)


def test_state_is_a_pytree_of_arrays():
    state = make_trainer().init_state(KEY)
    assert isinstance(state, TrainState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
