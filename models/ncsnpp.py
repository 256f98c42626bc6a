"""The U-Net of NCSN++ and DDPM++ (Song et al. 2021, arXiv:2011.13456, Appendix H).

An encoder of several levels, each at half the resolution of the one before, a middle, and a decoder
that mirrors the encoder:

    embedding  e = silu(W_1 silu(W_0 embed(cond))), which every residual block adds to its features
    encoder    per level: blocks_per_resolution times (residual block, self-attention), then down
    middle     residual block, self-attention, residual block
    decoder    per level: blocks_per_resolution + 1 residual blocks on [h, skip], self-attention, then up
    output     conv(silu(norm(h)))

Every output of the encoder is a skip connection and is used once. Levels attend only at the chosen
resolutions. Progressive architectures may be added at both ends: the downsampled input joins the
encoder at each level, and the decoder accumulates an output over its levels. The paper's networks
are settings of the same fields:

               resample   progressive_input   embedding
    DDPM++     "plain"    "none"              "positional"
    NCSN++     "fir"      "residual"          "fourier" for VE SDEs, "positional" for VP and sub-VP

and blocks_per_resolution = 8 instead of 4 makes them deep.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.attention import SelfAttention
from models.blocks.checks import (
    check_choices,
    check_fields,
    check_groups,
    check_image,
    check_resolutions,
    check_square,
    field_error,
    is_positive,
)
from models.blocks.embeddings import FourierEmbedding, LabelEmbedding, Labels, positional_embedding
from models.blocks.layers import (
    ACTIVATIONS,
    Embedding,
    FeatureMaps,
    GroupNorm,
    Images,
    ResampleConv,
    ResidualBlock,
    at_least_float32,
    cast,
    conv3x3,
    dense,
    rematerialized,
    residual_sum,
)
from models.blocks.resample import StepFunction, downsample, normalize_kernel, upsample

CHOICES: dict[str, tuple[str, ...]] = {
    "residual_block": ("biggan", "ddpm"),
    "resample": ("plain", "fir"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_output": ("none", "output_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding": ("positional", "fourier", "none"),
    "decoder_attention": ("block", "resolution"),
}


class NCSNpp(nn.Module):
    """The network of the module docstring, from images and noise levels to images.

    Attributes:
        features: channels of the first level, width of the embedding; multiples of 32 always work.
        channel_multipliers: channels of each level over `features`, from fine to coarse.
        blocks_per_resolution: residual blocks of each encoder level.
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
        decoder_attention: after every decoder "block" as in DDPM, or after the last of a "level",
            as in Song et al.
        embedding: "positional" for cond of order 0 .. 999, "fourier" for cond = log sigma, "none"
            for a network that does not see cond.
        fourier_scale: standard deviation of the Fourier frequencies.
        num_classes: number of classes that labels may name; 0 for none.
        activation: a name in layers.ACTIVATIONS.
        skip_rescale: divide residual sums by sqrt 2.
        init_scale: initial variance scale of the last layer of every block and of the output.
        out_channels: channels of the output; None for those of the input.
        compute_dtype: "float32", or "bfloat16" for all but parameters, statistics and output.
        remat: compute residual blocks again in the backward pass, to save memory.
    """

    features: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks_per_resolution: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    residual_block: str = "biggan"
    resample: str = "plain"
    fir_kernel: StepFunction = (1, 3, 3, 1)
    progressive_input: str = "none"
    progressive_output: str = "none"
    progressive_combine: str = "sum"
    decoder_attention: str = "resolution"
    embedding: str = "positional"
    fourier_scale: float = 16.0
    num_classes: int = 0
    activation: str = "swish"
    skip_rescale: bool = True
    init_scale: float = 0.0
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Images,
        cond: Float[Array, "batch"],
        labels: Labels | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels_out"]:
        """Maps images (b, n, n, c) of order 1 and cond (b,) to (b, n, n, out_channels).

        `cond` enters as it is: 999 t for the positional embedding, log sigma for the Fourier one.
        `labels` (b,) are classes 0 .. num_classes - 1, or num_classes for none, as None is.
        The output has the dtype of x. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: as `validate`, and for images that are not square.
        """
        _, height, width, channels = x.shape
        check_square(height, width)
        self.validate(height, channels)
        e = self._embed(cond, labels)
        e = None if e is None else cast(e.astype(x.dtype), self.compute_dtype)
        h, skips = self._encode(cast(x, self.compute_dtype), e, train=train)
        h = self._block("middle_block_0", h.shape[-1])(h, e, train)
        h = self._attention("middle_attention")(h, train=train)
        h = self._block("middle_block_1", h.shape[-1])(h, e, train)
        return self._decode(h, skips, e, x, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Checks every field for images (image_size, image_size, channels); needs no parameters.

        Raises:
            ValueError: naming the field, its value, the valid values and the remedy.
        """
        check_choices(self, CHOICES)
        check_image(image_size, channels)
        positive = "a positive integer"
        even = "an even integer, 4 or more"
        check_fields(
            self,
            ("features", is_positive(self.features, least=4), even),
            ("features", self.features % 2 == 0, even),
            ("channel_multipliers", len(self.channel_multipliers) > 0, "one integer per level"),
            (
                "channel_multipliers",
                all(map(is_positive, self.channel_multipliers)),
                "positive integers",
            ),
            ("blocks_per_resolution", is_positive(self.blocks_per_resolution), positive),
            ("dropout", 0 <= self.dropout < 1, "a probability in [0, 1)"),
            ("fourier_scale", self.fourier_scale > 0, "a positive number"),
            ("init_scale", self.init_scale >= 0, "a number, 0 or more"),
            ("num_classes", is_positive(self.num_classes, least=0), "an integer, 0 for no classes"),
            ("out_channels", self.out_channels is None or is_positive(self.out_channels), positive),
        )
        if self.num_classes and self.embedding == "none":
            raise field_error(
                self, "num_classes", "0 with embedding='none'", "Classes enter by the embedding."
            )
        normalize_kernel(self.fir_kernel)
        levels = len(self.channel_multipliers)
        check_resolutions(self, image_size, levels, self.attention_resolutions)
        check_groups(self, self._widths())

    @nn.nowrap
    def _widths(self) -> set[int]:
        """The channels of every layer that is normalized, as __call__ makes them."""
        h = self.features
        skips = [h]
        doubled = self.progressive_input == "input_skip" and self.progressive_combine == "cat"
        for level, multiplier in enumerate(self.channel_multipliers):
            h = self.features * multiplier
            skips += [h] * self.blocks_per_resolution
            if level < len(self.channel_multipliers) - 1:
                skips.append(2 * h if doubled else h)
        widths = set(skips)
        for multiplier in reversed(self.channel_multipliers):
            for _ in range(self.blocks_per_resolution + 1):
                widths.add(h + skips.pop())
                h = self.features * multiplier
        return widths

    # The methods below create submodules in the scope of __call__, which alone calls them.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"], labels: Labels | None) -> Embedding | None:
        """The activated embedding of noise level and class: (b,), (b,) -> (b, 4 features)."""
        if self.embedding == "none":
            return None
        if self.embedding == "fourier":
            e = FourierEmbedding(self.features, self.fourier_scale, name="fourier")(cond)
        else:
            e = positional_embedding(cond, self.features)
        if self.num_classes:
            classes = LabelEmbedding(self.num_classes, e.shape[-1], name="classes")
            e = e + classes(labels, len(cond)).astype(e.dtype)
        act = ACTIVATIONS[self.activation]
        e = act(dense(4 * self.features, name="embedding_0")(e))
        return act(dense(4 * self.features, name="embedding_1")(e))

    @nn.nowrap
    def _encode(
        self, x: FeatureMaps, e: Embedding | None, *, train: bool
    ) -> tuple[FeatureMaps, list[FeatureMaps]]:
        """The last features of the encoder, and all its skip connections."""
        h = conv3x3(self.features, name="input_conv")(x)
        skips, pyramid = [h], x
        for level, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.blocks_per_resolution):
                block = self._block(f"encoder_{level}_block_{i}", self.features * multiplier)
                h = block(h, e, train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"encoder_{level}_attention_{i}")(h, train=train)
                skips.append(h)
            if level < len(self.channel_multipliers) - 1:
                h = self._change_resolution(f"encoder_{level}_down", h, e, "down", train=train)
                h, pyramid = self._join_input(f"encoder_{level}_input", h, pyramid)
                skips.append(h)
        return h, skips

    @nn.nowrap
    def _decode(
        self,
        h: FeatureMaps,
        skips: list[FeatureMaps],
        e: Embedding | None,
        x: Images,
        *,
        train: bool,
    ) -> Images:
        """The output for x, from the middle's features and the skip connections, last first."""
        channels, pyramid = self.out_channels or x.shape[-1], None
        for level in reversed(range(len(self.channel_multipliers))):
            width = self.features * self.channel_multipliers[level]
            for i in range(self.blocks_per_resolution + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"decoder_{level}_block_{i}", width)(h, e, train)
                if self.decoder_attention == "block" and h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"decoder_{level}_attention_{i}")(h, train=train)
            if self.decoder_attention == "resolution" and h.shape[1] in self.attention_resolutions:
                h = self._attention(f"decoder_{level}_attention")(h, train=train)
            h, pyramid = self._join_output(f"decoder_{level}_output", h, pyramid, channels)
            if level > 0:
                h = self._change_resolution(f"decoder_{level}_up", h, e, "up", train=train)
        if self.progressive_output == "output_skip":
            return pyramid.astype(x.dtype)
        return self._head("output", h.astype(x.dtype), channels, self.init_scale)

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
            image = self._head(name, at_least_float32(h), channels, self.init_scale)
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
        self, name: str, h: FeatureMaps, e: Embedding | None, direction: str, *, train: bool
    ) -> FeatureMaps:
        """Doubles ("up") or halves ("down") the resolution and keeps the channels."""
        if self.residual_block == "biggan":
            return self._block(name, h.shape[-1], direction)(h, e, train)
        return ResampleConv(h.shape[-1], direction, self._kernel(), name=name)(h)

    @nn.nowrap
    def _head(self, name: str, h: FeatureMaps, channels: int, init_scale: float) -> FeatureMaps:
        """conv(silu(norm(h))), with `channels` channels."""
        h = ACTIVATIONS[self.activation](GroupNorm(name=f"{name}_norm")(h))
        return conv3x3(channels, init_scale=init_scale, name=f"{name}_conv")(h)

    @nn.nowrap
    def _block(self, name: str, features: int, direction: str = "none") -> ResidualBlock:
        return (rematerialized(ResidualBlock) if self.remat else ResidualBlock)(
            features,
            direction=direction,
            fir_kernel=self._kernel(),
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            shortcut_scale=1.0 if self.residual_block == "biggan" else 0.1,
            activation=self.activation,
            name=name,
        )

    @nn.nowrap
    def _attention(self, name: str) -> SelfAttention:
        return SelfAttention(skip_rescale=self.skip_rescale, init_scale=self.init_scale, name=name)

    @nn.nowrap
    def _kernel(self) -> StepFunction | None:
        """The filter of every change of resolution; None for plain resampling."""
        return self.fir_kernel if self.resample == "fir" else None
