r"""The uncertainty of predicted noise, u = E[(eps_t - eps)^2 | x_t], which optimal variances need.

eps_t is the noise in x_t, and eps its prediction. The Gaussian p(x_s | x_t) of DDPM's chain closest
to the true reverse step has the variance (Bao et al. 2022, arXiv:2201.06503, Theorem 1)

    small (1 + (SNR_s / SNR_t - 1) u),

where "small" is the variance of q(x_s | x_t, x0). An uncertainty is a field of the Denoiser, which
gives it with each prediction. Data in an interval of half-width r have
u <= r^2 alpha^2 / sigma^2 (Theorem 2).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from numerics.arrays import Batch, expand_like, pytree
from sde_lib import SDE, Time

# How the times of steps are chosen: as the grid says, or along the path of least cost.
TIMESTEP_CHOICES = ("grid", "optimal")


@pytree()
@dataclass(frozen=True, kw_only=True)
class MeasuredUncertainty:
    """The mean uncertainty at each time, the same for all x_t and pixels.

    Args:
        half_log_snr: log(alpha / sigma) at some times, increasing.
        values: u there, with linear interpolation between them.
    """

    half_log_snr: Float[Array, "times"]
    values: Float[Array, "times"]

    def __call__(self, sde: SDE, x: Batch, t: Time, eps: Batch) -> Batch:
        """Return u at the times t (batch,), with axes of length 1 for those of x (batch, ...)."""
        found = jnp.interp(sde.log_snr(t) / 2, self.half_log_snr, self.values)
        return expand_like(found.astype(x.dtype), x)
