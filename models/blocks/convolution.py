"""The convolution that a network calls, whose gradients are fast inside loops on the CPU too.

    y[n, i, j, o] = sum over a, b, c of x[n, s i + d a - p, s j + d b - p, c] w[a, b, c, o]

with strides s, dilation d of the kernel w, and padding p. `convolution_primitive.py` computes it by
primitives, which need internals of JAX. Where these have moved, it is lax's own convolution: the
results agree to rounding, but gradients in loops on the CPU are slow.
"""

from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array, Float

Pair = tuple[int, int]
_LAYOUT = ("NHWC", "HWIO", "NHWC")

try:
    from models.blocks.convolution_primitive import convolve
except (ImportError, AttributeError):

    def convolve(
        x: Array, kernel: Array, *, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair
    ) -> Array:
        """Compute the formula above by lax."""
        return lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_LAYOUT
        )


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
    """Convolve images by the formula above, differentiable to every order.

    The arguments are those that `nn.Conv(..., conv_general_dilated=image_convolution)` passes.

    Args:
        strides: s, along the two axes.
        padding: "SAME", "VALID", or the zeros (before, after) each of the two axes.
        rhs_dilation: d, along the two axes.

    Raises:
        ValueError: the shapes do not fit, or an argument is not supported: groups, a dilated input,
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
    (down, right), (apart, beside) = strides, rhs_dilation
    if isinstance(padding, str):
        rows, columns = kernel.shape[:2]
        extents = ((rows - 1) * apart + 1, (columns - 1) * beside + 1)
        padding = lax.padtype_to_pads(x.shape[1:3], extents, strides, padding)
    vertical, horizontal = ((low, high) for low, high in padding)
    return convolve(
        x,
        kernel,
        strides=(down, right),
        padding=(vertical, horizontal),
        dilation=(apart, beside),
    )
