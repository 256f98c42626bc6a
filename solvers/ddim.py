r"""DDIM: from x_t to x_s by the predicted x0 and eps (Song, Meng & Ermon 2021, arXiv:2010.02502).

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z                              (Eq. 12)
    std = eta b sigma_s / sigma_t                                                       (Eq. 16)

with b the deviation of the exact transition from s to t. eta = 0 is the probability-flow ODE, its
exponential Euler step (DPM-Solver-1), and can be walked in the other direction: `encode` gives the
noise of an image, which the solver decodes. eta = 1 is ancestral sampling with the small variance.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from denoising import Denoiser
from numerics.arrays import Batch, sample_keys
from sampling import Plan, run
from sde_lib import SDE
from solvers.tables import coefficients_at, table_plan
from time_grids import Schedule


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """DDIM with noise eta, from 0 (deterministic) to 1 (ancestral)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must lie in [0, 1]")

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        level = coefficients_at(sde, times)
        alpha_t, alpha_s = level.alpha[:-1], level.alpha[1:]
        sigma_t, sigma_s = level.sigma[:-1], level.sigma[1:]
        part = -np.expm1(
            2 * (level.half_log_snr[:-1] - level.half_log_snr[1:])
        )  # negative on the way to the noise
        noise = self.eta * np.sqrt(np.maximum(part, 0)) * sigma_s
        # x0 = (x - sigma_t eps) / alpha_t
        of_x = alpha_s / alpha_t
        of_eps = np.sqrt(sigma_s**2 - noise**2) - of_x * sigma_t
        weights = np.stack([of_x, of_eps], axis=1)
        return table_plan(times, weights, prediction="eps", noise=noise if self.eta else None)


def encode(denoiser: Denoiser, x: Batch, schedule: Schedule) -> Batch:
    """The noise at the schedule's first time that DDIM with eta = 0 decodes to x, shaped like x.

    x is taken to lie at the schedule's last time. `decode` brings it back with an error that
    vanishes with the steps. The schedule's finish has no part in it.
    """
    return _walk(denoiser, x, schedule.of(denoiser.sde)[::-1])


def decode(denoiser: Denoiser, latent: Batch, schedule: Schedule) -> Batch:
    """The state at the schedule's last time that DDIM with eta = 0 makes of the noise `latent`."""
    return _walk(denoiser, latent, schedule.of(denoiser.sde))


def _walk(denoiser: Denoiser, x: Batch, times: np.ndarray) -> Batch:
    no_noise = sample_keys(jax.random.key(0), jnp.arange(len(x)))
    return run(no_noise, denoiser, x, DDIM().plan(denoiser.sde, times)).x
