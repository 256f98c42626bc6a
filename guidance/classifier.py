r"""Classifiers of noisy images, p(y | x_t), at every noise level of a process, and their guidance.

A network outputs logits z_1, ..., z_C of x_t = alpha x_0 + sigma eps, which define

    log p(y | x_t) = z_y - log sum_c exp z_c.

It is trained by the cross-entropy at random times and noise,

    E_t E_(x_0, y) E_eps [-log p(y | alpha(t) x_0 + sigma(t) eps)],

whose minimum at every t is the true p(y | x_t) (Song et al. 2021, arXiv:2011.13456, Appendix I;
Dhariwal & Nichol 2021, arXiv:2105.05233, Section 4). Guidance adds scale grad_x log p(y | x_t) to
the score. With scale 1 the sum is the score of p(x_t | y).

The inputs of the last layer are features. Distances between sets of images mean more in features
than in pixels. At the smallest t they are features of the clean images.

By default, classifiers see the image divided by sqrt(alpha^2 + sigma^2). For any process, its size
is then between that of data and that of unit noise. For VP the divisor is 1, so that classifiers
published for VP see the inputs that they were trained on. The published one for VE sees x_t itself
(`scale_input`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from denoising import CONDITIONINGS, Denoiser, Prediction
from errors import require_choice, require_in
from guidance.base import Number
from numerics.arrays import Batch, expand_like, pytree
from sde_lib import SDE, Time
from training.objective import Context, Objective


class ClassifierOutput(NamedTuple):
    """The outputs of a classification network."""

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch features"]


@pytree(static=("conditioning", "num_timesteps", "scale_input"))
@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network that predicts the class of an image at every noise level of `sde`.

    Args:
        sde: the process that made the noise.
        network: maps (input, condition) to the pair of logits (batch, classes) and features (batch,
            features), as `models.with_features` does. It is already closed over its parameters,
            best as `jax.tree_util.Partial(apply, params)`: new parameters then need no new
            compilation.
        labels: the class of each image of the batch, 0 .. classes - 1; for `log_prob` only.
        conditioning: the network's time input, a name in denoising.CONDITIONINGS.
        num_timesteps: length of the chain whose timesteps some conditionings count.
        scale_input: divide x_t by sqrt(alpha^2 + sigma^2); otherwise the network sees x_t itself.

    Raises:
        ValueError: for an unknown name, or fewer than two timesteps.
    """

    sde: SDE
    network: Callable[..., tuple[Array, Array]]
    labels: Int[Array, "batch"] | None = None
    conditioning: str = "timestep_999"
    num_timesteps: int = 1000
    scale_input: bool = True

    def __post_init__(self) -> None:
        require_choice("conditioning", self.conditioning, CONDITIONINGS)
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        if callable(self.network) and not isinstance(self.network, Partial):
            object.__setattr__(self, "network", Partial(self.network))

    def outputs(self, x: Batch, t: Time | float) -> ClassifierOutput:
        """Return logits and features of x_t (batch, ...), by one evaluation of the network.

        Args:
            x: x_t.
            t: the time, of shape () or (batch,).

        Raises:
            ValueError: if the network's outputs have other shapes.
        """
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        condition = CONDITIONINGS[self.conditioning](self.sde, t, self.num_timesteps)
        seen = x
        if self.scale_input:
            seen = x / expand_like(jnp.hypot(self.sde.alpha(t), self.sde.sigma(t)), x)
        output = self.network(seen, condition)
        pair = isinstance(output, tuple) and len(output) == 2
        if not pair or any(part.ndim != 2 or len(part) != len(x) for part in output):
            raise ValueError(
                f"network returns {jax.tree.map(jnp.shape, output)} for {len(x)} images; it must "
                "return logits (batch, classes) and features (batch, features)"
            )
        return ClassifierOutput(*output)

    def logits(self, x: Batch, t: Time | float) -> Float[Array, "batch classes"]:
        """Return z_c, which is log p(c | x_t) up to a constant per image."""
        return self.outputs(x, t).logits

    def features(self, x: Batch, t: Time | float) -> Float[Array, "batch features"]:
        """Return the inputs of the network's last layer."""
        return self.outputs(x, t).features

    def log_prob(self, x: Batch, t: Time | float) -> Float[Array, "batch"]:
        """Return log p(y | x_t) in nats for the class y of each image; NaN for an invalid class.

        Raises:
            ValueError: unless `labels` has one class per image.
        """
        if self.labels is None or self.labels.shape != x.shape[:1]:
            given = None if self.labels is None else f"an array of shape {self.labels.shape}"
            raise ValueError(
                f"labels={given} does not name the class of each of {len(x)} images; give an array "
                "of shape (batch,), from a data set with classes"
            )
        log_probs = jax.nn.log_softmax(self.logits(x, t))
        classes = log_probs.shape[1]
        # Indices below 0 would count from the end.
        labels = jnp.where(self.labels < 0, classes, self.labels)[:, None]
        return jnp.take_along_axis(log_probs, labels, axis=1, mode="fill")[:, 0]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective):
    """The cross-entropy -log p(y | x_t) at random times.

    Args:
        t_min: the smallest time of training, in (0, 1).
        clean_fraction: fraction of the images at t_min, where features are computed. The times of
            the others are uniform on [t_min, 1].

    Raises:
        ValueError: for a number out of range.
    """

    t_min: float = 1e-5
    clean_fraction: float = 0.5

    def __post_init__(self) -> None:
        require_in("t_min", self.t_min, "(0, 1)")
        require_in("clean_fraction", self.clean_fraction, "[0, 1)")

    def draw(
        self, key: Key[Array, ""], model: Classifier, x0: Batch, context: Context
    ) -> tuple[Float[Array, "batch"], Batch]:
        """Draw one time and one noise per image."""
        time_key, noise_key = jax.random.split(key)
        t = self.draw_times(time_key, len(x0)).astype(x0.dtype)
        return t, jax.random.normal(noise_key, x0.shape, x0.dtype)

    def evaluate(
        self,
        key: Key[Array, ""],
        drawn: tuple[Float[Array, "batch"], Batch],
        model: Classifier,
        x0: Batch,
        context: Context,
    ) -> Float[Array, "batch"]:
        """Return the loss of each image in nats at its time and noise."""
        t, eps = drawn
        return -model.log_prob(model.sde.perturb(x0, t, eps), t)

    def draw_times(self, key: Key[Array, ""], batch: int) -> Float[Array, "batch"]:
        """Draw the times (batch,) of a batch."""
        # Uniform numbers below `clean_fraction` become t_min; the others cover the interval.
        uniform = jax.random.uniform(key, (batch,))
        position = (uniform - self.clean_fraction) / (1 - self.clean_fraction)
        return self.t_min + (1 - self.t_min) * jnp.maximum(position, 0)


@pytree()
@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """The gradient of a classifier of noisy images, added to the score after any clipping.

    Args:
        classifier: a classifier at every noise level of the denoiser's process.
        labels: the class of each image, 0 .. classes - 1.
        scale: factor of the gradient, at least 0. 1 samples from p(x | y); larger values sharpen
            p(y | x) to its power.

    Raises:
        ValueError: for a scale below 0.
    """

    classifier: Classifier
    labels: Int[Array, "batch"]
    scale: Number = 1.0
    batched_fields = ("labels",)
    evaluations = 1

    def __post_init__(self) -> None:
        require_in("scale", self.scale, "[0, inf)")

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        classifier = dataclasses.replace(self.classifier, labels=self.labels)
        gradient = jax.grad(lambda x: jnp.sum(classifier.log_prob(x, t)))(x)
        return denoiser.guided(denoiser.predict(x, t), self.scale * gradient, x, t)
