"""A wide residual classifier of noisy images, which sees their noise level.

    logits     W mean_pixels(relu(norm(group_2(group_1(group_0(conv(standardized x)))))))
    embedding  e = silu(W_1 silu(W_0 fourier(log sigma))), which every block adds to its features
    block      y = S x + conv(relu(norm(conv(relu(norm(x))) + W e)))

It is the wide ResNet of Zagoruyko and Komodakis 2016 (arXiv:1605.07146, Table 1) with three groups
of 16 k, 32 k and 64 k channels, of which the second and third halve the resolution in their first
convolution. S averages 2x2 pixels there, and appends channels of zeros where their number grows. In
the first block of all, S x acts on relu(norm(x)) instead. GroupNorm and the embedding in place of
batch normalization make it the p(y | x_t) of Song et al. 2021 (arXiv:2011.13456, Appendix I), whose
gradient guides samplers towards a class; their network, WRN-28-10, has the defaults below.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.checks import check_fields, check_image, check_square, field_error, is_positive
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
from models.blocks.resample import average_downsample

EPSILON = 1e-5  # of every GroupNorm


def standardize(x: Images) -> Images:
    """Each image minus its mean, over its standard deviation or 1 / sqrt(hwc) if that is more.

    Applied to the variance, the bound leaves a derivative where the image is constant.
    """
    precise = at_least_float32(x)
    centred = precise - precise.mean(axis=(1, 2, 3), keepdims=True)
    variance = jnp.square(centred).mean(axis=(1, 2, 3), keepdims=True)
    bound = 1.0 / math.prod(x.shape[1:])
    return (centred * jax.lax.rsqrt(jnp.maximum(variance, bound))).astype(x.dtype)


def conv(features: int, *, name: str, stride: int = 1) -> nn.Conv:
    """A 3x3 convolution without bias, of normal draws of variance 2 / fan_out.

    At stride 2 on an even size, it reads one pixel beyond the end, and none before the start.
    """
    return nn.Conv(
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
    """Uniform draws from [-bound, bound)."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class WideBlock(nn.Module):
    """The residual block of the module docstring.

    Attributes:
        features: channels of the output, as many as of the input or more.
        stride: 2 halves the resolution, 1 keeps it.
        activated_shortcut: the shortcut acts on relu(norm(x)), not on x.
    """

    features: int
    stride: int = 1
    activated_shortcut: bool = False

    @nn.compact
    def __call__(
        self, x: Images, e: Embedding
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Maps (b, h, w, c) and e of (b, d) to (b, h / stride, w / stride, features)."""
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
    """The classifier of the module docstring, from images and log sigma to logits.

    Attributes:
        blocks_per_group: residual blocks of each group; n of them make a WRN-(6 n + 4).
        channel_multiplier: the widening factor k, below 8 or even.
        num_classes: number of classes.
        features: number of Fourier frequencies, a quarter of the channels of the embedding.
        fourier_scale: standard deviation of the frequencies.
    """

    blocks_per_group: int = 4
    channel_multiplier: int = 10
    num_classes: int = 10
    features: int = 128
    fourier_scale: float = 16.0

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], *, train: bool
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Maps images (b, n, n, c) and cond = log sigma (b,) to logits (b, num_classes).

        Images may have any range and offset: each is standardized by itself first, at every noise
        level, as Song et al. do. `train` is there for all networks alike, and changes nothing.

        Raises:
            ValueError: as `validate`, and for images that are not square.
        """
        _, height, width, channels = x.shape
        check_square(height, width)
        self.validate(height, channels)
        e = self._embed(cond).astype(x.dtype)
        h: FeatureMaps = conv(16, name="input_conv")(standardize(x))
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
        return nn.Dense(
            self.num_classes,
            kernel_init=uniform_init(self.num_classes**-0.5),
            promote_dtype=follow_input,
            name="output",
        )(h)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Checks every field for images (image_size, image_size, channels); needs no parameters.

        Raises:
            ValueError: naming the field, its value, the valid values and the remedy.
        """
        check_image(image_size, channels)
        positive = "a positive integer"
        width = 16 * self.channel_multiplier
        check_fields(
            self,
            ("blocks_per_group", is_positive(self.blocks_per_group), positive),
            ("channel_multiplier", is_positive(self.channel_multiplier), positive),
            ("num_classes", is_positive(self.num_classes), positive),
            ("features", is_positive(self.features), positive),
            ("fourier_scale", self.fourier_scale > 0, "a positive number"),
        )
        if width % group_count(width):
            raise field_error(
                self,
                "channel_multiplier",
                f"below 8 or even; here {width} channels do not split into "
                f"{group_count(width)} equal groups",
            )
        if image_size % 4:
            raise ValueError(
                f"config.data.image_size is {image_size}; valid is a multiple of 4, as the "
                "resolution halves twice. Pad the images."
            )

    # Creates submodules in the scope of __call__, which alone calls it.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"]) -> Embedding:
        """The activated embedding of the noise level: (b,) -> (b, 4 features)."""
        e = FourierEmbedding(self.features, self.fourier_scale, name="fourier")(cond)
        e = nn.silu(dense(4 * self.features, name="embedding_0")(e))
        return nn.silu(dense(4 * self.features, name="embedding_1")(e))
