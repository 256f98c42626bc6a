r"""DDIM: from x_t to x_s by the predicted x0 and eps (Song, Meng & Ermon 2021, arXiv:2010.02502).

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z                              (Eq. 12)
    std = eta b sigma_s / sigma_t                                                       (Eq. 16)

with b the standard deviation of the exact transition from s to t. eta = 0 is the exponential Euler
step of the probability-flow ODE (DPM-Solver-1). It is invertible: `encode` gives the latent of an
image, which `decode` turns into the image. eta = 1 is ancestral sampling with the small variance.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from denoising import Denoiser
from errors import require_in
from numerics.arrays import Batch, sample_keys
from sampling import Plan, run
from sde_lib import SDE
from solvers.tables import coefficients_at, table_plan
from time_grids import Schedule


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """DDIM with noise.

    Args:
        eta: from 0 (deterministic) to 1 (ancestral).
        s_noise: scale of the fresh noise, above 0.

    Raises:
        ValueError: for a number out of range, or an s_noise that is not used because eta is 0.
    """

    eta: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        require_in("eta", self.eta, "[0, 1]")
        require_in("s_noise", self.s_noise, "(0, inf)")
        if self.eta == 0 and self.s_noise != 1:
            raise ValueError(
                f"s_noise={self.s_noise} is not used with eta=0; set eta above 0, or leave it out"
            )

    @property
    def follows_flow(self) -> bool:
        """Whether it integrates the probability-flow ODE, without fresh noise."""
        return self.eta == 0

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        coefficients = coefficients_at(sde, times)
        alpha_t, alpha_s = coefficients.alpha[:-1], coefficients.alpha[1:]
        sigma_t, sigma_s = coefficients.sigma[:-1], coefficients.sigma[1:]
        # (b / sigma_t)^2, which is negative for steps toward the noise.
        fraction = -np.expm1(-2 * np.diff(coefficients.half_log_snr))
        noise = self.eta * np.sqrt(np.maximum(fraction, 0)) * sigma_s
        # x0 = (x - sigma_t eps) / alpha_t
        of_x = alpha_s / alpha_t
        of_eps = np.sqrt(sigma_s**2 - noise**2) - of_x * sigma_t
        weights = np.stack([of_x, of_eps], axis=1)
        fresh = self.s_noise * noise if self.eta else None
        return table_plan(times, weights, prediction="eps", noise=fresh)


def encode(denoiser: Denoiser, x: Batch, schedule: Schedule) -> Batch:
    """Encode images as latents at the schedule's first time, by DDIM with eta = 0.

    x is taken as the state at the schedule's last time. The error of decoding it again vanishes
    with the number of steps. The schedule's final_step is not used.
    """
    return _run(denoiser, x, schedule.of(denoiser.sde)[::-1])


def decode(denoiser: Denoiser, latent: Batch, schedule: Schedule) -> Batch:
    """Decode latents to the states at the schedule's last time, by DDIM with eta = 0."""
    return _run(denoiser, latent, schedule.of(denoiser.sde))


def _run(denoiser: Denoiser, x: Batch, times: np.ndarray) -> Batch:
    no_noise = sample_keys(jax.random.key(0), jnp.arange(len(x)))
    return run(no_noise, denoiser, x, DDIM().plan(denoiser.sde, times)).x
