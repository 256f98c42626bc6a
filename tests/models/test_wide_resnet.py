"""The noise-conditional classifier against the published one, and the laws it must obey."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    assert_check_refuses_what_layers_refuse,
    assert_published,
    assert_refused,
    assert_wrong_images_are_refused,
    compiled,
    evaluator,
    named,
    parameter_count,
    quick_jit,
    seeded_batch,
    seeded_params,
)

from models.wide_resnet import WideResNet, standardize

REFERENCE = Path(__file__).parent.parent / "fixtures" / "wide_resnet_reference.npz"

SMALL = {"blocks_per_group": 1, "channel_multiplier": 1, "num_classes": 4, "features": 8}
REFERENCE_FIELDS = {
    "narrow": {"blocks_per_group": 1, "channel_multiplier": 1, "num_classes": 4},
    "wide": {"blocks_per_group": 2, "channel_multiplier": 2, "num_classes": 10},
}


def test_parameter_count_is_the_published_one():
    assert parameter_count(WideResNet(), 32) == 38_913_242


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_FIELDS)
def test_logits_equal_the_published_code(name):
    network = WideResNet(**REFERENCE_FIELDS[name])
    params = seeded_params(network)
    with np.load(REFERENCE) as reference:
        y = compiled(network)(params, reference["x"], reference["log_sigma"])
        assert_published(y, reference, name, params)


def test_logits_do_not_depend_on_the_scale_and_offset_of_an_image():
    network = WideResNet(**SMALL)
    params, f = seeded_params(network), compiled(network)
    x, cond = seeded_batch()
    np.testing.assert_allclose(f(params, 50.0 * x - 7.0, cond), f(params, x, cond), atol=1e-4)


def test_images_without_contrast_stay_so_and_have_a_gradient():
    flat = np.full((1, 4, 4, 3), 0.5, np.float32)
    faint = flat.copy()
    faint[0, 0, 0, 0] += 1e-3
    np.testing.assert_array_equal(standardize(flat), 0.0)
    assert 0 < np.max(np.abs(standardize(faint))) < 1e-2  # at most sqrt(48) times the contrast
    gradient = quick_jit(jax.grad(lambda x: jnp.sum(jnp.square(standardize(x) - 1.0))))(flat)
    assert np.all(np.isfinite(gradient))


def test_noise_level_matters_and_an_image_does_not_depend_on_its_batch():
    network = WideResNet(**SMALL)
    params, f = seeded_params(network), compiled(network)
    x, cond = seeded_batch()
    both = f(params, x, cond)
    other = f(params, np.stack([x[0], -3.0 * x[1]]), np.stack([cond[0], cond[1] + 1.0]))
    np.testing.assert_allclose(both[0], other[0], atol=1e-5)
    assert not np.allclose(f(params, x, cond + 0.1), both, atol=1e-2)


@pytest.mark.slow
def test_gradients_agree_with_differences_and_all_but_the_frequencies_learn():
    """<grad, v> equals a central difference along v, in float64, for images as for weights."""
    network = WideResNet(**SMALL)
    with jax.enable_x64(True):
        params = seeded_params(network, dtype=np.float64)
        x, cond = seeded_batch(np.float64)
        v = np.random.default_rng(2).normal(size=x.shape)

        def log_likelihood(params, x):
            logits = evaluator(network)(params, x, cond)
            assert logits.dtype == jnp.float64
            return jax.nn.log_softmax(logits)[:, 1].sum()

        gradient = quick_jit(jax.grad(log_likelihood, argnums=(0, 1)))(params, x)
        by_params, by_x = jax.tree.map(np.asarray, gradient)
        h, f = 1e-6, quick_jit(log_likelihood)
        difference = (f(params, x + h * v) - f(params, x - h * v)) / (2 * h)
        assert np.vdot(by_x, v) == pytest.approx(float(difference), rel=1e-6)
        ahead = jax.tree.map(lambda p, g: p + h * g, params, by_params)
        behind = jax.tree.map(lambda p, g: p - h * g, params, by_params)
        difference = (f(ahead, x) - f(behind, x)) / (2 * h)
        squares = sum(float(np.vdot(g, g)) for g in jax.tree.leaves(by_params))
        assert squares == pytest.approx(float(difference), rel=1e-6)
    for name, gradient in named(by_params).items():
        if name == "fourier/frequencies":
            assert np.all(gradient == 0)
        else:
            assert np.max(np.abs(gradient)) > 1e-6, name


def test_weights_start_with_the_variances_that_are_promised():
    network = WideResNet(**SMALL | {"num_classes": 100, "channel_multiplier": 2})
    x, cond = seeded_batch()

    @quick_jit
    def kernels(key):
        params = network.init(key, x, cond, train=False)["params"]
        return params["group_2_block_0"]["conv_1"]["kernel"], params["output"]["kernel"]

    conv, output = kernels(jax.random.key(0))
    assert np.var(conv) == pytest.approx(2 / (9 * 128), rel=0.05)
    assert np.max(np.abs(output)) <= 0.1
    assert np.var(output) == pytest.approx(0.1**2 / 3, rel=0.05)


INVALID = [
    ({"blocks_per_group": 0}, "an integer, 1 or more"),
    ({"channel_multiplier": 0}, "an integer, 1 or more"),
    ({"channel_multiplier": 9}, "below 8 or even; here 144 channels"),
    ({"num_classes": 0}, "an integer, 1 or more"),
    ({"features": 0}, "an integer, 1 or more"),
    ({"fourier_scale": 0.0}, "must be above 0"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_invalid_field_is_named_before_anything_is_computed(fields, message):
    assert_refused(WideResNet(**SMALL | fields), next(iter(fields)), message)


@pytest.mark.parametrize("multiplier", [7, 8, 9, 10, 11])
def test_multiplier_check_refuses_exactly_what_the_layers_refuse(multiplier):
    fields = SMALL | {"channel_multiplier": multiplier}
    assert_check_refuses_what_layers_refuse(WideResNet, fields)


def test_images_of_a_wrong_size_are_refused():
    assert_wrong_images_are_refused(WideResNet(**SMALL))
    with pytest.raises(ValueError, match=r"image_size=10; valid is a multiple of 4"):
        WideResNet(**SMALL).validate(10, 3)


def test_defaults_are_valid_for_cifar10():
    WideResNet().validate(32, 3)
