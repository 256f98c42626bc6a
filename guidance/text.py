r"""Guidance by texts and images, through a perceptor such as CLIP.

A perceptor maps images and texts to unit vectors. The loss of an image x0 is

    sum_k w_k d(u(x0), v_k) + range_scale r(x0) + variation_scale V(x0)

with the vectors v_k of prompts and their weights w_k, the mean over cutouts of the squared distance
on the sphere, d(u, v) = angle(u, v)^2 / 2, the mean square r of what lies outside the data's range,
and the total variation V, the mean square of differences between neighboring pixels. A negative
weight leads away from its prompt. This is the guidance of CLIP-guided diffusion and Disco Diffusion
(Crowson 2021, described in arXiv:2204.08583, Sections 3 and 4, for another generator).

The gradient in x_t goes through the network, as in `posterior.LossGuidance`, or stops at the
predicted x0. In that case the network is taken for the one of data with unit variance, for which
d x0 / d x_t = alpha / (alpha^2 + sigma^2). It is cheaper by the network's transpose.
"""

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from denoising import Denoiser, Prediction
from errors import require_in
from guidance.base import Number, guide_through_network, inside_interval, require_interval
from guidance.perceptor import Cutouts, Images, Perceptor
from numerics.arrays import Batch, pytree
from sde_lib import Time

DEFAULT_SCALE = 100.0
Prompts = tuple[tuple[str, float], ...]


def parse_prompts(text: str, field: str) -> Prompts:
    r"""Return the prompts of a text such as "a cat:1 | dog:-0.5", and their weights.

    Prompts are separated by |. A prompt without a weight has weight 1. A colon that belongs to a
    prompt is written as \:, and a bar as \|.

    Args:
        text: the prompts.
        field: its name in messages.

    Raises:
        ValueError: for an empty prompt, or a weight that is no finite number.
    """
    found = []
    for part in re.split(r"(?<!\\)\|", text):
        words, colon, weight = _last_colon(part)
        if not words.strip():
            raise ValueError(
                f"{field}={text!r:.80} has an empty prompt; write prompts such as "
                "a cat:1 | dog:-0.5"
            )
        try:
            number = float(weight) if colon else 1.0
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{field}={text!r:.80} has the weight {weight.strip()!r:.40}, which is no number; "
                r"write a cat:0.5, or \: for a colon that belongs to the prompt"
            )
        found.append((re.sub(r"\\([:|])", r"\1", words).strip(), number))
    return tuple(found)


def _last_colon(part: str) -> tuple[str, str, str]:
    """Split at the last colon without a backslash before it."""
    places = [match.start() for match in re.finditer(r"(?<!\\):", part)]
    return (part[: places[-1]], ":", part[places[-1] + 1 :]) if places else (part, "", "")


def spherical_distance(u: Float[Array, "*of_u d"], v: Float[Array, "*of_v d"]) -> Array:
    """Return half the squared angle between unit vectors, whose leading axes broadcast.

    Its gradient is finite everywhere.
    """
    # Half of the chord is the sine of half of the angle. At the ends the root and the arcsine have
    # infinite slopes, where the distance itself has none or two.
    half_chord = jnp.sum((u - v) ** 2, axis=-1) / 4
    tiny = 1e-12
    return 2 * jnp.arcsin(jnp.sqrt(jnp.clip(half_chord, tiny, 1 - 1e-6))) ** 2


def total_variation(images: Images) -> Float[Array, "batch"]:
    """Return the mean square of the differences of neighboring pixels, down and to the right."""
    down, right = jnp.diff(images, axis=1), jnp.diff(images, axis=2)
    return sum(jnp.mean(d**2, axis=(1, 2, 3)) for d in (down, right))  # pyright: ignore


@pytree(static=("cutouts", "low", "high", "through_network", "interval"))
@dataclass(frozen=True, kw_only=True)
class PromptGuidance:
    """The gradient of the loss of the module docstring.

    Args:
        perceptor: sees the predicted images.
        targets: the vectors of the prompts.
        weights: their weights. They are divided by the sum of their sizes, so that `scale` keeps
            its meaning.
        keys: one key per image, for its cutouts. At each time they are others.
        scale: factor of the distances.
        cutouts: the parts that the perceptor sees.
        low, high: the range of the data.
        range_scale: factor of the loss outside the range.
        variation_scale: factor of the total variation.
        through_network: whether the gradient goes through the network.
        interval: the guided times (first, last).

    Raises:
        ValueError: for numbers out of range.
    """

    perceptor: Perceptor
    targets: Float[Array, "prompts embedding"]
    weights: Float[Array, "prompts"]
    keys: Key[Array, "batch"]
    scale: Number = DEFAULT_SCALE
    cutouts: Cutouts = Cutouts()
    low: float = -1.0
    high: float = 1.0
    range_scale: Number = 0.0
    variation_scale: Number = 0.0
    through_network: bool = True
    interval: tuple[float, float] = (0.0, 1.0)
    batched_fields = ("keys",)
    evaluations = 1

    def __post_init__(self) -> None:
        for name in ("scale", "range_scale", "variation_scale"):
            require_in(name, getattr(self, name), "[0, inf)")
        require_interval("interval", self.interval)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        return inside_interval(self.interval, denoiser, x, t, self._guide)

    def _guide(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        def x0_gradient(x0: Batch) -> Batch:
            return -jax.grad(lambda x0: jnp.sum(self.loss(x0, t)))(x0)

        if self.through_network:
            return guide_through_network(denoiser, x, t, x0_gradient)
        prediction = denoiser.predict(x, t)
        alpha, sigma = denoiser.coefficients(x, t)
        gradient = alpha / (alpha**2 + sigma**2) * x0_gradient(prediction.x0)
        return denoiser.clipped(denoiser.guided(prediction, gradient, x, t), x, t)

    def loss(self, x0: Batch, t: Time) -> Float[Array, "batch"]:
        """Return the loss of images in the network's range, with the cutouts of time t."""
        images = (x0 - self.low) / (self.high - self.low)
        parts = self.cutouts.cut(images, self._places(t, x0), self.perceptor.image_size)
        count, batch = parts.shape[:2]
        vectors = self.perceptor.embed(parts.reshape(count * batch, *parts.shape[2:]))
        distances = spherical_distance(vectors[:, None], self.targets[None])
        distances = distances.reshape(count, batch, -1).mean(axis=0)
        weights = self.weights / jnp.sum(jnp.abs(self.weights))
        outside = x0 - jnp.clip(x0, self.low, self.high)
        return (
            self.scale * distances @ weights.astype(x0.dtype)
            + self.range_scale * jnp.mean(outside**2, axis=(1, 2, 3))
            + self.variation_scale * total_variation(x0)
        )

    def _places(self, t: Time, x0: Batch) -> Float[Array, "batch cutouts 3"]:
        """Return uniform numbers for the cutouts, which depend on an image's key and time alone."""
        shape = (self.cutouts.count, 3)
        if not self.cutouts.count:
            return jnp.zeros((len(x0), *shape), x0.dtype)
        times = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x0.shape[:1])
        bits = jax.lax.bitcast_convert_type(times, jnp.uint32)
        keys = jax.vmap(jax.random.fold_in)(self.keys, bits)
        return jax.vmap(lambda key: jax.random.uniform(key, shape, x0.dtype))(keys)
