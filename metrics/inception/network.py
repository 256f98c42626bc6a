"""Inception-v3 of the Frechet Inception Distance: images to 2048 features and class logits.

    features  f = the mean over pixels of the last block           (Heusel et al. 2017,
    logits    W f + b, of 1008 classes                              arXiv:1706.08500)
    layer     relu(K * x + b); a block is branches of layers, side by side in channels

The blocks A to E are figures 5, 10, 6, 10 and 7 of Szegedy et al. 2015 (arXiv:1512.00567). The
network is the TensorFlow graph published on 2015-12-05, which differs in two places: average pools
divide by the number of pixels under the window, not by 9, and the last block takes a maximum
instead of an average. It is for inference alone: the batch normalization behind each convolution is
part of its kernel and bias (see `weights.py`). Layers have the names of the widespread PyTorch file
of these weights.

Two rearrangements save work and change only the rounding. The 1x1 convolutions of one input are one
matrix product. And the weights of a mean sum to 1, so it can be taken after a 1x1 convolution,
where there are fewer channels: W mean(x) + b = mean(W x + b).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from errors import require_choice
from models.blocks.layers import FeatureMaps

IMAGE_SIZE = 299
FEATURES = 2048
CLASSES = 1008  # the 1000 of ImageNet, and some that no image has

# Accelerators would round float32 to 10 bits of mantissa, and features are compared with those that
# others have computed.
_PRECISION = jax.lax.Precision.HIGHEST


class Recipe(NamedTuple):
    """The map from images 0..255 to the network's input.

    Attributes:
        source: from indices 0 .. 298 and the ratio (image size) / 299 to coordinates in the image,
            whose two neighboring pixels are interpolated.
        center: the value that becomes 0.
        scale: the network's input is (value - center) / scale.
    """

    source: Callable[[np.ndarray, float], np.ndarray]
    center: float
    scale: float


# Both interpolate linearly between neighbors along each axis, even where that skips pixels.
#   tf1      resize and range of the graph of 2015, as in the code of Heusel et al. and in the
#            evaluations of ADM (guided-diffusion), EDM and StyleGAN. Most published numbers use it.
#   pytorch  pixels are areas with aligned centers, and 0..255 becomes [-1, 1], as in pytorch-fid.
# Features of one are not comparable with features of the other.
RECIPES: dict[str, Recipe] = {
    "tf1": Recipe(lambda i, ratio: i * ratio, 128.0, 128.0),
    "pytorch": Recipe(lambda i, ratio: np.maximum((i + 0.5) * ratio - 0.5, 0.0), 127.5, 127.5),
}


def _interpolation(size: int, recipe: Recipe) -> Float[np.ndarray, "out {size}"]:
    """Return the matrix that resizes one axis: per row, weights of a pixel and of the next."""
    rows = np.arange(IMAGE_SIZE)
    place = recipe.source(rows, size / IMAGE_SIZE)
    pixel = np.floor(place).astype(int)
    matrix = np.zeros((IMAGE_SIZE, size))
    matrix[rows, pixel] = 1 - (place - pixel)
    matrix[rows, np.minimum(pixel + 1, size - 1)] += place - pixel
    return matrix.astype(np.float32)


def preprocess(
    images: UInt8[Array, "batch height width channels"], *, resize: str = "tf1"
) -> Float[Array, f"batch {IMAGE_SIZE} {IMAGE_SIZE} 3"]:
    """Return the network's input: images resized to 299x299 and scaled to [-1, 1].

    Each axis is a product with a small matrix, x -> A_h x A_w^T. Gray images are repeated to three
    channels.

    Args:
        images: any size, 1 or 3 channels, values 0..255.
        resize: a name in `RECIPES`.

    Raises:
        ValueError: for another number of channels, or an unknown recipe.
    """
    require_choice("resize", resize, RECIPES)
    _, height, width, channels = images.shape
    if channels not in (1, 3):
        raise ValueError(
            f"the images have {channels} channels; Inception needs 1 (gray) or 3 (red, green, "
            "blue). Choose other features for them"
        )
    recipe = RECIPES[resize]
    x = (images.astype(jnp.float32) - recipe.center) / recipe.scale
    x = jnp.einsum("bhwc,jw->bhjc", x, _interpolation(width, recipe), precision=_PRECISION)
    x = jnp.einsum("ih,bhjc->bijc", _interpolation(height, recipe), x, precision=_PRECISION)
    return jnp.repeat(x, 3, axis=-1) if channels == 1 else x


def _conv(
    x: FeatureMaps, features: int, kernel: tuple[int, int], *, name: str, stride: int = 1
) -> FeatureMaps:
    """Return relu(K * x + b): x is padded by zeros to keep its size, or halved without padding."""
    padding = "SAME" if stride == 1 else "VALID"
    conv = nn.Conv(
        features,
        kernel,
        strides=(stride, stride),
        padding=padding,
        precision=_PRECISION,
        name=name,
    )
    return nn.relu(conv(x))


def _inner_conv(x: FeatureMaps, features: int, *, name: str) -> FeatureMaps:
    """Return relu(K * x + b) of a 3x3 kernel, where all of it lies inside x.

    On the CPU, computing the border and cutting it off takes a quarter of the time of omitting it.
    """
    return _conv(x, features, (3, 3), name=name)[:, 1:-1, 1:-1]


def _product(x: Array, kernel: Array, bias: Array) -> Array:
    """Return K x + b over the last axis."""
    product = jnp.matmul(x, kernel, precision=_PRECISION)
    return product + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


class Pointwise(nn.Module):
    """The kernel (channels, features) and bias (features,) of a 1x1 convolution."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "{channels} f"], Float[Array, "f"]]:
        """Return kernel and bias for inputs with `channels` channels."""
        shape = (channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def _entries(x: FeatureMaps, **widths: int) -> list[FeatureMaps]:
    """Return the 1x1 convolutions of x that begin a block's branches, from their names and widths.

    The one named branch_pool is followed by the average over its neighborhood.
    """
    pairs = [Pointwise(width, name=name)(x.shape[-1]) for name, width in widths.items()]
    kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*pairs, strict=True))
    joined = _product(x, kernel, bias)
    outputs = jnp.split(joined, np.cumsum([*widths.values()])[:-1], axis=-1)
    return [
        nn.relu(average_pool(output) if name == "branch_pool" else output)
        for name, output in zip(widths, outputs, strict=True)
    ]


def _neighbors(x: FeatureMaps, axis: int, fill: float) -> list[FeatureMaps]:
    """Return the pixels before, at and after each one along an axis; `fill` beyond the border.

    Pools are sums and maxima of these shifted images, which XLA computes three to ten times faster
    on the CPU than windows.
    """
    size = x.shape[axis]
    around = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = jnp.pad(x, around, constant_values=fill)
    return [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]


def average_pool(x: FeatureMaps) -> FeatureMaps:
    """Return the mean of the pixels of each 3x3 neighborhood that are in the image."""
    for axis in (1, 2):
        size = x.shape[axis]
        index = np.arange(size)
        count = 1 + (index > 0) + (index < size - 1)
        weight = np.expand_dims(1 / count, [i for i in range(4) if i != axis])
        before, here, after = _neighbors(x, axis, 0.0)
        x = (before + here + after) * weight.astype(x.dtype)
    return x


def max_pool(x: FeatureMaps) -> FeatureMaps:
    """Return the maximum of the pixels of each 3x3 neighborhood that are in the image."""
    for axis in (1, 2):
        before, here, after = _neighbors(x, axis, -jnp.inf)
        x = jnp.maximum(jnp.maximum(before, here), after)
    return x


def halving_pool(x: FeatureMaps) -> FeatureMaps:
    """Return the maximum of 3x3 pixels around every second one, without padding."""
    for axis in (1, 2):
        last = 2 * ((x.shape[axis] - 3) // 2)  # where the last window begins
        first, second, third = (
            jax.lax.slice_in_dim(x, i, i + last + 1, stride=2, axis=axis) for i in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


class BlockA(nn.Module):
    """Branches of 1x1, 5x5, and two 3x3 layers, and an average of `pool` channels; at 35x35."""

    pool: int

    @nn.compact
    def __call__(self, x: FeatureMaps) -> FeatureMaps:
        """Map (b, h, w, c) -> (b, h, w, 224 + pool)."""
        point, single, double, pooled = _entries(
            x, branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64, branch_pool=self.pool
        )
        single = _conv(single, 64, (5, 5), name="branch5x5_2")
        double = _conv(double, 96, (3, 3), name="branch3x3dbl_2")
        double = _conv(double, 96, (3, 3), name="branch3x3dbl_3")
        return jnp.concatenate([point, single, double, pooled], axis=-1)


class BlockB(nn.Module):
    """Branches that halve the resolution: one and two 3x3 layers, and a maximum."""

    @nn.compact
    def __call__(self, x: FeatureMaps) -> FeatureMaps:
        """Map (b, h, w, c) -> (b, (h - 1) // 2, (w - 1) // 2, c + 480)."""
        single = _conv(x, 384, (3, 3), stride=2, name="branch3x3")
        (double,) = _entries(x, branch3x3dbl_1=64)
        double = _conv(double, 96, (3, 3), name="branch3x3dbl_2")
        double = _conv(double, 96, (3, 3), stride=2, name="branch3x3dbl_3")
        return jnp.concatenate([single, double, halving_pool(x)], axis=-1)


class BlockC(nn.Module):
    """Branches of 1x1, one and two 7x7 layers of `width` channels, and an average; at 17x17.

    A 7x7 layer is two, 1x7 and 7x1.
    """

    width: int

    @nn.compact
    def __call__(self, x: FeatureMaps) -> FeatureMaps:
        """Map (b, h, w, c) -> (b, h, w, 768)."""
        width = self.width
        point, single, double, pooled = _entries(
            x, branch1x1=192, branch7x7_1=width, branch7x7dbl_1=width, branch_pool=192
        )
        single = _conv(single, width, (1, 7), name="branch7x7_2")
        single = _conv(single, 192, (7, 1), name="branch7x7_3")
        double = _conv(double, width, (7, 1), name="branch7x7dbl_2")
        double = _conv(double, width, (1, 7), name="branch7x7dbl_3")
        double = _conv(double, width, (7, 1), name="branch7x7dbl_4")
        double = _conv(double, 192, (1, 7), name="branch7x7dbl_5")
        return jnp.concatenate([point, single, double, pooled], axis=-1)


class BlockD(nn.Module):
    """Branches that halve the resolution: 3x3, 7x7 and 3x3, and a maximum."""

    @nn.compact
    def __call__(self, x: FeatureMaps) -> FeatureMaps:
        """Map (b, h, w, c) -> (b, (h - 1) // 2, (w - 1) // 2, c + 512)."""
        small, large = _entries(x, branch3x3_1=192, branch7x7x3_1=192)
        small = _conv(small, 320, (3, 3), stride=2, name="branch3x3_2")
        large = _conv(large, 192, (1, 7), name="branch7x7x3_2")
        large = _conv(large, 192, (7, 1), name="branch7x7x3_3")
        large = _conv(large, 192, (3, 3), stride=2, name="branch7x7x3_4")
        return jnp.concatenate([small, large, halving_pool(x)], axis=-1)


class BlockE(nn.Module):
    """Branches of 1x1, one and two 3x3 layers, and a pool, "average" or "maximum"; at 8x8.

    The last 3x3 layer of a branch is two side by side, 1x3 and 3x1.
    """

    pool: str

    @nn.compact
    def __call__(self, x: FeatureMaps) -> FeatureMaps:
        """Map (b, h, w, c) -> (b, h, w, 2048)."""
        widths = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        if self.pool == "average":
            point, single, double, pooled = _entries(x, **widths, branch_pool=192)
        else:  # a maximum does not commute with the convolution
            point, single, double = _entries(x, **widths)
            pooled = _conv(max_pool(x), 192, (1, 1), name="branch_pool")
        double = _conv(double, 384, (3, 3), name="branch3x3dbl_2")
        branches = [
            point,
            _conv(single, 384, (1, 3), name="branch3x3_2a"),
            _conv(single, 384, (3, 1), name="branch3x3_2b"),
            _conv(double, 384, (1, 3), name="branch3x3dbl_3a"),
            _conv(double, 384, (3, 1), name="branch3x3dbl_3b"),
            pooled,
        ]
        return jnp.concatenate(branches, axis=-1)


class Activations(NamedTuple):
    """The network's outputs.

    Attributes:
        features: the features that the distance compares, "pool_3" of the graph of 2015.
        logits: W features + b, whose softmax is the classifier's prediction.
        scores: W features. The code of the Inception Score (Salimans et al. 2016, arXiv:1606.03498)
            takes the softmax of these, and so does every comparable number.
    """

    features: Float[Array, f"batch {FEATURES}"]
    logits: Float[Array, f"batch {CLASSES}"]
    scores: Float[Array, f"batch {CLASSES}"]


class Inception(nn.Module):
    """The network of the module docstring."""

    @nn.compact
    def __call__(self, x: Float[Array, f"batch {IMAGE_SIZE} {IMAGE_SIZE} 3"]) -> Activations:
        """Map images (b, 299, 299, 3) in [-1, 1], as from `preprocess`, to `Activations`."""
        h = _conv(x, 32, (3, 3), stride=2, name="Conv2d_1a_3x3")
        h = _inner_conv(h, 32, name="Conv2d_2a_3x3")
        h = _conv(h, 64, (3, 3), name="Conv2d_2b_3x3")
        (h,) = _entries(halving_pool(h), Conv2d_3b_1x1=80)
        h = halving_pool(_inner_conv(h, 192, name="Conv2d_4a_3x3"))
        for letter, pool in zip("bcd", (32, 64, 64), strict=True):
            h = BlockA(pool, name=f"Mixed_5{letter}")(h)
        h = BlockB(name="Mixed_6a")(h)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            h = BlockC(width, name=f"Mixed_6{letter}")(h)
        h = BlockD(name="Mixed_7a")(h)
        h = BlockE("average", name="Mixed_7b")(h)
        h = BlockE("maximum", name="Mixed_7c")(h)
        features = h.mean(axis=(1, 2))
        kernel, bias = Pointwise(CLASSES, name="fc")(FEATURES)
        logits = _product(features, kernel, bias)
        return Activations(features, logits, logits - bias[None])
