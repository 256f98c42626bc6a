r"""Projection: samples in agreement with a measurement y = A x_0, without a gradient.

The process makes from y the noisy measurement A x_t = alpha y + sigma A z with z ~ N(0, I). Between
the steps of a sampler, the measured part of x_t is replaced by a draw of it,

    x_t  <-  x_t + strength A^+ (alpha y + sigma A z - A x_t),

and the final samples by x_0 <- x_0 + strength A^+ (y - A x_0). For masks this is inpainting, for
gray levels colorization, as in Song et al. 2021, arXiv:2011.13456, Appendix I.2 and I.3. Other
measurements are in Song et al. 2022, arXiv:2111.08005, whose lambda (Eq. 9) is the strength.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Key

from errors import require_in
from guidance.base import Number, require_measurement
from guidance.operators import LinearOperator
from numerics.arrays import Batch, expand_like, normal_like, pytree
from sde_lib import SDE, Time


@pytree()
@dataclass(frozen=True, kw_only=True)
class Projection:
    """Projection of A x_t onto the noisy measurement.

    Args:
        operator: A.
        measurement: y of each image, of shape (batch, *operator.measurement_shape).
        strength: the fraction of the way to the measurement, in (0, 1]. With 1 the samples agree
            with y exactly; smaller values tolerate noise in y.

    Raises:
        ValueError: for a measurement of the wrong shape, or a strength out of range.
    """

    operator: LinearOperator
    measurement: Batch
    strength: Number = 1.0

    def __post_init__(self) -> None:
        require_in("strength", self.strength, "(0, 1]")
        require_measurement(self.operator, self.measurement)

    def project(self, keys: Key[Array, "batch"], sde: SDE, x: Batch, t: Time) -> Batch:
        """Return x_t moved toward a draw of the noisy measurement; row k draws from `keys[k]`."""
        noised = sde.perturb(jnp.zeros_like(x), t, normal_like(keys, x))
        alpha = expand_like(sde.alpha(t), self.measurement)
        return self._toward(alpha * self.measurement + self.operator(noised), x)

    def project_final(self, x0: Batch) -> Batch:
        """Return the final samples moved toward the measurement."""
        return self._toward(self.measurement, x0)

    def _toward(self, target: Batch, x: Batch) -> Batch:
        return x + self.strength * self.operator.pseudo_inverse(target - self.operator(x))
