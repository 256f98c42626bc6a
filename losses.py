r"""One objective: the weighted Fisher divergence of model and data at all noise levels.

    E_t lambda(t) E || s(x_t, t) - grad log p_t(x_t) ||^2 + C,    x_t = alpha x_0 + sigma eps

Three estimators need no grad log p_t. They work for any network and any shape of data. In terms of
the predicted noise eps_hat = -sigma s, and without the factor lambda / sigma^2, they are

    denoising   || eps_hat - eps ||^2
    exact       || eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D
    sliced      || eps_hat ||^2 - 2 sigma v^T (d eps_hat / dx) v + D

in D dimensions, for random v with E v v^T = I (Vincent 2011 and Song et al. 2021, arXiv:2011.13456,
Eq. 7; Hyvarinen 2005; Song et al. 2019, arXiv:1905.07088, Eq. 8). E || eps ||^2 = D and, by Stein's
identity, E eps^T eps_hat(x_t) = sigma E tr(d eps_hat / dx). All three therefore have the same
expectation at each t, C included: the same scale, the same minimum, and the same meaning of weights
and times. With

    lambda = sigma^2   it is the squared error of the predicted noise (simple loss of DDPM, SMLD);
    lambda = g^2       it bounds the negative log-likelihood (arXiv:2101.09258, Theorem 1).

The second weight multiplies the error by g^2 / sigma^2, which can grow as 1 / t near 0. The mean
over uniform times is then noisy. But g^2 / sigma^2 = -d log_snr / dt. Times whose log-SNR is
uniform have the density (g^2 / sigma^2) / (log_snr(t_min) - log_snr(1)). Divided by this density,
all errors have the same weight, and the expectation is that of uniform times (Section 5.1 there).

The exact and the sliced form see x_t but not eps, and distinguish x_t from its neighbors by the
slope of the network. Where the data lie on a surface, eps_hat has slopes of 1 / sigma across it.
These forms need the smoothness that noise gives: t_min well above 0.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, sum_per_sample
from numerics.traces import PROBES, exact_trace
from sde_lib import SDE

Times = Float[Array, "batch"]


def _uniform(key: Key[Array, ""], batch: int) -> Times:
    return jax.random.uniform(key, (batch,))


def _stratified(key: Key[Array, ""], batch: int) -> Times:
    # One shared offset (Kingma et al. 2021, arXiv:2107.00630, appendix I.1). Each time is uniform,
    # and together they cover [0, 1] evenly. This lowers the variance of the batch's loss.
    return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0


# Draws a batch of times in [0, 1].
TIME_SAMPLERS = {"uniform": _uniform, "stratified": _stratified}
TIMESTEPS = "timesteps"  # the times i / (n - 1), i = 0 .. n - 1, of discrete training
LOG_SNR = "log_snr"  # stratified in the log-SNR, and weighted to the expectation of uniform times
TIME_DISTRIBUTIONS = (*TIME_SAMPLERS, TIMESTEPS, LOG_SNR)

# lambda(t) / sigma(t)^2, the weight of the squared error of the predicted noise.
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
    """Base of the estimators: times, weights and reduction.

    Args:
        weight: lambda, a name in WEIGHTS.
        time_distribution: distribution of the times on [t_min, 1], a name in TIME_DISTRIBUTIONS.
            "log_snr" has the expectation of "uniform", and a smaller variance for weight="g2".
            "timesteps" is uniform on the grid i / (num_timesteps - 1) of the discrete objectives
            of SMLD and DDPM, and ignores t_min.
        num_timesteps: number of times on that grid.
        reduction: "mean" over a sample's dimensions, or half their sum: a name in REDUCTIONS. It
            scales the loss, and so the effect of gradient clipping.
        t_min: the smallest time of training, in (0, 1); 1e-5 in Song et al.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    weight: str = "sigma2"
    time_distribution: str = "uniform"
    num_timesteps: int = 1000
    reduction: str = "mean"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_choice("weight", self.weight, WEIGHTS)
        require_choice("time_distribution", self.time_distribution, TIME_DISTRIBUTIONS)
        require_choice("reduction", self.reduction, REDUCTIONS)
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        require_in("t_min", self.t_min, "(0, 1)")

    def __call__(self, key: Key[Array, ""], denoiser: Denoiser, x0: Batch) -> Float[Array, "batch"]:
        """Return the loss of each sample, at one random time and noise per sample.

        The loss of the batch is their mean.
        """
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
        """Return one number per sample, with the expectation E || eps_hat - eps ||^2.

        Args:
            key: for random directions.
            denoiser: gives eps_hat.
            x: x_t of shape (batch, ...).
            t: the times (batch,).
            eps: the noise in x.
        """

    def draw_times(self, key: Key[Array, ""], batch: int, sde: SDE) -> Times:
        """Draw the times (batch,) of a batch."""
        if self.time_distribution == TIMESTEPS:
            return jax.random.randint(key, (batch,), 0, self.num_timesteps) / (
                self.num_timesteps - 1
            )
        if self.time_distribution == LOG_SNR:
            return log_snr_times(sde, _stratified(key, batch), self.t_min)
        return self.t_min + (1 - self.t_min) * TIME_SAMPLERS[self.time_distribution](key, batch)

    def _density(self, sde: SDE, t: Times) -> Times:
        """Return the density of times with uniform log-SNR, relative to the uniform density."""
        low, high = log_snr_range(sde, self.t_min)
        return (1 - self.t_min) * WEIGHTS["g2"](sde, t) / (high - low)


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(FisherDivergence):
    """Weighted denoising score matching, with the fields of `FisherDivergence`."""

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return || eps_hat - eps ||^2."""
        return sum_per_sample((denoiser.predict(x, t).eps - eps) ** 2)


@dataclass(frozen=True, kw_only=True)
class ExactScoreMatching(FisherDivergence):
    """Score matching by the exact trace, with the fields of `FisherDivergence`.

    It takes one directional derivative per dimension: for few dimensions.
    """

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return || eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D."""
        predicted, jacobian = jax.linearize(lambda x: denoiser.predict(x, t).eps, x)
        trace = denoiser.sde.sigma(t) * exact_trace(jacobian, x)
        return sum_per_sample(predicted**2) - 2 * trace + x[0].size


@dataclass(frozen=True, kw_only=True)
class SlicedScoreMatching(FisherDivergence):
    """Sliced score matching, with one directional derivative per probe.

    Args:
        probes: number of random directions v per sample; the estimate is their average.
        directions: distribution of v, a name in `numerics.traces.PROBES`.
        variance_reduced: whether (v^T eps_hat)^2 is replaced by its expectation || eps_hat ||^2
            (SSM-VR of Song et al. 2019, Eq. 8, instead of their Eq. 7).

    The other fields are those of `FisherDivergence`.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    probes: int = 1
    directions: str = "rademacher"
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("probes", self.probes, "[1, inf)")
        require_choice("directions", self.directions, PROBES)

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return the mean of || eps_hat ||^2 - 2 sigma v^T (d eps_hat / dx) v + D over probes v."""
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
