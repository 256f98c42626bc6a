r"""Predictor-Corrector samplers (Song et al. 2021, arXiv:2011.13456, Algorithm 1).

With (a, b) the exact transition of the process from s to t, x_t = a x_s + b eps, predictors are

    Euler-Maruyama      x + reverse_drift (s - t) + churn g sqrt(t - s) z                (Eq. 6, 13)
    reverse diffusion   (2 - a) x + b^2 score + b z                              (App. E, Eq. 46)
    probability flow    (2 - a) x + b^2 score / 2                                (App. E, Eq. 46)
    ancestral           (x + b^2 score) / a + std z                              (Eq. 4 and App. F)

Correctors take Langevin steps x + h score + sqrt(2 h) z at one time (Algorithms 4 and 5). Written
in (a, b), each is defined for every linear process, on any grid.
"""

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
from sampling import Keys, Plan, Project, Scalar, Step
from sde_lib import SDE, reverse_drift


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


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion:
    """The discretization of the forward step, reversed: drift and noise of the exact transition."""

    evaluations = 1

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        scale, std = denoiser.sde.transition(s, t)
        mean = (2 - scale) * state.x + std**2 * denoiser.score(state.x, t)
        return Step(mean + std * normal_like(keys, state.x), mean)


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


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Sampling from p(x_s | x_t): DDPM's sampler for VP, SMLD's for VE (App. F).

    Args:
        variance: "small" is the variance of the posterior, b^2 sigma_s^2 / sigma_t^2; "large" is
            b^2 of the transition (Ho et al. 2020, arXiv:2006.11239, Section 3.2). Song et al. use
            large for VP, small for VE. "learned" interpolates their logarithms by the fraction per
            pixel that a network with eps_learned_variance predicts (Nichol and Dhariwal 2021,
            arXiv:2102.09672, Eq. 15).
        guidance_form: how the gradient of a classifier acts. "score" adds it to the score; "mean"
            moves the mean by the gradient times the variance of the step (Dhariwal and Nichol 2021,
            arXiv:2105.05233, Algorithm 1).

    Raises:
        ValueError: for an unknown name.
    """

    variance: str = "small"
    guidance_form: str = "score"
    evaluations = 1

    def __post_init__(self) -> None:
        require_choice("variance", self.variance, ("small", "large", "learned"))
        require_choice("guidance_form", self.guidance_form, ("score", "mean"))

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        sde = denoiser.sde
        scale, large = sde.transition(s, t)
        prediction = denoiser.predict(state.x, t)
        mean = (state.x - large**2 / sde.sigma(t) * prediction.eps) / scale
        log_ratio = sde.log_sigma(s) - sde.log_sigma(t)  # of small to large std
        if self.variance == "learned":
            if prediction.variance is None:
                raise ValueError(
                    "variance='learned' needs a network that predicts variances, with "
                    "config.denoiser.parameterization=eps_learned_variance; choose small or large"
                )
            std = large * jnp.exp((1 - prediction.variance) * log_ratio)
        else:
            std = large * jnp.exp(log_ratio) if self.variance == "small" else large
        if self.guidance_form == "mean" and prediction.gradient is not None:
            # The score has already moved the mean by large^2 / scale times the gradient.
            mean += (std**2 - large**2 / scale) * prediction.gradient
        return Step(mean + std * normal_like(keys, state.x), mean)


def _check_corrector(snr: float, corrector_steps: int) -> None:
    require_in("snr", snr, "(0, inf)")
    require_in("corrector_steps", corrector_steps, "[1, inf)")


def _langevin_steps(
    keys: Keys,
    denoiser: Denoiser,
    state: Step,
    t: Scalar,
    s: Scalar,
    corrector_steps: int,
    step_size: Callable[[Batch, Batch], Array],
) -> Step:
    """Take `corrector_steps` Langevin steps at time t, of size scale^2 step_size(score, noise)."""
    # The published step size has the factor alpha_i = 1 - beta_i of one step, which is the squared
    # scale of the transition from s to t. It is 1 for VE.
    scale, _ = denoiser.sde.transition(s, t)

    def correct(i: Int[Array, ""], state: Step) -> Step:
        noise = normal_like(fold_in_each(keys, i), state.x)
        score = denoiser.score(state.x, t)
        h = expand_like(scale**2 * step_size(score, noise), state.x)
        mean = state.x + h * score
        return Step(mean + jnp.sqrt(2 * h) * noise, mean)

    return jax.lax.fori_loop(0, corrector_steps, correct, state)


@dataclass(frozen=True, kw_only=True)
class Langevin:
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

    snr: float = 0.16
    corrector_steps: int = 1
    norm_reduction: str = "per_sample"

    def __post_init__(self) -> None:
        _check_corrector(self.snr, self.corrector_steps)
        require_choice("norm_reduction", self.norm_reduction, ("per_sample", "batch"))

    @property
    def evaluations(self) -> int:
        return self.corrector_steps

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        def step_size(score: Batch, noise: Batch) -> Array:
            noise_norm, score_norm = (jnp.sqrt(sum_per_sample(a**2)) for a in (noise, score))
            if self.norm_reduction == "batch":
                noise_norm, score_norm = jnp.mean(noise_norm), jnp.mean(score_norm)
            return 2 * (self.snr * noise_norm / score_norm) ** 2

        return _langevin_steps(keys, denoiser, state, t, s, self.corrector_steps, step_size)


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin:
    """Annealed Langevin dynamics of NCSN (Song & Ermon 2019, arXiv:1907.05600, Algorithm 1).

    The step size is h = 2 scale^2 (snr sigma(t))^2: it follows the noise level, not the score.

    Args:
        snr: signal-to-noise ratio.
        corrector_steps: Langevin steps at each time.

    Raises:
        ValueError: for a number out of range.
    """

    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        _check_corrector(self.snr, self.corrector_steps)

    @property
    def evaluations(self) -> int:
        return self.corrector_steps

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        def step_size(score: Batch, noise: Batch) -> Array:
            return 2 * (self.snr * denoiser.sde.sigma(t)) ** 2

        return _langevin_steps(keys, denoiser, state, t, s, self.corrector_steps, step_size)


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """Algorithm 1 of Song et al.: a solver and its own step function.

    A step is (t, s, the time after s).

    Args:
        predictor: steps from t to s; None for no step.
        corrector: Langevin steps; None for no step. Without both, samples are draws from the prior.
        corrector_first: correct at t, then predict s, as the published code does; False predicts s,
            then corrects there, as the algorithm in the paper does.
    """

    predictor: PCStep | None = None
    corrector: PCStep | None = None
    corrector_first: bool = True

    @property
    def evaluations(self) -> int:
        return sum(part.evaluations for part in (self.corrector, self.predictor) if part)

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        if times[-1] == 0 and self.corrector and self.corrector_first:
            times = np.append(times, 0.0)  # the last timestep of a chain is corrected too
        after = np.append(times[2:], times[-1])
        return Plan(self, (times[:-1], times[1:], after), times)

    def start(self, x: Batch) -> Step:
        return Step(x, x)

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
        return self.predictor.step(fold_in_each(keys, 1), denoiser, state, t, s)


PREDICTORS = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "probability_flow": ProbabilityFlow,
    "ancestral": Ancestral,
}
CORRECTORS = {"langevin": Langevin, "annealed_langevin": AnnealedLangevin}
