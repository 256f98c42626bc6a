"""The diffusion transformer against the published one, and the laws it must obey."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import (
    assert_bfloat16_is_close,
    assert_derivatives_agree,
    assert_dropout_acts_in_training_only,
    assert_published,
    assert_refused,
    assert_wrong_images_are_refused,
    compiled,
    parameter_count,
    quick_jit,
    seeded_batch,
    seeded_params,
)

from models.dit import DiT, grid_embedding, modulate, patchify, unpatchify

REFERENCE = Path(__file__).parent.parent / "fixtures" / "dit_reference.npz"

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


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_count_is_the_published_one(name):
    fields, count = PUBLISHED_COUNTS[name]
    network = DiT(**fields, num_classes=1000, learned_variance=True)
    positions = 256 * fields["features"]
    assert parameter_count(network, 32, 4) + positions == count


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_FIELDS)
def test_output_equals_the_published_code(name):
    network = DiT(**REFERENCE_FIELDS[name])
    with np.load(REFERENCE) as reference:
        x, *conditions = (reference[f"{name}_{key}"] for key in ("x", "cond", "labels"))
        params = seeded_params(network, *x.shape[2:])
        y = compiled(network)(params, x, *conditions)
        assert_published(y, reference, name, params)


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
def test_output_has_the_requested_channels(fields, channels, patch_size):
    network = DiT(**SMALL | fields | {"patch_size": patch_size})
    x, cond = jnp.zeros((3, 8, 8, 1)), jnp.zeros((3,))
    y, _ = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), x, cond, train=False))
    assert y.shape == (3, 8, 8, channels)
    assert y.dtype == jnp.float32


@pytest.mark.slow
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
    f = compiled(network)
    x, cond = seeded_batch()
    changed = x.copy()
    changed[:, :2, :2] += 1.0
    y, other = f(params, x, cond), f(params, changed, cond)
    assert not np.allclose(y[:, :2, :2], other[:, :2, :2], atol=1e-2)
    np.testing.assert_allclose(y[:, 2:], other[:, 2:], atol=1e-6)
    np.testing.assert_allclose(y[:, :, 2:], other[:, :, 2:], atol=1e-6)


@pytest.mark.slow
def test_labels_matter_and_none_is_the_last():
    network = DiT(**SMALL, num_classes=4)
    f, params = compiled(network), seeded_params(network)
    x, cond = seeded_batch()
    nothing = f(params, x, cond)
    np.testing.assert_array_equal(nothing, f(params, x, cond, np.array([4, 4])))
    labeled = f(params, x, cond, np.array([1, 4]))
    assert not np.allclose(labeled[0], nothing[0], atol=1e-2)
    np.testing.assert_allclose(labeled[1], nothing[1], atol=1e-6)


@pytest.mark.slow
def test_derivatives_agree_and_every_parameter_learns():
    network = DiT(**SMALL | {"depth": 1, "num_classes": 2})
    assert_derivatives_agree(network, jnp.array([1, 2]))


def test_bfloat16_is_close_to_float32():
    assert_bfloat16_is_close(DiT(**SMALL), 1e-4)


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    assert_dropout_acts_in_training_only(DiT(**SMALL))


INVALID = [
    ({"features": 0}, "an integer, 1 or more"),
    ({"features": 18}, "a multiple of 4"),
    ({"features": 16.0}, "an integer, 1 or more"),
    ({"depth": 0}, "an integer, 1 or more"),
    ({"heads": 0}, "an integer, 1 or more"),
    ({"heads": 3}, "a divisor of config.model.features=16"),
    ({"patch_size": 0}, "an integer, 1 or more"),
    ({"patch_size": 3}, "a divisor of config.data.image_size=8"),
    ({"mlp_ratio": 0.0}, "must be above 0"),
    ({"mlp_ratio": 0.01}, "at least 1 over config.model.features=16"),
    ({"dropout": 1.0}, r"in \[0, 1\)"),
    ({"num_classes": -1}, "an integer, 0 or more"),
    ({"out_channels": 0}, "an integer, 1 or more"),
    ({"compute_dtype": "float16"}, "'float16' is unknown; choose one of: bfloat16, float32"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_invalid_field_is_named_before_anything_is_computed(fields, message):
    assert_refused(DiT(**SMALL | fields), next(iter(fields)), message)


def test_images_that_are_empty_or_oblong_are_refused():
    assert_wrong_images_are_refused(DiT(**SMALL))


def test_defaults_are_valid_for_cifar10():
    DiT().validate(32, 3)
