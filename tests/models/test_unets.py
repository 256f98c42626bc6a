"""The networks against the published ones, and the laws they must obey."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from networks import (
    abstract_params,
    assert_check_refuses_what_layers_refuse,
    assert_derivatives_agree,
    assert_dropout_acts_in_training_only,
    assert_published,
    assert_refused,
    assert_wrong_images_are_refused,
    compiled,
    evaluator,
    named,
    quick_jit,
    seeded_batch,
    seeded_params,
)

from denoising import Denoiser
from models import NETWORKS
from models.blocks.layers import ACTIVATIONS
from models.ddpm import DDPM
from models.ncsnpp import CHOICES, NCSNpp
from sde_lib import VPSDE

REFERENCE = Path(__file__).parent.parent / "fixtures" / "ncsnpp_reference.npz"

SMALL = {
    "features": 16,
    "channel_multipliers": (1, 2),
    "blocks_per_resolution": 1,
    "attention_resolutions": (8,),
    "dropout": 0.0,
}
TINY = SMALL | {"channel_multipliers": (1,), "attention_resolutions": ()}
NCSNPP = {"resample": "fir", "progressive_input": "residual", "embedding": "fourier"}
REFERENCE_FIELDS = {
    "ddpmpp": SMALL,
    "ncsnpp": SMALL | NCSNPP,
    "ddpm_fir_residual": SMALL
    | {
        "residual_block": "ddpm",
        "resample": "fir",
        "progressive_input": "residual",
        "progressive_output": "residual",
    },
    "skip_cat": SMALL
    | {
        "resample": "fir",
        "progressive_input": "input_skip",
        "progressive_output": "output_skip",
        "progressive_combine": "cat",
        "skip_rescale": False,
    },
}
LSUN = NCSNPP | {"progressive_input": "input_skip", "progressive_output": "output_skip"}


# Against the published networks, whose sizes test_configs.py counts


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_FIELDS)
def test_output_equals_the_published_code(name):
    network = NCSNpp(**REFERENCE_FIELDS[name])
    params = seeded_params(network)
    with np.load(REFERENCE) as reference:
        y = compiled(network)(params, reference["x"], reference["cond"])
        assert_published(y, reference, name, params)


@pytest.mark.slow
@pytest.mark.parametrize("residual_block", CHOICES["residual_block"])
@pytest.mark.parametrize("resample", CHOICES["resample"])
@pytest.mark.parametrize(
    ("progressive_input", "progressive_output"),
    list(zip(CHOICES["progressive_input"], CHOICES["progressive_output"], strict=True)),
)
def test_every_kind_of_network_keeps_the_resolution(
    residual_block, resample, progressive_input, progressive_output
):
    network = NCSNpp(
        **SMALL,
        residual_block=residual_block,
        resample=resample,
        progressive_input=progressive_input,
        progressive_output=progressive_output,
        out_channels=2,
    )
    x, cond = jnp.zeros((3, 8, 8, 1)), jnp.zeros((3,))

    def init_with_output():
        return network.init_with_output(jax.random.key(0), x, cond, train=False)

    y, _ = jax.eval_shape(init_with_output)
    assert y.shape == (3, 8, 8, 2)
    assert y.dtype == jnp.float32


@pytest.mark.slow
def test_derivatives_agree_and_every_parameter_learns_but_the_frequencies():
    assert_derivatives_agree(NCSNpp(**SMALL | NCSNPP), fixed=("fourier/frequencies",))


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch():
    network = NCSNpp(**SMALL | NCSNPP)
    params, f = seeded_params(network), compiled(network)
    x, cond = seeded_batch()
    both = f(params, x, cond)
    other = f(params, np.stack([x[0], -3.0 * x[1]]), np.stack([cond[0], cond[1] + 1.0]))
    np.testing.assert_allclose(both[0], other[0], atol=1e-5)
    assert not np.allclose(both[1], other[1], atol=1e-2)


@pytest.mark.slow
def test_network_starts_at_almost_zero():
    network = NCSNpp(**TINY)
    x, cond = seeded_batch()
    y, _ = quick_jit(lambda key: network.init_with_output(key, x, cond, train=False))(
        jax.random.key(0)
    )
    assert 0 < np.max(np.abs(y)) < 1e-3


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    assert_dropout_acts_in_training_only(NCSNpp(**TINY))


@pytest.mark.slow
@pytest.mark.parametrize("fields", [SMALL, SMALL | LSUN], ids=["ddpmpp", "lsun"])
def test_bfloat16_denoises_as_float32_at_every_noise_level(fields):
    params = seeded_params(NCSNpp(**fields))
    x, _ = seeded_batch()
    x, t = np.tile(x, (3, 1, 1, 1)), jnp.array([1e-3, 0.05, 0.2, 0.4, 0.7, 1.0])

    def denoised(compute_dtype):
        network = NCSNpp(**fields, compute_dtype=compute_dtype)
        predict = Denoiser(sde=VPSDE(), network=Partial(evaluator(network), params)).predict
        return quick_jit(predict)(x, t).x0

    full, half = denoised("float32"), denoised("bfloat16")
    assert half.dtype == jnp.float32
    error = np.linalg.norm((full - half).reshape(6, -1), axis=1)
    error /= np.linalg.norm(full.reshape(6, -1), axis=1)
    assert np.all(error < 2e-2), error
    assert np.any(error > 1e-4), "nothing was computed in bfloat16"


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_gradients_in_float32():
    network = NCSNpp(**TINY, compute_dtype="bfloat16")
    params, (x, cond) = seeded_params(network), seeded_batch()

    def loss(params):
        return jnp.mean(evaluator(network)(params, x, cond) ** 2)

    gradients = jax.eval_shape(jax.grad(loss), params)
    for leaf in [*jax.tree.leaves(abstract_params(network)), *jax.tree.leaves(gradients)]:
        assert leaf.dtype == jnp.float32


@pytest.mark.slow
def test_classes_matter_and_none_is_a_class_of_its_own():
    network = NCSNpp(**TINY, num_classes=3)
    params, (x, cond) = seeded_params(network), seeded_batch()

    def f(labels):
        return compiled(network)(params, x, cond, labels)

    outputs = [f(jnp.array([label, label])) for label in range(4)]
    for a, b in itertools.combinations(outputs, 2):
        assert np.max(np.abs(a - b)) > 1e-3
    unlabeled = compiled(network)(params, x, cond)
    np.testing.assert_allclose(unlabeled, outputs[3], atol=1e-5)
    mixed = f(jnp.array([1, 2]))
    np.testing.assert_allclose(mixed, np.stack([outputs[1][0], outputs[2][1]]), atol=1e-5)


@pytest.mark.slow
def test_ddpm_is_ncsnpp_with_its_settings():
    fields = SMALL | {"decoder_attention": "block", "num_groups": 8}
    assert DDPM().num_groups == 32
    ddpm = DDPM(**fields)
    ncsnpp = NCSNpp(**fields, residual_block="ddpm", skip_rescale=False)
    params, (x, cond) = seeded_params(ncsnpp), seeded_batch()
    assert jax.tree.structure(abstract_params(ddpm)) == jax.tree.structure(params)
    y, expected = (compiled(n)(params, x, cond) for n in (ddpm, ncsnpp))
    np.testing.assert_array_equal(y, expected)


def test_network_without_embedding_does_not_see_the_noise_level():
    network = NCSNpp(**TINY, embedding="none")
    params, (x, cond) = seeded_params(network), seeded_batch()
    f = compiled(network)
    np.testing.assert_array_equal(f(params, x, cond), f(params, x, cond + 100))
    assert not any("embedding" in name for name in named(params))


@pytest.mark.slow
def test_waves_repeat_from_gray_level_to_gray_level():
    """A first layer that sees waves of f = 127.5 alone cannot tell levels apart, only what lies
    between them."""
    network = NCSNpp(**TINY, input_frequencies=(127.5,))
    params, (_, cond) = seeded_params(network), seeded_batch()
    kernel = params["input_conv"]["kernel"]
    assert kernel.shape[2] == 9  # 3 channels: x, sin, cos
    params["input_conv"]["kernel"] = kernel * (np.arange(9) >= 3)[:, None]
    levels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3))
    f = compiled(network)
    y, next_level, between = (
        f(params, (2 * (levels + shift) / 255 - 1).astype(np.float32), cond)
        for shift in (0, 1, 0.5)
    )
    np.testing.assert_allclose(y, next_level, atol=1e-3)
    assert np.abs(y - between).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_used(activation):
    network = NCSNpp(**TINY, activation=activation)
    params, (x, cond) = seeded_params(network), seeded_batch()
    swish = compiled(NCSNpp(**TINY))(params, x, cond)
    y = compiled(network)(params, x, cond)
    assert np.array_equal(y, swish) == (activation == "swish")


INVALID = [
    ({"residual_block": "resnet"}, "'resnet' is unknown; choose one of: biggan, ddpm"),
    ({"resample": "bilinear"}, "'bilinear' is unknown; choose one of: fir, plain"),
    ({"progressive_input": "skip"}, "choose one of: input_skip, none, residual"),
    ({"progressive_output": "skip"}, "choose one of: none, output_skip, residual"),
    ({"progressive_combine": "mean"}, "choose one of: cat, sum"),
    ({"embedding": "sine"}, "choose one of: fourier, none, positional"),
    ({"features": 2}, "an even integer, 4 or more"),
    ({"features": 33}, "an even integer, 4 or more"),
    ({"features": 16.0}, "an even integer, 4 or more"),
    (
        {"num_groups": 32},
        r"here \[16, 32, 48, 64\].*multiple of it for config.*, or 0",
    ),
    ({"num_groups": -1}, "an integer, 0 or more"),
    ({"features": 36}, "a layer of 72 channels has 18 groups|multiple of 32"),
    ({"channel_multipliers": ()}, "one number per resolution"),
    ({"channel_multipliers": (1, 0)}, "positive integers"),
    (
        {"channel_multipliers": (1, 1, 1, 1, 1)},
        "at most 4 resolutions for config.data.image_size=8",
    ),
    ({"blocks_per_resolution": 0}, "an integer, 1 or more"),
    ({"attention_resolutions": (8, 16)}, r"any of \[8, 4\].*or \(\)"),
    ({"dropout": 1.0}, r"in \[0, 1\)"),
    ({"fir_kernel": (1,)}, "two or more numbers"),
    ({"fourier_scale": 0.0}, "must be above 0"),
    ({"init_scale": -1.0}, "must be at least 0"),
    ({"out_channels": 0}, "an integer, 1 or more"),
    ({"num_classes": -1}, "an integer, 0 or more"),
    ({"num_classes": 3, "embedding": "none"}, "0 with embedding='none'"),
    ({"input_frequencies": (127.5, 0.0)}, "positive numbers"),
    ({"augment_labels": -1}, "an integer, 0 or more"),
    ({"augment_labels": 9, "embedding": "none"}, "0 with embedding='none'"),
    ({"compute_dtype": "float16"}, "choose one of: bfloat16, float32"),
    ({"activation": "gelu"}, "choose one of: elu, leaky_relu, relu, swish"),
    ({"decoder_attention": "all"}, "choose one of: block, resolution"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_invalid_field_is_named_before_anything_is_computed(fields, message):
    assert_refused(NCSNpp(**SMALL | fields), next(iter(fields)), message)


def test_images_that_are_empty_or_oblong_are_refused():
    assert_wrong_images_are_refused(NCSNpp(**SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("features", [6, 12, 36, 96])
@pytest.mark.parametrize("combine", CHOICES["progressive_combine"])
def test_group_check_refuses_exactly_what_the_layers_refuse(features, combine):
    fields = {"progressive_input": "input_skip", "progressive_combine": combine}
    assert_check_refuses_what_layers_refuse(NCSNpp, SMALL | fields | {"features": features})


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_are_valid_for_32_pixels(name):
    NETWORKS[name]().validate(32, 3)
