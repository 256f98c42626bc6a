r"""Processes that turn data into noise: SDEs, flow matching's straight path, and discrete chains.

Song et al. 2021, arXiv:2011.13456; the equation numbers are theirs. Every process here is linear,
dx = f(t) x dt + g(t) dw on t in [0, 1], with data at t = 0, so that

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I)                            (Eq. 29)
    f(t) = d log alpha / dt
    g(t)^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d log_snr / dt
    log_snr(t) = 2 (log alpha - log sigma)

An SDE states `log_alpha`, `log_sigma` and `prior_std`; the rest is derived here, once. Reversed,

    dx = [f x - (1 + churn^2) / 2 g^2 score] dt + churn g dw                       (Eq. 6 and 13)

is the reverse-time SDE for churn = 1 and the probability-flow ODE for churn = 0.

Notation of the whole project: x0 data, x_t noisy data, eps standard normal noise, alpha and sigma
the coefficients above, score = grad log p_t(x_t), t the time; coefficients are shaped like t.
Everything is computed in logarithms with expm1: the textbook sqrt(1 - exp(.)) loses 1% of sigma
at t = 1e-5 in float32. Where alpha falls to nearly 0, log alpha is -log1p((1 - alpha) / alpha) or
-log1p(sigma^2 / alpha^2) / 2 of a ratio of small numbers, which keeps it and f exact at both ends.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from numerics.arrays import expand_like, normal_like, pytree, sum_per_sample

Time = Float[Array, "*batch"]
# A number; a tracer or a placeholder while JAX takes an SDE apart and rebuilds it.
Parameter = float | Any


def _require_positive(sde: "SDE", *, below: float = math.inf, **values: Any) -> None:
    """Refuse numbers outside (0, below); traced values, met when JAX rebuilds the SDE, pass."""
    wanted = "a finite number above 0" if below == math.inf else f"a number between 0 and {below}"
    for name, value in values.items():
        if isinstance(value, int | float) and not (0 < value < below):
            raise ValueError(
                f"{name}={value} is out of range for {type(sde).__name__}: give {wanted}"
            )


def _require_increasing(sde: "SDE", low: str, high: str) -> None:
    values = getattr(sde, low), getattr(sde, high)
    if all(isinstance(v, int | float) for v in values) and not values[0] < values[1]:
        raise ValueError(
            f"{low}={values[0]} must be below {high}={values[1]} for {type(sde).__name__}"
        )


def _require_num_timesteps(sde: "SDE") -> None:
    if sde.num_timesteps < 2:
        raise ValueError(f"num_timesteps={sde.num_timesteps} must be at least 2")


class SDE(abc.ABC):
    """A linear process: two functions of time and the prior's standard deviation."""

    prior_std: Parameter

    @abc.abstractmethod
    def log_alpha(self, t: Time) -> Time:
        """Logarithm of the signal's coefficient at time t in [0, 1]."""

    @abc.abstractmethod
    def log_sigma(self, t: Time) -> Time:
        """Logarithm of the noise's standard deviation at time t in [0, 1]; may be -inf at 0."""

    def alpha(self, t: Time) -> Time:
        """Signal coefficient alpha(t)."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Time) -> Time:
        """Standard deviation sigma(t) of x_t given x_0."""
        return jnp.exp(self.log_sigma(t))

    def log_snr(self, t: Time) -> Time:
        """Log signal-to-noise ratio 2 (log alpha - log sigma), strictly decreasing in t."""
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    @jax.jit
    def time_of_log_snr(self, log_snr: Time) -> Time:
        """Inverse of `log_snr`, by bisection in log t on [1e-12, 1]; clipped to that interval."""
        log_snr = jnp.asarray(log_snr)
        low = jnp.full_like(log_snr, math.log(1e-12))
        high = jnp.zeros_like(log_snr)

        def halve(_: Int[Array, ""], bounds: tuple[Time, Time]) -> tuple[Time, Time]:
            low, high = bounds
            middle = (low + high) / 2
            too_early = self.log_snr(jnp.exp(middle)) > log_snr
            return jnp.where(too_early, middle, low), jnp.where(too_early, high, middle)

        low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
        return jnp.exp((low + high) / 2)

    def drift_coefficient(self, t: Time) -> Time:
        """f(t) = d log alpha / dt, so that the drift is f(t) x."""
        return _derivative(self.log_alpha, t)

    def squared_diffusion(self, t: Time) -> Time:
        """g(t)^2 = -sigma(t)^2 d log_snr / dt, for t > 0."""
        return -jnp.exp(2 * self.log_sigma(t)) * _derivative(self.log_snr, t)

    def perturb(
        self, x0: Float[Array, "batch ..."], t: Time, eps: Float[Array, "batch ..."]
    ) -> Float[Array, "batch ..."]:
        """x_t = alpha(t) x0 + sigma(t) eps."""
        return expand_like(self.alpha(t), x0) * x0 + expand_like(self.sigma(t), x0) * eps

    def transition(self, s: Time, t: Time) -> tuple[Time, Time]:
        """(scale, std) of x_t = scale x_s + std eps for s <= t: the SDE solved exactly.

        scale = alpha_t / alpha_s and std^2 = sigma_t^2 - scale^2 sigma_s^2, which is computed as
        -sigma_t^2 expm1(log_snr_t - log_snr_s): no cancellation when s is close to t.
        """
        scale = jnp.exp(self.log_alpha(t) - self.log_alpha(s))
        std = self.sigma(t) * jnp.sqrt(-jnp.expm1(self.log_snr(t) - self.log_snr(s)))
        return scale, std

    def prior_sample(
        self, keys: Key[Array, "batch"], like: Float[Array, "batch *shape"]
    ) -> Float[Array, "batch *shape"]:
        """Draw from the prior N(0, prior_std^2 I), row k from `keys[k]` alone."""
        return self.prior_std * normal_like(keys, like)

    def prior_log_prob(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
        """Log-density of the prior N(0, prior_std^2 I) in nats, one number a sample."""
        dims = x[0].size
        normalizer = dims * (0.5 * math.log(2 * math.pi) + jnp.log(self.prior_std))
        return -sum_per_sample(x**2) / (2 * self.prior_std**2) - normalizer


def _derivative(function: Any, t: Time) -> Time:
    t = jnp.asarray(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


class _VarianceExploding(SDE):
    """What VE, SMLD and EDM share: alpha = 1, and noise up to sigma_max."""

    sigma_max: Parameter

    @property
    def prior_std(self) -> Parameter:
        return self.sigma_max

    def log_alpha(self, t: Time) -> Time:
        return jnp.zeros_like(t)


class _Geometric(_VarianceExploding):
    """What VE and SMLD share: sigma geometric from sigma_min to sigma_max (Eq. 30).

    sigma(0) is sigma_min, not 0: at t = 0 the data already carry noise of that size.
    """

    sigma_min: Parameter

    def __post_init__(self) -> None:
        _require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _require_increasing(self, "sigma_min", "sigma_max")

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max / self.sigma_min)


@pytree()
@dataclass(frozen=True, kw_only=True)
class VESDE(_Geometric):
    """Variance-exploding SDE, the limit of SMLD, for data in [0, 1] (Eq. 30)."""

    sigma_min: Parameter = 0.01
    sigma_max: Parameter = 50.0


@pytree(static=("num_timesteps",))
@dataclass(frozen=True, kw_only=True)
class DiscreteVESDE(_Geometric):
    """The chain of SMLD (Song & Ermon 2019, arXiv:1907.05600), for data in [0, 1].

    Level i = 0 .. levels - 1, counted from the smallest sigma up, is at t = i / (levels - 1). With
    log sigma linear between levels a geometric table is VE's own line, so this is VE that knows
    how many levels it was trained on.
    """

    sigma_min: Parameter = 0.01
    sigma_max: Parameter = 50.0
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_num_timesteps(self)


@pytree()
@dataclass(frozen=True, kw_only=True)
class EDMSDE(_VarianceExploding):
    """sigma proportional to time (Karras et al. 2022, arXiv:2206.00364): sigma = sigma_max t.

    Their time is sigma itself, sigma_max times ours. Their smallest noise, 0.002 of 80, is where
    sampling stops: t_min = 2.5e-5 of the sampler, and no field of the process.
    """

    sigma_max: Parameter = 80.0

    def __post_init__(self) -> None:
        _require_positive(self, sigma_max=self.sigma_max)

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(self.sigma_max * t)


class _VariancePreserving(SDE):
    """sigma^2 = 1 - alpha^2: data of unit variance keep it (Eq. 33)."""

    # The papers draw from N(0, I), though sigma(1) is a little less: 0.99998 for VP.
    prior_std = 1.0

    def log_sigma(self, t: Time) -> Time:
        return 0.5 * jnp.log(-jnp.expm1(2 * self.log_alpha(t)))


class _LinearBeta(SDE):
    """What VP and sub-VP share: beta(t) linear in t, d log alpha / dt = -beta(t) / 2 (Eq. 32)."""

    beta_min: Parameter
    beta_max: Parameter

    def __post_init__(self) -> None:
        _require_positive(self, beta_min=self.beta_min, beta_max=self.beta_max)
        _require_increasing(self, "beta_min", "beta_max")

    def log_alpha(self, t: Time) -> Time:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min


@pytree()
@dataclass(frozen=True, kw_only=True)
class VPSDE(_LinearBeta, _VariancePreserving):
    """Variance-preserving SDE, the limit of DDPM: sigma^2 = 1 - alpha^2 (Eq. 32-33)."""

    beta_min: Parameter = 0.1
    beta_max: Parameter = 20.0


@pytree()
@dataclass(frozen=True, kw_only=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP SDE, whose variance stays below VP's: sigma = 1 - alpha^2 (Eq. 27-29)."""

    beta_min: Parameter = 0.1
    beta_max: Parameter = 20.0
    prior_std = 1.0

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(-jnp.expm1(2 * self.log_alpha(t)))


@pytree()
@dataclass(frozen=True, kw_only=True)
class CosineVPSDE(_VariancePreserving):
    """Cosine schedule, alpha = cos(phi) / cos(phi_0) (Nichol & Dhariwal 2021, arXiv:2102.09672).

    The limit of their chain (Eq. 17): phi goes linearly from phi_0 = offset / (1 + offset) pi / 2
    to where alpha is alpha_min, just before pi / 2. At pi / 2 itself no signal is left, f is
    infinite, and no solver that walks in log-SNR has a first step.

    Args:
      offset: makes phi_0 > 0, so that the first noise is not too small.
      alpha_min: alpha(1). VP's is 0.0066.
    """

    offset: Parameter = 0.008
    alpha_min: Parameter = 1e-3

    def __post_init__(self) -> None:
        _require_positive(self, offset=self.offset)
        _require_positive(self, alpha_min=self.alpha_min, below=1)

    def log_alpha(self, t: Time) -> Time:
        # In psi = pi / 2 - phi, which is small, and so accurate, where phi nears pi / 2: then
        # alpha = sin(psi) / sin(psi_0), and with turn = phi - phi_0
        # sigma^2 / alpha^2 = (sin(psi_0)^2 - sin(psi)^2) / sin(psi)^2, a product of two sines.
        psi_0 = 0.5 * math.pi / (1 + self.offset)
        phi_0 = self.offset * psi_0
        psi_1 = jnp.arcsin(self.alpha_min * jnp.sin(psi_0))
        psi = psi_1 + (1 - t) * (psi_0 - psi_1)
        turn = t * (psi_0 - psi_1)
        noise_to_signal = jnp.sin(turn) * jnp.sin(turn + 2 * phi_0) / jnp.sin(psi) ** 2
        return -0.5 * jnp.log1p(noise_to_signal)


@pytree()
@dataclass(frozen=True, kw_only=True)
class LinearPathSDE(SDE):
    """Straight path from data to noise: alpha = 1 - (1 - alpha_min) t, sigma = t.

    Rectified flow (Liu et al. 2022, arXiv:2209.03003) and flow matching (Lipman et al. 2022,
    arXiv:2210.02747, Eq. 20 with sigma_min = 0) have alpha_min = 0 and let time run from noise to
    data. Here alpha_min, which is alpha(1), is above 0, so that the log-SNR is finite there.
    """

    alpha_min: Parameter = 1e-3
    prior_std = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, alpha_min=self.alpha_min, below=1)

    def log_alpha(self, t: Time) -> Time:
        lost = 1 - self.alpha_min
        # (1 - alpha) / alpha, with alpha written for t near 1.
        return -jnp.log1p(lost * t / (self.alpha_min + lost * (1 - t)))

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(t)


def _linear_betas(num_timesteps: int) -> np.ndarray:
    return np.linspace(0.1, 20.0, num_timesteps) / num_timesteps


def _cosine_betas(num_timesteps: int) -> np.ndarray:
    steps = np.arange(num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


# The variances beta_1, ..., beta_N added by each step of a chain of N levels: linear is Ho et al.
# 2020 (1e-4 .. 0.02 for N = 1000), cosine Nichol and Dhariwal 2021 (arXiv:2102.09672, Eq. 17).
BETAS = {"linear": _linear_betas, "cosine": _cosine_betas}


@pytree(static=("schedule", "num_timesteps"))
@dataclass(frozen=True, kw_only=True)
class DiscreteVPSDE(_VariancePreserving):
    """The chain of DDPM (Ho et al. 2020, arXiv:2006.11239): alpha^2 = prod_i (1 - beta_i).

    Level i = 0 .. levels - 1 is at t = i / (levels - 1), where alpha and sigma are the table's;
    between levels log alpha is linear, and the drift has a kink at each. At t = 0 the data carry
    the first level's noise, which is more than a grey level of an image: the published bits/dim of
    networks trained on this chain come from the continuous VP SDE.

    Args:
      schedule: the table of betas, a name in BETAS.
      levels: length of the table.
    """

    schedule: str = "linear"
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.schedule not in BETAS:
            raise ValueError(
                f"schedule={self.schedule!r} is unknown; choose one of: {', '.join(BETAS)}"
            )
        _require_num_timesteps(self)
        if not np.all(self._betas() < 1):
            raise ValueError(
                f"num_timesteps={self.num_timesteps} is too few for schedule={self.schedule!r}, where a beta "
                "reaches 1; the linear table needs more than 20 levels"
            )

    def log_alpha(self, t: Time) -> Time:
        t = jnp.asarray(t)
        table = jnp.asarray(0.5 * np.cumsum(np.log1p(-self._betas())), t.dtype)
        position = t * (self.num_timesteps - 1)
        # Clipping the level and not t keeps the derivative at both ends.
        below = jnp.clip(jnp.floor(position), 0, self.num_timesteps - 2).astype(jnp.int32)
        fraction = position - below
        return (1 - fraction) * table[below] + fraction * table[below + 1]

    def _betas(self) -> np.ndarray:
        return BETAS[self.schedule](self.num_timesteps)


SDES = {
    "ve": VESDE,
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "cosine": CosineVPSDE,
    "linear": LinearPathSDE,
    "edm": EDMSDE,
    "ddpm": DiscreteVPSDE,
    "smld": DiscreteVESDE,
}


def reverse_drift(
    sde: SDE,
    score: Float[Array, "batch ..."],
    x: Float[Array, "batch ..."],
    t: Time,
    churn: float | Float[Array, ""] = 1.0,
) -> Float[Array, "batch ..."]:
    """Drift of the reverse process, f x - (1 + churn^2) / 2 g^2 score (Eq. 6 and 13).

    Its diffusion is churn g(t). Churn 1 is the reverse-time SDE, churn 0 the probability-flow ODE;
    any churn >= 0 has the same marginals. Time runs from 1 to 0, so steps dt are negative.
    """
    f = expand_like(sde.drift_coefficient(t), x)
    g2 = expand_like(sde.squared_diffusion(t), x)
    return f * x - 0.5 * (1 + churn**2) * g2 * score
