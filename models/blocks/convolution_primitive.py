"""Primitives of JAX for convolutions of images, whose gradients XLA:CPU compiles to fast code.

The formula is that of `convolution.py`. Its transpose with respect to x spreads the pixels of y by
the strides, and convolves them with w turned by 180 degrees, its channels exchanged. Its transpose
with respect to w convolves x with y, the channels of x in the place of its images:

    w[a, b, c, o] = sum over n, i, j of x[n, s i + d a - p, s j + d b - p, c] y[n, i, j, o]

In a loop or a conditional, XLA:CPU has fast code for a convolution only if its dimensions are
ordered b01f, 01io, b01f and its input is not dilated. JAX's own transposes are neither, and take
10 to 100 times as long there (https://github.com/jax-ml/jax/issues/12868). Samplers are loops, and
guidance and energy networks take gradients in each step; so are training steps that accumulate
gradients. So both transposes are primitives that order the dimensions first, and their own
transposes are these primitives again: derivatives of all orders are fast.

With stride 1, float32 or wider and at least WIDE channels, matrix products are faster still. The
transpose with respect to w is one product per column of w. The transpose with respect to x is one
product where the batch has few pixels, at most the rows times columns times channels of w: then
turning w takes longer than adding products. `benchmarks/results/convolution.md` has the times.
Other platforms compile everything as lax does.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Pair = tuple[int, int]
WIDE = 64  # channels; with fewer, the products are narrow and no faster than a convolution


class _Window(NamedTuple):
    """How a kernel moves over an image; each pair is for the two axes.

    `spread` is the distance to which zeros first separate the pixels of the image. A kernel that is
    `turned` belongs to the convolution of which this one is the transpose.
    """

    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair = (1, 1)
    spread: Pair = (1, 1)
    turned: bool = False


def convolve(
    x: Array, kernel: Array, *, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair
) -> Array:
    """Convolve images (b, h, w, c) with a kernel (rows, columns, c, features)."""
    return _primitive.bind(x, kernel, window=_Window(strides, padding, dilation))


def _extent(count: int, gap: int) -> int:
    """Return the pixels from the first to the last of `count`, which are `gap` apart."""
    return (count - 1) * gap + 1


def _as_lax(x: Array, kernel: Array, *, window: _Window) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1] if window.turned else kernel,
        window.strides,
        window.padding,
        lhs_dilation=window.spread,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWOI", "NHWC") if window.turned else ("NHWC", "HWIO", "NHWC"),
    )


def _as_fast_on_cpu(x: Array, kernel: Array, *, window: _Window) -> Array:
    few_pixels = math.prod(x.shape[:3]) <= math.prod(kernel.shape[:3])
    if window.turned and few_pixels and _has_fast_products(x, kernel.shape, window):
        return _sum_of_moved_products(x, kernel, window)
    if window.turned:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    plain = window._replace(spread=(1, 1), turned=False)
    return _as_lax(_spread(x, window), kernel, window=plain)


def _has_fast_products(x: Array, kernel_shape: tuple[int, ...], window: _Window) -> bool:
    # In half precision, sums of several products would be rounded several times.
    precise, close = jnp.finfo(x.dtype).bits >= 32, window.strides == window.spread == (1, 1)
    return precise and close and min(kernel_shape[2:]) >= WIDE


def _moved(x: Array, axis: int, by: int, length: int) -> Array:
    """Return the `length` entries of x from `by` on along an axis, zeros where x has none."""
    borders = [(0, 0, 0)] * x.ndim
    borders[axis] = (-by, length - x.shape[axis] + by, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), borders)


def _sum_of_moved_products(x: Array, kernel: Array, window: _Window) -> Array:
    """Convolve with a turned kernel by one matrix product, of x with the kernel as it lies.

    It multiplies each pixel with every pixel of the kernel. The results are moved to the pixels to
    which they belong, and added.
    """
    rows, columns, features, channels = kernel.shape
    flat = lax.dot_general(
        x.reshape(-1, channels), kernel.reshape(-1, channels), (((1,), (1,)), ((), ()))
    )
    of_pixels = flat.reshape(*x.shape[:3], rows, columns, features)
    height, width = jax.eval_shape(partial(_as_lax, window=window), x, kernel).shape[1:3]
    (down, right), ((above, _), (left, _)) = window.dilation, window.padding
    total = jnp.zeros((), x.dtype)
    for a, b in np.ndindex(rows, columns):
        part = _moved(of_pixels[..., a, b, :], 1, down * (rows - 1 - a) - above, height)
        total += _moved(part, 2, right * (columns - 1 - b) - left, width)
    return total


def _kernel_by_products(x: Array, y: Array, window: _Window, rows: int, columns: int) -> Array:
    """Compute w of the module docstring for s = 1 by one matrix product per column of w.

    The sum over i becomes one over i' = i + d a - p. Then y moves with a, and x with b.
    """
    (down, right), ((above, _), (left, _)) = window.dilation, window.padding
    channels, features = x.shape[3], y.shape[3]
    moved = jnp.concatenate(
        [_moved(y, 1, above - down * a, x.shape[1]) for a in range(rows)], axis=3
    ).reshape(-1, rows * features)
    products = [
        lax.dot_general(
            _moved(x, 2, right * b - left, y.shape[2]).reshape(-1, channels),
            moved,
            (((0,), (0,)), ((), ())),
        )
        for b in range(columns)
    ]
    kernel = jnp.stack(products).reshape(columns, channels, rows, features)
    return kernel.transpose(2, 0, 1, 3)


def _spread(x: Array, window: _Window) -> Array:
    if window.spread == (1, 1):
        return x
    rows, columns = ((0, 0, gap - 1) for gap in window.spread)
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def _abstract(x: ShapedArray, kernel: ShapedArray, *, window: _Window) -> ShapedArray:
    sizes = []
    for axis in (0, 1):
        room = _extent(x.shape[1 + axis], window.spread[axis]) + sum(window.padding[axis])
        free = room - _extent(kernel.shape[axis], window.dilation[axis])
        sizes.append(max(free // window.strides[axis] + 1, 0))
    features = kernel.shape[2 if window.turned else 3]
    return ShapedArray((x.shape[0], *sizes, features), x.dtype)


def _transpose_image(y: Array, x: ad.UndefinedPrimal, kernel: Array, *, window: _Window) -> Array:
    padding = []
    for axis in (0, 1):
        low = window.padding[axis][0]
        # The result is as long as x, whose last pixels may be in no window.
        missing = _extent(x.aval.shape[1 + axis], window.spread[axis]) - _extent(
            y.shape[1 + axis], window.strides[axis]
        )
        extent = _extent(kernel.shape[axis], window.dilation[axis])
        padding.append((extent - 1 - low, missing + low))
    transposed = window._replace(
        strides=window.spread,
        padding=tuple(padding),
        spread=window.strides,
        turned=not window.turned,
    )
    return _primitive.bind(y, kernel, window=transposed)


def _transpose_kernel(y: Array, x: Array, kernel: ad.UndefinedPrimal, *, window: _Window) -> Array:
    return _kernel_primitive.bind(x, y, window=window, shape=kernel.aval.shape)


def _kernel_as_lax(x: Array, y: Array, *, window: _Window, shape: tuple[int, ...]) -> Array:
    like = jax.ShapeDtypeStruct(shape, y.dtype)
    return jax.linear_transpose(partial(_as_lax, x, window=window), like)(y)[0]


def _kernel_as_fast_on_cpu(x: Array, y: Array, *, window: _Window, shape: tuple[int, ...]) -> Array:
    if _has_fast_products(x, shape, window):
        kernel = _kernel_by_products(x, y, window, *shape[:2])
        return kernel[::-1, ::-1].swapaxes(2, 3) if window.turned else kernel
    x, padding = _spread(x, window), []
    for axis in (0, 1):
        low = window.padding[axis][0]
        # As many pixels as the kernel's last row or column needs to meet those of y.
        room = _extent(shape[axis], window.dilation[axis]) - 1
        room += _extent(y.shape[1 + axis], window.strides[axis])
        padding.append((low, room - x.shape[1 + axis] - low))
    moved = _Window(window.dilation, tuple(padding), dilation=window.strides)
    kernel = _as_lax(x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3), window=moved)
    if window.turned:
        return kernel.transpose(1, 2, 3, 0)[::-1, ::-1]
    return kernel.transpose(1, 2, 0, 3)


def _transpose_kernel_to_image(
    kernel: Array, x: ad.UndefinedPrimal, y: Array, *, window: _Window, shape: tuple[int, ...]
) -> Array:
    return _transpose_image(y, x, kernel, window=window)


def _transpose_kernel_to_result(
    kernel: Array, x: Array, y: ad.UndefinedPrimal, *, window: _Window, shape: tuple[int, ...]
) -> Array:
    return _primitive.bind(x, kernel, window=window)


def _batch_kernel(
    arrays: tuple, axes: tuple, *, window: _Window, shape: tuple[int, ...]
) -> tuple[Array, int]:
    # One kernel for each image of a batch: a grouped convolution has no fast form.
    return jax.vmap(partial(_kernel_as_lax, window=window, shape=shape), axes)(*arrays), 0


def _batch(arrays: tuple, axes: tuple, *, window: _Window) -> tuple[Array, int]:
    (x, kernel), (of_x, of_kernel) = arrays, axes
    if of_kernel is not None:  # one kernel per image: a grouped convolution has no fast form
        return jax.vmap(partial(_as_lax, window=window), axes)(x, kernel), 0
    x = jnp.moveaxis(x, of_x, 0)
    y = _primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, window=window)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_primitive = Primitive("image_convolution")
_primitive.def_impl(jax.jit(_primitive.bind, static_argnames="window"))
_primitive.def_abstract_eval(_abstract)
ad.defbilinear(_primitive, _transpose_image, _transpose_kernel)
batching.primitive_batchers[_primitive] = _batch

_kernel_primitive = Primitive("image_convolution_kernel")
_kernel_primitive.def_impl(jax.jit(_kernel_primitive.bind, static_argnames=("window", "shape")))
_kernel_primitive.def_abstract_eval(lambda x, y, *, window, shape: ShapedArray(shape, y.dtype))
ad.defbilinear(_kernel_primitive, _transpose_kernel_to_image, _transpose_kernel_to_result)
batching.primitive_batchers[_kernel_primitive] = _batch_kernel

for _platform, _lowered, _lowered_kernel in (
    (None, _as_lax, _kernel_as_lax),
    ("cpu", _as_fast_on_cpu, _kernel_as_fast_on_cpu),
):
    for _made, _rule in ((_primitive, _lowered), (_kernel_primitive, _lowered_kernel)):
        mlir.register_lowering(
            _made, mlir.lower_fun(_rule, multiple_results=False), platform=_platform
        )
