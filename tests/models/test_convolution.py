"""The convolution of our networks: lax's in every derivative, and compiled to what is fast."""

import importlib.util
import re
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from networks import evaluator, quick_jit, seeded_batch, seeded_params

from models.blocks import convolution, layers
from models.blocks.convolution import image_convolution
from models.ncsnpp import NCSNpp
from training.parallel import DataParallel

LAYOUT = ("NHWC", "HWIO", "NHWC")
# rows x columns of the image, those of the kernel, strides, padding, dilation
CASES = {
    "3x3": ((5, 6), (3, 3), (1, 1), "SAME", (1, 1)),
    "1x1 stride 2": ((4, 5), (1, 1), (2, 2), "SAME", (1, 1)),
    "stride 2 even": ((6, 8), (3, 3), (2, 2), "SAME", (1, 1)),
    "stride 2 odd": ((7, 5), (3, 3), (2, 2), ((1, 1), (0, 1)), (1, 1)),
    "last pixels unread": ((8, 6), (4, 2), (2, 3), "VALID", (1, 1)),
    "wide padding": ((3, 4), (1, 3), (1, 1), ((2, 1), (3, 4)), (1, 1)),
    "dilated": ((9, 7), (3, 3), (1, 2), "SAME", (2, 3)),
}
# Those whose gradients are matrix products on the CPU, where channels are many and pixels few.
WIDE_CASES = {
    "3x3": ((3, 2), (3, 3), (1, 1), "SAME", (1, 1)),
    "1x1": ((2, 3), (1, 1), (1, 1), "SAME", (1, 1)),
    "larger than the image": ((1, 2), (5, 3), (1, 1), "SAME", (1, 1)),
    "unread and dilated": ((5, 4), (2, 3), (1, 1), ((2, -1), (0, 3)), (2, 1)),
}


def ours(case):
    _, _, strides, padding, dilation = case
    return lambda x, w: image_convolution(x, w, strides, padding, rhs_dilation=dilation)


def stock(case):
    _, _, strides, padding, dilation = case
    return lambda x, w: lax.conv_general_dilated(
        x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT
    )


def inputs(case, dtype, count=2, channels=(3, 2)):
    """As many images and kernels, of which the first is what a single call takes."""
    rng = np.random.default_rng(0)
    size, kernel, *_ = case
    x = rng.normal(size=(count, 2, *size, channels[0]))
    w = rng.normal(size=(count, *kernel, *channels))
    return x.astype(dtype), w.astype(dtype)


def gradients(convolve):
    """Functions of images and kernels: the gradients of a sum, and those of their squares."""

    def energy(x, w):
        return jnp.sum(jnp.sin(convolve(x, w)))

    def steepness(x, w):
        return sum(jnp.sum(slope**2) for slope in both(x, w))

    both = jax.grad(energy, argnums=(0, 1))
    return energy, both, jax.grad(steepness, argnums=(0, 1))


def first_and_second_order(convolve):
    _, both, of_both = gradients(convolve)

    def compute(xs, ws):
        x, w = xs[0], ws[0]
        return {"value": convolve(x, w), "grad": both(x, w), "grad of grad": of_both(x, w)}

    return compute


def transformed(convolve):
    """Under each transformation of JAX and several at once."""
    energy, both, _ = gradients(convolve)
    of_x, of_w = jax.grad(energy), jax.grad(energy, argnums=1)

    def compute(xs, ws):
        (x, dx), (w, dw) = xs, ws
        return {
            "jvp": jax.jvp(convolve, (x, w), (dx, dw))[1],
            "jvp of grad": jax.jvp(both, (x, w), (dx, dw))[1],
            "rematerialized": jax.grad(jax.checkpoint(energy), argnums=(0, 1))(x, w),
            "vmap over images": jax.vmap(of_x, in_axes=(0, None))(xs, w),
            "vmap over kernels": jax.vmap(of_x, in_axes=(None, 0))(x, ws),
            "vmap over both": jax.vmap(of_w)(xs, ws),
            "vmap of jvp of grad": jax.vmap(
                lambda x, dx: jax.jvp(lambda x: of_x(x, w), (x,), (dx,))[1]
            )(xs, xs[::-1]),
        }

    return compute


def assert_equal_to_lax(compute, case, **sizes):
    arrays = inputs(case, np.float64, **sizes)
    made, expected = (quick_jit(compute(f(case)))(*arrays) for f in (ours, stock))
    for key, truth in expected.items():
        assert all(np.any(leaf) for leaf in jax.tree.leaves(truth)), key
        jax.tree.map(
            lambda a, b, key=key: np.testing.assert_allclose(
                a, b, rtol=1e-7, atol=1e-11 * max(1.0, np.abs(b).max()), err_msg=key
            ),
            made[key],
            truth,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_lax(name, x64):
    assert_equal_to_lax(first_and_second_order, CASES[name])


@pytest.mark.parametrize("name", WIDE_CASES)
@pytest.mark.slow
def test_gradients_by_matrix_products_are_those_of_lax(name, x64):
    assert_equal_to_lax(first_and_second_order, WIDE_CASES[name], channels=(64, 65))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3x3", "stride 2 odd"])
def test_every_transformation_is_that_of_lax(name, x64):
    assert_equal_to_lax(transformed, CASES[name])


def test_half_precision_is_lax_s_and_stays_half():
    case = CASES["stride 2 odd"]
    x, w = (jnp.asarray(array[0], jnp.bfloat16) for array in inputs(case, np.float32))
    for f in (lambda g: g(x, w), lambda g: jax.vjp(lambda x: g(x, w), x)[1](g(x, w))[0]):
        made, expected = f(ours(case)), f(stock(case))
        assert made.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            made.astype(np.float32), expected.astype(np.float32), atol=0.05, rtol=0.02
        )


@pytest.mark.parametrize("name", ["3x3", "stride 2 even", "stride 2 odd", "dilated"])
def test_gradients_in_loops_are_compiled_to_the_fast_form(name):
    """In the order that XLA:CPU has fast code for, and without dilation of the input."""

    def windows(convolve):
        def turn(_, arrays):
            return jax.grad(lambda x, w: jnp.sum(convolve(x, w) ** 2), argnums=(0, 1))(*arrays)

        program = jax.jit(lambda *xw: lax.fori_loop(0, 3, turn, xw)).lower(x, w).compile()
        return re.findall(r"convolution\(.*window={([^}]*)}.*dim_labels=(\S+?),", program.as_text())

    case = CASES[name]
    x, w = (array[0] for array in inputs(case, np.float32))
    found, others = windows(ours(case)), windows(stock(case))
    assert len(found) == 3  # the value and its transposes

    def fast(windows):
        return all(o == "b01f_01io->b01f" and "lhs_dilate" not in w for w, o in windows)

    assert fast(found)
    # lax's own are not, which is why ours exists; when this fails, it can go.
    assert not fast(others)


@pytest.mark.parametrize(
    ("channels", "size", "of_image", "of_kernel"),
    [
        ((64, 64), (3, 2), "dot_general", "dot_general"),
        ((64, 64), (18, 17), "convolution", "dot_general"),  # more pixels than 9 x 64
        ((64, 63), (3, 2), "convolution", "convolution"),
    ],
)
def test_gradients_are_matrix_products_on_the_cpu_where_these_are_faster(
    channels, size, of_image, of_kernel
):
    convolve = ours((size, (3, 3), (1, 1), "SAME", (1, 1)))
    x, w = jnp.zeros((2, *size, channels[0])), jnp.zeros((3, 3, *channels))

    def operations(platform, dtype):
        found = []
        for argument in (0, 1):
            arrays = [x.astype(dtype), w.astype(dtype)]

            def gradient(y, argument=argument, arrays=arrays):
                return jax.vjp(convolve, *arrays)[1](y)[argument]

            y = jnp.zeros((2, *size, channels[1]), dtype)
            text = str(jax.export.export(jax.jit(gradient), platforms=[platform])(y).mlir_module())
            found.append(set(re.findall(r"stablehlo.(dot_general|convolution)", text)))
        return found

    assert operations("cpu", jnp.float32) == [{of_image}, {of_kernel}]
    for platform, dtype in (("cpu", jnp.bfloat16), ("cuda", jnp.float32), ("tpu", jnp.float32)):
        assert operations(platform, dtype) == [{"convolution"}, {"convolution"}]


@pytest.mark.parametrize(
    ("case", "channels"), [(CASES["stride 2 even"], (3, 2)), (WIDE_CASES["3x3"], (64, 64))]
)
def test_rows_stay_on_their_devices(case, channels):
    """The gradient of a batch split over four devices is split, and that of one device."""
    parallel = DataParallel.over_all_devices()
    assert parallel.devices == 4
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 6, 8, channels[0])).astype(np.float32)
    w = inputs(case, np.float32, channels=channels)[1][0]
    of_both = jax.jit(jax.grad(lambda x, w: jnp.sum(ours(case)(x, w) ** 2), argnums=(0, 1)))
    alone, together = of_both(x, w), of_both(parallel.split_rows(x), w)
    assert together[0].sharding.is_equivalent_to(parallel.split, 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max()),
        *(alone, together),
    )


def test_flax_layer_is_the_same_with_either():
    """At each way to say the padding, and with two axes of batches, which Linen flattens."""
    x, w = inputs(CASES["3x3"], np.float32)
    params = {"params": {"kernel": w[0]}}

    @quick_jit
    def apply(x):
        pairs = []
        for padding in ("SAME", "VALID", 1, ((0, 1), (2, 0))):
            layer = nn.Conv(2, (3, 3), strides=2, padding=padding, use_bias=False)
            ours = layer.copy(conv_general_dilated=image_convolution)
            pairs.append((layer.apply(params, x), ours.apply(params, x)))
        return pairs

    for expected, made in apply(x):
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"feature_group_count": 3}, (2, 6, 6, 3), r"kernel.shape=\(3, 3, 1, 6\) does not fit"),
        ({"input_dilation": 2}, (2, 6, 6, 3), r"lhs_dilation=\(2, 2\) is not supported, \(1, 1\)"),
        ({"precision": "highest"}, (2, 6, 6, 3), "precision=highest is not supported, None is"),
        ({"kernel_size": (3,)}, (2, 6, 3), r"does not fit x.shape=\(2, 6, 3\); give \(rows,"),
    ],
)
def test_what_it_cannot_do_is_told(fields, shape, message):
    layer = nn.Conv(
        **({"features": 6, "kernel_size": (3, 3)} | fields), conv_general_dilated=image_convolution
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))


def test_groups_and_other_layouts_are_told():
    x, w = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 2))
    with pytest.raises(ValueError, match="feature_group_count=2 is not supported, 1 is"):
        image_convolution(x, w, (1, 1), "SAME", feature_group_count=2)
    with pytest.raises(ValueError, match="dimension_numbers=ConvDimensionNumbers"):
        image_convolution(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NHWC"))


def imported_without(moved, monkeypatch):
    """Our convolution as a JAX gives it that has no such internal."""
    monkeypatch.delattr(moved)
    monkeypatch.delitem(sys.modules, "models.blocks.convolution_primitive")
    name = "convolution_without_internals"
    spec = importlib.util.spec_from_file_location(name, convolution.__file__)
    fallback = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fallback)
    return fallback.image_convolution


@pytest.mark.slow
def test_where_the_primitives_of_jax_have_moved_networks_compute_the_same_by_lax(monkeypatch, x64):
    network = NCSNpp(
        features=8,
        channel_multipliers=(1, 1),
        blocks_per_resolution=1,
        attention_resolutions=(),
        resample="fir",
        progressive_input="residual",
    )
    params, inputs = seeded_params(network, dtype=np.float64), seeded_batch(np.float64)

    def compute():
        def energy(params, x, cond):
            y = evaluator(network)(params, x, cond)
            return jnp.sum(jnp.sin(y)), y

        f = jax.value_and_grad(energy, argnums=(0, 1), has_aux=True)
        made = quick_jit(f).trace(params, *inputs)
        return "image_convolution" in str(made.jaxpr), made.lower().compile()(params, *inputs)

    ours, expected = compute()
    fallback = imported_without("jax.extend.core.Primitive", monkeypatch)
    monkeypatch.setattr(layers, "image_convolution", fallback)
    theirs, made = compute()
    assert ours
    assert not theirs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), made, expected)


@pytest.mark.slow
def test_where_the_registration_of_primitives_has_moved_it_is_lax_s(monkeypatch, x64):
    case = CASES["stride 2 odd"]
    _, _, strides, padding, _ = case
    fallback = imported_without("jax.interpreters.ad.defbilinear", monkeypatch)
    arrays = inputs(case, np.float64)
    made, expected = (
        quick_jit(first_and_second_order(f)).trace(*arrays)
        for f in (lambda x, w: fallback(x, w, strides, padding), stock(case))
    )
    assert str(made.jaxpr) == str(expected.jaxpr)
