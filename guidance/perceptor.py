r"""Perceptors: networks that map images and texts to unit vectors of one space, as CLIP does.

A perceptor sees an image as a whole, or in random square cutouts of many sizes, each resized to the
height that its network takes. An average over cutouts has a smoother gradient than the whole image.

It is trained on pairs of images and captions (Radford et al. 2021, arXiv:2103.00020, Section 2.3).
With unit vectors u_i of the images of a batch and v_j of its captions, and a trained factor s,

    loss_i = -1/2 sum_j q_ij [log softmax_j(s u_i . v_j) + log softmax_j(s v_i . u_j)].

q_ij is 1 / n for the n captions of the class of image i, and 0 for others. With few classes, a
batch has many captions of one class (Yang et al. 2022, arXiv:2204.03610, Eq. 1 and 2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key

from data.pictures import to_channels
from errors import require_in
from numerics.arrays import Batch, pytree
from training.objective import Context, Objective

Images = Float[Array, "batch height width channels"]
Vectors = Float[Array, "batch embedding"]
Places = Float[Array, "batch cutouts 3"]


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Random square parts of images.

    Args:
        count: number of cutouts; 0 for the whole image alone.
        smallest: height of the smallest one over that of the image, in (0, 1].
        power: 1 draws heights uniformly; larger ones draw more small cutouts.

    Raises:
        ValueError: for a number out of range.
    """

    count: int = 0
    smallest: float = 0.75
    power: float = 1.0

    def __post_init__(self) -> None:
        require_in("cutouts", self.count, "[0, 1024]")
        require_in("cutout_min", self.smallest, "(0, 1]")
        require_in("cutout_power", self.power, "(0, inf)")

    def cut(
        self, images: Images, places: Places, size: int
    ) -> Float[Array, "_ batch {size} {size} channels"]:
        """Return the cutouts of square images, resized to height `size`.

        `places` are uniform numbers in [0, 1): the height, and the first row and column, of each
        cutout of each image.
        """
        if not self.count:
            return resized(images, size)[None]
        fraction, *offsets = jnp.moveaxis(places, 2, 0)
        side = self.smallest + (1 - self.smallest) * fraction**self.power
        corners = jnp.stack([offset * (1 - side) for offset in offsets], axis=-1)
        cut = jax.vmap(_part, in_axes=(None, 0, 0, None))
        parts = jax.vmap(cut, in_axes=(0, 0, 0, None))(images, side, corners, size)
        return jnp.swapaxes(parts, 0, 1)


def _part(
    image: Float[Array, "n n c"], side: Float[Array, ""], corner: Float[Array, "2"], size: int
) -> Float[Array, "{size} {size} c"]:
    """Return the part of an image with this side and first corner, over its height."""
    scale = size / (side * image.shape[0])
    shift = -corner * image.shape[0] * scale
    shape = (size, size, image.shape[-1])
    return jax.image.scale_and_translate(
        image, shape, (0, 1), jnp.broadcast_to(scale, (2,)), shift, "linear"
    )


def resized(images: Images, size: int) -> Float[Array, "batch {size} {size} channels"]:
    """Resize the central squares of images, with averages where they become smaller."""
    height, width = images.shape[1:3]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = images[:, top : top + least, left : left + least]
    return jax.image.resize(square, (len(images), size, size, images.shape[-1]), "linear")


@pytree(static=("image_size", "channels", "mean", "std"))
@dataclass(frozen=True, kw_only=True)
class Perceptor:
    """The part of a perceptor that sees images.

    Args:
        network: maps standardized images (b, n, n, c) to unit vectors (b, d), best as
            `jax.tree_util.Partial(function, params)`.
        image_size: n.
        channels: c; images of 1 and of 3 channels are converted.
        mean, std: of each channel of images in [0, 1].
    """

    network: Callable[[Any], Vectors]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def embed(self, images: Images) -> Vectors:
        """Return the unit vectors of images in [0, 1] of height `image_size`."""
        return self.network(standardized(to_channels(images, self.channels), self.mean, self.std))


def standardized(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """Return images in [0, 1] less their mean, over their standard deviation, per channel."""
    shift, scale = (jnp.asarray(values, images.dtype)[None, None, None] for values in (mean, std))
    return (images - shift) / scale


@pytree(static=("low", "high"))
@dataclass(frozen=True, kw_only=True)
class CaptionModel:
    """Both parts of a perceptor in training.

    Args:
        network: maps standardized images (b, n, n, c) and tokens (b, l) to two sets of unit
            vectors, and the factor s of the module docstring.
        labels: the class of each image of the batch.
        low, high: the range of images in training, which is [0, 1] for the network.
    """

    network: Callable[..., tuple[Vectors, Vectors, Array]]
    labels: Int[Array, "batch"] | None = None
    low: float = -1.0
    high: float = 1.0


class Drawn(NamedTuple):
    """The random numbers of a batch: uniform for captions and cutouts, and the images' noise."""

    captions: Float[Array, "batch"]
    places: Places
    noise: Batch


STANDARDIZATION = (0.5, 0.5)  # mean and standard deviation of a channel of trained perceptors


@dataclass(frozen=True, kw_only=True, eq=False)
class ContrastiveLoss(Objective):
    """The loss of the module docstring, in nats, with a random caption and cutout of each image.

    Args:
        captions: the tokens of the captions of each class.
        cutouts: cutouts of the images; one is drawn for each.
        noise: images have Gaussian noise of a standard deviation that is drawn uniformly up to
            this one, for images in [0, 1]. Guidance shows a perceptor images that are not clean.
    """

    captions: Int32[np.ndarray, "classes captions length"]
    cutouts: Cutouts
    noise: float

    def draw(self, key: Key[Array, ""], model: CaptionModel, x0: Batch, context: Context) -> Drawn:
        """Draw one caption, cutout and noise per image."""
        caption_key, place_key, noise_key, std_key = jax.random.split(key, 4)
        std = self.noise * jax.random.uniform(std_key, (len(x0), 1, 1, 1))
        return Drawn(
            captions=jax.random.uniform(caption_key, (len(x0),)),
            places=jax.random.uniform(place_key, (len(x0), 1, 3)),
            noise=std * jax.random.normal(noise_key, x0.shape, x0.dtype),
        )

    def evaluate(
        self, key: Key[Array, ""], drawn: Drawn, model: CaptionModel, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the loss of each image in nats."""
        assert model.labels is not None, "captions belong to classes"
        images = (x0 - model.low) / (model.high - model.low) + drawn.noise
        (images,) = self.cutouts.cut(images, drawn.places, images.shape[1])
        images = standardized(images, *((v,) * images.shape[-1] for v in STANDARDIZATION))
        chosen = jnp.floor(drawn.captions * self.captions.shape[1]).astype(jnp.int32)
        tokens = jnp.asarray(self.captions)[model.labels, chosen]
        return contrastive_loss(*model.network(images, tokens), model.labels)


def contrastive_loss(
    images: Vectors, texts: Vectors, scale: Float[Array, ""], labels: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """Return the loss of the module docstring for each image and its caption."""
    logits = scale * images @ texts.T
    same = (labels[:, None] == labels[None]).astype(logits.dtype)
    wanted = same / same.sum(axis=1, keepdims=True)
    of_images = jnp.sum(wanted * jax.nn.log_softmax(logits, axis=1), axis=1)
    of_texts = jnp.sum(wanted * jax.nn.log_softmax(logits.T, axis=1), axis=1)
    return -(of_images + of_texts) / 2
