r"""Analytic-DPM: reverse steps with the optimal variance (Bao et al. 2022, arXiv:2201.06503).

DDPM, DDIM and all chains between them step from t to s by a Gaussian q(x_s | x_t, x0) with mean and
variance

    alpha_s x0 + k (x_t - alpha_t x0) / sigma_t,    k^2 = sigma_s^2 - v,
    v = eta^2 sigma_s^2 (1 - e^-2h),    h = lam_s - lam_t                     (their lambda_n^2)

DDPM is eta = 1, where v is the small variance of the posterior, and DDIM eta = 0. They replace x0
by its prediction and add noise of variance v, as if the prediction were certain. The Gaussian
N(m(x_t), std^2 I) closest to q(x_s | x_t) in KL has the same mean, but the uncertainty of
eps = (x_t - alpha_t x0) / sigma_t adds to its variance:

    m(x_t) = (alpha_s / alpha_t) x_t + c E[eps | x_t],    c = k - alpha_s sigma_t / alpha_t
    std^2  = v + c^2 E tr Cov(eps | x_t) / d = v + c^2 (1 - Gamma_t)                  (Theorem 1)

with Gamma_t = E ||E[eps | x_t]||^2 / d of `solvers/moments.py`, because E ||eps||^2 = d. Gamma lies
in [0, 1], which bounds std^2 on both sides. Data in an interval of half-width r have
tr Cov(x0 | x_t) <= d r^2, so that 1 - Gamma <= r^2 alpha_t^2 / sigma_t^2 (Theorem 2).

The KL divergence of a chain with eta = 1 is, up to a constant for all paths, d / 2 times the sum of

    J = log(std^2 / v) = log(1 + (e^2h - 1)(1 - Gamma_t))                             (Section 4)

over its steps. Dynamic programming finds the path of K steps with the least sum. With v = 0 every
path has an infinite KL divergence: eta = 0 has no optimal times of its own. Optimal times are those
of eta = 1, whatever eta.

With a variance head, 1 - Gamma_t is replaced by the uncertainty u of each x_t and pixel, as in
`objectives.uncertainty` (Extended Analytic-DPM, Bao et al. 2022, arXiv:2206.07309).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, normal_like
from objectives.uncertainty import TIMESTEP_CHOICES
from objectives.variational import VARIANCES, uncertainty_of
from sampling import Keys, Plan, Project, Step
from sde_lib import SDE
from solvers.moments import EpsMoments
from solvers.tables import Coefficients, coefficients_at, combine, table_plan


@dataclass(frozen=True, kw_only=True)
class AnalyticDPM:
    """DDPM, DDIM or a chain between with the optimal variance for the moments of a network.

    Args:
        eta: variance of the chain, from 0 (DDIM) to 1 (DDPM); the optimal one is larger.
        variance: "analytic" is the variance for the moments; "diagonal" that of each pixel, for the
            denoiser's `uncertainty`.
        timestep_choice: "grid" takes the given times; "optimal" takes as many steps along
            `optimal_times`, which end with the last of the given times.
        clip_last_std: largest standard deviation of the noise of the last step, before
            final_step="denoise" takes it for part of the image. For data in [-1, 1] the paper
            bounds the mean size of the noise to two gray levels (eta = 1) or one (eta = 0): 0.0197
            and 0.0098 (their Appendix on clipping).
        clip_x0_range: half the width of the interval of the data, 1 for [-1, 1]; None for data
            without bounds.
        moments: moments of the network to sample from, for variance "analytic" and for optimal
            times.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    eta: float = 1.0
    variance: str = "analytic"
    timestep_choice: str = "grid"
    clip_last_std: float | None = None
    clip_x0_range: float | None = None
    moments: EpsMoments | None = None

    def __post_init__(self) -> None:
        require_in("eta", self.eta, "[0, 1]")
        require_choice("variance", self.variance, (n for n, row in VARIANCES.items() if row.needs))
        require_choice("timestep_choice", self.timestep_choice, TIMESTEP_CHOICES)
        require_in("clip_last_std", self.clip_last_std, "(0, inf)")
        require_in("clip_x0_range", self.clip_x0_range, "(0, inf)")

    @property
    def uncertainty(self) -> str:
        """As of `solvers.predictor_corrector.Ancestral`."""
        source = VARIANCES[self.variance].needs
        return "" if source == "moments" else source

    @property
    def needs(self) -> frozenset[str]:
        """What a checkpoint must come with, as in `objectives.variational.Variance.needs`."""
        optimal = {"moments"} if self.timestep_choice == "optimal" else set()
        return frozenset({VARIANCES[self.variance].needs} | optimal)

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        if self.moments is None and "moments" in self.needs:
            raise ValueError(
                "name='analytic' needs the second moments of the network; run --mode=moments "
                "first, or choose another solver"
            )
        if self.timestep_choice == "optimal":
            assert self.moments is not None
            times = optimal_times(sde, self.moments, len(times) - 1, times[-1])
        coefficients = coefficients_at(sde, times)
        sigma, step = coefficients.sigma[1:], np.diff(coefficients.half_log_snr)
        least = (self.eta * sigma) ** 2 * -np.expm1(-2 * step)
        log_kept = np.log1p(self.eta**2 * np.expm1(-2 * step)) / 2  # of k / sigma_s
        of_eps = sigma * (np.expm1(log_kept) - np.expm1(step))
        before = Coefficients(*(values[:-1] for values in coefficients))
        weights = np.stack([coefficients.alpha[1:] / coefficients.alpha[:-1], of_eps], axis=1)
        radius = np.inf if self.clip_x0_range is None else self.clip_x0_range
        bound = radius**2 * np.exp(2 * before.half_log_snr)
        largest = np.full(len(weights), np.inf)
        if self.clip_last_std is not None:
            largest[-1] = self.clip_last_std
        if self.uncertainty:
            steps = DiagonalSteps(times[:-1], weights, least, bound, largest)
            return Plan(DiagonalStep(), steps, times)
        assert self.moments is not None
        unknown = np.minimum(1 - self.moments.at(sde, before), bound)
        noise = np.minimum(np.sqrt(least + of_eps**2 * unknown), largest)
        return table_plan(times, weights, prediction="eps", noise=noise)


class DiagonalSteps(NamedTuple):
    """Coefficients of steps whose noise depends on the prediction.

    Attributes:
        t: the times of evaluations.
        weights: those of x and of the predicted eps.
        least: variance of the noise, v of the module docstring.
        bound: the largest uncertainty.
        largest: the largest standard deviation of the noise.
    """

    t: Any
    weights: Any
    least: Any
    bound: Any
    largest: Any


@dataclass(frozen=True, kw_only=True)
class DiagonalStep:
    """The step function of variance "diagonal"."""

    evaluations = 1

    def start(self, x: Batch) -> Step:
        return Step(x, x)

    def step(
        self, keys: Keys, denoiser: Denoiser, state: Step, step: DiagonalSteps, project: Project
    ) -> Step:
        prediction = denoiser.predict(state.x, step.t)
        mean = combine(step.weights, state.x, prediction.eps)
        unknown = jnp.minimum(uncertainty_of(prediction), step.bound)
        std = jnp.sqrt(step.least + step.weights[1] ** 2 * unknown)
        return Step(mean + jnp.minimum(std, step.largest) * normal_like(keys, mean), mean)


def optimal_times(
    sde: SDE, moments: EpsMoments, steps: int, t_min: float | None = None
) -> Float[np.ndarray, "times"]:
    """Choose `steps` + 1 times from 1 to `t_min`, of those of the moments, with the least sum of J.

    By default `t_min` is the last time of the moments.

    With an exact Gamma, the mean-squared error in x0, (1 - Gamma) sigma^2 / alpha^2, cannot grow
    as the noise falls. Where an estimated one does, the error at more noise is raised: a Gamma of 1
    or more, as networks have near t = 1, would make any step from there cost nothing.

    Raises:
        ValueError: for too many steps, moments of another process, or moments that end earlier.
    """
    end = moments.times[-1] if t_min is None else t_min
    times = np.append(moments.times[moments.times > end * (1 + 1e-6)], end)
    count = len(times)
    if not 1 <= steps < count:
        raise ValueError(
            f"steps={steps} must lie between 1 and {count - 1}, because the moments have {count} "
            f"times from 1 to {end:.4g}"
        )
    coefficients = coefficients_at(sde, times)
    half_log_snr = coefficients.half_log_snr
    error = (1 - moments.at(sde, coefficients)) * np.exp(-2 * half_log_snr)
    error = np.maximum.accumulate(error[::-1])[::-1]
    unknown = error * np.exp(2 * half_log_snr)
    # cost[i, j] of the step to time i from an earlier time j.
    ahead = np.arange(count)[:, None] > np.arange(count)
    growth = np.expm1(2 * np.where(ahead, half_log_snr[:, None] - half_log_snr, 0))
    cost = np.where(ahead, np.log1p(growth * unknown), np.inf)
    return times[_cheapest_path(cost, steps)]


def _cheapest_path(cost: Float[np.ndarray, "nodes nodes"], steps: int) -> np.ndarray:
    """Return the nodes of the cheapest path from the first to the last with `steps` steps."""
    total = np.full(len(cost), np.inf)
    total[0] = 0
    came_from = []
    for _ in range(steps):
        through = cost + total
        came_from.append(through.argmin(axis=1))
        total = through.min(axis=1)
    path = [len(cost) - 1]
    for before in reversed(came_from):
        path.append(before[path[-1]])
    return np.array(path[::-1])
