r"""The probability-flow ODE, in four variables.

dx/dt = f x - g^2 score / 2 has the marginals of the SDE (Song et al. 2021, arXiv:2011.13456,
Eq. 13). The table has the same curve in other variables. There lambda = log(alpha / sigma) is half
the log-SNR, phi is the angle with tan(phi) = sigma / alpha, and norm^2 = alpha^2 + sigma^2.

    t          dx/dt       = f x - g^2 score / 2
    log_snr    dy/dlambda  = -exp(-lambda) eps          y = x / alpha   (arXiv:2010.02502, Eq. 14)
    angle      du/dphi     = cos(phi) eps - sin(phi) x0 u = x / norm    (arXiv:2202.00512, App. D)
    sqrt_angle du/ds       = (du/dphi) (dphi/ds)        tan(s)^2 = tan(phi)

The last three do not depend on the process's own clock, so all processes cost the same. In the
angles the scale of the state is constant, so one atol suits every noise level.

On its path from noise to data, the angle spends little on the smallest noise levels, and the
log-SNR nearly everything. The square-root angle s is in between. Log-likelihoods change most near
the data, and need the fewest evaluations in it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from denoising import Denoiser
from numerics.arrays import Batch
from sde_lib import SDE, Time


class Coordinates(NamedTuple):
    """A variable of integration: its value at t, the inverse, and scale with x = scale(t) state."""

    value: Callable[[SDE, Time], Time]
    time: Callable[[SDE, Time], Time]
    scale: Callable[[SDE, Time], Time]


def norm(sde: SDE, t: Time) -> Time:
    """Return sqrt(alpha^2 + sigma^2), nearly the scale of x_t for data of scale 1."""
    return jnp.exp(0.5 * jnp.logaddexp(2 * sde.log_alpha(t), 2 * sde.log_sigma(t)))


def half_log_snr(sde: SDE, t: Time) -> Time:
    """Return log(alpha / sigma)."""
    return sde.log_snr(t) / 2


def time_of_half_log_snr(sde: SDE, half_log_snr: Time) -> Time:
    """Return the time at which log(alpha / sigma) has the given value."""
    return sde.time_of_log_snr(2 * half_log_snr)


def _log_snr_velocity(denoiser: Denoiser, y: Batch, half_log_snr: Time) -> Batch:
    t = time_of_half_log_snr(denoiser.sde, half_log_snr)
    return -jnp.exp(-half_log_snr) * denoiser.predict(denoiser.sde.alpha(t) * y, t).eps


def _angle(sde: SDE, t: Time) -> Time:
    return jnp.arctan2(sde.sigma(t), sde.alpha(t))


def _time_of_angle(sde: SDE, phi: Time) -> Time:
    return time_of_half_log_snr(sde, -jnp.log(jnp.tan(phi)))


def _angle_velocity(denoiser: Denoiser, u: Batch, phi: Time) -> Batch:
    t = _time_of_angle(denoiser.sde, phi)
    prediction = denoiser.predict(norm(denoiser.sde, t) * u, t)
    return jnp.cos(phi) * prediction.eps - jnp.sin(phi) * prediction.x0


def _sqrt_angle(sde: SDE, t: Time) -> Time:
    return jnp.arctan(jnp.exp(-half_log_snr(sde, t) / 2))


def _time_of_sqrt_angle(sde: SDE, s: Time) -> Time:
    return time_of_half_log_snr(sde, -2 * jnp.log(jnp.tan(s)))


def _sqrt_angle_velocity(denoiser: Denoiser, u: Batch, s: Time) -> Batch:
    root = jnp.tan(s)
    slope = 2 * root * (1 + root**2) / (1 + root**4)
    return slope * _angle_velocity(denoiser, u, jnp.arctan(root**2))


# From a variable's name to its coordinates, and (denoiser, state, value) -> the state's derivative.
VARIABLES: dict[str, tuple[Coordinates, Callable[[Denoiser, Batch, Time], Batch]]] = {
    "t": (
        Coordinates(lambda sde, t: t, lambda sde, t: t, lambda sde, t: jnp.ones_like(t)),
        lambda denoiser, x, t: denoiser.ode_velocity(x, t),
    ),
    "log_snr": (
        Coordinates(half_log_snr, time_of_half_log_snr, lambda sde, t: sde.alpha(t)),
        _log_snr_velocity,
    ),
    "angle": (Coordinates(_angle, _time_of_angle, norm), _angle_velocity),
    "sqrt_angle": (Coordinates(_sqrt_angle, _time_of_sqrt_angle, norm), _sqrt_angle_velocity),
}
