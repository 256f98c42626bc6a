r"""Song et al.'s own discretization of their processes (arXiv:2011.13456), to reproduce their code.

It takes N steps, which start at N evenly spaced times from 1 to t_min and have length 1 / N. The
last one goes past t_min; its mean is the sample. A step at time t does not use the exact transition
(a, b) but entry i = floor(t (N - 1)) of a table, as the chains of DDPM and SMLD do:

    variance preserving    a = sqrt(1 - beta_i), b = sqrt(beta_i)
    variance exploding     a = 1, b = sqrt(sigma_i^2 - sigma_{i-1}^2), sigma_{-1} = 0
    others, as sub-VP      a = 1 + f(t) / N, b = g(t) / sqrt(N)             Euler's method, no table

A chain has its own tables. In continuous time beta_i = g(u)^2 / N and sigma_i = sigma(u), with
u = i / (N - 1). Networks of a chain are evaluated as published: DDPM's at the fractional timestep
t (N - 1), with the noise level of timestep i; SMLD's at the nearest timestep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

from denoising import Denoiser
from numerics.arrays import Batch, fold_in_each, in_float64, normal_like
from sampling import Keys, Plan, Project, Step
from sde_lib import SDE

Row = Float[np.ndarray, "steps"]


class Tables(NamedTuple):
    """Coefficients of the N steps, in float64.

    Attributes:
        t: the time at which the network is evaluated.
        std: the noise level that turns eps into the score, -eps / std.
        length: 1 / N, the length of a step.
        f, g2: the drift's coefficient and the squared diffusion, for Euler-Maruyama.
        a, b: scale and noise of the discretized forward step.
        small: standard deviation of the forward step's posterior; None where there is no table.
        sigma: the noise level of the process.
    """

    t: Row
    std: Row
    length: float
    f: Row
    g2: Row
    a: Row
    b: Row
    small: Row | None
    sigma: Row


def tables(sde: SDE, times: np.ndarray) -> Tables:
    """Return the coefficients of the steps that start at N evenly spaced times from 1 down.

    Raises:
        ValueError: for other times, or another number than the chain has timesteps.
    """
    count, chain = len(times), getattr(sde, "num_timesteps", None)
    even = np.allclose(times, np.linspace(1, times[-1], count), rtol=0, atol=1e-9)
    if not even or times[-1] == 0:
        raise ValueError(
            "discretization='published' takes even steps from t = 1 to t_min > 0; choose "
            "grid=uniform and leave times out, or choose discretization=exact"
        )
    if chain and count != chain:
        raise ValueError(
            f"discretization='published' takes one step per timestep of the chain; choose "
            f"grid=uniform and steps={chain - 1}, which gives {chain} times, not {count}"
        )
    knots = np.linspace(0, 1, count)
    log_alpha, sigma = in_float64(sde.log_alpha, knots), in_float64(sde.sigma, knots)
    if np.all(log_alpha == 0):
        return _exploding(sde, times, sigma, bool(chain))
    if np.allclose(np.exp(2 * log_alpha) + sigma**2, 1, rtol=0, atol=1e-9):
        return _preserving(sde, times, log_alpha if chain else None)
    f, g2 = in_float64(sde.drift_coefficient, times), in_float64(sde.squared_diffusion, times)
    sigma, length = in_float64(sde.sigma, times), 1 / count
    a, b = 1 + f * length, np.sqrt(g2 * length)
    return Tables(times, sigma, length, f, g2, a, b, None, sigma)


def _exploding(sde: SDE, times: np.ndarray, sigma: np.ndarray, chain: bool) -> Tables:
    last = len(times) - 1
    index = np.floor(times * last).astype(int)
    variance, before = sigma**2, np.append(0, sigma[:-1] ** 2)
    added = (variance - before)[index]
    small = np.sqrt(before[index] * added / variance[index])
    level = in_float64(sde.sigma, times)
    nearest = last - np.round((1 - times) * last).astype(int)
    return Tables(
        t=nearest / last if chain else times,
        std=sigma[nearest] if chain else level,
        length=1 / len(times),
        f=np.zeros_like(times),
        g2=in_float64(sde.squared_diffusion, times),
        a=np.ones_like(times),
        b=np.sqrt(added),
        small=small,
        sigma=level,
    )


def _preserving(sde: SDE, times: np.ndarray, log_alpha: np.ndarray | None) -> Tables:
    """Return the tables; `log_alpha` has the timesteps of a chain."""
    count = len(times)
    knots = np.linspace(0, 1, count)
    if log_alpha is None:
        betas = -2 * in_float64(sde.drift_coefficient, knots) / count
        g2, level = -2 * in_float64(sde.drift_coefficient, times), in_float64(sde.sigma, times)
    else:
        betas = -np.expm1(2 * np.diff(log_alpha, prepend=0))
        # The process in continuous time of this chain: g^2 is linear between the timesteps.
        g2 = np.interp(times, knots, count * betas)
        level = np.sqrt(-np.expm1(-_integral(times, knots, count * betas)))
    if not np.all((betas > 0) & (betas < 1)):
        raise ValueError(
            f"discretization='published' needs more than {count} steps for this process, because a "
            "beta reaches 1; or choose discretization=exact"
        )
    index = np.floor(times * (count - 1)).astype(int)
    noise = 1 - np.cumprod(1 - betas)
    small = np.sqrt(betas * np.append(0, noise[:-1]) / noise)
    return Tables(
        t=times,
        std=level if log_alpha is None else np.sqrt(noise[index]),
        length=1 / count,
        f=-g2 / 2,
        g2=g2,
        a=np.sqrt(1 - betas[index]),
        b=np.sqrt(betas[index]),
        small=small[index],
        sigma=level,
    )


def _integral(times: np.ndarray, knots: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the integral from 0 to each time of a function that is linear between knots."""
    areas = np.append(0, np.cumsum(np.diff(knots) * (values[1:] + values[:-1]) / 2))
    below = np.minimum(np.searchsorted(knots, times, side="right") - 1, len(knots) - 2)
    middle = (values[below] + np.interp(times, knots, values)) / 2
    return areas[below] + (times - knots[below]) * middle


@runtime_checkable
class Corrector(Protocol):
    """Langevin steps with a score at one time."""

    @property
    def evaluations(self) -> int: ...

    def correct(
        self,
        keys: Keys,
        score: Callable[[Batch], Batch],
        state: Step,
        alpha: Array,
        sigma: Array,
    ) -> Step: ...


@runtime_checkable
class Predictor(Protocol):
    """A step of one evaluation, whose discretization follows from the tables."""

    def published(self, tables: Tables) -> tuple[Row, Row, Row]:
        """Return the weights of x, score and noise, of each step."""
        ...


class PublishedRow(NamedTuple):
    """A step: network's time, std of the score, predictor's weights, corrector's alpha, sigma."""

    t: Any
    std: Any
    weights: Any
    alpha: Any
    sigma: Any


@dataclass(frozen=True, kw_only=True)
class PublishedStep:
    """Corrects at t, then predicts; the step has the weights of x, score and noise.

    Args:
        corrector: Langevin steps; None for no step.
        predicts: whether there is a predictor.
    """

    corrector: Corrector | None
    predicts: bool

    @property
    def evaluations(self) -> int:
        return self.predicts + (0 if self.corrector is None else self.corrector.evaluations)

    def start(self, x: Batch) -> Step:
        return Step(x, x)

    def step(
        self, keys: Keys, denoiser: Denoiser, state: Step, step: PublishedRow, project: Project
    ) -> Step:
        def score(x: Batch) -> Batch:
            return -denoiser.predict(x, step.t).eps / step.std

        if self.corrector is not None:
            noise_keys = fold_in_each(keys, 0)
            state = self.corrector.correct(noise_keys, score, state, step.alpha, step.sigma)
        if not self.predicts:
            return Step(state.x, state.x)  # without a predictor, no noise is removed
        if self.corrector is not None:
            state = project(fold_in_each(keys, 2), state, step.t)
        of_x, of_score, of_noise = step.weights
        mean = of_x * state.x + of_score * score(state.x)
        return Step(mean + of_noise * normal_like(fold_in_each(keys, 1), mean), mean)


def published_plan(predictor: Any, corrector: Any, sde: SDE, times: np.ndarray) -> Plan:
    """Plan one step per time; the last step's mean is the sample.

    Args:
        predictor: a `Predictor`, or None for no step.
        corrector: a `Corrector`, or None for no step.
        sde: the process.
        times: the times at which steps start.

    Raises:
        ValueError: for uneven times, or a method that the published code does not have.
    """
    for part, kind in ((predictor, Predictor), (corrector, Corrector)):
        if part is not None and not isinstance(part, kind):
            raise ValueError(
                f"discretization='published' does not exist for {type(part).__name__}; choose exact"
            )
    coefficients = tables(sde, times)
    if corrector is not None:
        require_table(coefficients, "correctors")
    none = np.ones(len(times)), np.zeros(len(times)), np.zeros(len(times))
    weights = none if predictor is None else predictor.published(coefficients)
    steps = PublishedRow(
        t=coefficients.t,
        std=coefficients.std,
        weights=np.stack(weights, axis=1),
        alpha=coefficients.a**2,
        sigma=coefficients.sigma,
    )
    function = PublishedStep(corrector=corrector, predicts=predictor is not None)
    return Plan(function, steps, np.append(times, times[-1]), denoise=None)


def require_table(coefficients: Tables, what: str) -> None:
    """Raise ValueError if the process has no table, for what the published code has with one."""
    if coefficients.small is None:
        raise ValueError(
            f"discretization='published' has no {what} for this process, as the published code has "
            "none; choose discretization=exact"
        )
