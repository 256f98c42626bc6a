r"""One objective: the weighted Fisher divergence of model and data at all noise levels.

    E_t lambda(t) E || s(x_t, t) - grad log p_t(x_t) ||^2 + C,    x_t = alpha x_0 + sigma eps

Three estimators of it that need no grad log p_t, for any network and any shape of data. Written in
the predicted noise eps_hat = -sigma s, without lambda / sigma^2:

    denoising   || eps_hat - eps ||^2
    exact       || eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D
    sliced      || eps_hat ||^2 - 2 sigma v^T (d eps_hat / dx) v + D

(Vincent 2011 and Song et al. 2021, arXiv:2011.13456, Eq. 7; Hyvarinen 2005; Song et al. 2019,
arXiv:1905.07088, Eq. 8) in D dimensions, for random v with E v v^T = I. E || eps ||^2 = D and, by
Stein's identity, E eps^T eps_hat(x_t) = sigma E tr(d eps_hat / dx): all three have one expectation
at each t, C included, and so one scale, one minimum, one meaning of weights and times. With

    lambda = sigma^2   it is the plain error of the predicted noise (DDPM's simple loss, SMLD's);
    lambda = g^2       it bounds the negative log-likelihood (arXiv:2101.09258, Theorem 1).

The second weighs the error by g^2 / sigma^2, which can grow as 1 / t near 0: a noisy mean over
uniform times. But it is -d log_snr / dt. Times whose log-SNR is uniform have the density
(g^2 / sigma^2) / (log_snr(t_min) - log_snr(1)), and divided by it all errors weigh the same, with
the expectation that uniform times have (Section 5.1 there).

The exact and the sliced form see x_t only, and tell it from its neighbours by the slope of the
network: where the data lie on a surface, eps_hat has slopes of 1 / sigma across it. They need the
smoothness that noise gives, t_min well above 0.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from denoising import Batch, Denoiser
from numerics.arrays import sum_per_sample
from numerics.traces import PROBES, exact_trace
from sde_lib import SDE

Times = Float[Array, "batch"]


def _uniform(key: Key[Array, ""], batch: int) -> Times:
    return jax.random.uniform(key, (batch,))


def _stratified(key: Key[Array, ""], batch: int) -> Times:
    # One shared offset (Kingma et al. 2021, arXiv:2107.00630, appendix I.1): each time is uniform,
    # and together they cover [0, 1] evenly, which lowers the variance of the batch's loss.
    return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0


# How a batch of times is drawn on [0, 1].
TIME_SAMPLERS = {"uniform": _uniform, "stratified": _stratified}
TIMESTEPS = "timesteps"  # the times i / (levels - 1), i = 0 .. levels - 1, of discrete training
LOG_SNR = "log_snr"  # stratified in the log-SNR, and weighted to the expectation of uniform times

# lambda(t) / sigma(t)^2, the weight on the squared error of the predicted noise.
WEIGHTS: dict[str, Callable[[SDE, Times], Times]] = {
    "sigma2": lambda sde, t: jnp.ones_like(t),
    "g2": lambda sde, t: sde.squared_diffusion(t) / sde.sigma(t) ** 2,
}

# From the sum over a sample's dimensions to its loss.
REDUCTIONS: dict[str, Callable[[int], float]] = {
    "mean": lambda dims: 1.0 / dims,
    "half_sum": lambda dims: 0.5,
}


def log_snr_range(sde: SDE, t_min: float, dtype: Any = float) -> Float[Array, "2"]:
    """Return the log-SNR at t = 1 and at t_min: the smallest and the largest one."""
    return sde.log_snr(jnp.array([1.0, t_min], dtype))


def log_snr_times(sde: SDE, u: Float[Array, "*batch"], t_min: float) -> Float[Array, "*batch"]:
    """Return the times in [t_min, 1] whose log-SNR is the fraction `u` of its range.

    If u is uniform on [0, 1], these times have the density
    (g^2 / sigma^2) / (log_snr(t_min) - log_snr(1)).
    """
    low, high = log_snr_range(sde, t_min, u.dtype)
    return jnp.clip(sde.time_of_log_snr(low + (high - low) * u), t_min, 1.0)


@dataclass(frozen=True, kw_only=True)
class FisherDivergence(abc.ABC):
    """What the estimators share: times, weights and reduction.

    Args:
      weight: lambda, a name in WEIGHTS.
      time_distribution: how times are drawn on [t_min, 1], a name in TIME_SAMPLERS; or "log_snr", which has
        the expectation of "uniform" and is for weight="g2", whose variance it lowers; or "timesteps",
        uniform on the grid i / (levels - 1) of SMLD's and DDPM's discrete objectives, which has no
        t_min.
      num_timesteps: number of times on that grid.
      reduction: "mean" over a sample's dimensions, or half their sum: a name in REDUCTIONS. It
        scales the loss, and with it what gradient clipping does.
      t_min: the smallest time trained on; 1e-5 in Song et al.

    Raises:
      ValueError: for an unknown name or t_min outside (0, 1).
    """

    weight: str = "sigma2"
    time_distribution: str = "uniform"
    num_timesteps: int = 1000
    reduction: str = "mean"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        times = {**TIME_SAMPLERS, TIMESTEPS: None, LOG_SNR: None}
        tables = (("weight", WEIGHTS), ("time_distribution", times), ("reduction", REDUCTIONS))
        for field, table in tables:
            value = getattr(self, field)
            if value not in table:
                raise ValueError(
                    f"{field}={value!r} is unknown; choose one of: {', '.join(sorted(table))}"
                )
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps={self.num_timesteps} must be at least 2")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")

    def __call__(
        self, key: Key[Array, ""], denoiser: Denoiser, x0: Float[Array, "batch ..."]
    ) -> Float[Array, "batch"]:
        """The loss of each sample, at one random time and noise each; their mean is the loss."""
        time_key, noise_key = jax.random.split(key)
        probe_key = jax.random.fold_in(noise_key, 0)
        sde = denoiser.sde
        t = self.draw_times(time_key, x0.shape[0], sde).astype(x0.dtype)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        weight = WEIGHTS[self.weight](sde, t) * REDUCTIONS[self.reduction](x0[0].size)
        if self.time_distribution == LOG_SNR:
            weight /= self._density(sde, t)
        return weight * self.estimate(probe_key, denoiser, sde.perturb(x0, t, eps), t, eps)

    @abc.abstractmethod
    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """One number a sample, of which E || eps_hat - eps ||^2 is the expectation.

        x is x_t of shape (batch, ...), and `eps` the noise in it.
        """

    def draw_times(self, key: Key[Array, ""], batch: int, sde: SDE) -> Times:
        """The times (batch,) at which a batch is looked at."""
        if self.time_distribution == TIMESTEPS:
            return jax.random.randint(key, (batch,), 0, self.num_timesteps) / (
                self.num_timesteps - 1
            )
        if self.time_distribution == LOG_SNR:
            return log_snr_times(sde, _stratified(key, batch), self.t_min)
        return self.t_min + (1 - self.t_min) * TIME_SAMPLERS[self.time_distribution](key, batch)

    def _density(self, sde: SDE, t: Times) -> Times:
        """Of times with uniform log-SNR, in units of the uniform density 1 / (1 - t_min)."""
        low, high = log_snr_range(sde, self.t_min)
        return (1 - self.t_min) * WEIGHTS["g2"](sde, t) / (high - low)


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(FisherDivergence):
    """Weighted denoising score matching; its fields are those of `FisherDivergence`."""

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """|| eps_hat - eps ||^2."""
        return sum_per_sample((denoiser.predict(x, t).eps - eps) ** 2)


@dataclass(frozen=True, kw_only=True)
class ExactScoreMatching(FisherDivergence):
    """Score matching by the exact trace, at one directional derivative a dimension: for few.

    Its fields are those of `FisherDivergence`.
    """

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """|| eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D."""
        predicted, jacobian = jax.linearize(lambda x: denoiser.predict(x, t).eps, x)
        trace = denoiser.sde.sigma(t) * exact_trace(jacobian, x)
        return sum_per_sample(predicted**2) - 2 * trace + x[0].size


@dataclass(frozen=True, kw_only=True)
class SlicedScoreMatching(FisherDivergence):
    """Sliced score matching, at one directional derivative a probe.

    Args:
      probes: random directions v a sample, over which the estimate is averaged.
      directions: their distribution, a name in divergence.PROBES.
      variance_reduced: whether || eps_hat ||^2 is in the place of (v^T eps_hat)^2, its expectation
        over v (SSM-VR of Song et al. 2019, Eq. 8, in the place of their Eq. 7).

    The other fields are those of `FisherDivergence`.

    Raises:
      ValueError: for fewer than one probe or an unknown name.
    """

    probes: int = 1
    directions: str = "rademacher"
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 1:
            raise ValueError(f"probes={self.probes} must be at least 1")
        if self.directions not in PROBES:
            raise ValueError(
                f"directions={self.directions!r} is unknown; "
                f"choose one of: {', '.join(sorted(PROBES))}"
            )

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """|| eps_hat ||^2 - 2 sigma v^T (d eps_hat / dx) v + D, the mean over probes v."""
        predicted, jacobian = jax.linearize(lambda x: denoiser.predict(x, t).eps, x)

        def along(v: Batch) -> tuple[Times, Times]:
            return sum_per_sample(v * predicted) ** 2, sum_per_sample(v * jacobian(v))

        probes = PROBES[self.directions](key, self.probes, x)
        squares, traces = (jnp.mean(terms, axis=0) for terms in jax.vmap(along)(probes))
        if self.variance_reduced:
            squares = sum_per_sample(predicted**2)
        return squares - 2 * denoiser.sde.sigma(t) * traces + x[0].size


# The estimators by name.
LOSSES: dict[str, type[FisherDivergence]] = {
    "denoising": ScoreMatching,
    "exact": ExactScoreMatching,
    "sliced": SlicedScoreMatching,
}
