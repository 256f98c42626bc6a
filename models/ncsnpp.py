"""The U-Net of NCSN++ and DDPM++ (Song et al. 2021, arXiv:2011.13456, Appendix H).

An encoder of several levels, each at half the resolution of the one before, a middle, and a decoder
that mirrors the encoder:

    embedding  e = silu(W_1 silu(W_0 embed(cond))), which every residual block adds to its features
    encoder    per level: blocks_per_level times (residual block, self-attention), then down
    middle     residual block, self-attention, residual block
    decoder    per level: blocks_per_level + 1 residual blocks on [h, skip], self-attention, then up
    output     conv(silu(norm(h)))

Every output of the encoder is a skip connection and is used once. Levels attend only at the chosen
resolutions. Progressive architectures may be added at both ends: the downsampled input joins the
encoder at each level, and the decoder accumulates an output over its levels. The paper's networks
are settings of the same fields:

               resample   progressive_input   embedding
    DDPM++     "plain"    "none"              "positional"
    NCSN++     "fir"      "residual"          "fourier" for VE SDEs, "positional" for VP and sub-VP

and blocks_per_level = 8 instead of 4 makes them deep.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.embeddings import FourierEmbedding, positional_embedding
from models.layers import (
    Embedding,
    FeatureMaps,
    GroupNorm,
    Images,
    ResampleConv,
    ResidualBlock,
    SelfAttention,
    conv3x3,
    dense,
    group_count,
    residual_sum,
)
from models.resample import Kernel, downsample, normalize_kernel, upsample

CHOICES: dict[str, tuple[str, ...]] = {
    "residual_block": ("biggan", "ddpm"),
    "resample": ("plain", "fir"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_output": ("none", "output_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding": ("positional", "fourier"),
}


class NCSNpp(nn.Module):
    """The network of the module docstring, from images and noise levels to images.

    Attributes:
        features: channels of the first level, width of the embedding; multiples of 32 always work.
        channel_multipliers: channels of each level over `features`, from fine to coarse.
        blocks_per_level: residual blocks of each encoder level.
        attention_resolutions: heights in pixels at which levels attend; the middle always does.
        dropout: probability of dropping an activation in a residual block, in training only.
        residual_block: "biggan" changes the resolution within residual blocks, "ddpm" in
            convolutions between them.
        resample: "plain" is nearest neighbour and averages, "fir" filters with `fir_kernel`.
        fir_kernel: taps of the separable filter, normalized by their sum.
        progressive_input: "none"; "input_skip" lets the downsampled input join through 1x1
            convolutions; "residual" through a chain of 3x3 convolutions.
        progressive_output: "none"; "output_skip" adds up an image per level; "residual" adds a
            chain of upsampled features.
        progressive_combine: how "input_skip" joins, by "sum" or by "cat" along channels.
        embedding: "positional" for cond of order 0 .. 999, "fourier" for cond = log sigma.
        fourier_scale: standard deviation of the Fourier frequencies.
        skip_rescale: divide residual sums by sqrt 2.
        init_scale: initial variance scale of the last layer of every block and of the output.
        out_channels: channels of the output; None for those of the input.
    """

    features: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks_per_level: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    residual_block: str = "biggan"
    resample: str = "plain"
    fir_kernel: Kernel = (1, 3, 3, 1)
    progressive_input: str = "none"
    progressive_output: str = "none"
    progressive_combine: str = "sum"
    embedding: str = "positional"
    fourier_scale: float = 16.0
    skip_rescale: bool = True
    init_scale: float = 0.0
    out_channels: int | None = None

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], *, train: bool
    ) -> Float[Array, "batch height width channels_out"]:
        """Maps images (b, n, n, c) of order 1 and cond (b,) to (b, n, n, out_channels).

        `cond` enters as it is: 999 t for the positional embedding, log sigma for the Fourier one.
        The output has the dtype of x. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: as `validate`, and for images that are not square.
        """
        _, height, width, channels = x.shape
        if height != width:
            raise ValueError(
                f"the images have {height}x{width} pixels; valid is square. Crop or pad the data."
            )
        self.validate(height, channels)
        e = self._embed(cond).astype(x.dtype)
        h, skips = self._encode(x, e, train=train)
        h = self._block("middle_block_0", h.shape[-1])(h, e, train=train)
        h = self._attention("middle_attention")(h)
        h = self._block("middle_block_1", h.shape[-1])(h, e, train=train)
        return self._decode(h, skips, e, self.out_channels or channels, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Checks every field for images (image_size, image_size, channels); needs no parameters.

        Raises:
            ValueError: naming the field, its value, the valid values and the remedy.
        """
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                valid = f"one of {', '.join(map(repr, choices))}"
                raise self._error(field, valid, f"The default is {getattr(NCSNpp, field)!r}.")
        self._validate_numbers(image_size, channels)
        self._validate_resolutions(image_size)
        self._validate_groups()

    @nn.nowrap
    def _validate_numbers(self, image_size: int, channels: int) -> None:
        """Checks ranges, one field at a time."""
        for field, value in (("image_size", image_size), ("num_channels", channels)):
            if value < 1:
                raise ValueError(
                    f"config.data.{field} is {value!r}; valid is a positive integer. "
                    "Set it to that of the data."
                )
        positive = "a positive integer"
        checks = (
            ("features", _positive(self.features, least=4), "an even integer, 4 or more"),
            ("features", self.features % 2 == 0, "an even integer, 4 or more"),
            ("channel_multipliers", len(self.channel_multipliers) > 0, "one integer per level"),
            ("channel_multipliers", all(map(_positive, self.channel_multipliers)), positive + "s"),
            ("blocks_per_level", _positive(self.blocks_per_level), positive),
            ("dropout", 0 <= self.dropout < 1, "a probability in [0, 1)"),
            ("fourier_scale", self.fourier_scale > 0, "a positive number"),
            ("init_scale", self.init_scale >= 0, "a number, 0 or more"),
            ("out_channels", self.out_channels is None or _positive(self.out_channels), positive),
        )
        for field, passed, valid in checks:
            if not passed:
                raise self._error(field, valid, f"The default is {getattr(NCSNpp, field)!r}.")
        normalize_kernel(self.fir_kernel)

    @nn.nowrap
    def _validate_resolutions(self, image_size: int) -> None:
        """Checks that the image halves between levels and that attention names their sizes."""
        levels = len(self.channel_multipliers)
        if image_size % 2 ** (levels - 1):
            most = (image_size & -image_size).bit_length()
            raise self._error(
                "channel_multipliers",
                f"at most {most} levels for config.data.image_size={image_size}, which must be "
                "divisible by 2**(levels - 1)",
                f"Drop levels, or pad the images to a multiple of {2 ** (levels - 1)}.",
            )
        resolutions = [image_size // 2**level for level in range(levels)]
        if not set(self.attention_resolutions) <= set(resolutions):
            raise self._error(
                "attention_resolutions",
                f"any of {resolutions}, the resolutions of the levels for "
                f"config.data.image_size={image_size}",
                "Choose among these, or () for attention in the middle only.",
            )

    @nn.nowrap
    def _validate_groups(self) -> None:
        """Checks that the groups of GroupNorm divide the channels, layer by layer as __call__."""
        h = self.features
        skips = [h]
        doubled = self.progressive_input == "input_skip" and self.progressive_combine == "cat"
        for level, multiplier in enumerate(self.channel_multipliers):
            h = self.features * multiplier
            skips += [h] * self.blocks_per_level
            if level < len(self.channel_multipliers) - 1:
                skips.append(2 * h if doubled else h)
        widths = set(skips)
        for multiplier in reversed(self.channel_multipliers):
            for _ in range(self.blocks_per_level + 1):
                widths.add(h + skips.pop())
                h = self.features * multiplier
        for width in sorted(widths):
            if width % group_count(width):
                raise self._error(
                    "features",
                    "one whose layers split into min(channels // 4, 32) equal groups; here a layer "
                    f"of {width} channels has {group_count(width)} groups",
                    "Take a multiple of 32, which always works.",
                )

    @nn.nowrap
    def _error(self, field: str, valid: str, remedy: str) -> ValueError:
        value = getattr(self, field)
        return ValueError(f"config.model.{field} is {value!r}; valid is {valid}. {remedy}")

    # The methods below create submodules in the scope of __call__, which alone calls them.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"]) -> Embedding:
        """The activated noise embedding: (b,) -> (b, 4 features)."""
        if self.embedding == "fourier":
            e = FourierEmbedding(self.features, self.fourier_scale, name="fourier")(cond)
        else:
            e = positional_embedding(cond, self.features)
        e = nn.silu(dense(4 * self.features, name="embedding_0")(e))
        return nn.silu(dense(4 * self.features, name="embedding_1")(e))

    @nn.nowrap
    def _encode(
        self, x: FeatureMaps, e: Embedding, *, train: bool
    ) -> tuple[FeatureMaps, list[FeatureMaps]]:
        """The last features of the encoder, and all its skip connections."""
        h = conv3x3(self.features, name="input_conv")(x)
        skips, pyramid = [h], x
        for level, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.blocks_per_level):
                block = self._block(f"encoder_{level}_block_{i}", self.features * multiplier)
                h = block(h, e, train=train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"encoder_{level}_attention_{i}")(h)
                skips.append(h)
            if level < len(self.channel_multipliers) - 1:
                h = self._change_resolution(f"encoder_{level}_down", h, e, "down", train=train)
                h, pyramid = self._join_input(f"encoder_{level}_input", h, pyramid)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def _decode(
        self, h: FeatureMaps, skips: list[FeatureMaps], e: Embedding, channels: int, *, train: bool
    ) -> FeatureMaps:
        """The output, from the middle's features and the skip connections, last first."""
        pyramid = None
        for level in reversed(range(len(self.channel_multipliers))):
            width = self.features * self.channel_multipliers[level]
            for i in range(self.blocks_per_level + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"decoder_{level}_block_{i}", width)(h, e, train=train)
            # Once a level, not once a block as in DDPM: so is the published code, and its count.
            if h.shape[1] in self.attention_resolutions:
                h = self._attention(f"decoder_{level}_attention")(h)
            h, pyramid = self._join_output(f"decoder_{level}_output", h, pyramid, channels)
            if level > 0:
                h = self._change_resolution(f"decoder_{level}_up", h, e, "up", train=train)
        if self.progressive_output == "output_skip":
            return pyramid
        return self._head("output", h, channels, self.init_scale)

    @nn.nowrap
    def _join_input(
        self, name: str, h: FeatureMaps, pyramid: FeatureMaps
    ) -> tuple[FeatureMaps, FeatureMaps]:
        """Joins the input, downsampled once more, to the features; returns features and input."""
        if self.progressive_input == "input_skip":
            pyramid = downsample(pyramid, self._kernel())
            joined = dense(h.shape[-1], name=name)(pyramid)
            if self.progressive_combine == "cat":
                return jnp.concatenate([joined, h], axis=-1), pyramid
            return joined + h, pyramid
        if self.progressive_input == "residual":
            pyramid = ResampleConv(h.shape[-1], "down", self._kernel(), name=name)(pyramid)
            h = residual_sum(pyramid, h, rescale=self.skip_rescale)
            return h, h
        return h, pyramid

    @nn.nowrap
    def _join_output(
        self, name: str, h: FeatureMaps, pyramid: FeatureMaps | None, channels: int
    ) -> tuple[FeatureMaps, FeatureMaps | None]:
        """Joins this level to the output so far, None at first; returns features and output."""
        if self.progressive_output == "output_skip":
            image = self._head(name, h, channels, self.init_scale)
            return h, image if pyramid is None else upsample(pyramid, self._kernel()) + image
        if self.progressive_output == "residual":
            if pyramid is None:
                return h, self._head(name, h, h.shape[-1], 1.0)
            pyramid = ResampleConv(h.shape[-1], "up", self._kernel(), name=name)(pyramid)
            h = residual_sum(pyramid, h, rescale=self.skip_rescale)
            return h, h
        return h, None

    @nn.nowrap
    def _change_resolution(
        self, name: str, h: FeatureMaps, e: Embedding, direction: str, *, train: bool
    ) -> FeatureMaps:
        """Doubles ("up") or halves ("down") the resolution and keeps the channels."""
        if self.residual_block == "biggan":
            return self._block(name, h.shape[-1], direction)(h, e, train=train)
        return ResampleConv(h.shape[-1], direction, self._kernel(), name=name)(h)

    @nn.nowrap
    def _head(self, name: str, h: FeatureMaps, channels: int, init_scale: float) -> FeatureMaps:
        """conv(silu(norm(h))), with `channels` channels."""
        h = nn.silu(GroupNorm(name=f"{name}_norm")(h))
        return conv3x3(channels, init_scale=init_scale, name=f"{name}_conv")(h)

    @nn.nowrap
    def _block(self, name: str, features: int, direction: str = "none") -> ResidualBlock:
        return ResidualBlock(
            features,
            direction=direction,
            fir_kernel=self._kernel(),
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            shortcut_scale=1.0 if self.residual_block == "biggan" else 0.1,
            name=name,
        )

    @nn.nowrap
    def _attention(self, name: str) -> SelfAttention:
        return SelfAttention(skip_rescale=self.skip_rescale, init_scale=self.init_scale, name=name)

    @nn.nowrap
    def _kernel(self) -> Kernel | None:
        """The filter of every change of resolution; None for plain resampling."""
        return self.fir_kernel if self.resample == "fir" else None


def _positive(value: int, *, least: int = 1) -> bool:
    return isinstance(value, int) and value >= least
