r"""Predictor-Corrector samplers (Song et al. 2021, arXiv:2011.13456, Algorithm 1).

With (a, b) the exact transition of the process from s to t, x_t = a x_s + b eps, predictors are

    Euler-Maruyama      x + reverse_drift (s - t) + churn g sqrt(t - s) z                (Eq. 6, 13)
    reverse diffusion   (2 - a) x + b^2 score + b z                              (App. E, Eq. 46)
    probability flow    (2 - a) x + b^2 score / 2                                (App. E, Eq. 46)
    ancestral           (x + b^2 score) / a + std z                              (Eq. 4 and App. F)

Correctors take Langevin steps x + h score + sqrt(2 h) z at one time (Algorithms 4 and 5); that of
`solvers/mala.py` accepts or rejects them. Written
in (a, b), each is defined for every linear process, on any grid. The published code takes (a, b)
from tables or from Euler's method, which differ from the exact ones by O(1 / N^2) in each of the N
steps. discretization="published" does the same: see `solvers/song2021.py`.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like, fold_in_each, normal_like, sum_per_sample
from objectives.variational import VARIANCES, learned_fraction, uncertainty_of
from sampling import Keys, Plan, Project, Scalar, Step, predict_x0
from sde_lib import SDE, reverse_drift
from solvers.mala import MALACorrector
from solvers.song2021 import Row, Tables, published_plan, require_table


@runtime_checkable
class PCStep(Protocol):
    """A step from t to s, or one that stays at t."""

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        ...

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        """Step from time t to the earlier time s; sample k draws its noise from `keys[k]` alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE; churn 0 is Euler on the probability-flow ODE."""

    churn: float = 1.0
    evaluations = 1

    def __post_init__(self) -> None:
        require_in("churn", self.churn, "[0, inf)")

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        sde, x = denoiser.sde, state.x
        drift = reverse_drift(sde, denoiser.score(x, t), x, t, self.churn)
        mean = x + drift * (s - t)
        noise = self.churn * jnp.sqrt(sde.squared_diffusion(t) * (t - s))
        return Step(mean + noise * normal_like(keys, x), mean)

    def published(self, tables: Tables) -> tuple[Row, Row, Row]:
        f, g2 = tables.f * tables.length, tables.g2 * tables.length
        return 1 - f, 0.5 * (1 + self.churn**2) * g2, self.churn * np.sqrt(g2)


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion:
    """The discretization of the forward step, reversed: drift and noise of the exact transition."""

    evaluations = 1

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        scale, std = denoiser.sde.transition(s, t)
        mean = (2 - scale) * state.x + std**2 * denoiser.score(state.x, t)
        return Step(mean + std * normal_like(keys, state.x), mean)

    def published(self, tables: Tables) -> tuple[Row, Row, Row]:
        return 2 - tables.a, tables.b**2, tables.b


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlow:
    """Reverse diffusion of the probability-flow ODE: half the score, and no noise.

    It is as published. Its 2 - a is far from 1 / a for long steps, as near t = 1 of the cosine and
    linear processes, so it needs many steps there. DDIM costs the same and has no such error.
    """

    evaluations = 1

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        scale, std = denoiser.sde.transition(s, t)
        mean = (2 - scale) * state.x + 0.5 * std**2 * denoiser.score(state.x, t)
        return Step(mean, mean)

    def published(self, tables: Tables) -> tuple[Row, Row, Row]:
        return 2 - tables.a, 0.5 * tables.b**2, np.zeros_like(tables.b)


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Sampling from p(x_s | x_t): DDPM's sampler for VP, SMLD's for VE (App. F).

    Args:
        variance: "small" is the variance of the posterior, b^2 sigma_s^2 / sigma_t^2; "large" is
            b^2 of the transition (Ho et al. 2020, arXiv:2006.11239, Section 3.2). Song et al. use
            large for VP, small for VE. "learned" interpolates their logarithms by the fraction per
            pixel that a network with eps_learned_variance predicts (Nichol and Dhariwal 2021,
            arXiv:2102.09672, Eq. 15). The other names in `objectives.variational.VARIANCES` are the
            optimal variances of a denoiser with an `uncertainty`.
        guidance_form: how the gradient of a classifier acts. "score" adds it to the score; "mean"
            moves the mean by the gradient times the variance of the step (Dhariwal and Nichol 2021,
            arXiv:2105.05233, Algorithm 1), and so does the final denoising.

    Raises:
        ValueError: for an unknown name.
    """

    variance: str = "small"
    guidance_form: str = "score"
    evaluations = 1

    def __post_init__(self) -> None:
        require_choice("variance", self.variance, VARIANCES)
        require_choice("guidance_form", self.guidance_form, ("score", "mean"))

    @property
    def uncertainty(self) -> str:
        """What gives the denoiser's uncertainty, as in `Variance.needs`; "" for none."""
        return VARIANCES[self.variance].needs

    @property
    def needs(self) -> frozenset[str]:
        """What a checkpoint must come with: what gives the uncertainty."""
        return frozenset({self.uncertainty} - {""})

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        sde = denoiser.sde
        scale, large = sde.transition(s, t)
        prediction = denoiser.predict(state.x, t)
        mean = (state.x - large**2 / sde.sigma(t) * prediction.eps) / scale
        log_ratio = sde.log_sigma(s) - sde.log_sigma(t)  # of small to large std
        growth = jnp.expm1(sde.log_snr(s) - sde.log_snr(t))
        delta = VARIANCES[self.variance].log_ratio(prediction, growth, -2 * log_ratio)
        std = large * jnp.exp(log_ratio + delta / 2)
        if self.guidance_form == "mean" and prediction.gradient is not None:
            # The score has already moved the mean by large^2 / scale times the gradient.
            mean += (std**2 - large**2 / scale) * prediction.gradient
        return Step(mean + std * normal_like(keys, state.x), mean)

    def published(self, tables: Tables) -> tuple[Row, Row, Row]:
        require_table(tables, "ancestral sampling")
        if self.variance not in ("small", "large") or self.guidance_form == "mean":
            raise ValueError(
                "discretization='published' is of a sampler with variance=small or large and "
                f"guidance_form=score, not {self.variance} and {self.guidance_form}"
            )
        std = tables.small if self.variance == "small" else tables.b
        assert std is not None
        return 1 / tables.a, tables.b**2 / tables.a, std


@dataclass(frozen=True, kw_only=True)
class MeanGuidedDenoising:
    """The last step of ADM's guided sampler: x0 plus the gradient times a variance, without noise.

    That step ends at the data, where the variance of its posterior is 0: with "small" the gradient
    does not act. With "large", as published, it is the posterior variance of the step before.
    "learned" interpolates between that and sigma(t)^2, the noise that the forward step to t adds.
    An optimal variance of a step to the data is that of x0 given x_t.

    Args:
        variance: as in `Ancestral`.
        before: the time before the final time t.
    """

    variance: str
    before: float

    def __call__(self, denoiser: Denoiser, x: Batch, t: Scalar) -> Batch:
        prediction = denoiser.predict(x, t)
        if prediction.gradient is None:
            return prediction.x0
        alpha, sigma = denoiser.coefficients(x, t)
        # The prediction has already moved x0 by sigma^2 / alpha times the gradient.
        unguided = prediction.x0 - sigma**2 / alpha * prediction.gradient
        if self.variance == "small":
            return unguided
        if VARIANCES[self.variance].needs:
            spread = (sigma / alpha) ** 2 * uncertainty_of(prediction)
            return unguided + spread * prediction.gradient
        sde, before = denoiser.sde, jnp.asarray(self.before, x.dtype)
        _, added = sde.transition(t, before)
        log_std = jnp.log(added) + sde.log_sigma(t) - sde.log_sigma(before)
        if self.variance == "learned":
            fraction = learned_fraction(prediction)
            log_std = (1 - fraction) * log_std + fraction * sde.log_sigma(t)
        return unguided + jnp.exp(2 * log_std) * prediction.gradient


@dataclass(frozen=True, kw_only=True)
class _Langevin(abc.ABC):
    """Langevin steps at one time, h = alpha step_size(...): the base of the correctors."""

    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        require_in("snr", self.snr, "(0, inf)")
        require_in("corrector_steps", self.corrector_steps, "[1, inf)")

    @property
    def evaluations(self) -> int:
        return self.corrector_steps

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        # The published step size has the factor alpha_i = 1 - beta_i of one step, which is the
        # squared scale of the transition from s to t. It is 1 for VE.
        scale, _ = denoiser.sde.transition(s, t)

        def score(x: Batch) -> Batch:
            return denoiser.score(x, t)

        return self.correct(keys, score, state, scale**2, denoiser.sde.sigma(t))

    def correct(
        self,
        keys: Keys,
        score: Callable[[Batch], Batch],
        state: Step,
        alpha: Array,
        sigma: Array,
    ) -> Step:
        """Take the steps with any score, for alpha_i of the step and the noise level."""

        def take(i: Int[Array, ""], state: Step) -> Step:
            noise = normal_like(fold_in_each(keys, i), state.x)
            gradient = score(state.x)
            h = expand_like(alpha * self.step_size(gradient, noise, sigma), state.x)
            mean = state.x + h * gradient
            return Step(mean + jnp.sqrt(2 * h) * noise, mean)

        return jax.lax.fori_loop(0, self.corrector_steps, take, state)

    @abc.abstractmethod
    def step_size(self, gradient: Batch, noise: Batch, sigma: Array) -> Array:
        """Return the length of a step for alpha 1, of all samples or of each."""


@dataclass(frozen=True, kw_only=True)
class Langevin(_Langevin):
    """Langevin dynamics at a fixed signal-to-noise ratio (Algorithms 4 and 5).

    The step size is h = 2 scale^2 (snr |noise| / |score|)^2.

    Args:
        snr: signal-to-noise ratio.
        corrector_steps: Langevin steps at each time.
        norm_reduction: "per_sample" takes the norms of each sample, which then never depends on its
            batch; "batch" takes the mean norms of the batch, as the paper does. With few dimensions
            use "batch": a single score can be near zero, and its step then is huge.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    norm_reduction: str = "per_sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("norm_reduction", self.norm_reduction, ("per_sample", "batch"))

    def step_size(self, gradient: Batch, noise: Batch, sigma: Array) -> Array:
        noise_norm, score_norm = (jnp.sqrt(sum_per_sample(a**2)) for a in (noise, gradient))
        if self.norm_reduction == "batch":
            noise_norm, score_norm = jnp.mean(noise_norm), jnp.mean(score_norm)
        return 2 * (self.snr * noise_norm / score_norm) ** 2


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(_Langevin):
    """Annealed Langevin dynamics of NCSN (Song & Ermon 2019, arXiv:1907.05600, Algorithm 1).

    The step size is h = 2 scale^2 (snr sigma(t))^2: it follows the noise level, not the score. On a
    chain, sigma(t) is the chain's own; the published code takes that of the continuous process.

    Without a predictor, the published code returns the last state itself, whose noise is visible.
    final_step="denoise" removes it by one more evaluation.

    Args:
        snr: signal-to-noise ratio.
        corrector_steps: Langevin steps at each time.

    Raises:
        ValueError: for a number out of range.
    """

    def step_size(self, gradient: Batch, noise: Batch, sigma: Array) -> Array:
        return 2 * (self.snr * sigma) ** 2


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """Algorithm 1 of Song et al.: a solver and its own step function.

    A step is (t, s, the time after s).

    Args:
        predictor: steps from t to s; None for no step.
        corrector: Langevin steps; None for no step. Without both, samples are draws from the prior.
        corrector_first: correct at t, then predict s, as the published code does; False predicts s,
            then corrects there, as the algorithm in the paper does.
        discretization: a name in DISCRETIZATIONS. "exact" takes the exact transitions. "published"
            takes the tables and times of the published code; see `solvers/song2021.py`. To
            reproduce it, take a uniform grid of N - 1 steps, final_step="mean",
            norm_reduction="batch", and ancestral variance "large" for VP or "small" for VE. Its
            probability_flow is predictor "probability_flow", or "euler_maruyama" with churn=0.

    Raises:
        ValueError: for an unknown name, or an order that the published code does not have.
    """

    predictor: PCStep | None = None
    corrector: PCStep | None = None
    corrector_first: bool = True
    discretization: str = "exact"

    def __post_init__(self) -> None:
        require_choice("discretization", self.discretization, DISCRETIZATIONS)
        if self.discretization == "published" and not self.corrector_first:
            raise ValueError(
                "corrector_first=False is the order of the paper, but discretization='published' "
                "is of the code; leave one of the two out"
            )

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in (self.corrector, self.predictor) if part)

    @property
    def uncertainty(self) -> str:
        """As of `Ancestral`; "" for other predictors."""
        return getattr(self.predictor, "uncertainty", "")

    @property
    def needs(self) -> frozenset[str]:
        """As of `Ancestral`; nothing for other predictors."""
        return getattr(self.predictor, "needs", frozenset())

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        return DISCRETIZATIONS[self.discretization](self, sde, times)

    def start(self, x: Batch) -> Step:
        return Step(x, x, jnp.zeros(len(x), x.dtype) if self.needs_energy else None)

    @property
    def needs_energy(self) -> bool:
        """Whether steps are accepted or rejected, by the energy of the network."""
        return getattr(self.corrector, "needs_energy", False)

    def step(
        self, keys: Keys, denoiser: Denoiser, state: Step, step: tuple, project: Project
    ) -> Step:
        t, s, after = step
        between = self.corrector is not None and self.predictor is not None
        if self.corrector_first:
            state = self._correct(keys, denoiser, state, t, s)
            state = project(fold_in_each(keys, 2), state, t) if between else state
            return self._predict(keys, denoiser, state, t, s)
        state = self._predict(keys, denoiser, state, t, s)
        state = project(fold_in_each(keys, 2), state, s) if between else state
        return self._correct(keys, denoiser, state, s, after)

    def _correct(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        if self.corrector is None:
            return state
        return self.corrector.step(fold_in_each(keys, 0), denoiser, state, t, s)

    def _predict(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        if self.predictor is None:
            return state
        moved = self.predictor.step(fold_in_each(keys, 1), denoiser, state, t, s)
        return moved._replace(accepted=state.accepted)


def _exact_plan(solver: PredictorCorrector, sde: SDE, times: np.ndarray) -> Plan:
    denoise = predict_x0
    if getattr(solver.predictor, "guidance_form", "score") == "mean":
        variance = getattr(solver.predictor, "variance", "small")
        denoise = MeanGuidedDenoising(variance=variance, before=float(times[-2]))
    if times[-1] == 0 and solver.corrector and solver.corrector_first:
        times = np.append(times, 0.0)  # the last timestep of a chain is corrected too
    after = np.append(times[2:], times[-1])
    return Plan(solver, (times[:-1], times[1:], after), times, denoise)


def _published_plan(solver: PredictorCorrector, sde: SDE, times: np.ndarray) -> Plan:
    return published_plan(solver.predictor, solver.corrector, sde, times)


DISCRETIZATIONS = {"exact": _exact_plan, "published": _published_plan}
PREDICTORS = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "probability_flow": ProbabilityFlow,
    "ancestral": Ancestral,
}
CORRECTORS = {"langevin": Langevin, "annealed_langevin": AnnealedLangevin, "mala": MALACorrector}
