"""The U-Net of ADM (Dhariwal and Nichol 2021, arXiv:2105.05233) and of Improved DDPM before it.

The skeleton of models/ncsnpp.py with other wiring: the class joins the embedding after its second
layer, residual sums are plain, attention has several heads and follows every block of its levels,
and each block takes the embedding as scale and shift ("AdaGN", Section 3):

    embedding  e = silu(W_1 silu(W_0 embed(cond)) + class)
    encoder    per level: blocks_per_resolution times (residual block, self-attention), then down
    middle     residual block, self-attention, residual block
    decoder    per level: blocks_per_resolution + 1 times (residual block on [h, skip], self-attention),
               then up
    output     conv(silu(norm(h)))

Every output of the encoder is a skip connection and is used once. Levels attend only at the chosen
resolutions. The published networks are settings of the same fields:

                                                        resample   heads  scale_shift
    ADM (arXiv:2105.05233)                              "block"    0      True
    its model for 128x128 pixels                        "block"    4      True
    Improved DDPM (Nichol and Dhariwal, 2102.09672)     "conv"     4      True
    the same for LSUN                                   "conv"     1      False
    EDM for ImageNet 64 (Karras et al., 2206.00364)     "block"    0      True

GroupNorm has epsilon 1e-5 and min(c // 4, 32) groups for c channels, as in EDM; the other two have
32, which is the same from 128 channels on. Weights start as in the rest of this folder, by DDPM's
rule and not by PyTorch's, which has a third of its variance; either way every block starts as its
shortcut.
"""

import math
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
from models.blocks.embeddings import LabelEmbedding, Labels, positional_embedding
from models.blocks.layers import (
    Embedding,
    FeatureMaps,
    GroupNorm,
    Images,
    ResampleConv,
    ResidualBlock,
    cast,
    conv3x3,
    dense,
    rematerialized,
)

CHOICES: dict[str, tuple[str, ...]] = {"resample": ("block", "conv")}
EPSILON = 1e-5  # of every GroupNorm


class ADMEncoder(nn.Module):
    """Embedding, encoder and middle, which `ADM` and its classifier share; abstract.

    Attributes:
        features: width of the positional embedding; channels are multiples of it.
        channel_multipliers: channels of each level over `features`, from fine to coarse; fractions
            too, such as the 0.5 at the first level of ADM for 512x512 pixels.
        blocks_per_resolution: residual blocks of each encoder level.
        attention_resolutions: heights in pixels at which levels attend; the middle always does.
        dropout: probability of dropping an activation in a residual block, in training only.
        heads: number of heads of every self-attention; 0 for as many as `head_width` gives.
        head_width: channels of a head, where `heads` is 0.
        scale_shift: how the embedding enters a block: scale and shift after the second norm, or a
            sum before it.
        resample: "block" changes the resolution within residual blocks, "conv" in convolutions
            between them, of stride 2 down and behind nearest neighbour up.
        compute_dtype: "float32", or "bfloat16" for all but parameters, statistics and output.
        remat: compute residual blocks again in the backward pass, to save memory.
    """

    features: int = 192
    channel_multipliers: Sequence[float] = (1, 2, 3, 4)
    blocks_per_resolution: int = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)
    dropout: float = 0.1
    heads: int = 0
    head_width: int = 64
    scale_shift: bool = True
    resample: str = "block"
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Checks every field for images (image_size, image_size, channels); needs no parameters.

        Raises:
            ValueError: naming the field, its value, the valid values and the remedy.
        """
        check_choices(self, CHOICES)
        check_image(image_size, channels)
        positive, even = "a positive integer", "an even integer, 4 or more"
        multipliers = "one number per level, for features * multiplier an integer of 4 or more"
        check_fields(
            self,
            ("features", is_positive(self.features, least=4), even),
            ("features", self.features % 2 == 0, even),
            ("channel_multipliers", len(self.channel_multipliers) > 0, multipliers),
            (
                "channel_multipliers",
                all(map(self._makes_width, self.channel_multipliers)),
                multipliers,
            ),
            ("blocks_per_resolution", is_positive(self.blocks_per_resolution), positive),
            ("dropout", 0 <= self.dropout < 1, "a probability in [0, 1)"),
            ("heads", is_positive(self.heads, least=0), "an integer, 0 to follow head_width"),
            ("head_width", is_positive(self.head_width), positive),
        )
        levels = len(self.channel_multipliers)
        check_resolutions(self, image_size, levels, self.attention_resolutions)
        check_groups(self, self._normalized_widths())
        self._check_heads(image_size)

    @nn.nowrap
    def _makes_width(self, multiplier: float) -> bool:
        if not isinstance(multiplier, int | float) or not math.isfinite(multiplier):
            return False
        width = self.features * multiplier
        return width >= 4 and width == int(width)

    @nn.nowrap
    def _check_heads(self, image_size: int) -> None:
        """Checks that the heads divide the channels of every layer that attends."""
        widths = self._level_widths()
        attend = [w for i, w in enumerate(widths) if image_size >> i in self.attention_resolutions]
        for width in {*attend, widths[-1]}:
            if width % (self.heads or self.head_width):
                raise field_error(
                    self,
                    "heads" if self.heads else "head_width",
                    f"one that divides the channels of every layer that attends, here {width}",
                )

    @nn.nowrap
    def _normalized_widths(self) -> set[int]:
        """The channels of every layer that is normalized, as __call__ makes them."""
        return set(self._level_widths())

    @nn.nowrap
    def _level_widths(self) -> list[int]:
        """The channels of each level, from fine to coarse."""
        return [int(self.features * multiplier) for multiplier in self.channel_multipliers]

    # The methods below create submodules in the scope of __call__, which alone calls them.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"]) -> Embedding:
        """The embedding of the noise level before its last activation: (b,) -> (b, 4 features)."""
        e = positional_embedding(cond, self.features, endpoint=False)
        e = nn.silu(dense(4 * self.features, name="embedding_0")(e))
        return dense(4 * self.features, name="embedding_1")(e)

    @nn.nowrap
    def _encode(
        self, x: Images, e: Embedding, *, train: bool
    ) -> tuple[FeatureMaps, list[FeatureMaps]]:
        """The features of the middle, and all outputs of the encoder, its skip connections."""
        widths = self._level_widths()
        h = conv3x3(widths[0], name="input_conv")(x)
        skips = [h]
        for level, width in enumerate(widths):
            for i in range(self.blocks_per_resolution):
                h = self._block(f"encoder_{level}_block_{i}", width)(h, e, train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"encoder_{level}_attention_{i}", width)(h, train=train)
                skips.append(h)
            if level < len(widths) - 1:
                h = self._change_resolution(f"encoder_{level}_down", h, e, "down", train=train)
                skips.append(h)
        h = self._block("middle_block_0", width)(h, e, train)
        h = self._attention("middle_attention", width)(h, train=train)
        return self._block("middle_block_1", width)(h, e, train), skips

    @nn.nowrap
    def _change_resolution(
        self, name: str, h: FeatureMaps, e: Embedding, direction: str, *, train: bool
    ) -> FeatureMaps:
        """Doubles ("up") or halves ("down") the resolution and keeps the channels."""
        if self.resample == "block":
            return self._block(name, h.shape[-1], direction)(h, e, train)
        return ResampleConv(h.shape[-1], direction, centred=True, name=name)(h)

    @nn.nowrap
    def _block(self, name: str, width: int, direction: str = "none") -> ResidualBlock:
        return (rematerialized(ResidualBlock) if self.remat else ResidualBlock)(
            width,
            direction=direction,
            dropout=self.dropout,
            skip_rescale=False,
            resampled_shortcut=False,
            scale_shift=self.scale_shift,
            epsilon=EPSILON,
            name=name,
        )

    @nn.nowrap
    def _attention(self, name: str, width: int) -> SelfAttention:
        heads = self._heads(width)
        return SelfAttention(heads, skip_rescale=False, epsilon=EPSILON, name=name)

    @nn.nowrap
    def _heads(self, width: int) -> int:
        """The number of heads of an attention among features of `width` channels."""
        return self.heads or width // self.head_width


class ADM(ADMEncoder):
    """The network of the module docstring, from images, noise levels and classes to images.

    Its other fields are those of `ADMEncoder`.

    Attributes:
        num_classes: number of classes that labels may name; 0 for none.
        out_channels: channels of the prediction; None for those of the input.
        learned_variance: a second half of output channels beside the prediction's, v of the order
            of -1 .. 1: the log variance is at (v + 1) / 2 of the way from its lower to its upper
            bound (arXiv:2102.09672, Eq. 15).
    """

    num_classes: int = 0
    out_channels: int | None = None
    learned_variance: bool = False

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

        With `learned_variance`, to twice the channels: the prediction, then v. `cond` enters as it
        is: the index 0 .. 999 of the noise level in ADM, log(sigma) / 4 in EDM. `labels` (b,) are
        classes 0 .. num_classes - 1, or num_classes for none, as None is. The vector of none learns
        only from labels that a training drops, and is zero in imported weights, which lack it.
        The output has the dtype of x. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: as `validate`, and for images that are not square.
        """
        _, height, width, channels = x.shape
        check_square(height, width)
        self.validate(height, channels)
        e = self._embed(cond)
        if self.num_classes:
            classes = LabelEmbedding(self.num_classes, e.shape[-1], name="classes")
            e = e + classes(labels, len(cond)).astype(e.dtype)
        e = cast(nn.silu(e).astype(x.dtype), self.compute_dtype)
        h, skips = self._encode(cast(x, self.compute_dtype), e, train=train)
        h = self._decode(h, skips, e, train=train).astype(x.dtype)
        h = nn.silu(GroupNorm(EPSILON, name="output_norm")(h))
        outputs = (1 + self.learned_variance) * (self.out_channels or channels)
        return conv3x3(outputs, init_scale=0.0, name="output_conv")(h)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """As `ADMEncoder.validate`."""
        out_channels = self.out_channels is None or is_positive(self.out_channels)
        check_fields(
            self,
            ("num_classes", is_positive(self.num_classes, least=0), "an integer, 0 for no classes"),
            ("out_channels", out_channels, "a positive integer"),
        )
        super().validate(image_size, channels)

    @nn.nowrap
    def _normalized_widths(self) -> set[int]:
        levels = self._level_widths()
        # The input's; then each level's blocks and, but for the last level, its way down.
        skips = [levels[0]]
        for width in levels:
            skips += [width] * (self.blocks_per_resolution + 1)
        skips.pop()
        widths, h = set(levels), levels[-1]
        for width in reversed(levels):
            for _ in range(self.blocks_per_resolution + 1):
                widths.add(h + skips.pop())
                h = width
        return widths

    @nn.nowrap
    def _decode(
        self, h: FeatureMaps, skips: list[FeatureMaps], e: Embedding, *, train: bool
    ) -> FeatureMaps:
        """The last features, from the middle's and the skip connections, last first."""
        for level, width in reversed(list(enumerate(self._level_widths()))):
            for i in range(self.blocks_per_resolution + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"decoder_{level}_block_{i}", width)(h, e, train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"decoder_{level}_attention_{i}", width)(h, train=train)
            if level > 0:
                h = self._change_resolution(f"decoder_{level}_up", h, e, "up", train=train)
        return h
