"""The convolution of our networks, whose gradients are fast inside loops on the CPU too.

    y[n, i, j, o] = sum over a, b, c of x[n, s i + d a - p, s j + d b - p, c] w[a, b, c, o]

with strides s, dilation d of the kernel w, padding p. Its transpose with respect to x spreads the
pixels of y by s, and convolves them with w turned by 180 degrees, its channels exchanged.

Why it is here: in a loop or a conditional, XLA:CPU has fast code for a convolution only if its
dimensions are ordered b01f, 01io, b01f and its input is not dilated. JAX's own transpose is neither
and takes 10 to 60 times as long there (https://github.com/jax-ml/jax/issues/12868). Samplers are
loops, and guidance and energy networks take gradients in each step. So this primitive turns the
kernel and spreads the pixels before a convolution of the fast form. Its transpose with respect to
x is the primitive again, so that derivatives of all orders are fast. That with respect to w is
lax's, which is the faster one outside of loops, where networks are trained. On other platforms all
is compiled as lax does it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Pair = tuple[int, int]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """How a kernel goes over an image; each pair is of the two axes.

    `spread` is how far apart the pixels of the image are put first, in zeros. A kernel that is
    `turned` belongs to the convolution of which this is the transpose.
    """

    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair = (1, 1)
    spread: Pair = (1, 1)
    turned: bool = False


def image_convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    strides: Sequence[int],
    padding: str | Sequence[Pair],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = _LAYOUT,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "batch height_out width_out features"]:
    """The formula above: `lax.conv_general_dilated` of images, and all of its derivatives.

    The arguments are those that `nn.Conv(..., conv_general_dilated=image_convolution)` gives.

    Args:
      strides: s, along the two axes.
      padding: "SAME", "VALID", or the zeros (before, after) each of the two axes.
      rhs_dilation: d, along the two axes.

    Raises:
      ValueError: for shapes that do not fit, and for what it does not do: groups, a dilated input,
        layouts other than NHWC and HWIO, a precision other than JAX's default.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"kernel.shape={kernel.shape} does not fit x.shape={x.shape}; give (rows, columns, "
            "channels, features) for (batch, height, width, channels)"
        )
    numbers, layout = (
        lax.conv_dimension_numbers(x.shape, kernel.shape, given)
        for given in (dimension_numbers, _LAYOUT)
    )
    for name, value, supported in (
        ("lhs_dilation", tuple(lhs_dilation), (1, 1)),
        ("dimension_numbers", numbers, layout),
        ("feature_group_count", feature_group_count, 1),
        ("precision", precision, None),
    ):
        if value != supported:
            raise ValueError(
                f"{name}={value} is not supported, {supported} is; use lax.conv_general_dilated"
            )
    dilation = tuple(rhs_dilation)
    if isinstance(padding, str):
        reach = [_reach(kernel.shape[axis], dilation[axis]) for axis in (0, 1)]
        padding = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    window = _Window(tuple(strides), tuple((low, high) for low, high in padding), dilation)
    return _primitive.bind(x, kernel, window=window)


def _reach(count: int, gap: int) -> int:
    """Pixels from the first to the last of `count`, which are `gap` apart."""
    return (count - 1) * gap + 1


def _as_lax(x: Array, kernel: Array, *, window: _Window) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1] if window.turned else kernel,
        window.strides,
        window.padding,
        lhs_dilation=window.spread,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWOI", "NHWC") if window.turned else _LAYOUT,
    )


def _as_fast_on_cpu(x: Array, kernel: Array, *, window: _Window) -> Array:
    if window.spread != (1, 1):
        rows, columns = ((0, 0, gap - 1) for gap in window.spread)
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))
    if window.turned:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    return _as_lax(x, kernel, window=window._replace(spread=(1, 1), turned=False))


def _abstract(x: ShapedArray, kernel: ShapedArray, *, window: _Window) -> ShapedArray:
    sizes = []
    for axis in (0, 1):
        room = _reach(x.shape[1 + axis], window.spread[axis]) + sum(window.padding[axis])
        free = room - _reach(kernel.shape[axis], window.dilation[axis])
        sizes.append(max(free // window.strides[axis] + 1, 0))
    features = kernel.shape[2 if window.turned else 3]
    return ShapedArray((x.shape[0], *sizes, features), x.dtype)


def _transpose_image(y: Array, x: ad.UndefinedPrimal, kernel: Array, *, window: _Window) -> Array:
    padding = []
    for axis in (0, 1):
        low = window.padding[axis][0]
        # The answer is as long as x, of which the last pixels may be in no window.
        missing = _reach(x.aval.shape[1 + axis], window.spread[axis]) - _reach(
            y.shape[1 + axis], window.strides[axis]
        )
        reach = _reach(kernel.shape[axis], window.dilation[axis])
        padding.append((reach - 1 - low, missing + low))
    transposed = window._replace(
        strides=window.spread,
        padding=tuple(padding),
        spread=window.strides,
        turned=not window.turned,
    )
    return _primitive.bind(y, kernel, window=transposed)


def _transpose_kernel(y: Array, x: Array, kernel: ad.UndefinedPrimal, *, window: _Window) -> Array:
    like = jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype)
    return jax.linear_transpose(partial(_as_lax, x, window=window), like)(y)[0]


def _batch(arrays: tuple, axes: tuple, *, window: _Window) -> tuple[Array, int]:
    (x, kernel), (of_x, of_kernel) = arrays, axes
    if of_kernel is not None:  # a kernel each: grouped convolutions, which have no fast form
        return jax.vmap(partial(_as_lax, window=window), axes)(x, kernel), 0
    x = jnp.moveaxis(x, of_x, 0)
    y = _primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, window=window)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_primitive = Primitive("image_convolution")
_primitive.def_impl(jax.jit(_primitive.bind, static_argnames="window"))
_primitive.def_abstract_eval(_abstract)
ad.defbilinear(_primitive, _transpose_image, _transpose_kernel)
batching.primitive_batchers[_primitive] = _batch
for _platform, _lowered in ((None, _as_lax), ("cpu", _as_fast_on_cpu)):
    mlir.register_lowering(
        _primitive, mlir.lower_fun(_lowered, multiple_results=False), platform=_platform
    )
