"""The U-Net of ADM (Dhariwal and Nichol 2021, arXiv:2105.05233) and of Improved DDPM before it.

The skeleton is that of models/ncsnpp.py, the wiring differs: the class joins the embedding after
its second layer, residual sums are plain, attention has several heads and follows every block of
its resolutions, and each block takes the embedding as scale and shift ("AdaGN", Section 3):

    embedding  e = silu(W_1 silu(W_0 embed(cond)) + class)
    encoder    per resolution: blocks_per_resolution times (residual block, self-attention), down
    middle     residual block, self-attention, residual block
    decoder    per resolution: blocks_per_resolution + 1 times (residual block on [h, skip],
               self-attention), up
    output     conv(silu(norm(h)))

Every output of the encoder is a skip connection and is used once. Self-attention is present only at
the chosen resolutions. The published networks are settings of the same fields:

                                                        resample   heads  scale_shift
    ADM (arXiv:2105.05233)                              "block"    0      True
    its model for 128x128 pixels                        "block"    4      True
    Improved DDPM (Nichol and Dhariwal, 2102.09672)     "conv"     4      True
    the same for LSUN                                   "conv"     1      False
    EDM for ImageNet 64 (Karras et al., 2206.00364)     "block"    0      True

GroupNorm has epsilon 1e-5. For c channels, EDM has min(c // 4, 32) groups, the default here. The
other two have 32 (`num_groups`), which is the same from 128 channels on. Weights are initialized by
DDPM's rule, as in the rest of this folder. PyTorch's rule, which the published codes use, has a
third of its variance. With either, every block starts as its shortcut. Upsamplers see a small image
beside x, enlarged to its size (`upsampling`).
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.attention import SelfAttention
from models.blocks.checks import (
    check_choices,
    check_field,
    check_groups,
    check_images,
    check_integers,
    check_unet,
    field_error,
    unet_widths,
)
from models.blocks.embeddings import LabelEmbedding, Labels, positional_embedding
from models.blocks.layers import (
    AugmentLabels,
    Embedding,
    FeatureMaps,
    GroupNorm,
    Images,
    ResampleConv,
    ResidualBlock,
    augmentation_embedding,
    cast,
    conv3x3,
    dense,
    rematerialized,
)
from models.blocks.resample import bilinear_upsample

CHOICES: dict[str, tuple[str, ...]] = {"resample": ("block", "conv")}
EPSILON = 1e-5  # of every GroupNorm


class ADMEncoder(nn.Module):
    """Embedding, encoder and middle of `ADM` and of its classifier; abstract.

    Attributes:
        features: width of the positional embedding; channels are multiples of it.
        channel_multipliers: channels of each resolution over `features`, from fine to coarse; may
            be fractions, such as the first, 0.5, of ADM for 512x512 pixels.
        blocks_per_resolution: residual blocks of each resolution of the encoder.
        attention_resolutions: heights in pixels with self-attention; the middle always has it.
        dropout: probability of dropping an activation in a residual block, in training only.
        heads: number of heads of every self-attention; 0 to divide channels by `head_width`.
        head_width: channels of a head, where `heads` is 0.
        scale_shift: let the embedding enter a block as scale and shift after the second norm, not
            as a sum before it.
        resample: "block" changes the resolution within residual blocks, "conv" in convolutions
            between them, with stride 2 down and after nearest neighbor upsampling up.
        num_groups: groups of every GroupNorm; 0 for min(channels // 4, 32).
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
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
    num_groups: int = 0
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_choices(self, CHOICES)
        check_unet(self, image_size, channels)
        valid = "numbers for which features * multiplier is an integer, 4 or more"
        multiples = all(map(self._makes_width, self.channel_multipliers))
        check_field(self, "channel_multipliers", multiples, valid)
        check_integers(self, heads=0, head_width=1)
        check_groups(self)
        self._check_heads(image_size)

    @nn.nowrap
    def _makes_width(self, multiplier: float) -> bool:
        if not isinstance(multiplier, int | float) or not math.isfinite(multiplier):
            return False
        width = self.features * multiplier
        return width >= 4 and width == int(width)

    @nn.nowrap
    def _check_heads(self, image_size: int) -> None:
        """Raise ValueError unless the heads divide the channels of every self-attention."""
        widths = self._widths()
        attend = [w for i, w in enumerate(widths) if image_size >> i in self.attention_resolutions]
        for width in {*attend, widths[-1]}:
            if width % (self.heads or self.head_width):
                raise field_error(
                    self,
                    "heads" if self.heads else "head_width",
                    f"one that divides the channels of every self-attention, here {width}",
                )

    @nn.nowrap
    def normalized_widths(self) -> set[int]:
        """Return the channels of every layer that GroupNorm normalizes."""
        return set(self._widths())

    @nn.nowrap
    def _widths(self) -> list[int]:
        """Return the channels of each resolution, from fine to coarse."""
        return [int(self.features * multiplier) for multiplier in self.channel_multipliers]

    # The methods below create submodules in the scope of __call__, their only caller.

    @nn.nowrap
    def _embed(
        self,
        cond: Float[Array, "batch"],
        size: int = 0,
        augment_labels: AugmentLabels | None = None,
    ) -> Embedding:
        """Embed the noise level and `size` augmentation labels, without the last activation.

        The shapes are (b,), (b, size) -> (b, 4 features).
        """
        e = positional_embedding(cond, self.features, endpoint=False)
        if size:
            e = e + augmentation_embedding(augment_labels, size, e, init_scale=0.0)
        e = nn.silu(dense(4 * self.features, name="embedding_0")(e))
        return dense(4 * self.features, name="embedding_1")(e)

    @nn.nowrap
    def _encode(
        self, x: Images, e: Embedding, *, train: bool
    ) -> tuple[FeatureMaps, list[FeatureMaps]]:
        """Return the features of the middle, and all skip connections."""
        widths = self._widths()
        h = conv3x3(widths[0], name="input_conv")(x)
        skips = [h]
        for stage, width in enumerate(widths):
            for i in range(self.blocks_per_resolution):
                h = self._block(f"encoder_{stage}_block_{i}", width)(h, e, train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"encoder_{stage}_attention_{i}", width)(h, train=train)
                skips.append(h)
            if stage < len(widths) - 1:
                h = self._change_resolution(f"encoder_{stage}_down", h, e, "down", train=train)
                skips.append(h)
        h = self._block("middle_block_0", widths[-1])(h, e, train)
        h = self._attention("middle_attention", widths[-1])(h, train=train)
        return self._block("middle_block_1", widths[-1])(h, e, train), skips

    @nn.nowrap
    def _change_resolution(
        self, name: str, h: FeatureMaps, e: Embedding, direction: str, *, train: bool
    ) -> FeatureMaps:
        """Double ("up") or halve ("down") the resolution, and keep the channels."""
        if self.resample == "block":
            return self._block(name, h.shape[-1], direction)(h, e, train)
        return ResampleConv(h.shape[-1], direction, centered=True, name=name)(h)

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
            num_groups=self.num_groups,
            name=name,
        )

    @nn.nowrap
    def _attention(self, name: str, width: int) -> SelfAttention:
        heads = self._heads(width)
        return SelfAttention(
            heads, skip_rescale=False, epsilon=EPSILON, num_groups=self.num_groups, name=name
        )

    @nn.nowrap
    def _heads(self, width: int) -> int:
        """Return the number of heads of a self-attention with `width` channels."""
        return self.heads or width // self.head_width


class ADM(ADMEncoder):
    """Network of the module docstring, from images, noise levels and classes to images.

    The other fields are those of `ADMEncoder`.

    Attributes:
        num_classes: number of classes; 0 for an unconditional network.
        augment_labels: number of augmentation labels; 0 for a network that does not see any.
        out_channels: channels of the prediction; None for the number of the input.
        upsampling: factor by which an upsampler enlarges a small image beside x, whose channels
            then join those of x (arXiv:2105.05233, Section 5.2); 1 for any other network.
        learned_variance: double the channels of the output. The second half is v, of order -1 .. 1:
            (v + 1) / 2 interpolates the log variance between its lower and upper bound
            (arXiv:2102.09672, Eq. 15).
    """

    num_classes: int = 0
    augment_labels: int = 0
    out_channels: int | None = None
    learned_variance: bool = False
    upsampling: int = 1

    @nn.compact
    def __call__(
        self,
        x: Images,
        cond: Float[Array, "batch"],
        labels: Labels | None = None,
        image: Images | None = None,
        *,
        augment_labels: AugmentLabels | None = None,
        train: bool,
    ) -> Float[Array, "batch height width channels_out"]:
        """Map images (b, n, n, c) of order 1 and cond (b,) to (b, n, n, out_channels).

        With `learned_variance`, the output has twice the channels: the prediction, then v. `cond`
        is the timestep 0 .. 999 in ADM, log(sigma) / 4 in EDM. `labels` (b,) are classes
        0 .. num_classes - 1, or num_classes for "no class", as None is everywhere. The vector of
        "no class" learns only from labels that training drops. Imported weights lack it, and have 0
        there. `augment_labels` (b, augment_labels) describe how images were augmented; None is
        zero. `image` (b, n / upsampling, n / upsampling, c) is for upsamplers only, and is needed
        there. The output has the dtype of x. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: a field is invalid (`validate`), the images are not square, or `image` is
                missing, superfluous, or has another shape.
        """
        check_images(self, x)
        self._check_image(x, image)
        e = self._embed(cond, self.augment_labels, augment_labels)
        if self.num_classes:
            classes = LabelEmbedding(self.num_classes, e.shape[-1], name="classes")
            e = e + classes(labels, len(cond)).astype(e.dtype)
        e = cast(nn.silu(e).astype(x.dtype), self.compute_dtype)
        seen = x
        if image is not None:
            enlarged = bilinear_upsample(image.astype(x.dtype), self.upsampling)
            seen = jnp.concatenate([x, enlarged], axis=-1)
        h, skips = self._encode(cast(seen, self.compute_dtype), e, train=train)
        h = self._decode(h, skips, e, train=train).astype(x.dtype)
        h = nn.silu(GroupNorm(EPSILON, self.num_groups, name="output_norm")(h))
        outputs = (1 + self.learned_variance) * (self.out_channels or x.shape[-1])
        return conv3x3(outputs, init_scale=0.0, name="output_conv")(h)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_integers(self, num_classes=0, augment_labels=0, out_channels=1, upsampling=1)
        super().validate(image_size, channels)
        divides = image_size % self.upsampling == 0
        valid = f"a divisor of config.data.image_size={image_size}"
        check_field(self, "upsampling", divides, valid)

    @nn.nowrap
    def _check_image(self, x: Images, image: Images | None) -> None:
        """Raise ValueError unless `image` is what `upsampling` needs beside x."""
        factor = self.upsampling
        batch, height, width, channels = x.shape
        wanted = (batch, height // factor, width // factor, channels) if factor > 1 else None
        found = None if image is None else image.shape
        if found != wanted:
            raise field_error(
                self,
                "upsampling",
                f"a factor that fits the image beside x, which has shape {found}, not {wanted}",
                "Sample an upsampler with config.task.name=upsample; in Python, give the image to "
                "Denoiser(image=...).",
            )

    @nn.nowrap
    def normalized_widths(self) -> set[int]:
        """Return the channels of every normalized layer, as `ADMEncoder` does."""
        widths = self._widths()
        return unet_widths(widths[0], widths, self.blocks_per_resolution)

    @nn.nowrap
    def _decode(
        self, h: FeatureMaps, skips: list[FeatureMaps], e: Embedding, *, train: bool
    ) -> FeatureMaps:
        """Return the last features, from the middle's and the skip connections."""
        for stage, width in reversed(list(enumerate(self._widths()))):
            for i in range(self.blocks_per_resolution + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"decoder_{stage}_block_{i}", width)(h, e, train)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"decoder_{stage}_attention_{i}", width)(h, train=train)
            if stage > 0:
                h = self._change_resolution(f"decoder_{stage}_up", h, e, "up", train=train)
        return h
