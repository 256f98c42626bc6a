r"""Classifier-free guidance of class-conditional networks.

A network that was trained with and without classes gives both scores of the difference

    grad_x log p(y | x_t) = grad log p(x_t | y) - grad log p(x_t),

which needs no classifier. Adding scale times this difference to the unconditional score is

    eps = eps(null) + scale (eps(y) - eps(null))

(Ho & Salimans 2022, arXiv:2207.12598, Eq. 6, whose w is scale - 1). At high and at low noise levels
guidance costs diversity and gains little, so it may be limited to an interval of times
(Kynkaanniemi et al. 2024, arXiv:2404.07724).

A large scale also enlarges the spread of the predicted image, which makes colors too strong.
Rescaling gives each sample's x0 back the standard deviation of the class-conditional one, over all
of its dimensions, mixed by phi (Lin et al. 2024, arXiv:2305.08891, Section 3.4, Eq. 14-16):

    x0' = phi std(x0(y)) / std(x0) x0 + (1 - phi) x0,    eps' = (x - alpha x0') / sigma

There the network's own output is rescaled, v or eps. Here it is x0, whatever the network predicts.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from denoising import Denoiser, Prediction
from errors import require_in
from guidance.base import Number, inside_interval, require_interval
from numerics.arrays import Batch, pytree
from numerics.clipping import Clipping
from sde_lib import Time


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeOptions:
    """The options that classifier-free guidance alone has.

    Args:
        rescale: phi of the module docstring; 0 for no rescaling. The paper takes 0.7.

    Raises:
        ValueError: for a number outside [0, 1].
    """

    rescale: float = 0.0

    def __post_init__(self) -> None:
        require_in("rescale", self.rescale, "[0, 1]")


@pytree(static=("interval", "rescale"))
@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """Extrapolation from the unconditional to the class-conditional prediction.

    The classes y are `denoiser.labels`.

    Args:
        null_label: the label that means no class.
        scale: 0 is unconditional, 1 is the network as trained, larger values amplify the class.
        interval: the guided times (first, last). At other times the network is evaluated once, for
            the class.
        rescale: as in `ClassifierFreeOptions`.

    Raises:
        ValueError: for numbers out of range; when called, for a denoiser without labels.
    """

    null_label: int | Int[Array, ""]
    scale: Number = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    batched_fields = ()
    evaluations = 2

    def __post_init__(self) -> None:
        require_in("scale", self.scale, "[0, inf)")
        require_interval("interval", self.interval)
        require_in("rescale", self.rescale, "[0, 1]")

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        if denoiser.labels is None:
            raise ValueError(
                "labels=None: classifier-free guidance needs a class-conditional network and the "
                "class of each image"
            )
        return inside_interval(self.interval, denoiser, x, t, self._extrapolate)

    def _extrapolate(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        # Clipping is last because the extrapolation leaves the data's range.
        unclipped = dataclasses.replace(denoiser, clipping=Clipping())

        def predict(labels: Int[Array, "batch"]) -> Prediction:
            return dataclasses.replace(unclipped, labels=labels).predict(x, t)

        # vmap evaluates the network once, at twice the batch.
        labels = jnp.asarray(denoiser.labels)
        pair = jax.vmap(predict)(jnp.stack([labels, jnp.full_like(labels, self.null_label)]))
        of_class = jax.tree.map(lambda leaf: leaf[0], pair)
        of_null = jax.tree.map(lambda leaf: leaf[1], pair)
        x0 = of_null.x0 + self.scale * (of_class.x0 - of_null.x0)
        eps = of_null.eps + self.scale * (of_class.eps - of_null.eps)
        guided = of_class._replace(x0=x0, eps=eps)
        if self.rescale:
            guided = self._rescaled(denoiser, guided, of_class.x0, x, t)
        return denoiser.clipped(guided, x, t)

    def _rescaled(
        self, denoiser: Denoiser, guided: Prediction, x0: Batch, x: Batch, t: Time
    ) -> Prediction:
        """Return the guided prediction with the spread of the class-conditional `x0`."""
        wanted, found = _std(x0), _std(guided.x0)
        ratio = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1), 1)
        rescaled = (1 + self.rescale * (ratio - 1)) * guided.x0
        # This keeps x = alpha x0 + sigma eps.
        alpha, sigma = denoiser.coefficients(x, t)
        eps = guided.eps + alpha / sigma * (guided.x0 - rescaled)
        return guided._replace(x0=rescaled, eps=eps)


def _std(x: Batch) -> Batch:
    """Return the standard deviation of each sample, over all of its dimensions, kept as 1."""
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)
