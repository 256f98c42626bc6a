"""The diffusion transformer, DiT (Peebles and Xie 2023, arXiv:2212.09748, Section 3).

Patches of p x p pixels are the tokens of a transformer. Noise level and class modulate its blocks
("adaLN-zero"):

    embedding  e = silu(W_1 silu(W_0 embed(cond)) + class)
    input      h = W patches(x) + positions
    block      h <- h + g_1 A(m(h; b_1, s_1)),  then  h <- h + g_2 F(m(h; b_2, s_2)),
               (b_1, s_1, g_1, b_2, s_2, g_2) = W e
    output     images(W m(h; b, s)),  (b, s) = W e

with m(h; b, s) = (1 + s) norm(h) + b, self-attention A, and F = W_1 gelu(W_0 .). The matrices for
the shifts b, scales s and gates g, and that of the output, start at zero. So every block starts as
the identity, the network as zero. Positions are fixed sinusoids. The paper's networks are settings
of the fields, with patch_size = 2, 4 or 8:

               features   depth   heads
    DiT-S      384        12      6
    DiT-B      768        12      12
    DiT-L      1024       24      16
    DiT-XL     1152       28      16
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.attention import attend
from models.blocks.checks import (
    MOST_BLOCKS,
    check_choices,
    check_data,
    check_field,
    check_images,
    check_integers,
    check_numbers,
    field_name,
)
from models.blocks.embeddings import LabelEmbedding, Labels, positional_embedding
from models.blocks.layers import (
    Embedding,
    Images,
    at_least_float32,
    cast,
    dense,
    follow_input,
    layer_norm,
    rematerialized,
)
from models.blocks.parameters import Dense

Tokens = Float[Array, "batch length features"]
Modulation = Float[Array, "batch features"]


def patchify(x: Images, size: int) -> Float[Array, "batch length width"]:
    """Split images into patches, row by row: (b, n, n, c) -> (b, (n / size)^2, size^2 c)."""
    b, n, _, c = x.shape
    grid = n // size
    x = x.reshape(b, grid, size, grid, size, c).swapaxes(2, 3)
    return x.reshape(b, grid * grid, size * size * c)


def unpatchify(patches: Float[Array, "batch length width"], size: int) -> Images:
    """Join patches to images, the inverse of `patchify`."""
    b, length, width = patches.shape
    grid, c = math.isqrt(length), width // size**2
    x = patches.reshape(b, grid, grid, size, size, c).swapaxes(2, 3)
    return x.reshape(b, grid * size, grid * size, c)


def grid_embedding(grid: int, features: int) -> Float[np.ndarray, "length {features}"]:
    """Embed the cells of a grid, row by row, in sinusoids of their column, then of their row.

    Each coordinate u becomes [sin(w_j u), cos(w_j u)], w_j = 10000^(-j / q), j = 0 .. q - 1, where
    q = features / 4. The result is in float64.
    """
    quarter = features // 4
    angles = np.arange(grid)[:, None] * 10000.0 ** (-np.arange(quarter) / quarter)[None, :]
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return np.concatenate([np.tile(line, (grid, 1)), np.repeat(line, grid, axis=0)], axis=-1)


def modulate(x: Tokens, shift: Modulation, scale: Modulation) -> Tokens:
    """Compute (1 + scale) norm(x) + shift; each token of norm(x) has mean 0 and variance 1."""
    normalized = layer_norm(at_least_float32(x))
    return (normalized * (1 + scale[:, None, :]) + shift[:, None, :]).astype(x.dtype)


def dense_from(init: nn.initializers.Initializer, features: int, *, name: str) -> Dense:
    """Make a `layers.dense` with initial weights by `init`."""
    return Dense(features, kernel_init=init, promote_dtype=follow_input, name=name)


class TransformerBlock(nn.Module):
    """Block of the module docstring: self-attention, then two layers per token.

    Attributes:
        heads: number of heads, which must divide the features.
        hidden: width between the two layers.
        dropout: probability of dropping an output of attention or of the layers, in training only.
    """

    heads: int
    hidden: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Tokens, e: Embedding, train: bool) -> Tokens:
        """Map tokens (b, l, d) and the activated embedding (b, d) to tokens (b, l, d)."""
        b, length, d = x.shape
        drop = nn.Dropout(self.dropout, deterministic=not train)
        modulation = dense_from(nn.initializers.zeros, 6 * d, name="modulation")(e)
        shift_0, scale_0, gate_0, shift_1, scale_1, gate_1 = jnp.split(modulation, 6, axis=-1)

        qkv = dense(3 * d, name="qkv")(modulate(x, shift_0, scale_0))
        qkv = qkv.reshape(b, length, 3, self.heads, d // self.heads)
        h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], train=train)
        h = dense(d, name="attention")(h.reshape(b, length, d))
        x = x + gate_0[:, None, :] * drop(h)

        h = dense(self.hidden, name="mlp_0")(modulate(x, shift_1, scale_1))
        h = dense(d, name="mlp_1")(nn.gelu(h, approximate=True))
        return x + gate_1[:, None, :] * drop(h)


class DiT(nn.Module):
    """Network of the module docstring, from images and noise levels to images.

    Attributes:
        features: channels of a token, a multiple of 4 and of `heads`.
        depth: number of transformer blocks.
        heads: attention heads of each block.
        patch_size: height of a patch in pixels, which must divide the height of the image; the cost
            of attention grows as patch_size^-4.
        mlp_ratio: width inside the layers of a block over `features`.
        dropout: probability of dropping an output of attention or layers, in training only.
        num_classes: number of classes; 0 for an unconditional network.
        learned_variance: double the channels of the output; the second half is for the variance.
        out_channels: channels of the output without variances; None for the number of the input.
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
        remat: compute blocks again in the backward pass, to save memory.
    """

    features: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 2
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    num_classes: int = 0
    learned_variance: bool = False
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
        """Map images (b, n, n, c) of order 1 and cond (b,) of order 0 .. 999 to (b, n, n, c').

        `labels` (b,) are classes 0 .. num_classes - 1, or num_classes for "no class", as None is
        everywhere. c' is out_channels, or twice that with `learned_variance`, the variances last.
        The output has the dtype of x. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: a field is invalid (`validate`), or the images are not square.
        """
        check_images(self, x)
        _, size, _, channels = x.shape
        e = cast(self._embed(cond, labels).astype(x.dtype), self.compute_dtype)
        patches = patchify(cast(x, self.compute_dtype), self.patch_size)
        positions = grid_embedding(size // self.patch_size, self.features)
        h = dense(self.features, name="input")(patches)
        h = h + jnp.asarray(positions, h.dtype)[None]
        for i in range(self.depth):
            h = self._block(f"block_{i}")(h, e, train)
        zeros, h, e = nn.initializers.zeros, h.astype(x.dtype), e.astype(x.dtype)
        modulation = dense_from(zeros, 2 * self.features, name="output_modulation")(e)
        h = modulate(h, *jnp.split(modulation, 2, axis=-1))
        outputs = (self.out_channels or channels) * (2 if self.learned_variance else 1)
        return unpatchify(
            dense_from(zeros, self.patch_size**2 * outputs, name="output")(h), self.patch_size
        )

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_choices(self, {})
        check_data(image_size, channels)
        check_integers(self, features=1, heads=1, patch_size=1, num_classes=0, out_channels=1)
        check_integers(self, most=MOST_BLOCKS, depth=1)
        check_numbers(self, dropout="[0, 1)", mlp_ratio="(0, inf)")
        features = f"{field_name(self, 'features')}={self.features}"
        check_field(self, "features", self.features % 4 == 0, "a multiple of 4")
        check_field(self, "heads", self.features % self.heads == 0, f"a divisor of {features}")
        fits = image_size % self.patch_size == 0
        check_field(self, "patch_size", fits, f"a divisor of config.data.image_size={image_size}")
        wide = self.mlp_ratio * self.features >= 1
        check_field(self, "mlp_ratio", wide, f"a number of at least 1 over {features}")

    # The methods below create submodules in the scope of __call__, their only caller.

    @nn.nowrap
    def _embed(self, cond: Float[Array, "batch"], labels: Labels | None) -> Embedding:
        """Embed noise level and class, with activation: (b,), (b,) -> (b, features)."""
        init = nn.initializers.normal(stddev=0.02)
        e = positional_embedding(cond, 256, endpoint=False)
        e = nn.silu(dense_from(init, self.features, name="embedding_0")(e))
        e = dense_from(init, self.features, name="embedding_1")(e)
        if self.num_classes:
            classes = LabelEmbedding(self.num_classes, self.features, 0.02, name="classes")
            e = e + classes(labels, len(cond)).astype(e.dtype)
        return nn.silu(e)

    @nn.nowrap
    def _block(self, name: str) -> TransformerBlock:
        return (rematerialized(TransformerBlock) if self.remat else TransformerBlock)(
            self.heads, int(self.mlp_ratio * self.features), self.dropout, name=name
        )
