"""Divided parameters: the numbers of replicated ones, in a part of the memory, from any file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, UNET, configuration
from jax.sharding import AxisType, Mesh, PartitionSpec
from jax.tree_util import Partial

from denoising import Denoiser
from errors import ConfigError
from experiment.build import build
from losses import ScoreMatching
from sde_lib import VPSDE
from training.averages import MoreAverages, MovingAverage
from training.checkpoints import Checkpoints
from training.optimizers import Adam, Optimizer
from training.parallel import DataParallel
from training.schedules import Constant
from training.sharding import SHARDINGS, Sharding
from training.step import Trainer

WIDTH, HIDDEN = 3, 16
ONE, TWO, FOUR = (
    DataParallel(Mesh(jax.devices()[:count], ("data",), axis_types=(AxisType.Auto,)))
    for count in (1, 2, 4)
)
PARTS = Sharding(shard="params", min_size=HIDDEN)


def first_params(key):
    keys = jax.random.split(key, 3)
    shapes = {"into": (WIDTH, HIDDEN), "inner": (HIDDEN, HIDDEN), "out": (HIDDEN, WIDTH)}
    draws = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape) / 4 for (name, shape), key in draws}


def network(params, x, t):
    return jnp.tanh(jnp.tanh(x @ params["into"]) @ params["inner"]) @ params["out"]


def trainer(parallel, sharding, **more):
    function = sharding.with_whole_parameters(network, parallel)
    return Trainer(
        init=first_params,
        denoiser=lambda params, dropout=None: Denoiser(
            sde=VPSDE(), network=Partial(function, params)
        ),
        loss=ScoreMatching(),
        optimizer=Optimizer(rule=Adam(), learning_rate=Constant(lr=1e-2, warmup=0)),
        average=MovingAverage(),
        more_averages=MoreAverages(more_rates=(0.5,)),
        parallel=parallel,
        sharding=sharding,
        **more,
    )


def trained(made, steps=3):
    state, step = made.init_state(jax.random.key(0)), made.compiled_step()
    rows = np.random.default_rng(0).normal(size=(8, WIDTH)).astype(np.float32)
    for _ in range(steps):
        state, scalars = step(jax.random.key(1), state, made.parallel.put_batch(rows))
    return state, scalars


@pytest.mark.parametrize(
    ("shape", "devices", "spec"),
    [
        ((3, 3, 128, 256), 8, (None, None, None, "data")),
        ((3, 3, 256, 129), 8, (None, None, "data")),
        ((512, 512), 8, ("data",)),  # the first of equal ones
        ((16, 5, 1001), 4, ("data",)),  # 1001 does not divide
        ((9, 9), 4, ()),
        ((1024,), 2, ("data",)),
        ((999,), 1, ()),
        ((), 4, ()),
        ((8, 3), 8, ()),  # below 64 elements
        ((0, 64), 8, ()),
    ],
)
def test_array_is_divided_along_its_largest_dimension_that_divides(shape, devices, spec):
    assert SHARDINGS["params"](shape, devices, 64) == PartitionSpec(*spec)
    assert SHARDINGS["none"](shape, devices, 64) == PartitionSpec()


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "accumulate"), [(TWO, 1), (FOUR, 2)])
def test_training_is_that_of_replicated_parameters(parallel, accumulate):
    expected, scalars = trained(trainer(parallel, Sharding(), accumulate=accumulate))
    state, found = trained(trainer(parallel, PARTS, accumulate=accumulate))
    for name, value in scalars.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=1e-4, atol=1e-6)
    # Parameters, two averages, and Adam's two moments; scalars are whole.
    for leaf in jax.tree.leaves(state):
        held = {shard.data.size for shard in leaf.addressable_shards}
        assert held == {leaf.size // parallel.devices if leaf.ndim else 1}
    assert sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state)) == 5 * 3


def test_fetched_trees_are_whole_however_they_are_divided():
    params = {"a": jnp.arange(32.0).reshape(2, 16), "b": jnp.arange(3.0)}
    placed = jax.device_put(params, PARTS.of(params, FOUR))
    assert not placed["a"].is_fully_replicated
    fetched = FOUR.fetch_tree(placed)
    for name, value in params.items():
        assert isinstance(fetched[name], np.ndarray)
        np.testing.assert_array_equal(fetched[name], value)


def test_backward_pass_puts_parameters_together_again():
    """What it keeps of the forward pass are activations and parts, no whole parameters."""
    params = PARTS.abstract(jax.eval_shape(first_params, jax.random.key(0)), FOUR)
    x = jax.ShapeDtypeStruct((8, WIDTH), np.float32)

    def counted(sharding, keep=False):
        function = sharding.with_whole_parameters(network, FOUR, keep=keep)
        gradient = jax.grad(lambda params, x: jnp.sum(function(params, x, 0.5) ** 2))
        return str(jax.make_jaxpr(gradient)(params, x)).count("sharding_constraint[")

    assert counted(Sharding()) == 0
    assert counted(PARTS, keep=True) == 4 * 3
    # Of each: two forward, two for its gradient, and for all that the gradient needs two again.
    assert counted(PARTS) >= 4 * 3 + 2 * 2


@pytest.mark.slow
def test_checkpoint_loads_into_any_sharding_on_any_number_of_devices(tmp_path):
    places = [(FOUR, PARTS), (FOUR, Sharding()), (TWO, PARTS), (ONE, PARTS), (ONE, Sharding())]
    for number, (parallel, sharding) in enumerate(places[:2]):
        folder = tmp_path / str(number)
        state = trainer(parallel, sharding).init_state(jax.random.key(0))
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, state, {})
        checkpoints.close()
        for target in places:
            template = trainer(*target).abstract_state()
            restored = Checkpoints(folder).restore(template).state
            pairs = zip(*map(jax.tree.leaves, (state, restored, template)), strict=True)
            for saved, found, wanted in pairs:
                np.testing.assert_array_equal(np.asarray(found), np.asarray(saved))
                assert found.sharding == wanted.sharding


@pytest.mark.slow
def test_network_of_a_configuration_predicts_the_same():
    fields = UNET | {"parallel.min_size": 64}
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    found = []
    plain = jax.jit(build(configuration(fields)).trainer.init)(jax.random.key(0))
    for shard in ("none", "params"):
        experiment = build(configuration(fields | {"parallel.shard": shard}))
        template = experiment.trainer.abstract_parameters().ema_params
        params = jax.tree.map(
            lambda leaf, like: jax.device_put(leaf, like.sharding), plain, template
        )
        divided = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(params)]
        assert any(divided) == (shard == "params")
        denoiser = experiment.model.denoiser(params)
        found.append(jax.jit(lambda denoiser, x: denoiser.predict(x, 0.5).x0)(denoiser, x))
    np.testing.assert_allclose(*map(np.asarray, found), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "shard",
            "fsdp",
            r"^config\.parallel\.shard='fsdp' is unknown; choose one of: none, params$",
        ),
        ("min_size", 0, r"^config\.parallel\.min_size=0 must be at least 1$"),
    ],
)
def test_wrong_choices_are_named(field, value, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(TINY | {f"parallel.{field}": value}))


def test_note_says_where_nothing_is_divided():
    shapes = jax.eval_shape(first_params, jax.random.key(0))
    assert "1 device" in PARTS.note(shapes, ONE)
    large = dataclasses.replace(PARTS, min_size=10_000)
    assert "config.parallel.min_size=10000" in large.note(shapes, FOUR)
    assert PARTS.note(shapes, FOUR) == Sharding().note(shapes, ONE) == ""
