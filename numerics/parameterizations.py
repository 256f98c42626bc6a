r"""How a network's output h encodes the pair (x0, eps) of x = alpha x0 + sigma eps.

    parameterization      h                              input map
    eps                   eps                            x          DDPM; VP, sub-VP of Song et al.
    eps_learned_variance  eps and a variance's channels  x          improved DDPM, ADM
    score                 the score                      x
    x0                    x0                             x
    v                     alpha eps - sigma x0           x          Salimans & Ho, arXiv:2202.00512
    velocity              eps - x0                       x          rectified flow, arXiv:2209.03003
    bridge                (x - x0) / sqrt(sigma)         x          I2SB, arXiv:2302.05872
    scaled_score          sigma times the score = -eps   2 x - 1    VE of Song et al., NCSNv2
    score_centered_input  the score                      2 x - 1    NCSN
    edm                   (x0 - c_skip y) / c_out        c_in y     Karras et al., arXiv:2206.00364
    iddpm                 eps and a variance's channels  x / size   the same, for ADM's network
    consistency           (x0 - c_skip y) / c_out        c_in y     Song et al., arXiv:2303.01469
    levels                log-odds of gray levels        x

For edm, y = x / alpha has noise s = sigma / alpha, and with the data's deviation sigma_d, 0.5,
c_skip = sigma_d^2 / (s^2 + sigma_d^2), c_out = s sigma_d c_in, c_in = 1 / sqrt(s^2 + sigma_d^2).
For consistency, x0 is not a mean. It is the end of the ODE's path from x_t, at the noise sigma_min.
With r = s - sigma_min, c_skip = sigma_d^2 / (r^2 + sigma_d^2) and c_out = r sigma_d c_in, so x0 = y
at that noise (their Appendix C).

For iddpm, size = sqrt(alpha^2 + sigma^2). It presents x_t of any process to a network of DDPM's
chain, for which the size is 1. The variance is that of a step of the chain, and is not used.

For levels, the network predicts the probabilities of each pixel's gray levels from what surrounds
it. Bayes' rule adds what the noisy pixel itself says, and x0 is the mean of the result. So pixels
whose noise is small become exact without being learned. Dieleman et al. 2022 (arXiv:2211.15089,
Section 3.1) take such means without the second step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from errors import require_choice, require_in
from numerics.arrays import Batch
from numerics.pixel_levels import PixelLevels


class Prediction(NamedTuple):
    """The prediction of x0 and eps from x_t = alpha x0 + sigma eps.

    Attributes:
        x0: predicted data, shaped like x_t.
        eps: predicted noise, shaped like x_t.
        variance: for networks with a learned variance, the position of the logarithm of a reverse
            step's variance between the smallest (0) and the largest (1). Nichol & Dhariwal 2021,
            arXiv:2102.09672, Eq. 15.
        gradient: total guidance added to the score; x0 and eps already include it.
        uncertainty: E[(eps_t - eps)^2 | x_t] of the true noise eps_t, in a shape that broadcasts
            against eps; for denoisers with an `uncertainty`.
    """

    x0: Batch
    eps: Batch
    variance: Batch | None = None
    gradient: Batch | None = None
    uncertainty: Batch | None = None


def _from_eps(x: Batch, alpha: Batch, sigma: Batch, eps: Batch) -> Prediction:
    return Prediction((x - sigma * eps) / alpha, eps)


def _from_eps_learned_variance(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    eps, fraction = jnp.split(h, 2, axis=-1)
    return _from_eps(x, alpha, sigma, eps)._replace(variance=(fraction + 1) / 2)


def _from_x0(x: Batch, alpha: Batch, sigma: Batch, x0: Batch) -> Prediction:
    return Prediction(x0, (x - alpha * x0) / sigma)


def _from_v(x: Batch, alpha: Batch, sigma: Batch, v: Batch) -> Prediction:
    # Dividing by alpha^2 + sigma^2 makes the rotation exact for all processes.
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * v) / norm, (sigma * x + alpha * v) / norm)


def _from_velocity(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    return Prediction((x - sigma * h) / (alpha + sigma), (x + alpha * h) / (alpha + sigma))


def _from_bridge(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    root = jnp.sqrt(sigma)
    return Prediction(x - root * h, (1 - alpha) / sigma * x + alpha / root * h)


def _from_edm(x: Batch, alpha: Batch, sigma: Batch, h: Batch, sigma_data: float) -> Prediction:
    y, s = x / alpha, sigma / alpha
    gain = _edm_gain(s, sigma_data)
    x0 = (sigma_data * gain) ** 2 * y + s * sigma_data * gain * h
    # (y - x0) / s without its cancellation at small s.
    return Prediction(x0, s * gain**2 * y - sigma_data * gain * h)


def _edm_input(x: Batch, alpha: Batch, sigma: Batch, sigma_data: float, *_: float) -> Batch:
    return _edm_gain(sigma / alpha, sigma_data) * x / alpha


def _from_consistency(
    x: Batch, alpha: Batch, sigma: Batch, h: Batch, sigma_data: float, sigma_min: float
) -> Prediction:
    y, s = x / alpha, sigma / alpha
    r = s - sigma_min
    c_skip = 1 / (1 + (r / sigma_data) ** 2)
    c_out = r * sigma_data * _edm_gain(s, sigma_data)
    # (y - x0) / s without its cancellation at small s.
    eps = ((r / sigma_data) ** 2 * c_skip * y - c_out * h) / s
    return Prediction(c_skip * y + c_out * h, eps)


def _from_levels(
    x: Batch, alpha: Batch, sigma: Batch, h: Batch, pixel_levels: PixelLevels
) -> Prediction:
    return _from_x0(x, alpha, sigma, pixel_levels.posterior_mean(h, x, alpha, sigma))


def _edm_gain(s: Batch, sigma_data: float) -> Batch:
    """Return c_in, which scales y to unit variance."""
    return jax.lax.rsqrt(s**2 + sigma_data**2)


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """How a network's output encodes (x0, eps), and how its input is made.

    Args:
        predict: the map (x, alpha, sigma, output) -> Prediction.
        channels: channels of the output per channel of x; with `pixel_levels`, one per level.
        input: the map (x, alpha, sigma) -> input of the network.
        uses: fields of the Denoiser, which are the last arguments of both maps.
        predicts_mean: whether the predicted x0 is the mean of x0 given x_t, as scores need.
    """

    predict: Callable[..., Prediction]
    channels: int = 1
    input: Callable[..., Batch] = lambda x, alpha, sigma: x
    uses: tuple[str, ...] = ()
    predicts_mean: bool = True

    @property
    def of_levels(self) -> bool:
        """Whether the output is about gray levels, with a channel for each."""
        return "pixel_levels" in self.uses


def _center(x: Batch, alpha: Batch, sigma: Batch) -> Batch:
    """Map the data's range [0, 1] to [-1, 1]."""
    return 2 * x - 1


PARAMETERIZATIONS = {
    "eps": Parameterization(predict=_from_eps),
    "eps_learned_variance": Parameterization(predict=_from_eps_learned_variance, channels=2),
    "score": Parameterization(predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h)),
    "x0": Parameterization(predict=_from_x0),
    "v": Parameterization(predict=_from_v),
    "velocity": Parameterization(predict=_from_velocity),
    "bridge": Parameterization(predict=_from_bridge),
    "scaled_score": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -h), input=_center
    ),
    "score_centered_input": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h), input=_center
    ),
    "edm": Parameterization(predict=_from_edm, input=_edm_input, uses=("sigma_data",)),
    "consistency": Parameterization(
        predict=_from_consistency,
        input=_edm_input,
        uses=("sigma_data", "sigma_min"),
        predicts_mean=False,
    ),
    "iddpm": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, jnp.split(h, 2, axis=-1)[0]),
        channels=2,
        input=lambda x, a, s: x / jnp.hypot(a, s),
    ),
    "levels": Parameterization(
        predict=_from_levels, input=lambda x, a, s, pixel_levels: x, uses=("pixel_levels",)
    ),
}


# Fields of some parameterizations, and their defaults.
FIELD_DEFAULTS = {"sigma_data": 0.5, "sigma_min": 0.002}


def require_parameterization(name: str, **parameters: float) -> None:
    """Raise ValueError for an unknown parameterization, or a parameter that it cannot use."""
    require_choice("parameterization", name, PARAMETERIZATIONS)
    for field, value in parameters.items():
        require_in(field, value, "(0, inf)")
        users = [name for name, row in PARAMETERIZATIONS.items() if field in row.uses]
        if value != FIELD_DEFAULTS[field] and name not in users:
            raise ValueError(
                f"{field}={value} is used with parameterization={' or '.join(users)}, not with "
                f"{name!r}; leave it out"
            )
