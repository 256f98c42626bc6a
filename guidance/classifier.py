r"""Classifiers of noisy images, p(y | x_t), at every noise level of a process.

A network answers logits z_1, ..., z_C of x_t = alpha x_0 + sigma eps, from which

    log p(y | x_t) = z_y - log sum_c exp z_c,

and it is trained by the cross-entropy, at random times and noise,

    E_t E_(x_0, y) E_eps [-log p(y | alpha(t) x_0 + sigma(t) eps)],

which is smallest for the true p(y | x_t), at every t (Song et al. 2021, arXiv:2011.13456, Appendix
I; Dhariwal & Nichol 2021, arXiv:2105.05233, Section 4). The gradient grad_x log p(y | x_t) added to
the score makes it the score of p(x_t | y). What the last layer makes its logits of are features, in
which distances between sets of images mean more than in pixels; at the smallest t they are those of
the images themselves.

Classifiers see the image divided by sqrt(alpha^2 + sigma^2), which keeps its size between that of
data and that of unit noise, whatever the process. For VP that is 1, so that classifiers that were
published for VP are met as they were trained.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from denoising import CONDITIONINGS, Denoiser, Prediction
from guidance.base import Number, _check
from numerics.arrays import expand_like, normal_like, pytree, sample_keys
from sde_lib import SDE, Time

Batch = Float[Array, "batch ..."]


class ClassifierOutput(NamedTuple):
    """What a network of classification answers."""

    logits: Float[Array, "batch classes"]
    features: Float[Array, "batch features"]


@pytree(static=("conditioning", "num_timesteps"))
@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network that tells the class of an image at every noise level of `sde`.

    Args:
      sde: the process that made the noise.
      network: maps (input, condition) to the pair of logits (batch, classes) and features (batch,
        features), as `models.with_features` does; already closed over its parameters, best as
        `jax.tree_util.Partial(apply, params)`, so that new parameters need no new compilation.
      labels: the class of each image of the batch, 0 .. classes - 1; `log_prob` needs it.
      conditioning: what the network is fed as time, a name in denoising.CONDITIONINGS.
      num_timesteps: number of noise levels that the conditionings with an index count.

    Raises:
      ValueError: for an unknown name.
    """

    sde: SDE
    network: Callable[..., tuple[Array, Array]]
    labels: Int[Array, "batch"] | None = None
    conditioning: str = "timestep_999"
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(
                f"conditioning={self.conditioning!r} is unknown; "
                f"choose one of: {', '.join(sorted(CONDITIONINGS))}"
            )
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps={self.num_timesteps} must be at least 2")
        if callable(self.network) and not isinstance(self.network, Partial):
            object.__setattr__(self, "network", Partial(self.network))

    def outputs(self, x: Batch, t: Time | float) -> ClassifierOutput:
        """Logits and features of x_t (batch, ...) by one evaluation; t of shape () or (batch,).

        Raises:
          ValueError: for a network that answers other shapes.
        """
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        size = jnp.hypot(self.sde.alpha(t), self.sde.sigma(t))
        condition = CONDITIONINGS[self.conditioning](self.sde, t, self.num_timesteps)
        answer = self.network(x / expand_like(size, x), condition)
        pair = isinstance(answer, tuple) and len(answer) == 2
        if not pair or any(part.ndim != 2 or len(part) != len(x) for part in answer):
            raise ValueError(
                f"network answers {jax.tree.map(jnp.shape, answer)} to {len(x)} images; it must "
                "answer logits (batch, classes) and features (batch, features)"
            )
        return ClassifierOutput(*answer)

    def logits(self, x: Batch, t: Time | float) -> Float[Array, "batch classes"]:
        """z_c, the logarithm of p(c | x_t) but for a constant of each image."""
        return self.outputs(x, t).logits

    def features(self, x: Batch, t: Time | float) -> Float[Array, "batch features"]:
        """What the network's last layer makes the logits of."""
        return self.outputs(x, t).features

    def log_prob(self, x: Batch, t: Time | float) -> Float[Array, "batch"]:
        """log p(y | x_t) in nats of each image's class y in `labels`; NaN for a y of no class.

        Raises:
          ValueError: without labels, or with another number of them than images.
        """
        if self.labels is None or self.labels.shape != x.shape[:1]:
            given = None if self.labels is None else f"an array of shape {self.labels.shape}"
            raise ValueError(
                f"labels={given} does not name the class of each of {len(x)} images; give an array "
                "of shape (batch,), of a data set that has classes"
            )
        log_probs = jax.nn.log_softmax(self.logits(x, t))
        classes = log_probs.shape[1]
        # Indices below 0 would count from the end.
        labels = jnp.where(self.labels < 0, classes, self.labels)[:, None]
        return jnp.take_along_axis(log_probs, labels, axis=1, mode="fill")[:, 0]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The cross-entropy -log p(y | x_t) at random times.

    Args:
      t_min: the smallest time trained on.
      clean_fraction: share of the images seen at t_min, where features are taken; the others are
        at times uniform on [t_min, 1].

    Raises:
      ValueError: for a t_min outside (0, 1) or a share outside [0, 1).
    """

    t_min: float = 1e-5
    clean_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")
        if not 0 <= self.clean_fraction < 1:
            raise ValueError(f"clean_fraction={self.clean_fraction} must lie in [0, 1)")

    def __call__(
        self, key: Key[Array, ""], classifier: Classifier, x0: Batch
    ) -> Float[Array, "batch"]:
        """The loss of each image in nats, at one random time and noise each."""
        time_key, noise_key = jax.random.split(key)
        t = self.draw_times(time_key, len(x0)).astype(x0.dtype)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        return -classifier.log_prob(classifier.sde.perturb(x0, t, eps), t)

    def draw_times(self, key: Key[Array, ""], batch: int) -> Float[Array, "batch"]:
        """The times (batch,) at which a batch is looked at."""
        # One uniform number tells both: below `clean_fraction`, the time is t_min.
        position = (jax.random.uniform(key, (batch,)) - self.clean_fraction) / (
            1 - self.clean_fraction
        )
        return self.t_min + (1 - self.t_min) * jnp.maximum(position, 0)


def accuracy(
    key: Key[Array, ""],
    classifier: Classifier,
    x0: Float[np.ndarray, "images ..."],
    labels: Int[np.ndarray, "images"],
    times: Sequence[float],
    *,
    batch_size: int = 500,
) -> Float[np.ndarray, "times"]:
    """The share of images whose most probable class at x_t is theirs, for each of `times`.

    The noise of an image depends on the key and its index alone, and is the same at all times.

    Raises:
      ValueError: for labels that are not classes of the network.
    """
    x0 = jnp.asarray(x0)
    classes = jax.eval_shape(Classifier.logits, classifier, x0[:1], 0.5).shape[1]
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels are {labels.min()}..{labels.max()}, but the network answers {classes} classes"
        )
    hits = np.zeros(len(times))
    for first in range(0, len(x0), batch_size):
        rows = slice(first, first + batch_size)
        indices = jnp.arange(len(x0))[rows]
        for i, t in enumerate(times):
            right = _is_right(key, classifier, x0[rows], jnp.asarray(labels[rows]), indices, t)
            hits[i] += np.sum(right)
    return hits / len(x0)


@jax.jit
def _is_right(
    key: Key[Array, ""],
    classifier: Classifier,
    x0: Batch,
    labels: Int[Array, "batch"],
    indices: Int[Array, "batch"],
    t: Float[Array, ""] | float,
) -> Bool[Array, "batch"]:
    eps = normal_like(sample_keys(key, indices), x0)
    t = jnp.broadcast_to(jnp.asarray(t, x0.dtype), labels.shape)
    return jnp.argmax(classifier.logits(classifier.sde.perturb(x0, t, eps), t), axis=1) == labels


@pytree()
@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """The gradient of a classifier of noisy images, added after clipping, if there is any.

    Args:
      classifier: answers at every noise level of the denoiser's process.
      labels: the class of each image, 0 .. classes - 1.
      scale: 1 samples from p(x | y); more sharpens p(y | x) to its power.
    """

    classifier: Classifier
    labels: Int[Array, "batch"]
    scale: Number = 1.0
    batched_fields = ("labels",)
    evaluations = 1

    def __post_init__(self) -> None:
        _check("scale", self.scale)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        classifier = dataclasses.replace(self.classifier, labels=self.labels)
        gradient = jax.grad(lambda x: jnp.sum(classifier.log_prob(x, t)))(x)
        return denoiser.guided(denoiser.predict(x, t), self.scale * gradient, x, t)
