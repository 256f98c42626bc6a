"""Classifier-free guidance."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from denoising import Batch, Clipping, Denoiser, Prediction
from guidance.base import Number, _check, require_interval
from numerics.arrays import expand_like, pytree
from sde_lib import Time


@pytree(static=("interval",))
@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """A class-conditional network, exaggerated.

    eps = eps(none) + scale (eps(y) - eps(none)), where `denoiser.labels` has the classes y.

    Args:
      null_label: the label that tells the network no class.
      scale: 0 forgets the class, 1 is the network as trained, more exaggerates (the paper's w + 1).
      interval: times (first, last) between which it exaggerates; elsewhere the network is asked
        once, for the class (Kynkaanniemi et al. 2024, arXiv:2404.07724).

    Raises:
      ValueError: for numbers out of range; when called, for a denoiser without labels.
    """

    null_label: int | Int[Array, ""]
    scale: Number = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched_fields = ()
    evaluations = 2

    def __post_init__(self) -> None:
        _check("scale", self.scale)
        require_interval("interval", self.interval)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        if denoiser.labels is None:
            raise ValueError(
                "labels=None: classifier-free guidance needs a class-conditional network and the "
                "class of each image"
            )

        def exaggerated() -> Prediction:
            pairs = jnp.stack([denoiser.labels, jnp.full_like(denoiser.labels, self.null_label)])
            # Exaggeration leaves the range of data, so that clipping comes after it.
            free = dataclasses.replace(denoiser, clipping=Clipping())
            both = jax.vmap(lambda y: dataclasses.replace(free, labels=y).predict(x, t))(pairs)

            def away(pair: Float[Array, "2 batch ..."]) -> Batch:
                of_class, of_none = pair
                return of_none + self.scale * (of_class - of_none)

            of_class = jax.tree.map(lambda pair: pair[0], both)
            told = of_class._replace(x0=away(both.x0), eps=away(both.eps))
            return denoiser.clipped(told, x, t)

        if self.interval == (0.0, 1.0):
            return exaggerated()
        first, last = self.interval
        inside = (first <= t) & (t <= last)
        if t.ndim == 0:
            return jax.lax.cond(inside, exaggerated, lambda: denoiser.predict(x, t))
        return jax.tree.map(
            lambda a, b: jnp.where(expand_like(inside, a), a, b),
            exaggerated(),
            denoiser.predict(x, t),
        )
