"""The classifier of noisy images that guides ADM (Dhariwal and Nichol 2021, arXiv:2105.05233).

It is the encoder and the middle of models/adm.py, followed by a pooling of features h_p over pixels
p (Section 4; its gradient with respect to the image is added to the sampler's score):

    "attention"   h_1 .. h_n = silu(norm(h)), and h_0 is their mean; with trained vectors for the
                  positions, the logits are the output of self-attention at h_0, as in CLIP
                  (Radford et al. 2021, arXiv:2103.00020):
                      t_p = h_p + b_p,  p = 0 .. n
                      logits = W_o concat_heads softmax(W_q t_0 (W_k t)^T / sqrt d) W_v t
    "adaptive"    logits = W_o mean_p silu(norm(h))_p
    "spatial"     logits = W_1 relu(W_0 s), where s concatenates the means over pixels of every
                  output of the encoder and of the middle
    "spatial_v2"  the same with silu(norm(.)) instead of relu

The published classifiers pool by attention. Pooling is always in the dtype of x. The input of the
last matrix, W_o or W_1, is sown as "features"; see `models.with_features`.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.adm import EPSILON, ADMEncoder
from models.blocks.attention import Heads, attend
from models.blocks.checks import check_choices, check_images, check_integers
from models.blocks.layers import FeatureMaps, GroupNorm, Images, cast, dense
from models.blocks.parameters import ParameterModule

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
SPATIAL_WIDTH = 2048  # of the hidden layer of both spatial pools

Logits = Float[Array, "batch classes"]


class AttentionPool(ParameterModule):
    """Attention from the mean of an image's pixels to all of them, as in the module docstring.

    Attributes:
        features: width of the output.
        heads: number of heads, which must divide the channels.
    """

    features: int
    heads: int

    @nn.compact
    def __call__(
        self, x: Images
    ) -> tuple[Float[Array, "batch {self.features}"], Float[Array, "batch channels"]]:
        """Map (b, h, w, c) to (b, features), and to the heads' (b, c) before W_o.

        The shapes of the parameters depend on h and w.
        """
        b, height, width, c = x.shape
        pixels = x.reshape(b, height * width, c)
        tokens = jnp.concatenate([pixels.mean(axis=1, keepdims=True), pixels], axis=1)
        init = nn.initializers.normal(stddev=c**-0.5)
        positions = self.param("positions", init, tokens.shape[1:], jnp.float32)
        tokens = tokens + positions.astype(tokens.dtype)[None]

        def project(name: str, inputs: Float[Array, "batch length channels"]) -> Heads:
            projected = dense(c, name=name)(inputs)
            return projected.reshape(b, -1, self.heads, c // self.heads)

        query = project("query", tokens[:, :1])
        # Without the kernel for training: with one query, there is no memory to save.
        h = attend(query, project("key", tokens), project("value", tokens), train=False)
        h = h.reshape(b, c)
        return dense(self.features, name="output")(h), h


class ADMClassifier(ADMEncoder):
    """Network of the module docstring, from noisy images and noise levels to logits.

    The other fields are those of `ADMEncoder`, with the defaults of the published classifiers.

    Attributes:
        num_classes: number of classes.
        pool: pooling of the features, a name in POOLS.
    """

    SECTION: ClassVar[str] = "classifier"

    features: int = 128
    blocks_per_resolution: int = 2
    dropout: float = 0.0
    num_classes: int = 1000
    pool: str = "attention"

    @nn.compact
    def __call__(self, x: Images, cond: Float[Array, "batch"], *, train: bool) -> Logits:
        """Map images (b, n, n, c) of order 1 and cond (b,) to logits (b, num_classes).

        `cond` is that of the guided `ADM`. The logits have the dtype of x. With "attention", the
        shapes of the parameters depend on n. Dropout in training draws from the stream "dropout".

        Raises:
            ValueError: a field is invalid (`validate`), or the images are not square.
        """
        check_images(self, x)
        e = cast(nn.silu(self._embed(cond)).astype(x.dtype), self.compute_dtype)
        h, skips = self._encode(cast(x, self.compute_dtype), e, train=train)
        if self.pool.startswith("spatial"):
            return self._pool_everything([map_.astype(x.dtype) for map_ in (*skips, h)])
        h = nn.silu(GroupNorm(EPSILON, self.num_groups, name="output_norm")(h.astype(x.dtype)))
        if self.pool == "adaptive":
            h = h.mean(axis=(1, 2))
            logits = dense(self.num_classes, init_scale=0.0, name="output")(h)
        else:
            pool = AttentionPool(self.num_classes, self._heads(h.shape[-1]), name="pool")
            logits, h = pool(h)
        self.sow("intermediates", "features", h)
        return logits

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_choices(self, {"pool": POOLS})
        check_integers(self, num_classes=1)
        super().validate(image_size, channels)

    @nn.nowrap
    def _pool_everything(self, maps: Sequence[FeatureMaps]) -> Logits:
        """Return the logits of both spatial pools, from the means of all feature maps."""
        means = jnp.concatenate([h.mean(axis=(1, 2)) for h in maps], axis=-1)
        h = dense(SPATIAL_WIDTH, name="output_0")(means)
        if self.pool == "spatial":
            h = nn.relu(h)
        else:
            norm = GroupNorm(EPSILON, self.num_groups, name="output_norm")
            h = nn.silu(norm(h[:, None, None, :])[:, 0, 0, :])
        self.sow("intermediates", "features", h)
        return dense(self.num_classes, name="output_1")(h)
