"""The diffusion transformer against the published one, and the laws it must obey."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.dit import DiT, grid_embedding, modulate, patchify, unpatchify

# Compiling these networks costs far more than running them, so XLA is told not to optimize.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

REFERENCE = Path(__file__).parent / "data" / "dit_reference.npz"

SMALL = {"features": 16, "depth": 2, "heads": 2, "patch_size": 2, "mlp_ratio": 2.0}
REFERENCE_FIELDS = {
    "latents": {
        "features": 32,
        "depth": 2,
        "heads": 2,
        "patch_size": 2,
        "num_classes": 5,
        "learned_variance": True,
    },
    "pixels": {
        "features": 48,
        "depth": 2,
        "heads": 3,
        "patch_size": 1,
        "mlp_ratio": 2.0,
        "num_classes": 5,
    },
}
# The published networks for 32x32x4 latents, 1000 classes and none, and learned variances. Theirs
# also store the positions among the parameters, 256 * features numbers that are not counted here.
PUBLISHED_COUNTS = {
    "S/2": ({"features": 384, "depth": 12, "heads": 6}, 32_963_360),
    "B/2": ({"features": 768, "depth": 12, "heads": 12}, 130_512_416),
    "XL/2": ({"features": 1152, "depth": 28, "heads": 16}, 675_129_632),
}


def abstract_params(network, size=8, channels=3):
    """The shapes of the parameters, without computing any."""

    def init(key):
        x, cond = jnp.zeros((1, size, size, channels)), jnp.zeros((1,))
        return network.init(key, x, cond, train=False)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def seeded_params(network, size=8, channels=3, dtype=np.float32):
    """Weights without any zero, drawn in the order of the sorted paths, as for the reference."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        u = rng.uniform(-1.0, 1.0, leaf.shape)
        if path[-1].key == "kernel":
            u = u * math.sqrt(3.0 / math.prod(leaf.shape[:-1]))
        else:
            u = {"bias": 0.5, "table": 1.0}[path[-1].key] * u
        return u.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(network, size, channels))


def seeded_batch(dtype=np.float32):
    """Two images and noise levels."""
    rng = np.random.default_rng(1)
    return rng.uniform(-1.0, 1.0, (2, 8, 8, 3)).astype(dtype), np.array([3.5, 621.0], dtype)


def evaluator(network):
    """The network without dropout, as a function of (params, x, cond, labels)."""
    return lambda params, x, cond, labels=None: network.apply(
        {"params": params}, x, cond, labels, train=False
    )


# Against the published network


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_count_is_the_published_one(name):
    fields, count = PUBLISHED_COUNTS[name]
    network = DiT(**fields, num_classes=1000, learned_variance=True)
    params = abstract_params(network, 32, 4)
    positions = 256 * fields["features"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) + positions == count


@pytest.mark.parametrize("name", REFERENCE_FIELDS)
def test_output_equals_the_published_code(name):
    """Outputs of the published code with these seeded weights, made outside this repository.

    A submodule that is renamed may change the order of the draws: that too fails here.
    """
    network = DiT(**REFERENCE_FIELDS[name])
    with np.load(REFERENCE) as reference:
        x, cond, labels, expected, weight_sum = (
            reference[f"{name}_{key}"] for key in ("x", "cond", "labels", "y", "weight_sum")
        )
    params = seeded_params(network, *x.shape[2:])
    total = sum(float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(params))
    assert total == pytest.approx(float(weight_sum)), "other weights"
    y = quick_jit(evaluator(network))(params, x, cond, labels)
    assert np.max(np.abs(y - expected)) < 1e-5 * np.max(np.abs(expected))


# Parts


def test_patches_are_those_of_the_image_and_make_it_again():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    patches = patchify(x, 2)
    assert patches.shape == (2, 9, 12)
    np.testing.assert_array_equal(patches[:, 5], x[:, 2:4, 4:6].reshape(2, 12))
    np.testing.assert_array_equal(unpatchify(patches, 2), x)


def test_products_of_positions_depend_on_their_distance_alone():
    """<p(a), p(b)> is a sum of cosines of w_j times the distance in columns, and in rows."""
    grid, features = 5, 16
    p = grid_embedding(grid, features).reshape(grid, grid, features)
    assert p.dtype == np.float64
    frequencies = 10000.0 ** -np.array([0, 1 / 4, 2 / 4, 3 / 4])
    for (row, column), (other_row, other_column) in [
        ((0, 0), (3, 1)),
        ((4, 2), (1, 2)),
        ((2, 4), (2, 0)),
    ]:
        halves = p[row, column] * p[other_row, other_column]
        by_column = np.cos(frequencies * (column - other_column)).sum()
        by_row = np.cos(frequencies * (row - other_row)).sum()
        np.testing.assert_allclose(halves[:8].sum(), by_column, rtol=1e-12)
        np.testing.assert_allclose(halves[8:].sum(), by_row, rtol=1e-12)


def test_modulation_is_layer_norm_and_survives_a_large_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    shift, scale = rng.normal(size=(2, 2, 16)).astype(np.float32)
    reference = nn.LayerNorm(
        epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False
    ).apply({}, x)
    expected = reference * (1 + scale[:, None]) + shift[:, None]
    np.testing.assert_allclose(modulate(x, shift, scale), expected, atol=1e-5)
    np.testing.assert_allclose(modulate(x + 1000.0, shift, scale), expected, atol=2e-3)


# The network as a function


@pytest.mark.parametrize(
    ("fields", "channels"),
    [
        ({}, 1),
        ({"learned_variance": True}, 2),
        ({"out_channels": 3}, 3),
        ({"out_channels": 3, "learned_variance": True}, 6),
    ],
)
@pytest.mark.parametrize("patch_size", [1, 4])
def test_output_has_the_channels_asked_for(fields, channels, patch_size):
    network = DiT(**SMALL | fields | {"patch_size": patch_size})
    x, cond = jnp.zeros((3, 8, 8, 1)), jnp.zeros((3,))
    y, _ = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), x, cond, train=False))
    assert y.shape == (3, 8, 8, channels)
    assert y.dtype == jnp.float32


def test_network_starts_at_zero():
    network = DiT(**SMALL | {"depth": 1})
    x, cond = seeded_batch()
    y, _ = quick_jit(lambda key: network.init_with_output(key, x, cond, train=False))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(y, 0.0)


def test_blocks_start_as_the_identity():
    """With modulation at zero, everything else may be anything: no token sees another."""
    network = DiT(**SMALL)
    params = seeded_params(network)
    for i in range(2):
        params[f"block_{i}"]["modulation"] = jax.tree.map(
            np.zeros_like, params[f"block_{i}"]["modulation"]
        )
    f = quick_jit(evaluator(network))
    x, cond = seeded_batch()
    changed = x.copy()
    changed[:, :2, :2] += 1.0
    y, other = f(params, x, cond), f(params, changed, cond)
    assert not np.allclose(y[:, :2, :2], other[:, :2, :2], atol=1e-2)
    np.testing.assert_allclose(y[:, 2:], other[:, 2:], atol=1e-6)
    np.testing.assert_allclose(y[:, :, 2:], other[:, :, 2:], atol=1e-6)


def test_labels_matter_and_none_is_the_last():
    network = DiT(**SMALL, num_classes=4)
    f, params = quick_jit(evaluator(network)), seeded_params(network)
    x, cond = seeded_batch()
    nothing = f(params, x, cond)
    np.testing.assert_array_equal(nothing, f(params, x, cond, np.array([4, 4])))
    labelled = f(params, x, cond, np.array([1, 4]))
    assert not np.allclose(labelled[0], nothing[0], atol=1e-2)
    np.testing.assert_allclose(labelled[1], nothing[1], atol=1e-6)


def test_derivatives_agree_in_float64():
    """J v by forward mode equals a central difference, and <u, J v> = <J^T u, v>."""
    network = DiT(**SMALL | {"depth": 1})
    with jax.enable_x64(True):
        params = seeded_params(network, dtype=np.float64)
        x, cond = seeded_batch(np.float64)
        rng = np.random.default_rng(2)
        u, v = rng.normal(size=x.shape), rng.normal(size=x.shape)

        def f(x):
            return evaluator(network)(params, x, cond)

        y, jvp = quick_jit(lambda x, v: jax.jvp(f, (x,), (v,)))(x, v)
        (vjp,) = quick_jit(lambda x, u: jax.vjp(f, x)[1](u))(x, u)
        assert y.dtype == jvp.dtype == vjp.dtype == jnp.float64
        h, step = 1e-6, quick_jit(f)
        difference = (step(x + h * v) - step(x - h * v)) / (2 * h)
        np.testing.assert_allclose(jvp, difference, rtol=1e-6, atol=1e-6)
        assert np.vdot(u, jvp) == pytest.approx(np.vdot(vjp, v), rel=1e-10)


def test_every_parameter_learns_and_rematerialized_blocks_learn_the_same():
    x, cond = seeded_batch()
    labels = np.array([1, 2])

    def gradients(**fields):
        network = DiT(**SMALL | {"depth": 1, "num_classes": 2} | fields)

        def loss(params):
            return jnp.mean(jnp.square(evaluator(network)(params, x, cond, labels) - 1.0))

        return quick_jit(jax.grad(loss))(seeded_params(network))

    kept, again = gradients(), gradients(remat=True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), kept, again)
    for path, gradient in jax.tree_util.tree_leaves_with_path(kept):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.max(np.abs(gradient)) > 1e-6, name


def test_bfloat16_is_close_to_float32():
    x, cond = seeded_batch()
    params = seeded_params(DiT(**SMALL))
    precise = quick_jit(evaluator(DiT(**SMALL)))(params, x, cond)
    rounded = quick_jit(evaluator(DiT(**SMALL, compute_dtype="bfloat16")))(params, x, cond)
    assert rounded.dtype == jnp.float32
    error = np.max(np.abs(rounded - precise)) / np.max(np.abs(precise))
    assert 1e-4 < error < 2e-2


def test_dropout_acts_in_training_only():
    network = DiT(**SMALL, dropout=0.5)
    params = seeded_params(network)
    x, cond = seeded_batch()

    @quick_jit
    def trained(key):
        rngs = {"dropout": key}
        return network.apply({"params": params}, x, cond, train=True, rngs=rngs)

    first, again, second = (trained(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-2)
    evaluated = quick_jit(evaluator(network))(params, x, cond)
    without = quick_jit(evaluator(DiT(**SMALL)))(params, x, cond)
    np.testing.assert_array_equal(evaluated, without)


# Refusals

INVALID = [
    ({"features": 0}, "a positive multiple of 4"),
    ({"features": 18}, "a positive multiple of 4"),
    ({"features": 16.0}, "a positive multiple of 4"),
    ({"depth": 0}, "a positive integer"),
    ({"heads": 0}, "a divisor of config.model.features=16"),
    ({"heads": 3}, "a divisor of config.model.features=16"),
    ({"patch_size": 0}, "a divisor of config.data.image_size=8"),
    ({"patch_size": 3}, "a divisor of config.data.image_size=8"),
    ({"mlp_ratio": 0.0}, "a positive number"),
    ({"dropout": 1.0}, r"in \[0, 1\)"),
    ({"num_classes": -1}, "an integer, 0 for no classes"),
    ({"out_channels": 0}, "a positive integer"),
    ({"compute_dtype": "float16"}, "'float16'; valid is one of 'float32', 'bfloat16'"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_invalid_field_is_named_before_anything_is_computed(fields, message):
    network = DiT(**SMALL | fields)
    field = next(iter(fields))
    with pytest.raises(ValueError, match=message) as error:
        network.validate(8, 3)
    assert str(error.value).startswith(f"config.model.{field} is ")
    with pytest.raises(ValueError, match=message):
        abstract_params(network)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 0)])
def test_empty_images_are_refused(size, channels):
    with pytest.raises(ValueError, match=r"config\.data\.(image_size|channels) is 0"):
        DiT(**SMALL).validate(size, channels)


def test_oblong_images_are_refused():
    with pytest.raises(ValueError, match="8x16 pixels; valid is square"):
        DiT(**SMALL).init(jax.random.key(0), jnp.zeros((1, 8, 16, 3)), jnp.zeros(1), train=False)


def test_defaults_are_valid_for_cifar10():
    DiT().validate(32, 3)
