r"""Processes that turn data into noise: SDEs, flow matching's straight path, and discrete chains.

Song et al. 2021, arXiv:2011.13456; the equation numbers are theirs. Every process here is linear,
dx = f(t) x dt + g(t) dw on t in [0, 1], with data at t = 0, so that

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I)                            (Eq. 29)
    f(t) = d log alpha / dt
    g(t)^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d log_snr / dt
    log_snr(t) = 2 (log alpha - log sigma)

An SDE defines `log_alpha`, `log_sigma` and `prior_std`; the base derives the rest. In reverse time,

    dx = [f x - (1 + churn^2) / 2 g^2 score] dt + churn g dw                       (Eq. 6 and 13)

is the reverse-time SDE for churn = 1 and the probability-flow ODE for churn = 0.

Notation of the whole project: x0 is data, x_t noisy data, eps standard normal noise, alpha and
sigma are the coefficients above, score = grad log p_t(x_t). Coefficients have the shape of t.

Everything is computed in logarithms, with expm1: the textbook sqrt(1 - exp(.)) loses 1% of sigma
at t = 1e-5 in float32. Where alpha falls to nearly 0, log alpha is -log1p((1 - alpha) / alpha) or
-log1p(sigma^2 / alpha^2) / 2, a ratio of small numbers: it and f stay exact at both ends.
"""

import abc
import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from errors import require_choice, require_in
from numerics import monotone
from numerics.arrays import Batch, expand_like, normal_like, pytree, sum_per_sample

Time = Float[Array, "*batch"]
Parameter = float | Any  # a tracer or a placeholder while JAX flattens and rebuilds an SDE


def _require_increasing(sde: "SDE", low: str, high: str) -> None:
    """Raise ValueError unless two fields are positive, and the second the larger one."""
    values = getattr(sde, low), getattr(sde, high)
    for name, value in zip((low, high), values, strict=True):
        require_in(name, value, "(0, inf)")
    if all(isinstance(value, int | float) for value in values) and not values[0] < values[1]:
        raise ValueError(f"{low}={values[0]} must be below {high}={values[1]}")


class SDE(abc.ABC):
    """A linear process: two functions of time, and the standard deviation of the prior."""

    prior_std: Parameter
    diffusion: Parameter = 0.0  # of Brownian bridges between given ends; see `bridge_std`

    @abc.abstractmethod
    def log_alpha(self, t: Time) -> Time:
        """Return the logarithm of the signal coefficient at time t in [0, 1]."""

    @abc.abstractmethod
    def log_sigma(self, t: Time) -> Time:
        """Return the logarithm of the noise's standard deviation at t in [0, 1]; -inf is valid."""

    def alpha(self, t: Time) -> Time:
        """Return the signal coefficient alpha(t)."""
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Time) -> Time:
        """Return sigma(t), the standard deviation of x_t given x_0."""
        return jnp.exp(self.log_sigma(t))

    def log_snr(self, t: Time) -> Time:
        """Return the log signal-to-noise ratio 2 (log alpha - log sigma), decreasing in t."""
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    @jax.jit
    def time_of_log_snr(self, log_snr: Time) -> Time:
        """Invert `log_snr` by bisection in log t on [1e-12, 1]; clip the time to that interval."""
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
        """Return f(t) = d log alpha / dt; the drift is f(t) x."""
        return _derivative(self.log_alpha, t)

    def squared_diffusion(self, t: Time) -> Time:
        """Return g(t)^2 = -sigma(t)^2 d log_snr / dt, for t > 0."""
        return -jnp.exp(2 * self.log_sigma(t)) * _derivative(self.log_snr, t)

    def parameters(self) -> dict[str, Any]:
        """Return what is trained with the network, a tree of arrays; {} for a fixed process."""
        return {}

    def with_parameters(self, parameters: Any) -> "SDE":
        """Return the process with other values of `parameters()`."""
        return replace(cast(Any, self), **parameters)

    def perturb(self, x0: Batch, t: Time, eps: Batch) -> Batch:
        """Return x_t = alpha(t) x0 + sigma(t) eps."""
        return expand_like(self.alpha(t), x0) * x0 + expand_like(self.sigma(t), x0) * eps

    def transition(self, s: Time, t: Time) -> tuple[Time, Time]:
        """Return (scale, std) of x_t = scale x_s + std eps for s <= t, the exact solution.

        scale = alpha_t / alpha_s. std^2 = sigma_t^2 - scale^2 sigma_s^2 is computed as -sigma_t^2
        expm1(log_snr_t - log_snr_s), which does not cancel when s is close to t.
        """
        scale = jnp.exp(self.log_alpha(t) - self.log_alpha(s))
        std = self.sigma(t) * jnp.sqrt(-jnp.expm1(self.log_snr(t) - self.log_snr(s)))
        return scale, std

    def bridge_std(self, s: Any, t: Any = 1.0) -> Any:
        """Return the deviation at s of the Brownian bridge between given ends at 0 and t >= s."""
        return self.diffusion * (s * (t - s) / t) ** 0.5

    def prior_sample(
        self, keys: Key[Array, "batch"], like: Float[Array, "batch *shape"]
    ) -> Float[Array, "batch *shape"]:
        """Draw from the prior N(0, prior_std^2 I); row k depends on `keys[k]` alone."""
        return self.prior_std * normal_like(keys, like)

    def prior_log_prob(self, x: Batch) -> Float[Array, "batch"]:
        """Return the log-density of the prior N(0, prior_std^2 I) in nats, per sample."""
        dims = x[0].size
        normalizer = dims * (0.5 * math.log(2 * math.pi) + jnp.log(self.prior_std))
        return -sum_per_sample(x**2) / (2 * self.prior_std**2) - normalizer


def _derivative(function: Any, t: Time) -> Time:
    return jax.jvp(function, (jnp.asarray(t),), (jnp.ones_like(t),))[1]


class _VarianceExploding(SDE):
    """Base of VE, SMLD and EDM: alpha = 1, and noise up to sigma_max."""

    sigma_max: Parameter

    @property
    def prior_std(self) -> Parameter:
        return self.sigma_max

    def log_alpha(self, t: Time) -> Time:
        return jnp.zeros_like(t)


class _Geometric(_VarianceExploding):
    """Base of VE and SMLD: sigma grows geometrically from sigma_min to sigma_max (Eq. 30)."""

    sigma_min: Parameter

    def __post_init__(self) -> None:
        _require_increasing(self, "sigma_min", "sigma_max")

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max / self.sigma_min)


@pytree()
@dataclass(frozen=True, kw_only=True)
class VESDE(_Geometric):
    """Variance-exploding SDE, the limit of SMLD, for data in [0, 1] (Eq. 30).

    Args:
        sigma_min, sigma_max: sigma(0), noise that data have at t = 0 already, and sigma(1).

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """

    sigma_min: Parameter = 0.01
    sigma_max: Parameter = 50.0


@pytree(static=("num_timesteps",))
@dataclass(frozen=True, kw_only=True)
class DiscreteVESDE(_Geometric):
    """The chain of SMLD (Song & Ermon 2019, arXiv:1907.05600), for data in [0, 1].

    It is VE, with timestep i = 0 .. num_timesteps - 1 at t = i / (num_timesteps - 1); sigma grows.
    """

    sigma_min: Parameter = 0.01
    sigma_max: Parameter = 50.0
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")


@pytree()
@dataclass(frozen=True, kw_only=True)
class EDMSDE(_VarianceExploding):
    """sigma proportional to time (Karras et al. 2022, arXiv:2206.00364): sigma = sigma_max t.

    Their time is sigma, sigma_max times ours. They stop at 0.002: t_min = 2.5e-5 of the sampler.
    """

    sigma_max: Parameter = 80.0

    def __post_init__(self) -> None:
        require_in("sigma_max", self.sigma_max, "(0, inf)")

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(self.sigma_max * t)


class _VariancePreserving(SDE):
    """Base of processes with sigma^2 = 1 - alpha^2, which preserve unit variance (Eq. 33)."""

    # The papers draw from N(0, I), although sigma(1) is a little smaller: 0.99998 for VP.
    prior_std = 1.0

    def log_sigma(self, t: Time) -> Time:
        return 0.5 * jnp.log(-jnp.expm1(2 * self.log_alpha(t)))


class _LinearBeta(SDE):
    """Base of VP and sub-VP: beta(t) is linear, d log alpha / dt = -beta(t) / 2 (Eq. 32)."""

    beta_min: Parameter
    beta_max: Parameter

    def __post_init__(self) -> None:
        _require_increasing(self, "beta_min", "beta_max")

    def log_alpha(self, t: Time) -> Time:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min


@pytree()
@dataclass(frozen=True, kw_only=True)
class VPSDE(_LinearBeta, _VariancePreserving):
    """Variance-preserving SDE, the limit of DDPM: sigma^2 = 1 - alpha^2 (Eq. 32-33).

    Args:
        beta_min, beta_max: beta(0) and beta(1).

    Raises:
        ValueError: unless 0 < beta_min < beta_max.
    """

    beta_min: Parameter = 0.1
    beta_max: Parameter = 20.0


@pytree()
@dataclass(frozen=True, kw_only=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP SDE, with a smaller variance than VP: sigma = 1 - alpha^2 (Eq. 27-29).

    Its arguments and errors are those of `VPSDE`.
    """

    beta_min: Parameter = 0.1
    beta_max: Parameter = 20.0
    prior_std = 1.0

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(-jnp.expm1(2 * self.log_alpha(t)))


@pytree()
@dataclass(frozen=True, kw_only=True)
class CosineVPSDE(_VariancePreserving):
    """Cosine schedule, alpha = cos(phi) / cos(phi_0) (Nichol & Dhariwal 2021, arXiv:2102.09672).

    The limit of their chain (Eq. 17): phi is linear in t, from phi_0 = offset / (1 + offset) pi / 2
    to just below pi / 2, where alpha is alpha_min. At pi / 2 no signal is left and f is infinite.

    Args:
        offset: makes phi_0 > 0, so that the first noise is not too small.
        alpha_min: alpha(1), in (0, 1). For VP it is 0.0066.
    """

    offset: Parameter = 0.008
    alpha_min: Parameter = 1e-3

    def __post_init__(self) -> None:
        require_in("offset", self.offset, "(0, inf)")
        require_in("alpha_min", self.alpha_min, "(0, 1)")

    def log_alpha(self, t: Time) -> Time:
        # psi = pi / 2 - phi is accurate where phi nears pi / 2. alpha = sin(psi) / sin(psi_0), and
        # sin(psi_0)^2 - sin(psi)^2 of sigma^2 / alpha^2 is a product of sines, turn = phi - phi_0.
        psi_0 = 0.5 * math.pi / (1 + self.offset)
        phi_0 = self.offset * psi_0
        psi_1 = jnp.arcsin(self.alpha_min * jnp.sin(psi_0))
        psi = psi_1 + (1 - t) * (psi_0 - psi_1)
        turn = t * (psi_0 - psi_1)
        noise_to_signal = jnp.sin(turn) * jnp.sin(turn + 2 * phi_0) / jnp.sin(psi) ** 2
        return -0.5 * jnp.log1p(noise_to_signal)


class OfLogSNR(_VariancePreserving):
    """Base of VP processes that define the log-SNR: alpha^2 = sigmoid(log_snr)."""

    def log_alpha(self, t: Time) -> Time:
        return 0.5 * jax.nn.log_sigmoid(self.log_snr(t))

    def log_sigma(self, t: Time) -> Time:
        return 0.5 * jax.nn.log_sigmoid(-self.log_snr(t))


@pytree()
@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedVPSDE(OfLogSNR):
    """A VP process whose log-SNR is trained (Kingma et al. 2021, arXiv:2107.00630, Appendix H).

    Args:
        log_snr_max, log_snr_min: the first ends of log_snr, their -gamma, which starts as a line.
        interior: the monotone network between them, parameters of `numerics.monotone`.
    """

    log_snr_max: Parameter = 13.3
    log_snr_min: Parameter = -5.0
    interior: Any = field(default_factory=monotone.linear)

    def __post_init__(self) -> None:
        low, high = self.log_snr_min, self.log_snr_max
        if isinstance(low, int | float) and not -math.inf < low < high < math.inf:
            raise ValueError(f"log_snr_min={low} must be below log_snr_max={high}")

    def parameters(self) -> dict[str, Any]:
        """Return both ends and the interior."""
        names = ("log_snr_max", "log_snr_min", "interior")
        found = {name: getattr(self, name) for name in names}
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), found)

    def log_snr(self, t: Time) -> Time:
        fall = self.log_snr_max - self.log_snr_min
        return self.log_snr_max - fall * monotone.fraction(self.interior, t)


@pytree()
@dataclass(frozen=True, kw_only=True)
class LinearPathSDE(SDE):
    """Straight path from data to noise: alpha = 1 - (1 - alpha_min) t, sigma = t.

    Rectified flow (Liu et al. 2022, arXiv:2209.03003) and flow matching (Lipman et al. 2022,
    arXiv:2210.02747, Eq. 20 with sigma_min = 0) have alpha_min = 0, and their time runs from noise
    to data. Here alpha_min = alpha(1) is above 0, so that the log-SNR is finite at t = 1. With
    diffusion > 0, paths between paired ends are Brownian bridges; see docs/bridges.md.
    """

    alpha_min: Parameter = 1e-3
    diffusion: Parameter = 0.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        require_in("alpha_min", self.alpha_min, "(0, 1)")
        require_in("diffusion", self.diffusion, "[0, inf)")

    def log_alpha(self, t: Time) -> Time:
        lost = 1 - self.alpha_min
        # (1 - alpha) / alpha, with alpha written to be accurate for t near 1.
        return -jnp.log1p(lost * t / (self.alpha_min + lost * (1 - t)))

    def log_sigma(self, t: Time) -> Time:
        return jnp.log(t)


def _linear_betas(num_timesteps: int) -> np.ndarray:
    return np.linspace(0.1, 20.0, num_timesteps) / num_timesteps


def _cosine_betas(num_timesteps: int) -> np.ndarray:
    steps = np.arange(num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


# Variances beta_i of the N steps. Linear: Ho et al. 2020. Cosine: arXiv:2102.09672, Eq. 17.
BETAS = {"linear": _linear_betas, "cosine": _cosine_betas}


@pytree(static=("schedule", "num_timesteps"))
@dataclass(frozen=True, kw_only=True)
class DiscreteVPSDE(_VariancePreserving):
    """The chain of DDPM (Ho et al. 2020, arXiv:2006.11239): alpha^2 = prod_i (1 - beta_i).

    Timestep i = 0 .. num_timesteps - 1 is at t = i / (num_timesteps - 1). Between timesteps
    log alpha is linear, so the drift jumps at each. At t = 0 the data have the noise of the first
    one, more than a gray level. The published bits/dim of its networks use the continuous VP SDE.

    Args:
        schedule: the table of betas, a name in BETAS.
        num_timesteps: length of the table.
    """

    schedule: str = "linear"
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        require_choice("schedule", self.schedule, BETAS)
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        if not np.all(self._betas() < 1):
            raise ValueError(
                f"num_timesteps={self.num_timesteps} is too small for schedule={self.schedule!r}, "
                "because a beta reaches 1; choose more than 20"
            )

    def log_alpha(self, t: Time) -> Time:
        t = jnp.asarray(t)
        table = jnp.asarray(0.5 * np.cumsum(np.log1p(-self._betas())), t.dtype)
        position = t * (self.num_timesteps - 1)
        # Clipping the timestep and not t keeps the derivative at both ends.
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
    "learned": LearnedVPSDE,
    "edm": EDMSDE,
    "ddpm": DiscreteVPSDE,
    "smld": DiscreteVESDE,
}


def reverse_drift(
    sde: SDE, score: Batch, x: Batch, t: Time, churn: float | Float[Array, ""] = 1.0
) -> Batch:
    """Return the drift of the reverse process, f x - (1 + churn^2) / 2 g^2 score (Eq. 6 and 13).

    The diffusion is churn g(t). All churn >= 0 have the same marginals. Steps dt are negative.
    """
    f = expand_like(sde.drift_coefficient(t), x)
    g2 = expand_like(sde.squared_diffusion(t), x)
    return f * x - 0.5 * (1 + churn**2) * g2 * score
