"""The U-Net of NCSN++ and DDPM++ (Song et al. 2021, arXiv:2011.13456, Appendix H).

An encoder halves the resolution step by step, a middle follows, and a decoder mirrors the encoder:

    embedding  e = silu(W_1 silu(W_0 embed(cond))), which every residual block adds to its features
    encoder    per resolution: blocks_per_resolution times (residual block, self-attention), down
    middle     residual block, self-attention, residual block
    decoder    per resolution: blocks_per_resolution + 1 residual blocks on [h, skip],
               self-attention, up
    output     conv(silu(norm(h)))

Every output of the encoder is a skip connection and is used once. Self-attention is present only at
the chosen resolutions. Progressive architectures may be added at both ends: the downsampled input
joins the encoder at each resolution, and the decoder accumulates an output over its resolutions.
The paper's networks are settings of the same fields:

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
    check_field,
    check_frequencies,
    check_groups,
    check_images,
    check_integers,
    check_numbers,
    check_unet,
    field_error,
    is_integer,
    unet_widths,
)
from models.blocks.embeddings import (
    FourierEmbedding,
    LabelEmbedding,
    Labels,
    positional_embedding,
    with_waves,
)
from models.blocks.layers import (
    ACTIVATIONS,
    AugmentLabels,
    Embedding,
    FeatureMaps,
    GroupNorm,
    Images,
    ResampleConv,
    ResidualBlock,
    at_least_float32,
    augmentation_embedding,
    cast,
    conv3x3,
    dense,
    rematerialized,
    residual_sum,
)
from models.blocks.resample import FilterTaps, downsample, normalize_kernel, upsample

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
    """Network of the module docstring, from images and noise levels to images.

    Attributes:
        features: channels at the finest resolution; multiples of 32 always work.
        channel_multipliers: channels of each resolution over `features`, from fine to coarse.
        blocks_per_resolution: residual blocks of each resolution of the encoder.
        attention_resolutions: heights in pixels with self-attention; the middle always has it.
        dropout: probability of dropping an activation in a residual block, in training only.
        residual_block: "biggan" changes the resolution within residual blocks, "ddpm" in
            convolutions between them.
        resample: "plain" is nearest neighbor and averages, "fir" filters with `fir_kernel`.
        fir_kernel: taps of the separable filter, normalized by their sum.
        progressive_input: "none"; "input_skip" lets the downsampled input join through 1x1
            convolutions; "residual" through a chain of 3x3 convolutions.
        progressive_output: "none"; "output_skip" adds up an image per resolution; "residual" adds
            a chain of upsampled features.
        progressive_combine: how "input_skip" joins, by "sum" or by "cat" along channels.
        decoder_attention: after every decoder "block" as in DDPM, or after the last block of a
            "resolution" as in Song et al.
        embedding: "positional" for cond of order 0 .. 999, "fourier" for cond = log sigma, "none"
            for a network without dependence on cond.
        fourier_scale: standard deviation of the Fourier frequencies.
        num_classes: number of classes; 0 for an unconditional network.
        augment_labels: number of augmentation labels; 0 for a network that does not see any.
        input_frequencies: beside x, the network sees sin and cos of 2 pi f x for these f, as in
            Kingma et al. 2021 (arXiv:2107.00630, Appendix C), to tell gray levels apart. With 256
            levels in [-1, 1], f = 127.5 turns once from one to the next; f = 128 with
            config.data.dequantization=truncated_normal, whose levels are 2 / 256 apart.
        activation: a name in `layers.ACTIVATIONS`.
        skip_rescale: divide residual sums by sqrt 2.
        init_scale: initial variance scale of the last layer of every block and of the output.
        num_groups: groups of every GroupNorm; 0 for min(channels // 4, 32), as in Song et al. They
            are 32 in DDPM. From 128 channels on, there is no difference.
        out_channels: channels of the output; None for the number of the input.
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
        remat: compute residual blocks again in the backward pass, to save memory.
    """

    features: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks_per_resolution: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.1
    residual_block: str = "biggan"
    resample: str = "plain"
    fir_kernel: FilterTaps = (1, 3, 3, 1)
    progressive_input: str = "none"
    progressive_output: str = "none"
    progressive_combine: str = "sum"
    decoder_attention: str = "resolution"
    embedding: str = "positional"
    fourier_scale: float = 16.0
    num_classes: int = 0
    augment_labels: int = 0
    input_frequencies: Sequence[float] = ()
    activation: str = "swish"
    skip_rescale: bool = True
    init_scale: float = 0.0
    num_groups: int = 0
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
        augment_labels: AugmentLabels | None = None,
        train: bool,
    ) -> Float[Array, "batch height width channels_out"]:
        """Map images (b, n, n, c) of order 1 and cond (b,) to (b, n, n, out_channels).

        `cond` is 999 t for the positional embedding, log sigma for the Fourier one. `labels` (b,)
        are classes 0 .. num_classes - 1, or num_classes for "no class", as None is everywhere.
        `augment_labels` (b, augment_labels) describe how images were augmented; None is zero.
        The output has the dtype of x. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: a field is invalid (`validate`), or the images are not square.
        """
        check_images(self, x)
        e = self._embed(cond, labels, augment_labels)
        e = None if e is None else cast(e.astype(x.dtype), self.compute_dtype)
        seen = with_waves(x, self.input_frequencies)
        h, skips = self._encode(cast(seen, self.compute_dtype), e, train=train)
        h = self._block("middle_block_0", h.shape[-1])(h, e, train)
        h = self._attention("middle_attention")(h, train=train)
        h = self._block("middle_block_1", h.shape[-1])(h, e, train)
        return self._decode(h, skips, e, x, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_choices(self, CHOICES)
        check_unet(self, image_size, channels)
        integers = all(map(is_integer, self.channel_multipliers))
        check_field(self, "channel_multipliers", integers, "positive integers")
        check_integers(self, num_classes=0, augment_labels=0, out_channels=1)
        check_numbers(self, fourier_scale="(0, inf)", init_scale="[0, inf)")
        check_frequencies(self)
        for field in ("num_classes", "augment_labels"):
            if getattr(self, field) and self.embedding == "none":
                raise field_error(
                    self, field, "0 with embedding='none'", "Labels enter by the embedding."
                )
        normalize_kernel(self.fir_kernel)
        check_groups(self)

    @nn.nowrap
    def normalized_widths(self) -> set[int]:
        """Return the channels of every layer that GroupNorm normalizes."""
        doubled = self.progressive_input == "input_skip" and self.progressive_combine == "cat"
        widths = [self.features * multiplier for multiplier in self.channel_multipliers]
        joined = 2 if doubled else 1
        return unet_widths(self.features, widths, self.blocks_per_resolution, joined)

    # The methods below create submodules in the scope of __call__, their only caller.

    @nn.nowrap
    def _embed(
        self,
        cond: Float[Array, "batch"],
        labels: Labels | None,
        augment_labels: AugmentLabels | None,
    ) -> Embedding | None:
        """Embed noise level and labels, with activation: (b,), (b,), (b, n) -> (b, 4 features)."""
        if self.embedding == "none":
            return None
        if self.embedding == "fourier":
            e = FourierEmbedding(self.features, self.fourier_scale, name="fourier")(cond)
        else:
            e = positional_embedding(cond, self.features)
        if self.num_classes:
            classes = LabelEmbedding(self.num_classes, e.shape[-1], name="classes")
            e = e + classes(labels, len(cond)).astype(e.dtype)
        if self.augment_labels:
            e = e + augmentation_embedding(augment_labels, self.augment_labels, e)
        act = ACTIVATIONS[self.activation]
        e = act(dense(4 * self.features, name="embedding_0")(e))
        return act(dense(4 * self.features, name="embedding_1")(e))

    @nn.nowrap
    def _encode(
        self, x: FeatureMaps, e: Embedding | None, *, train: bool
    ) -> tuple[FeatureMaps, list[FeatureMaps]]:
        """Return the last features of the encoder, and all its skip connections."""
        h = conv3x3(self.features, name="input_conv")(x)
        skips, pyramid = [h], x
        for stage, multiplier in enumerate(self.channel_multipliers):
            for i in range(self.blocks_per_resolution):
                block = self._block(f"encoder_{stage}_block_{i}", self.features * multiplier)
                h = block(h, e, train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"encoder_{stage}_attention_{i}")(h, train=train)
                skips.append(h)
            if stage < len(self.channel_multipliers) - 1:
                h = self._change_resolution(f"encoder_{stage}_down", h, e, "down", train=train)
                h, pyramid = self._join_input(f"encoder_{stage}_input", h, pyramid)
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
        """Return the output for x, from the middle's features and the skip connections."""
        channels, pyramid = self.out_channels or x.shape[-1], None
        for stage in reversed(range(len(self.channel_multipliers))):
            width = self.features * self.channel_multipliers[stage]
            for i in range(self.blocks_per_resolution + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"decoder_{stage}_block_{i}", width)(h, e, train)
                if self.decoder_attention == "block" and h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"decoder_{stage}_attention_{i}")(h, train=train)
            if self.decoder_attention == "resolution" and h.shape[1] in self.attention_resolutions:
                h = self._attention(f"decoder_{stage}_attention")(h, train=train)
            h, pyramid = self._join_output(f"decoder_{stage}_output", h, pyramid, channels)
            if stage > 0:
                h = self._change_resolution(f"decoder_{stage}_up", h, e, "up", train=train)
        if self.progressive_output == "output_skip" and pyramid is not None:
            return pyramid.astype(x.dtype)
        return self._head("output", h.astype(x.dtype), channels, self.init_scale)

    @nn.nowrap
    def _join_input(
        self, name: str, h: FeatureMaps, pyramid: FeatureMaps
    ) -> tuple[FeatureMaps, FeatureMaps]:
        """Join the input, downsampled once more, to the features; return features and input."""
        if self.progressive_input == "input_skip":
            pyramid = downsample(pyramid, self._taps())
            joined = dense(h.shape[-1], name=name)(pyramid)
            if self.progressive_combine == "cat":
                return jnp.concatenate([joined, h], axis=-1), pyramid
            return joined + h, pyramid
        if self.progressive_input == "residual":
            pyramid = ResampleConv(h.shape[-1], "down", self._taps(), name=name)(pyramid)
            h = residual_sum(pyramid, h, rescale=self.skip_rescale)
            return h, h
        return h, pyramid

    @nn.nowrap
    def _join_output(
        self, name: str, h: FeatureMaps, pyramid: FeatureMaps | None, channels: int
    ) -> tuple[FeatureMaps, FeatureMaps | None]:
        """Join the features to the output so far, None at first; return features and output."""
        if self.progressive_output == "output_skip":
            image = self._head(name, at_least_float32(h), channels, self.init_scale)
            return h, image if pyramid is None else upsample(pyramid, self._taps()) + image
        if self.progressive_output == "residual":
            if pyramid is None:
                return h, self._head(name, h, h.shape[-1], 1.0)
            pyramid = ResampleConv(h.shape[-1], "up", self._taps(), name=name)(pyramid)
            h = residual_sum(pyramid, h, rescale=self.skip_rescale)
            return h, h
        return h, None

    @nn.nowrap
    def _change_resolution(
        self, name: str, h: FeatureMaps, e: Embedding | None, direction: str, *, train: bool
    ) -> FeatureMaps:
        """Double ("up") or halve ("down") the resolution, and keep the channels."""
        if self.residual_block == "biggan":
            return self._block(name, h.shape[-1], direction)(h, e, train)
        return ResampleConv(h.shape[-1], direction, self._taps(), name=name)(h)

    @nn.nowrap
    def _head(self, name: str, h: FeatureMaps, channels: int, init_scale: float) -> FeatureMaps:
        """Compute conv(silu(norm(h))) with `channels` channels."""
        norm = GroupNorm(num_groups=self.num_groups, name=f"{name}_norm")
        h = ACTIVATIONS[self.activation](norm(h))
        return conv3x3(channels, init_scale=init_scale, name=f"{name}_conv")(h)

    @nn.nowrap
    def _block(self, name: str, features: int, direction: str = "none") -> ResidualBlock:
        return (rematerialized(ResidualBlock) if self.remat else ResidualBlock)(
            features,
            direction=direction,
            fir_kernel=self._taps(),
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            shortcut_scale=1.0 if self.residual_block == "biggan" else 0.1,
            activation=self.activation,
            num_groups=self.num_groups,
            name=name,
        )

    @nn.nowrap
    def _attention(self, name: str) -> SelfAttention:
        return SelfAttention(
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            num_groups=self.num_groups,
            name=name,
        )

    @nn.nowrap
    def _taps(self) -> FilterTaps | None:
        """Return the filter of every change of resolution; None for plain resampling."""
        return self.fir_kernel if self.resample == "fir" else None
