"""NCSN and NCSNv2 against the published ones, their layers against textbooks, and their laws."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.ncsn import NCSN
from models.ncsnv2 import NCSNv2
from models.refinenet import (
    SIZES,
    InstanceNormPlus,
    RefineNet,
    bilinear_upsample,
    conv,
    max_pool,
    mean_pool,
)

# Compiling these networks costs far more than running them, so XLA is told not to optimize.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

REFERENCE = Path(__file__).parent / "data" / "refinenet_reference.npz"
REFERENCES = {
    "ncsn": NCSN(features=16, levels=4),
    "ncsnv2_64": NCSNv2(features=16),
    "ncsnv2_64_pytorch": NCSNv2(features=16, implementation="pytorch"),
    "ncsnv2_128": NCSNv2(features=16, size=128),
    "ncsnv2_256": NCSNv2(features=16, size=256),
}
PUBLISHED_COUNTS = {
    "ncsn_cifar10": (NCSN(), 34_428_675),
    "ncsn_cifar10_232_levels": (NCSN(levels=232), 44_828_931),
    "ncsn_pytorch": (NCSN(implementation="pytorch"), 30_117_635),
    "ncsnv2_64": (NCSNv2(), 33_970_563),
    "ncsnv2_64_pytorch": (NCSNv2(implementation="pytorch"), 29_694_083),
    "ncsnv2_128": (NCSNv2(size=128), 83_445_379),
    "ncsnv2_256": (NCSNv2(size=256), 94_132_611),
}


@pytest.fixture
def shallow(monkeypatch):
    """Size 1 becomes a depth of a single level, which compiles quickly."""
    monkeypatch.setitem(SIZES, 1, ((1, 1),))


def abstract_params(network, size=16):
    """The shapes of the parameters, without computing any."""

    def init(key):
        x, cond = jnp.zeros((1, size, size, 3)), jnp.zeros((1,))
        return network.init(key, x, cond, train=False)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def seeded_params(network, dtype=np.float32):
    """Weights without any zero, drawn in the order of the sorted paths, as for the reference."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        u = rng.uniform(-1.0, 1.0, leaf.shape)
        kind = path[-1].key
        if kind == "kernel":
            u = u * math.sqrt(3.0 / math.prod(leaf.shape[:-1]))
        else:
            u = {"gamma": 1.0, "alpha": 1.0, "beta": 0.0, "bias": 0.0}[kind] + 0.5 * u
        return u.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(network))


def seeded_batch(dtype=np.float32, size=8):
    """Two images and indices of noise levels."""
    rng = np.random.default_rng(1)
    return rng.uniform(-1.0, 1.0, (2, size, size, 3)).astype(dtype), np.array([0.0, 3.0], dtype)


def evaluator(network):
    """The network as a function of (params, x, cond)."""
    return lambda params, x, cond: network.apply({"params": params}, x, cond, train=False)


# Against the published networks


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_count_is_the_published_one(name):
    network, count = PUBLISHED_COUNTS[name]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(network))) == count


@pytest.mark.parametrize("name", REFERENCES)
def test_output_equals_the_published_code(name):
    """Outputs of the published code with these seeded weights, made outside this repository.

    A submodule that is renamed may change the order of the draws: that too fails here.
    """
    network = REFERENCES[name]
    params = seeded_params(network)
    with np.load(REFERENCE) as reference:
        total = sum(float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(params))
        assert total == pytest.approx(float(reference[f"{name}_weight_sum"])), "other weights"
        y = quick_jit(evaluator(network))(params, reference["x"], reference["cond"])
        expected = reference[f"{name}_y"]
    assert np.max(np.abs(y - expected)) < 1e-5 * np.max(np.abs(expected))


# Layers


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
    level = np.array([3, 0, 4])
    y = quick_jit(InstanceNormPlus(levels=4).apply)({"params": tables}, x, level)
    plain = quick_jit(InstanceNormPlus().apply)
    for i in range(2):
        row = {"params": {name: table[level[i]] for name, table in tables.items()}}
        np.testing.assert_allclose(y[i], plain(row, x, None)[i], atol=1e-6)
    assert np.all(np.isnan(y[2]))


def test_pooling_is_that_of_the_windows():
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 2))
    for pool, outside, reduce in ((max_pool, -np.inf, np.max), (mean_pool, 0.0, np.mean)):
        padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=outside)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                quick_jit(pool)(x), reduce(windows, axis=(-2, -1)), atol=1e-15
            )


def test_gradient_of_a_maximum_goes_to_where_it_is():
    x = np.random.default_rng(0).normal(size=(1, 6, 7, 2)).astype(np.float32)
    gradient = quick_jit(jax.grad(lambda x: jnp.sum(max_pool(x))))(x)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    wins = [np.sum(windows.max(axis=(-2, -1)) == value) for value in x.ravel()]
    np.testing.assert_array_equal(np.ravel(gradient), wins)


def test_interpolation_is_linear_between_pixels():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 2))

    def interpolate(x, axis, *, align_corners):
        n = x.shape[axis]
        squares = (np.arange(2 * n) + 0.5) / 2 - 0.5
        at = np.linspace(0, n - 1, 2 * n) if align_corners else squares
        return np.apply_along_axis(lambda line: np.interp(at, np.arange(n), line), axis, x)

    with jax.enable_x64(True):
        for corners in (False, True):
            rows = interpolate(x, 1, align_corners=corners)
            expected = interpolate(rows, 2, align_corners=corners)
            y = quick_jit(functools.partial(bilinear_upsample, align_corners=corners))(x)
            np.testing.assert_allclose(y, expected, atol=1e-14)


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


# The network as a function


@pytest.mark.usefixtures("shallow")
def test_noise_levels_are_rounded_and_images_do_not_depend_on_their_batch():
    network = RefineNet(features=4, size=1, levels=4)
    params, f = seeded_params(network), quick_jit(evaluator(network))
    x, cond = seeded_batch()
    y = f(params, x, cond)
    np.testing.assert_array_equal(y, f(params, x, cond + np.array([0.4, -0.4], np.float32)))
    other = f(params, np.stack([x[0], x[0]]), cond)
    np.testing.assert_allclose(other[0], y[0], atol=1e-5)
    assert not np.allclose(other[1], other[0], atol=1e-2)  # for they differ in their level
    assert not np.allclose(other[1], y[1], atol=1e-2)


@pytest.mark.usefixtures("shallow")
def test_bfloat16_is_close_to_float32_and_answers_in_float32():
    network = RefineNet(features=4, size=1)
    params, (x, cond) = seeded_params(network), seeded_batch()
    exact = quick_jit(evaluator(network))(params, x, cond)
    rough = quick_jit(evaluator(network.copy(compute_dtype="bfloat16")))(params, x, cond)
    assert rough.dtype == jnp.float32
    assert 0 < np.max(np.abs(rough - exact)) < 2e-2 * np.max(np.abs(exact))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("levels", [0, 4])
def test_forward_derivative_is_that_of_a_central_difference(levels):
    network = RefineNet(features=4, size=1, levels=levels)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        params, (x, cond) = seeded_params(network, np.float64), seeded_batch(np.float64)
        v = np.random.default_rng(2).normal(size=x.shape)

        @quick_jit
        def f(x, v):
            return jax.jvp(lambda x: evaluator(network)(params, x, cond), (x,), (v,))

        y, jvp = f(x, v)
        assert y.dtype == jvp.dtype == jnp.float64
        h = 1e-6
        difference = (f(x + h * v, v)[0] - f(x - h * v, v)[0]) / (2 * h)
        np.testing.assert_allclose(jvp, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("shallow")
def test_rematerialization_changes_no_gradient_and_every_parameter_learns():
    network = RefineNet(features=4, size=1)
    with jax.enable_x64(True):
        params, (x, cond) = seeded_params(network, np.float64), seeded_batch(np.float64)

        def gradients(network):
            def loss(params):
                return jnp.mean(jnp.square(evaluator(network)(params, x, cond) - 1.0))

            traced = quick_jit(jax.grad(loss)).trace(params)
            return str(traced.jaxpr).count("remat"), traced.lower().compile()(params)

        (few, kept), (many, computed_again) = map(gradients, (network, network.copy(remat=True)))
        assert few < many
        paths = jax.tree_util.tree_leaves_with_path(kept)
        for (path, gradient), again in zip(paths, jax.tree.leaves(computed_again), strict=True):
            name, size = jax.tree_util.keystr(path), np.max(np.abs(gradient))
            assert size > 1e-6, name
            np.testing.assert_allclose(again, gradient, rtol=0, atol=1e-12 * size, err_msg=name)


def test_output_has_the_channels_asked_for():
    network, x = NCSNv2(features=4, out_channels=2), jnp.zeros((3, 8, 8, 1))
    variables = jax.eval_shape(
        lambda key: network.init_with_output(key, x, jnp.zeros(3), train=True), jax.random.key(0)
    )
    assert variables[0].shape == (3, 8, 8, 2)


# Refusals

INVALID = [
    ({"features": 1}, "an integer, 2 or more"),
    ({"features": 16.0}, "an integer, 2 or more"),
    ({"size": 32}, "one of 64, 128, 256. The default is 64"),
    ({"size": "64"}, "one of 64, 128, 256"),
    ({"activation": "gelu"}, "valid is one of 'swish', 'elu', 'relu', 'leaky_relu'"),
    ({"implementation": "torch"}, "'torch'; valid is one of 'jax', 'pytorch'"),
    ({"compute_dtype": "float16"}, "'float16'; valid is one of 'float32', 'bfloat16'"),
    ({"out_channels": 0}, "a positive integer"),
    ({"levels": 0}, "a positive integer. The default is 10"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID)
def test_invalid_field_is_named_before_anything_is_computed(fields, message):
    network = (NCSN if "levels" in fields else NCSNv2)(**fields)
    with pytest.raises(ValueError, match=message) as error:
        network.validate(64, 3)
    assert str(error.value).startswith(f"config.model.{next(iter(fields))} is ")
    with pytest.raises(ValueError, match=message):
        abstract_params(network)


@pytest.mark.parametrize(("size", "factor"), [(64, 2), (128, 4), (256, 8)])
def test_images_must_halve_as_often_as_the_network_does(size, factor):
    NCSNv2(size=size).validate(7 * factor, 3)
    message = rf"config\.data\.image_size is {factor + 1}; valid is a multiple of {factor}, "
    with pytest.raises(ValueError, match=message):
        NCSNv2(size=size).validate(factor + 1, 3)


@pytest.mark.parametrize("network", [NCSN(), NCSNv2()])
def test_what_is_no_batch_of_square_unlabelled_images_is_refused(network):
    def call(shape, labels=None):
        x, cond = jnp.zeros(shape), jnp.zeros(shape[0])
        network.init(jax.random.key(0), x, cond, labels, train=False)

    with pytest.raises(ValueError, match="8x16 pixels; valid is square"):
        call((1, 8, 16, 3))
    with pytest.raises(ValueError, match=r"labels are given .*valid is None\. Drop the labels"):
        call((1, 8, 8, 3), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match=r"config\.data\.channels is 0"):
        network.validate(8, 0)
