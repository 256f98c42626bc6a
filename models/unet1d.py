"""A U-Net for series: DDPM's (Ho et al. 2020, arXiv:2006.11239, Appendix B) in one dimension.

Series (batch, length, channels) are images of width 1 inside, convolved by kernels of 3 along the
length. From fine to coarse, each resolution has residual blocks, whose outputs join the blocks of
the same resolution on the way back:

    block   y = S x + conv(silu(norm(conv(silu(norm(x)))) (1 + s) + b)),   (s, b) = W e

with a matrix S where the number of channels changes. Halving is a convolution of stride 2, doubling
repeats each step. The last convolution of each block and that of the output start at zero.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.checks import (
    MOST,
    MOST_BLOCKS,
    check_choices,
    check_field,
    check_integers,
    check_numbers,
    field_error,
)
from models.blocks.convolution import image_convolution
from models.blocks.embeddings import Labels, embedding_of, positional_embedding
from models.blocks.layers import (
    Embedding,
    GroupNorm,
    cast,
    default_init,
    dense,
    follow_input,
    rematerialized,
)
from models.blocks.parameters import Conv

Series = Float[Array, "batch length channels"]
Maps = Float[Array, "batch _ 1 _"]  # length and channels vary from layer to layer


def conv3(features: int, *, name: str, stride: int = 1, init_scale: float = 1.0) -> Conv:
    """Make a convolution of 3 along the length, with bias; zeros lie beyond the ends."""
    return Conv(
        features,
        kernel_size=(3, 1),
        strides=(stride, 1),
        kernel_init=default_init(init_scale),
        promote_dtype=follow_input,
        conv_general_dilated=image_convolution,
        name=name,
    )


class SeriesBlock(nn.Module):
    """Block of the module docstring.

    Attributes:
        features: channels of the output.
        dropout: probability of dropping an activation, in training only.
    """

    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Maps, e: Embedding, train: bool) -> Maps:
        """Map (b, l, 1, c) and the activated embedding to (b, l, 1, features)."""
        h = conv3(self.features, name="conv_0")(nn.silu(GroupNorm(name="norm_0")(x)))
        modulation = dense(2 * self.features, name="embedding")(e)[:, None, None, :]
        scale, shift = jnp.split(modulation, 2, axis=-1)
        h = nn.silu(GroupNorm(name="norm_1")(h) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="shortcut")(x)
        return x + conv3(self.features, init_scale=0.0, name="conv_1")(h)


class UNet1D(nn.Module):
    """Network of the module docstring, from series and noise levels to series.

    Attributes:
        features: channels of the first resolution, a multiple of 4.
        channel_multipliers: channels of each resolution over `features`, from fine to coarse.
        blocks_per_resolution: residual blocks of each resolution, on the way down and on that up.
        dropout: probability of dropping an activation, in training only.
        num_classes: number of classes; 0 for an unconditional network.
        learned_variance: double the channels of the output; the second half is for the variance.
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
        remat: compute blocks again in the backward pass, to save memory.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("series",)

    features: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 2)
    blocks_per_resolution: int = 1
    dropout: float = 0.0
    num_classes: int = 0
    learned_variance: bool = False
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Series,
        cond: Float[Array, "batch"],
        labels: Labels | None = None,
        *,
        train: bool,
    ) -> Series:
        """Map series (b, l, c) of order 1 and cond (b,) to (b, l, c').

        `labels` (b,) are classes 0 .. num_classes - 1, or num_classes for "no class", as None is
        everywhere. c' is c, or 2 c with `learned_variance`, the variances last.

        Raises:
            ValueError: a field is invalid (`validate`).
        """
        self.validate(*x.shape[1:])
        e = cast(self._embed(cond, labels).astype(x.dtype), self.compute_dtype)
        h = conv3(self.features, name="input")(cast(x[:, :, None, :], self.compute_dtype))
        skips, last = [], len(self.channel_multipliers) - 1
        for level, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.blocks_per_resolution):
                h = self._block(multiplier, f"down_{level}_{i}")(h, e, train)
                skips.append(h)
            if level != last:
                h = conv3(h.shape[-1], stride=2, name=f"halve_{level}")(h)
        h = self._block(self.channel_multipliers[-1], "middle")(h, e, train)
        for level, multiplier in reversed([*enumerate(self.channel_multipliers)]):
            for i in range(self.blocks_per_resolution):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(multiplier, f"up_{level}_{i}")(h, e, train)
            if level:
                h = conv3(h.shape[-1], name=f"double_{level}")(jnp.repeat(h, 2, axis=1))
        h = nn.silu(GroupNorm(name="output_norm")(h)).astype(x.dtype)
        outputs = (2 if self.learned_variance else 1) * x.shape[-1]
        return conv3(outputs, init_scale=0.0, name="output")(h)[:, :, 0, :]

    @nn.nowrap
    def validate(self, length: int, channels: int) -> None:
        check_choices(self, {})
        check_integers(self, features=4, num_classes=0)
        check_integers(self, most=MOST_BLOCKS, blocks_per_resolution=1)
        check_numbers(self, dropout="[0, 1)")
        # Halves of groups of 4 channels, up to 32 groups, divide evenly.
        power = self.features % 4 == 0 and (self.features <= 128 or self.features % 32 == 0)
        check_field(self, "features", power, "a multiple of 4, and of 32 above 128")
        multipliers = self.channel_multipliers
        whole = all(type(m) is int and 1 <= m <= MOST // self.features for m in multipliers)
        check_field(self, "channel_multipliers", bool(multipliers) and whole, "integers from 1 on")
        factor = 2 ** (len(multipliers) - 1)
        if length % factor:
            most = (length & -length).bit_length()
            raise field_error(
                self,
                "channel_multipliers",
                f"at most {most} resolutions for series of length {length}, which halves from one "
                "to the next",
                f"Drop resolutions, or pad the series to a multiple of {factor}.",
            )

    # The methods below create submodules in the scope of __call__, their only caller.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"], labels: Labels | None) -> Embedding:
        """Embed noise level and class, with activation: (b,), (b,) -> (b, 4 features)."""
        noise = positional_embedding(cond, self.features)
        return nn.silu(embedding_of(noise, labels, 4 * self.features, self.num_classes))

    @nn.nowrap
    def _block(self, multiplier: int, name: str) -> SeriesBlock:
        kind = rematerialized(SeriesBlock) if self.remat else SeriesBlock
        return kind(multiplier * self.features, self.dropout, name=name)
