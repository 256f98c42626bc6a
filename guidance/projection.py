"""Projection."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Key

from denoising import Batch
from guidance.base import Number, _check_measurement
from guidance.operators import LinearOperator
from numerics.arrays import expand_like, normal_like, pytree
from sde_lib import SDE, Time


@pytree()
@dataclass(frozen=True, kw_only=True)
class Projection:
    """Holds A x_t to what the process makes of the measurement y = A x_0.

    x_t  <-  x_t + strength A^+ (alpha y + sigma A z - A x_t), z fresh and normal; the samples are
    x_0  <-  x_0 + strength A^+ (y - A x_0). With strength 1 they agree with y exactly.

    Args:
      operator, measurement: A, and y of each image.
      strength: how far towards it, above 0 to 1; less than 1 forgives noise in y (lambda of Song
        et al. 2022, Eq. 9).

    Raises:
      ValueError: for a measurement of the wrong shape, or a strength out of range.
    """

    operator: LinearOperator
    measurement: Batch
    strength: Number = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.strength, int | float) and not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength} must lie above 0, up to 1")
        _check_measurement(self.operator, self.measurement)

    def project(self, keys: Key[Array, "batch"], sde: SDE, x: Batch, t: Time) -> Batch:
        noised = sde.perturb(jnp.zeros_like(x), t, normal_like(keys, x))
        alpha = expand_like(sde.alpha(t), self.measurement)
        return self._towards(alpha * self.measurement + self.operator(noised), x)

    def finish(self, x0: Batch) -> Batch:
        return self._towards(self.measurement, x0)

    def _towards(self, target: Batch, x: Batch) -> Batch:
        return x + self.strength * self.operator.pseudo_inverse(target - self.operator(x))
