r"""CLIP: images and texts as unit vectors of one space (Radford et al. 2021, arXiv:2103.00020).

A tower of transformer blocks reads the patches of an image, another one the tokens of a text,

    block       h <- h + A(norm(h)),  then  h <- h + W_1 act(W_0 norm(h)),
    images      norm(h)[class] W_image,  with  h = blocks(norm([class, W patches] + positions))
    texts       norm(h)[end] W_text,     with  h = blocks(words + positions),  causal A,

with self-attention A (Section 2.4). Vectors are divided by their lengths. Two of them that belong
to an image and to a text of it have a large inner product, the cosine of their angle. The trained
logit scale times the cosine is the logit of the loss in training (Section 2.3).

The fields of openai/clip-vit-base-patch32 are the defaults.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from errors import require_choice
from models.blocks.attention import attend
from models.blocks.checks import MOST, MOST_BLOCKS, is_integer
from models.blocks.layers import Images, dense
from models.dit import Tokens, patchify

Words = Int[Array, "batch length"]
Vectors = Float[Array, "batch embedding"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
FIRST_LOGIT_SCALE = 2.6592  # log(1 / 0.07), Section 2.5


@dataclass(frozen=True, kw_only=True)
class TowerSize:
    """The size of a tower.

    Args:
        features: numbers of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads of a block.
        hidden: width between the two layers of a block.

    Raises:
        ValueError: for a number out of range.
    """

    features: int
    depth: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        for field in ("features", "heads", "hidden"):
            _require_integer(field, getattr(self, field), MOST)
        _require_integer("depth", self.depth, MOST_BLOCKS)
        if self.features % self.heads:
            raise ValueError(f"heads={self.heads} must divide features={self.features}")


def _require_integer(field: str, value: object, most: int) -> None:
    if not is_integer(value, 1, most):
        raise ValueError(f"{field}={value!r:.40}; valid is an integer from 1 to {most}")


def _norm(name: str) -> nn.LayerNorm:
    # Variances of centered numbers: the others lose digits where the mean is large.
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


class Tower(nn.Module):
    """The blocks of the module docstring.

    Attributes:
        size: their size.
        activation: a name in ACTIVATIONS.
        causal: whether a token sees only those before it, and itself.
    """

    size: TowerSize
    activation: str
    causal: bool

    @nn.compact
    def __call__(self, h: Tokens) -> Tokens:
        """Map tokens (b, l, d) to the same shape."""
        batch, length, d = h.shape
        shape = (batch, length, self.size.heads, d // self.size.heads)
        for i in range(self.size.depth):
            x = _norm(f"norm_attention_{i}")(h)
            query, key, value = (
                dense(d, name=f"{name}_{i}")(x).reshape(shape) for name in ("query", "key", "value")
            )
            x = attend(query, key, value, train=False, causal=self.causal)
            h = h + dense(d, name=f"attention_{i}")(x.reshape(h.shape))
            x = dense(self.size.hidden, name=f"mlp_0_{i}")(_norm(f"norm_mlp_{i}")(h))
            h = h + dense(d, name=f"mlp_1_{i}")(ACTIVATIONS[self.activation](x))
        return h


class CLIP(nn.Module):
    """The two towers of the module docstring.

    Attributes:
        image_size: height of the images.
        patch_size: height of a patch, which divides `image_size`.
        channels: channels of the images.
        vision: size of the tower for images.
        text: size of the tower for texts.
        vocabulary: number of different tokens.
        context_length: number of tokens of a text, with padding behind its end.
        end_token: the token that ends a text, where its vector is taken.
        embedding: length of the vectors.
        activation: a name in ACTIVATIONS.
    """

    image_size: int = 224
    patch_size: int = 32
    channels: int = 3
    vision: TowerSize = TowerSize(features=768, depth=12, heads=12, hidden=3072)
    text: TowerSize = TowerSize(features=512, depth=12, heads=8, hidden=2048)
    vocabulary: int = 49408
    context_length: int = 77
    end_token: int = 49407
    embedding: int = 512
    activation: str = "quick_gelu"

    def validate(self) -> None:
        """Raise ValueError for a field out of range."""
        sizes = ("image_size", "patch_size", "channels", "vocabulary", "context_length")
        for field in (*sizes, "embedding"):
            _require_integer(field, getattr(self, field), MOST)
        require_choice("activation", self.activation, ACTIVATIONS)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} must divide the image size {self.image_size}"
            )
        if not is_integer(self.end_token, 0, self.vocabulary - 1):
            raise ValueError(
                f"end_token={self.end_token!r:.40}; valid is an integer below {self.vocabulary}"
            )

    def setup(self) -> None:
        small = nn.initializers.normal(0.02)
        self.class_token = self.param("class_token", small, (self.vision.features,))
        count = (self.image_size // self.patch_size) ** 2 + 1
        self.image_positions = self.param("image_positions", small, (count, self.vision.features))
        self.patches = dense(self.vision.features, bias=False, name="patches")
        self.norm_patches = _norm("norm_patches")
        self.vision_tower = Tower(self.vision, self.activation, False, name="vision_tower")
        self.norm_image = _norm("norm_image")
        self.image_projection = dense(self.embedding, bias=False, name="image_projection")
        self.words = self.param("words", small, (self.vocabulary, self.text.features))
        positions = (self.context_length, self.text.features)
        self.text_positions = self.param("text_positions", nn.initializers.normal(0.01), positions)
        self.text_tower = Tower(self.text, self.activation, True, name="text_tower")
        self.norm_text = _norm("norm_text")
        self.text_projection = dense(self.embedding, bias=False, name="text_projection")
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(FIRST_LOGIT_SCALE), ()
        )

    def embed_images(self, images: Images) -> Vectors:
        """Map standardized images (b, n, n, c), n = image_size, to unit vectors (b, embedding)."""
        patches = self.patches(patchify(images, self.patch_size))
        first = jnp.broadcast_to(self.class_token, (len(images), 1, self.vision.features))
        h = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        h = self.norm_patches(h + self.image_positions.astype(h.dtype)[None])
        return _unit(self.image_projection(self.norm_image(self.vision_tower(h)[:, 0])))

    def embed_texts(self, tokens: Words) -> Vectors:
        """Map tokens (b, context_length) to unit vectors (b, embedding)."""
        h = self.text_tower(self.words[tokens] + self.text_positions[None])
        end = jnp.argmax(tokens == self.end_token, axis=1)  # the first one
        h = jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0]
        return _unit(self.text_projection(self.norm_text(h)))

    def __call__(self, images: Images, tokens: Words) -> tuple[Vectors, Vectors, Float[Array, ""]]:
        """Return the vectors of images and of texts, and the factor of their inner products."""
        # At most 100, as in Section 2.5, which keeps training stable.
        scale = jnp.exp(jnp.minimum(self.logit_scale, jnp.log(100.0)))
        return self.embed_images(images), self.embed_texts(tokens), scale


def _unit(vectors: Vectors) -> Vectors:
    """Divide each vector by its length."""
    return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))


def init_clip(network: CLIP, key: Array) -> dict:
    """Return first parameters."""
    images = jnp.zeros((1, network.image_size, network.image_size, network.channels))
    tokens = jnp.zeros((1, network.context_length), jnp.int32)
    return dict(network.init(key, images, tokens)["params"])


def apply_clip(network: CLIP, params: dict, images: Images, tokens: Words) -> tuple:
    """Return what `CLIP.__call__` returns, with parameters."""
    return network.apply({"params": params}, images, tokens)  # pyright: ignore[reportReturnType]


def embed_images(network: CLIP, params: dict, images: Images) -> Vectors:
    """Return the unit vectors of standardized images, with parameters."""
    method = CLIP.embed_images
    return network.apply({"params": params}, images, method=method)  # pyright: ignore[reportReturnType]


def embed_texts(network: CLIP, params: dict, tokens: Words) -> Vectors:
    """Return the unit vectors of texts, with parameters."""
    method = CLIP.embed_texts
    return network.apply({"params": params}, tokens, method=method)  # pyright: ignore[reportReturnType]
