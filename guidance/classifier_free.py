r"""Classifier-free guidance of class-conditional networks.

A network that was trained with and without classes gives both scores of the difference

    grad_x log p(y | x_t) = grad log p(x_t | y) - grad log p(x_t),

which needs no classifier. Adding scale times this difference to the unconditional score is

    eps = eps(null) + scale (eps(y) - eps(null))

(Ho & Salimans 2022, arXiv:2207.12598, Eq. 6, whose w is scale - 1). At high and at low noise levels
guidance costs diversity and gains little, so it may be limited to an interval of times
(Kynkaanniemi et al. 2024, arXiv:2404.07724).
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


@pytree(static=("interval",))
@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """Extrapolation from the unconditional to the class-conditional prediction.

    The classes y are `denoiser.labels`.

    Args:
        null_label: the label that means no class.
        scale: 0 is unconditional, 1 is the network as trained, larger values amplify the class.
        interval: the guided times (first, last). At other times the network is evaluated once, for
            the class.

    Raises:
        ValueError: for numbers out of range; when called, for a denoiser without labels.
    """

    null_label: int | Int[Array, ""]
    scale: Number = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched_fields = ()
    evaluations = 2

    def __post_init__(self) -> None:
        require_in("scale", self.scale, "[0, inf)")
        require_interval("interval", self.interval)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        if denoiser.labels is None:
            raise ValueError(
                "labels=None: classifier-free guidance needs a class-conditional network and the "
                "class of each image"
            )
        return inside_interval(
            self.interval,
            t,
            lambda: self._extrapolate(denoiser, x, t),
            lambda: denoiser.predict(x, t),
        )

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
        return denoiser.clipped(of_class._replace(x0=x0, eps=eps), x, t)
