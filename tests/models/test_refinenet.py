"""NCSN and NCSNv2 against the published ones, their layers against textbooks, and their laws."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import (
    assert_bfloat16_is_close,
    assert_derivatives_agree,
    assert_published,
    assert_refused,
    compiled,
    parameter_count,
    quick_jit,
    seeded_batch,
    seeded_params,
)

from models.ncsn import NCSN
from models.ncsnv2 import NCSNv2
from models.refinenet import (
    SIZES,
    InstanceNormPlus,
    RefineNet,
    conv,
    max_pool,
    mean_pool,
)

REFERENCE = Path(__file__).parent.parent / "fixtures" / "refinenet_reference.npz"
REFERENCES = {
    "ncsn": NCSN(features=16, num_timesteps=4),
    "ncsnv2_64": NCSNv2(features=16),
    "ncsnv2_64_pytorch": NCSNv2(features=16, implementation="pytorch"),
    "ncsnv2_128": NCSNv2(features=16, size=128),
    "ncsnv2_256": NCSNv2(features=16, size=256),
}
# Others are counted in test_configs.py.
PUBLISHED_COUNTS = {
    "ncsn_pytorch": (NCSN(implementation="pytorch"), 30_117_635),
    "ncsnv2_64_pytorch": (NCSNv2(implementation="pytorch"), 29_694_083),
    "ncsnv2_256": (NCSNv2(size=256), 94_132_611),
}
TIMESTEPS = (0.0, 3.0)


@pytest.fixture
def shallow(monkeypatch):
    """Size 1 becomes a depth of a single level, which compiles quickly."""
    monkeypatch.setitem(SIZES, 1, ((1, 1),))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_count_is_the_published_one(name):
    network, count = PUBLISHED_COUNTS[name]
    assert parameter_count(network) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_output_equals_the_published_code(name):
    network = REFERENCES[name]
    params = seeded_params(network)
    with np.load(REFERENCE) as reference:
        y = compiled(network)(params, reference["x"], reference["cond"])
        assert_published(y, reference, name, params)


@pytest.mark.parametrize("unbiased", [False, True])
def test_normalization_is_that_of_the_paper_and_survives_a_large_mean(unbiased):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 8)) + np.arange(8)
    weights = {name: rng.uniform(0.5, 1.5, 8) for name in ("gamma", "alpha", "beta")}
    mean = x.mean(axis=(1, 2), keepdims=True)
    spread = mean.var(axis=-1, ddof=int(unbiased), keepdims=True)
    y = (x - mean) / np.sqrt(x.var(axis=(1, 2), keepdims=True) + 1e-5)
    y = y + weights["alpha"] * (mean - mean.mean(axis=-1, keepdims=True)) / np.sqrt(spread + 1e-5)
    expected = weights["gamma"] * y + weights["beta"]
    params = {"params": jax.tree.map(np.float32, weights)}

    @quick_jit
    def normalize(x):
        return InstanceNormPlus(unbiased=unbiased).apply(params, x.astype(jnp.float32), None)

    np.testing.assert_allclose(normalize(x), expected, atol=1e-5)
    np.testing.assert_allclose(normalize(x + 1000.0), expected, atol=2e-3)


def test_every_noise_level_has_weights_of_its_own_and_others_give_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 4, 8)).astype(np.float32)
    tables = {
        name: rng.normal(size=(4, 8)).astype(np.float32) for name in ("gamma", "alpha", "beta")
    }
    timestep = np.array([3, 0, 4])
    y = quick_jit(InstanceNormPlus(num_timesteps=4).apply)({"params": tables}, x, timestep)
    plain = quick_jit(InstanceNormPlus().apply)
    for i in range(2):
        row = {"params": {name: table[timestep[i]] for name, table in tables.items()}}
        np.testing.assert_allclose(y[i], plain(row, x, None)[i], atol=1e-6)
    assert np.all(np.isnan(y[2]))


def test_pooling_is_that_of_the_windows():
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 2))
    for pool, outside, reduce in ((max_pool, -np.inf, np.max), (mean_pool, 0.0, np.mean)):
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=outside)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
        with jax.enable_x64(True):
            expected = reduce(windows, axis=(-2, -1))
            np.testing.assert_allclose(quick_jit(pool)(x), expected, atol=1e-15)


def test_gradient_of_a_maximum_goes_to_where_it_is():
    x = np.random.default_rng(0).normal(size=(1, 6, 7, 2)).astype(np.float32)
    gradient = quick_jit(jax.grad(lambda x: jnp.sum(max_pool(x))))(x)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    wins = [np.sum(windows.max(axis=(-2, -1)) == value) for value in x.ravel()]
    np.testing.assert_array_equal(np.ravel(gradient), wins)


def test_kernels_and_biases_start_within_the_bound_of_pytorch():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv(x, 512, name="conv")

    init = quick_jit(lambda key: Layer().init(key, jnp.zeros((1, 4, 4, 16))))
    params = init(jax.random.key(0))["params"]["conv"]
    bound = 1 / math.sqrt(9 * 16)
    for leaf in (params["kernel"], params["bias"]):
        assert 0.98 * bound < np.max(np.abs(leaf)) <= bound
        assert np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.06)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_noise_levels_are_rounded_and_images_do_not_depend_on_their_batch():
    network = RefineNet(features=4, size=1, num_timesteps=4)
    params, f = seeded_params(network), compiled(network)
    x, cond = seeded_batch(cond=TIMESTEPS)
    y = f(params, x, cond)
    np.testing.assert_array_equal(y, f(params, x, cond + np.array([0.4, -0.4], np.float32)))
    other = f(params, np.stack([x[0], x[0]]), cond)
    np.testing.assert_allclose(other[0], y[0], atol=1e-5)
    assert not np.allclose(other[1], other[0], atol=1e-2)  # for they differ in their level
    assert not np.allclose(other[1], y[1], atol=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_bfloat16_is_close_to_float32_and_answers_in_float32():
    assert_bfloat16_is_close(RefineNet(features=4, size=1), cond=TIMESTEPS)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("num_timesteps", [0, 4])
def test_derivatives_agree_and_every_parameter_learns(num_timesteps):
    network = RefineNet(features=4, size=1, num_timesteps=num_timesteps)
    assert_derivatives_agree(network, cond=TIMESTEPS)


def test_output_has_the_requested_channels():
    network, x = NCSNv2(features=4, out_channels=2), jnp.zeros((3, 8, 8, 1))
    variables = jax.eval_shape(
        lambda key: network.init_with_output(key, x, jnp.zeros(3), train=True), jax.random.key(0)
    )
    assert variables[0].shape == (3, 8, 8, 2)


INVALID = [
    ({"features": 1}, "an integer, 2 or more"),
    ({"features": 16.0}, "an integer, 2 or more"),
    ({"size": 32}, "one of 64, 128, 256. The default is 64"),
    ({"size": "64"}, "one of 64, 128, 256"),
    ({"activation": "gelu"}, "choose one of: elu, leaky_relu, relu, swish"),
    ({"implementation": "torch"}, "'torch' is unknown; choose one of: jax, pytorch"),
    ({"compute_dtype": "float16"}, "'float16' is unknown; choose one of: bfloat16, float32"),
    ({"out_channels": 0}, "an integer, 1 or more"),
    ({"num_timesteps": 0}, "an integer, 1 or more. The default is 10"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_invalid_field_is_named_before_anything_is_computed(fields, message):
    network = (NCSN if "num_timesteps" in fields else NCSNv2)(**fields)
    assert_refused(network, next(iter(fields)), message, size=64)


@pytest.mark.parametrize(("size", "factor"), [(64, 2), (128, 4), (256, 8)])
def test_images_must_halve_as_often_as_the_network_does(size, factor):
    NCSNv2(size=size).validate(7 * factor, 3)
    message = rf"config\.data\.image_size={factor + 1}; valid is a multiple of {factor}, "
    with pytest.raises(ValueError, match=message):
        NCSNv2(size=size).validate(factor + 1, 3)


@pytest.mark.parametrize("network", [NCSN(), NCSNv2()])
def test_what_is_no_batch_of_square_unlabeled_images_is_refused(network):
    def call(shape, labels=None):
        x, cond = jnp.zeros(shape), jnp.zeros(shape[0])
        network.init(jax.random.key(0), x, cond, labels, train=False)

    with pytest.raises(ValueError, match="8x16 pixels; valid is square"):
        call((1, 8, 16, 3))
    with pytest.raises(ValueError, match=r"labels are given .*valid is None\. Drop the labels"):
        call((1, 8, 8, 3), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match=r"config\.data\.channels=0 must be at least 1"):
        network.validate(8, 0)
