"""Doubling and halving the resolution of images, with or without a FIR filter.

A separable filter k = (k[0], ..., k[K-1]), normalized to sum 1, acts along each image axis. With u
the signal x, zero outside the image, left padding P and stride s,

    y[n] = sum_m k[K-1-m] u[s n + m - P],
    down:  s = 2,  P = floor((K - 1) / 2),
    up:    s = 1,  P = floor((K + 1) / 2),  gain 2,  u zero-stuffed: u[2n] = x[n], u[2n + 1] = 0.

This is `upfirdn` with the alignment of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958); a filter
at the change of rate reduces aliasing (Zhang 2019, arXiv:1904.11486). The filter (1, 1) gives plain
resampling: nearest neighbor up, averages of 2x2 pixels down.

Everything is a sum of a few shifted slices: the polyphase form, which never reads a stuffed zero.
On the CPU a depthwise convolution is some hundred times slower, and `jax.image.resize` has a slow
gradient.
"""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
ResampledImages = Float[Array, "batch height_out width_out channels"]
FilterTaps = Sequence[float]  # the taps k[0], ..., k[K-1]


def upsample(x: Images, kernel: FilterTaps | None) -> ResampledImages:
    """Double height and width: nearest neighbor if `kernel` is None, else `fir_upsample`."""
    return nearest_upsample(x) if kernel is None else fir_upsample(x, kernel)


def downsample(x: Images, kernel: FilterTaps | None) -> ResampledImages:
    """Halve height and width: 2x2 averages if `kernel` is None, else `fir_downsample`."""
    return average_downsample(x) if kernel is None else fir_downsample(x, kernel)


def nearest_upsample(x: Images) -> ResampledImages:
    """Repeat every pixel 2x2 times: (b, h, w, c) -> (b, 2h, 2w, c)."""
    b, h, w, c = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return repeated.reshape(b, 2 * h, 2 * w, c)


def average_downsample(x: Images, factor: int = 2) -> ResampledImages:
    """Average blocks of pixels: (b, h, w, c) -> (b, h / factor, w / factor, c), without a rest."""
    b, h, w, c = x.shape
    return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


def bilinear_upsample(
    x: Images, factor: int = 2, *, align_corners: bool = False
) -> ResampledImages:
    """Interpolate linearly between pixels: (b, h, w, c) -> (b, factor h, factor w, c).

    Output i lies at (i + 1/2) / factor - 1/2 of the n pixels of an axis. With `align_corners` it
    lies at i (n - 1) / (factor n - 1), which keeps the outermost pixels in place. Beyond its
    edges the image has its outermost pixels.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        i = np.arange(factor * n).reshape(n, factor)
        at = i * ((n - 1) / (factor * n - 1)) if align_corners else (i + 0.5) / factor - 0.5
        shift = (at - np.arange(n)[:, None]).T.reshape(
            factor, *(n if a == axis else 1 for a in range(x.ndim))
        )
        margins = [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = jnp.pad(x, margins, mode="edge")
        before = lax.slice_in_dim(padded, 0, n, axis=axis)
        after = lax.slice_in_dim(padded, 2, n + 2, axis=axis)
        outputs = []
        for weight in shift:
            y = x
            for neighbor, towards in ((before, -weight), (after, weight)):
                if (towards > 0).any():
                    y = y + jnp.asarray(towards.clip(0), x.dtype) * (neighbor - x)
            outputs.append(y)
        shape = (*x.shape[:axis], factor * n, *x.shape[axis + 1 :])
        x = jnp.stack(outputs, axis=axis + 1).reshape(shape)
    return x


def fir_upsample(x: Images, kernel: FilterTaps, *, margin: int = 0) -> ResampledImages:
    """Interpolate to twice the resolution: (b, h, w, c) -> (b, 2(h + margin), 2(w + margin), c).

    `margin` adds pixels on each side, where the filter still overlaps the image. A 3x3 convolution
    without padding then reads the filter's true tail instead of zeros.
    """
    taps = normalize_kernel(kernel, gain=2.0)
    left = (len(taps) + 1) // 2 + margin
    for axis in (1, 2):
        x = _filter_axis(x, taps, axis, outputs=2 * (x.shape[axis] + margin), left=left, up=2)
    return x


def fir_downsample(x: Images, kernel: FilterTaps) -> ResampledImages:
    """Filter, and keep every second pixel: (b, h, w, c) -> (b, h/2, w/2, c); h and w even."""
    taps = normalize_kernel(kernel)
    left = (len(taps) - 1) // 2
    for axis in (1, 2):
        x = _filter_axis(x, taps, axis, outputs=x.shape[axis] // 2, left=left, stride=2)
    return x


def fir_blur(x: Images, kernel: FilterTaps) -> ResampledImages:
    """Filter images for a 3x3 convolution of stride 2: (b, h, w, c) -> (b, h + 1, w + 1, c).

    Without padding, the convolution reads exactly these pixels for its (h/2, w/2) outputs.
    """
    taps = normalize_kernel(kernel)
    left = (len(taps) - 1) // 2 + 1
    for axis in (1, 2):
        x = _filter_axis(x, taps, axis, outputs=x.shape[axis] + 1, left=left)
    return x


def normalize_kernel(kernel: FilterTaps, *, gain: float = 1.0) -> tuple[float, ...]:
    """Scale the taps of a filter to the sum `gain`.

    Raises:
        ValueError: there are fewer than two taps, or their sum is not positive.
    """
    total = float(sum(kernel))
    if len(kernel) < 2 or not total > 0:
        raise ValueError(
            f"config.model.fir_kernel={tuple(kernel)}; valid is two or more numbers of positive "
            "sum. Set the paper's (1, 3, 3, 1), or config.model.resample='plain' for no filter."
        )
    return tuple(gain * float(tap) / total for tap in kernel)


def _filter_axis(
    x: Images,
    taps: FilterTaps,
    axis: int,
    *,
    outputs: int,
    left: int,
    up: int = 1,
    stride: int = 1,
) -> ResampledImages:
    """Compute `outputs` values of y (module docstring) along `axis`; `up` or `stride` is 1.

    Output n = up q + r belongs to phase r. It reads x[stride q + (r + m - left) / up] for all m
    that make the division exact. So each tap of a phase is one strided slice.
    """
    phases = [
        [
            (tap, (r + m - left) // up)
            for m, tap in enumerate(reversed(taps))
            if (r + m - left) % up == 0
        ]
        for r in range(up)
    ]
    starts = [start for phase in phases for _, start in phase]
    span = stride * (outputs // up - 1) + 1
    before = max(0, -min(starts))
    after = max(0, max(starts) + span - x.shape[axis])
    padded = jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)])

    def read(start: int) -> ResampledImages:
        first = before + start
        return lax.slice_in_dim(padded, first, first + span, stride, axis)

    filtered = [
        functools.reduce(operator.add, (tap * read(start) for tap, start in phase))
        for phase in phases
    ]
    if up == 1:
        return filtered[0]
    shape = (*x.shape[:axis], outputs, *x.shape[axis + 1 :])
    return jnp.stack(filtered, axis=axis + 1).reshape(shape)
