"""A wide residual classifier of noisy images, conditioned on the noise level.

    logits     W mean_pixels(relu(norm(group_2(group_1(group_0(conv(standardized x)))))))
    embedding  e = silu(W_1 silu(W_0 fourier(log sigma))), which every block adds to its features
    block      y = S x + conv(relu(norm(conv(relu(norm(x))) + W e)))

It is the wide ResNet of Zagoruyko and Komodakis 2016 (arXiv:1605.07146, Table 1) with three groups
of 16 k, 32 k and 64 k channels. The second and third halve the resolution in their first
convolution. There S averages 2x2 pixels, and it appends zeros where the number of channels grows.
In the very first block, S acts on relu(norm(x)) instead of x. With GroupNorm and the embedding
instead of batch normalization, it is the p(y | x_t) of Song et al. 2021 (arXiv:2011.13456, Appendix
I), whose gradient guides samplers toward a class. The defaults are those of their WRN-28-10.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.checks import (
    MOST_BLOCKS,
    check_data,
    check_field,
    check_images,
    check_integers,
    check_numbers,
)
from models.blocks.convolution import image_convolution
from models.blocks.embeddings import FourierEmbedding
from models.blocks.layers import (
    Embedding,
    FeatureMaps,
    GroupNorm,
    Images,
    at_least_float32,
    dense,
    follow_input,
    group_count,
)
from models.blocks.parameters import Conv, Dense
from models.blocks.resample import average_downsample

EPSILON = 1e-5  # of every GroupNorm


def standardize(x: Images) -> Images:
    """Subtract each image's mean; divide by its standard deviation, at least 1 / sqrt(hwc).

    The bound is applied to the variance, so that constant images have a derivative.
    """
    precise = at_least_float32(x)
    centered = precise - precise.mean(axis=(1, 2, 3), keepdims=True)
    variance = jnp.square(centered).mean(axis=(1, 2, 3), keepdims=True)
    bound = 1.0 / math.prod(x.shape[1:])
    return (centered * jax.lax.rsqrt(jnp.maximum(variance, bound))).astype(x.dtype)


def conv(features: int, *, name: str, stride: int = 1) -> Conv:
    """Make a 3x3 convolution without bias, drawn from normals of variance 2 / fan_out.

    At stride 2 on an even size, it reads one pixel beyond the end, and none before the start.
    """
    return Conv(
        features,
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding="SAME",
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        promote_dtype=follow_input,
        conv_general_dilated=image_convolution,
        name=name,
    )


def uniform_init(bound: float) -> nn.initializers.Initializer:
    """Draw uniformly from [-bound, bound)."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _are_numbers(values: Sequence[float]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


class WideBlock(nn.Module):
    """Residual block of the module docstring.

    Attributes:
        features: channels of the output, at least those of the input.
        stride: 2 halves the resolution, 1 keeps it.
        activated_shortcut: apply the shortcut to relu(norm(x)), not to x.
    """

    features: int
    stride: int = 1
    activated_shortcut: bool = False

    @nn.compact
    def __call__(
        self, x: Images, e: Embedding
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Map (b, h, w, c) and e of (b, d) to (b, h / stride, w / stride, features)."""
        h = nn.relu(GroupNorm(EPSILON, name="norm_0")(x))
        shortcut = h if self.activated_shortcut else x
        h = conv(self.features, stride=self.stride, name="conv_0")(h)
        h = h + dense(self.features, name="embedding")(e)[:, None, None, :]
        h = nn.relu(GroupNorm(EPSILON, name="norm_1")(h))
        h = conv(self.features, name="conv_1")(h)
        if self.stride == 2:
            shortcut = average_downsample(shortcut)
        grown = self.features - shortcut.shape[-1]
        return h + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, grown)))


class WideResNet(nn.Module):
    """Classifier of the module docstring, from images and log sigma to logits.

    Attributes:
        blocks_per_group: residual blocks of each group; n blocks make a WRN-(6 n + 4).
        channel_multiplier: the widening factor k, below 8 or even.
        num_classes: number of classes.
        features: number of Fourier frequencies, a quarter of the channels of the embedding.
        fourier_scale: standard deviation of the frequencies.
        channel_means: subtracted from the channels of x; empty for none.
        channel_stds: divides the channels then; empty for none. Since `standardize` follows, only
            differences between channels matter. The published network has those of CIFAR-10.
    """

    blocks_per_group: int = 4
    channel_multiplier: int = 10
    num_classes: int = 10
    features: int = 128
    fourier_scale: float = 16.0
    channel_means: Sequence[float] = ()
    channel_stds: Sequence[float] = ()

    SECTION: ClassVar[str] = "classifier"

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], *, train: bool
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Map images (b, n, n, c) and cond = log sigma (b,) to logits (b, num_classes).

        Without `channel_means`, images may have any range and offset: each is standardized first,
        at every noise level, as Song et al. do. `train` has no effect; all networks have this
        argument.

        Raises:
            ValueError: a field is invalid (`validate`), or the images are not square.
        """
        check_images(self, x)
        e = self._embed(cond).astype(x.dtype)
        h: FeatureMaps = conv(16, name="input_conv")(standardize(self._whiten(x)))
        for group in range(3):
            for i in range(self.blocks_per_group):
                block = WideBlock(
                    16 * 2**group * self.channel_multiplier,
                    stride=2 if group > 0 and i == 0 else 1,
                    activated_shortcut=group == 0 and i == 0,
                    name=f"group_{group}_block_{i}",
                )
                h = block(h, e)
        h = nn.relu(GroupNorm(EPSILON, name="output_norm")(h)).mean(axis=(1, 2))
        self.sow("intermediates", "features", h)  # see `models.with_features`
        return Dense(
            self.num_classes,
            kernel_init=uniform_init(self.num_classes**-0.5),
            promote_dtype=follow_input,
            name="output",
        )(h)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_data(image_size, channels)
        check_integers(self, channel_multiplier=1, num_classes=1, features=1)
        check_integers(self, most=MOST_BLOCKS, blocks_per_group=1)
        check_numbers(self, fourier_scale="(0, inf)")
        for name in ("channel_means", "channel_stds"):
            values = getattr(self, name)
            valid = f"one finite number per channel, {channels}, or none"
            check_field(self, name, _are_numbers(values) and len(values) in (0, channels), valid)
        check_field(self, "channel_stds", all(s > 0 for s in self.channel_stds), "above 0")
        width = 16 * self.channel_multiplier
        groups = group_count(width)
        valid = f"below 8 or even; here {width} channels do not split into {groups} equal groups"
        check_field(self, "channel_multiplier", width % groups == 0, valid)
        if image_size % 4:
            raise ValueError(
                f"config.data.image_size={image_size}; valid is a multiple of 4, as the "
                "resolution halves twice. Pad the images."
            )

    @nn.nowrap
    def _whiten(self, x: Images) -> Images:
        """Subtract the channels' means, and divide by their standard deviations."""
        if self.channel_means:
            x = x - jnp.asarray(self.channel_means, x.dtype)[None, None, None, :]
        if self.channel_stds:
            x = x / jnp.asarray(self.channel_stds, x.dtype)[None, None, None, :]
        return x

    # Creates submodules in the scope of __call__, its only caller.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"]) -> Embedding:
        """Embed the noise level, with activation: (b,) -> (b, 4 features)."""
        e = FourierEmbedding(self.features, self.fourier_scale, name="fourier")(cond)
        e = nn.silu(dense(4 * self.features, name="embedding_0")(e))
        return nn.silu(dense(4 * self.features, name="embedding_1")(e))
