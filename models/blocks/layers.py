"""Blocks of the U-Nets: normalization, residual block, convolutions that change the resolution.

    residual block:  y = (conv1x1(R x) + F(x, e)) / sqrt 2,
                     F = conv . dropout . silu . norm . [+ W e] . conv . R . silu . norm

R doubles or halves the resolution (BigGAN, Brock et al. 2019, arXiv:1809.11096) or is absent (DDPM,
Ho et al. 2020, arXiv:2006.11239, Appendix B). The 1x1 convolution is present where R or the number
of channels requires it. The factor 1/sqrt 2 keeps the variance of a sum of independent terms (Song
et al. 2021, arXiv:2011.13456, Appendix H). With `scale_shift`, [+ W e] becomes (1 + u) norm + v
after the second norm, (u, v) = W e (Dhariwal and Nichol 2021, arXiv:2105.05233, "AdaGN").

Images are (batch, height, width, channels) throughout. Every layer computes in the dtype of its
input, whatever the dtype of its parameters. So mixed precision takes one cast, of the network's
input. Statistics and softmax are in float32 at least.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from models.blocks.convolution import image_convolution
from models.blocks.parameters import Conv, Dense, ParameterModule
from models.blocks.resample import (
    FilterTaps,
    downsample,
    fir_blur,
    fir_upsample,
    nearest_upsample,
    upsample,
)

Images = Float[Array, "batch height width channels"]
FeatureMaps = Float[Array, "batch _ _ _"]  # height, width and channels vary from layer to layer
Embedding = Float[Array, "batch embedding"]
AugmentLabels = Float[Array, "batch augment"]

Block = TypeVar("Block", bound=nn.Module)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swish": nn.silu,
    "elu": nn.elu,
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
}

# The dtype of a network's layers; None leaves the input's.
COMPUTE_DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}


def cast(x: Array, compute_dtype: str) -> Array:
    """Cast x to the dtype that COMPUTE_DTYPES names."""
    dtype = COMPUTE_DTYPES[compute_dtype]
    return x if dtype is None else x.astype(dtype)


def at_least_float32(x: Array) -> Array:
    """Cast x to the precision of statistics: float32, or float64 if x has it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def layer_norm(x: Array) -> Array:
    """Return x with mean 0 and variance 1 along its last axis, without parameters."""
    precise = at_least_float32(x)
    centered = precise - precise.mean(axis=-1, keepdims=True)
    inverse_std = lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + 1e-6)
    return (centered * inverse_std).astype(x.dtype)


def follow_input(*arrays: Any, **_: Any) -> Any:
    """Cast weights to the dtype of the input, the first array; `promote_dtype` of Linen layers."""
    x, *weights = arrays
    return [x, *(w if w is None else w.astype(x.dtype) for w in weights)]


def default_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Draw uniformly with variance scale / ((fan_in + fan_out) / 2); scale 0 stands for 1e-10.

    The published code of DDPM does so (arXiv:2006.11239). A last layer of scale 0 makes its block
    start as the identity, up to the factor 1/sqrt 2.
    """
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def group_count(channels: int, num_groups: int = 0) -> int:
    """Return the number of groups that GroupNorm makes of `channels`, which it must divide.

    It is `num_groups`, or where that is 0, min(channels // 4, 32) as in NCSN++ (Song et al. 2021).
    From 128 channels on, these are the 32 groups of DDPM (Ho et al. 2020).
    """
    return num_groups or min(channels // 4, 32)


class GroupNorm(ParameterModule):
    """Normalization of groups of channels per image, with a trained scale and bias per channel.

    The variance is computed from centered values: E[x^2] - E[x]^2 would lose every digit where the
    mean is large, as it is when sigma reaches hundreds. Means are taken over pixels first, then
    over a group's channels. On the CPU this is 1.5 times as fast as over both at once.

    Attributes:
        epsilon: added to the variance.
        num_groups: number of groups; 0 for min(channels // 4, 32).
    """

    epsilon: float = 1e-6
    num_groups: int = 0

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """Map (b, h, w, c) to the same shape; see `group_count` for c."""
        batch, _, _, c = x.shape
        groups = group_count(c, self.num_groups)
        if c % groups:
            raise ValueError(
                f"{c} channels do not split into {groups} equal groups; see group_count"
            )

        def group_mean(x: Images) -> Float[Array, "batch 1 1 channels"]:
            mean = x.mean(axis=(1, 2)).reshape(batch, groups, c // groups).mean(-1, keepdims=True)
            return jnp.broadcast_to(mean, (batch, groups, c // groups)).reshape(batch, 1, 1, c)

        precise = at_least_float32(x)
        centered = precise - group_mean(precise)
        scale = self.param("scale", nn.initializers.ones, (c,)).astype(precise.dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,)).astype(precise.dtype)
        inverse_std = lax.rsqrt(group_mean(jnp.square(centered)) + self.epsilon)
        y = centered * (inverse_std * scale[None, None, None, :]) + bias[None, None, None, :]
        return y.astype(x.dtype)


def conv3x3(
    features: int,
    *,
    name: str,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    init_scale: float = 1.0,
) -> Conv:
    """Make a 3x3 convolution with bias; "SAME" keeps the resolution at stride 1."""
    return Conv(
        features,
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding=padding,
        kernel_init=default_init(init_scale),
        promote_dtype=follow_input,
        conv_general_dilated=image_convolution,
        name=name,
    )


def product_of_rows(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """Compute x @ kernel as the product of two matrices; `dot_general` of Linen's dense layers.

    So the gradient of the kernel is one as well. With more axes, XLA:CPU transposes y first.
    """
    y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), precision)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def dense(features: int, *, name: str, init_scale: float = 1.0, bias: bool = True) -> Dense:
    """Make a matrix product over channels; on images, it is the 1x1 convolution."""
    return Dense(
        features,
        use_bias=bias,
        kernel_init=default_init(init_scale),
        promote_dtype=follow_input,
        dot_general=product_of_rows,
        name=name,
    )


def augmentation_embedding(
    labels: AugmentLabels | None, size: int, e: Embedding, *, init_scale: float = 1.0
) -> Embedding:
    """Embed `size` augmentation labels per image in a vector like `e`; None for zero labels.

    A matrix without bias, as in EDM (Karras et al. 2022, arXiv:2206.00364): zero labels add zero.
    """
    matrix = dense(e.shape[-1], init_scale=init_scale, bias=False, name="augmentation")
    return matrix(jnp.zeros((len(e), size), e.dtype) if labels is None else labels.astype(e.dtype))


def residual_sum(x: Images, y: Images, *, rescale: bool) -> Images:
    """Return x + y, divided by sqrt 2 if `rescale`."""
    return (x + y) * math.sqrt(0.5) if rescale else x + y


class ResidualBlock(nn.Module):
    """Residual block of the module docstring, where R upsamples, downsamples or is absent.

    Attributes:
        features: channels of the output.
        direction: "up" and "down" change the resolution within the block; "none" keeps it.
        fir_kernel: filter for the change; None for nearest neighbor up, averages down.
        dropout: probability of dropping an activation, in training only.
        skip_rescale: divide the sum by sqrt 2.
        init_scale: initial variance scale of the last convolution.
        shortcut_scale: initial variance scale of the 1x1 convolution: 1 in BigGAN, 0.1 in DDPM.
        resampled_shortcut: use a 1x1 convolution even where R keeps the number of channels.
        scale_shift: how the embedding enters: scale and shift after the second norm, or a sum.
        activation: a name in ACTIVATIONS.
        epsilon: added to the variance by GroupNorm.
        num_groups: groups of GroupNorm; 0 for min(channels // 4, 32).
    """

    features: int
    direction: str = "none"
    fir_kernel: FilterTaps | None = None
    dropout: float = 0.0
    skip_rescale: bool = True
    init_scale: float = 0.0
    shortcut_scale: float = 1.0
    resampled_shortcut: bool = True
    scale_shift: bool = False
    activation: str = "swish"
    epsilon: float = 1e-6
    num_groups: int = 0

    @nn.compact
    def __call__(
        self, x: Images, e: Embedding | None, train: bool
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Map (b, h, w, c) and e of (b, d), or None, to (b, h', w', features); h' = h, 2h, h/2."""
        act = ACTIVATIONS[self.activation]
        h = act(GroupNorm(self.epsilon, self.num_groups, name="norm_0")(x))
        if self.direction == "up":
            h, x = upsample(h, self.fir_kernel), upsample(x, self.fir_kernel)
        elif self.direction == "down":
            h, x = downsample(h, self.fir_kernel), downsample(x, self.fir_kernel)
        h = conv3x3(self.features, name="conv_0")(h)
        norm = GroupNorm(self.epsilon, self.num_groups, name="norm_1")
        if e is None:
            h = norm(h)
        elif self.scale_shift:
            modulation = dense(2 * self.features, name="embedding")(e)[:, None, None, :]
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + dense(self.features, name="embedding")(e)[:, None, None, :])
        h = nn.Dropout(self.dropout)(act(h), deterministic=not train)
        h = conv3x3(self.features, init_scale=self.init_scale, name="conv_1")(h)
        resampled = self.resampled_shortcut and self.direction != "none"
        if resampled or x.shape[-1] != self.features:
            x = dense(self.features, init_scale=self.shortcut_scale, name="shortcut")(x)
        return residual_sum(x, h, rescale=self.skip_rescale)


def rematerialized(block: type[Block]) -> type[Block]:
    """Return a class that computes its inside again in the backward pass, to save memory."""
    return nn.remat(block, static_argnums=(3,))  # the argument `train`


class ResampleConv(nn.Module):
    """A 3x3 convolution that doubles or halves the resolution, with an optional filter.

    Up, it upsamples the image, then convolves it; down, it filters the image, then convolves it
    with stride 2. With a filter, the convolution reads the filter's tail beyond the border, as in
    the fused layers of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958). Without one, it reads
    zeros there.

    Attributes:
        features: channels of the output.
        direction: "up" or "down".
        fir_kernel: the filter; None for nearest neighbor up, a bare convolution down.
        centered: let the bare convolution read zeros on all sides, pixels 2n - 1 .. 2n + 1 for
            output n; otherwise behind the image only, pixels 2n .. 2n + 2, as in DDPM.
    """

    features: int
    direction: str
    fir_kernel: FilterTaps | None = None
    centered: bool = False

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Map (b, h, w, c) to (b, 2h, 2w, features) or (b, h/2, w/2, features)."""
        if self.direction == "up":
            if self.fir_kernel is None:
                return conv3x3(self.features, name="conv")(nearest_upsample(x))
            x = fir_upsample(x, self.fir_kernel, margin=1)
            return conv3x3(self.features, padding="VALID", name="conv")(x)
        if self.fir_kernel is None:
            border = (1, 1) if self.centered else (0, 1)
            return conv3x3(self.features, stride=2, padding=(border, border), name="conv")(x)
        x = fir_blur(x, self.fir_kernel)
        return conv3x3(self.features, stride=2, padding="VALID", name="conv")(x)
