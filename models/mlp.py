"""A residual network on all numbers of a row, for points, vectors and short series.

With the time input and the class embedded in e,

    input      h = W x
    block      h <- h + W_1 silu(norm(W_0 silu(norm(h))) (1 + s) + b),   (s, b) = W e
    output     W silu(norm(h))

where norm is layer normalization without parameters. The matrices W_1 of the blocks and that of
the output start at zero, so that the network starts as zero.
"""

import math
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
)
from models.blocks.embeddings import Labels, embedding_of, positional_embedding
from models.blocks.layers import (
    Embedding,
    cast,
    dense,
    layer_norm,
    rematerialized,
)

Rows = Float[Array, "batch ..."]
Hidden = Float[Array, "batch features"]


class MLPBlock(nn.Module):
    """Block of the module docstring.

    Attributes:
        hidden: width between the two layers.
        dropout: probability of dropping a hidden number, in training only.
    """

    hidden: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h: Hidden, e: Embedding, train: bool) -> Hidden:
        """Map (b, d) and the activated embedding to (b, d)."""
        y = dense(self.hidden, name="layer_0")(nn.silu(layer_norm(h)))
        scale, shift = jnp.split(dense(2 * self.hidden, name="embedding")(e), 2, axis=-1)
        y = nn.silu(layer_norm(y) * (1 + scale) + shift)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return h + dense(h.shape[-1], name="layer_1", init_scale=0.0)(y)


class MLP(nn.Module):
    """Network of the module docstring, from rows and noise levels to rows.

    Attributes:
        features: width of the residual stream.
        depth: number of blocks.
        mlp_ratio: width inside a block over `features`.
        dropout: probability of dropping a hidden number, in training only.
        num_classes: number of classes; 0 for an unconditional network.
        learned_variance: double the last axis of the output; its second half is for the variance.
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
        remat: compute blocks again in the backward pass, to save memory.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("points", "series", "images")

    features: int = 128
    depth: int = 4
    mlp_ratio: float = 2.0
    dropout: float = 0.0
    num_classes: int = 0
    learned_variance: bool = False
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Rows,
        cond: Float[Array, "batch"],
        labels: Labels | None = None,
        *,
        train: bool,
    ) -> Rows:
        """Map rows (b, ..., c) of order 1 and cond (b,) to rows (b, ..., c').

        `labels` (b,) are classes 0 .. num_classes - 1, or num_classes for "no class", as None is
        everywhere. c' is c, or 2 c with `learned_variance`, the variances last.

        Raises:
            ValueError: a field is invalid (`validate`).
        """
        self.validate(*x.shape[1:])
        noise = positional_embedding(cond, 2 * self.features)
        e = nn.silu(embedding_of(noise, labels, self.features, self.num_classes))
        e = cast(e.astype(x.dtype), self.compute_dtype)
        h = dense(self.features, name="input")(cast(x.reshape(len(x), -1), self.compute_dtype))
        kind = rematerialized(MLPBlock) if self.remat else MLPBlock
        for i in range(self.depth):
            block = kind(int(self.mlp_ratio * self.features), self.dropout, name=f"block_{i}")
            h = block(h, e, train)
        h = nn.silu(layer_norm(h)).astype(x.dtype)
        outputs = (2 if self.learned_variance else 1) * x.shape[-1]
        shape = (*x.shape[1:-1], outputs)
        y = dense(math.prod(shape), name="output", init_scale=0.0)(h)
        return y.reshape(len(x), *shape)

    @nn.nowrap
    def validate(self, *sizes: int) -> None:
        check_choices(self, {})
        check_integers(self, features=2, num_classes=0)
        check_integers(self, most=MOST_BLOCKS, depth=1)
        check_numbers(self, dropout="[0, 1)", mlp_ratio="(0, inf)")
        fits = 1 <= self.mlp_ratio * self.features <= MOST
        check_field(self, "mlp_ratio", fits, f"at least 1 number and at most {MOST} in a block")


class MLPClassifier(nn.Module):
    """Classifier of noisy points or series: the blocks of the module docstring, then logits.

    Attributes:
        features: width of the residual stream.
        depth: number of blocks, twice as wide inside.
        dropout: probability of dropping a hidden number, in training only.
        num_classes: number of classes.
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("points", "series")
    SECTION: ClassVar[str] = "classifier"

    features: int = 64
    depth: int = 2
    dropout: float = 0.0
    num_classes: int = 2
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Rows, cond: Float[Array, "batch"], *, train: bool
    ) -> Float[Array, "batch {self.num_classes}"]:
        """Map rows (b, ...) and noise levels cond (b,) to logits (b, num_classes).

        Raises:
            ValueError: a field is invalid (`validate`).
        """
        self.validate(*x.shape[1:])
        e = positional_embedding(cond, 2 * self.features)
        e = nn.silu(dense(self.features, name="embedding_0")(e)).astype(x.dtype)
        e = cast(e, self.compute_dtype)
        h = dense(self.features, name="input")(cast(x.reshape(len(x), -1), self.compute_dtype))
        for i in range(self.depth):
            h = MLPBlock(2 * self.features, self.dropout, name=f"block_{i}")(h, e, train)
        h = nn.silu(layer_norm(h)).astype(x.dtype)
        self.sow("intermediates", "features", h)  # see `models.with_features`
        return dense(self.num_classes, name="output")(h)

    @nn.nowrap
    def validate(self, *sizes: int) -> None:
        check_choices(self, {})
        check_integers(self, features=2, num_classes=1)
        check_integers(self, most=MOST_BLOCKS, depth=1)
        check_numbers(self, dropout="[0, 1)")
