"""Blocks of the U-Nets: residual block, self-attention, convolutions that change the resolution.

    residual block:  y = (conv1x1(R x) + F(x, e)) / sqrt 2,
                     F = conv . dropout . silu . norm . [+ W e] . conv . R . silu . norm
    attention:       y = (x + W_o softmax(q k^T / sqrt C) v) / sqrt 2,
                     q = W_q norm(x),  k = W_k norm(x),  v = W_v norm(x)

R doubles or halves the resolution (BigGAN, Brock et al. 2019, arXiv:1809.11096) or is absent (DDPM,
Ho et al. 2020, arXiv:2006.11239, Appendix B); the 1x1 convolution is there where R or a change of
channels asks for it. The factor 1/sqrt 2 keeps the variance of a sum of independent terms (Song et
al. 2021, arXiv:2011.13456, Appendix H). Images are (batch, height, width, channels) throughout.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.resample import Kernel, downsample, fir_blur, fir_upsample, nearest_upsample, upsample

Images = Float[Array, "batch height width channels"]
FeatureMaps = Float[Array, "batch _ _ _"]  # images whose size and channels vary from layer to layer
Embedding = Float[Array, "batch embedding"]


def default_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform draws of variance scale / ((fan_in + fan_out) / 2); scale 0 stands for 1e-10.

    This is DDPM's (arXiv:2006.11239, published code). A last layer of scale 0 makes its block start
    as the identity, up to the factor 1/sqrt 2.
    """
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def group_count(channels: int) -> int:
    """The number of GroupNorm groups, min(channels // 4, 32), which must divide `channels`."""
    return min(channels // 4, 32)


class GroupNorm(nn.Module):
    """Normalizes groups of channels of each image, with a trained scale and bias per channel.

    The variance is that of the centred values: E[x^2] - E[x]^2 would lose every digit where the
    mean is large, as it is when sigma reaches hundreds. Means are taken over pixels first, then
    over a group's channels, which on the CPU is 1.5 times as fast as over both at once.
    """

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """Maps (b, h, w, c) to the same shape; see `group_count` for c."""
        batch, _, _, c = x.shape
        groups = group_count(c)
        if c % groups:
            raise ValueError(f"{c} channels do not divide into {groups} groups; see group_count")

        def group_mean(x: Images) -> Float[Array, "batch 1 1 channels"]:
            mean = x.mean(axis=(1, 2)).reshape(batch, groups, c // groups).mean(-1, keepdims=True)
            return jnp.broadcast_to(mean, (batch, groups, c // groups)).reshape(batch, 1, 1, c)

        centred = x - group_mean(x)
        scale = self.param("scale", nn.initializers.ones, (c,)).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(x.dtype)
        inverse_std = jax.lax.rsqrt(group_mean(jnp.square(centred)) + 1e-6)
        return centred * (inverse_std * scale[None, None, None, :]) + bias[None, None, None, :]


def conv3x3(
    features: int,
    *,
    name: str,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    init_scale: float = 1.0,
) -> nn.Conv:
    """A 3x3 convolution with bias; "SAME" keeps the resolution at stride 1."""
    return nn.Conv(
        features,
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding=padding,
        kernel_init=default_init(init_scale),
        name=name,
    )


def dense(features: int, *, name: str, init_scale: float = 1.0) -> nn.Dense:
    """A matrix product over channels, with bias; on images, it is the 1x1 convolution."""
    return nn.Dense(features, kernel_init=default_init(init_scale), name=name)


def residual_sum(x: Images, y: Images, *, rescale: bool) -> Images:
    """x + y, divided by sqrt 2 if `rescale`."""
    return (x + y) * math.sqrt(0.5) if rescale else x + y


class ResidualBlock(nn.Module):
    """The residual block of the module docstring, with R = upsample, downsample or nothing.

    Attributes:
        features: channels of the output.
        direction: "up" and "down" change the resolution within the block; "none" keeps it.
        fir_kernel: filter for the change; None for nearest neighbour up, averages down.
        dropout: probability of dropping an activation, in training only.
        skip_rescale: divide the sum by sqrt 2.
        init_scale: initial variance scale of the last convolution.
        shortcut_scale: initial variance scale of the 1x1 convolution: BigGAN's 1, DDPM's 0.1.
    """

    features: int
    direction: str = "none"
    fir_kernel: Kernel | None = None
    dropout: float = 0.0
    skip_rescale: bool = True
    init_scale: float = 0.0
    shortcut_scale: float = 1.0

    @nn.compact
    def __call__(
        self, x: Images, e: Embedding, *, train: bool
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Maps (b, h, w, c) and e of (b, d) to (b, h', w', features); h' = h, 2h or h/2."""
        h = nn.silu(GroupNorm(name="norm_0")(x))
        if self.direction == "up":
            h, x = upsample(h, self.fir_kernel), upsample(x, self.fir_kernel)
        elif self.direction == "down":
            h, x = downsample(h, self.fir_kernel), downsample(x, self.fir_kernel)
        h = conv3x3(self.features, name="conv_0")(h)
        h = h + dense(self.features, name="embedding")(e)[:, None, None, :]
        h = nn.silu(GroupNorm(name="norm_1")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(self.features, init_scale=self.init_scale, name="conv_1")(h)
        if self.direction != "none" or x.shape[-1] != self.features:
            x = dense(self.features, init_scale=self.shortcut_scale, name="shortcut")(x)
        return residual_sum(x, h, rescale=self.skip_rescale)


class SelfAttention(nn.Module):
    """Single-head self-attention among all pixels of an image, with a residual connection.

    Attributes:
        skip_rescale: divide the sum by sqrt 2.
        init_scale: initial variance scale of the output projection W_o.
    """

    skip_rescale: bool = True
    init_scale: float = 0.0

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """Maps (b, h, w, c) to the same shape; memory grows as b (h w)^2."""
        b, height, width, c = x.shape
        pixels = GroupNorm(name="norm")(x).reshape(b, height * width, c)
        query = dense(c, init_scale=0.1, name="query")(pixels)
        key = dense(c, init_scale=0.1, name="key")(pixels)
        value = dense(c, init_scale=0.1, name="value")(pixels)
        # Plain einsums: on the CPU `jax.nn.dot_product_attention` takes twice as long or more.
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key) * c**-0.5, axis=-1)
        h = jnp.einsum("bqk,bkc->bqc", weights, value)
        h = dense(c, init_scale=self.init_scale, name="output")(h)
        return residual_sum(x, h.reshape(x.shape), rescale=self.skip_rescale)


class ResampleConv(nn.Module):
    """A 3x3 convolution that doubles or halves the resolution, with a filter if one is given.

    Up, the image is upsampled, then convolved; down, it is filtered, then convolved with stride 2.
    With a filter, the convolution reads the filter's tail beyond the border, as in the fused layers
    of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958); without one, it reads zeros there.

    Attributes:
        features: channels of the output.
        direction: "up" or "down".
        fir_kernel: the filter; None for nearest neighbour up, a bare convolution down.
    """

    features: int
    direction: str
    fir_kernel: Kernel | None = None

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Maps (b, h, w, c) to (b, 2h, 2w, features) or (b, h/2, w/2, features)."""
        if self.direction == "up":
            if self.fir_kernel is None:
                return conv3x3(self.features, name="conv")(nearest_upsample(x))
            x = fir_upsample(x, self.fir_kernel, margin=1)
            return conv3x3(self.features, padding="VALID", name="conv")(x)
        if self.fir_kernel is None:
            after = ((0, 1), (0, 1))
            return conv3x3(self.features, stride=2, padding=after, name="conv")(x)
        x = fir_blur(x, self.fir_kernel)
        return conv3x3(self.features, stride=2, padding="VALID", name="conv")(x)
