r"""Solvers as tables: each step is one network evaluation, then a linear combination.

Exponential integrators (singlestep and multistep) and Runge-Kutta methods for the probability-flow
ODE differ only in coefficients, which follow from the process and the grid. A solver computes them
beforehand, in float64. The step is the same for all solvers:

    m_0 = eps or x0 predicted at (x, t)
    x  <-  w_0 x + w_1 m_0 + w_2 m_1 + ... + noise z,

with m_1, m_2, ... the predictions of the steps before. So the network is compiled once for any
order, and the number of evaluations is the number of steps.

A solver writes the formulas of its paper with vectors of coefficients instead of states:
`unit_coefficients` gives the vectors of x and of the predictions, and NumPy adds and scales them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from denoising import Denoiser
from numerics.arrays import Batch, fold_in_each, in_float64, normal_like
from sampling import Keys, Plan, Project, predict_x0
from sde_lib import SDE

LinearCombination = Float[np.ndarray, "terms"]


class Coefficients(NamedTuple):
    """Coefficients of a process at some times, in float64; arrays, or numbers for one time.

    Attributes:
        t: the times.
        alpha, sigma: scales of data and noise.
        half_log_snr: log(alpha / sigma), the lambda of the papers.
    """

    t: Any
    alpha: Any
    sigma: Any
    half_log_snr: Any

    def at(self, index: int) -> "Coefficients":
        """Return the coefficients at one of the times."""
        return Coefficients(*(values[index] for values in self))


def coefficients_at(sde: SDE, times: np.ndarray) -> Coefficients:
    """Return the coefficients of a process at these times."""

    def coefficients(t: Any) -> tuple:
        return sde.alpha(t), sde.sigma(t), sde.log_snr(t) / 2

    return Coefficients(times, *in_float64(coefficients, times))


def unit_coefficients(predictions: int) -> tuple[LinearCombination, ...]:
    """Return the unit vectors for x, m_0, m_1, ..., with this number of predictions."""
    return tuple(np.eye(1 + predictions))


def in_terms_of(target: LinearCombination, state: LinearCombination) -> LinearCombination:
    """Rewrite `target`, a combination of x and predictions, in terms of `state` instead of x.

    `state` is another combination of the same x and predictions. This avoids storing x together
    with a state derived from it.
    """
    ratio = target[0] / state[0]
    rewritten = target - ratio * state
    rewritten[0] = ratio
    return rewritten


def stage_weights(stages: list[LinearCombination]) -> np.ndarray:
    """Return the weights (stages, terms) of a step with several stages.

    Stage k is a combination of x and the predictions p_1, ..., p_k: the state after the k-th
    evaluation. The last one is the result of the step.
    """
    weights = np.zeros((len(stages), len(stages[0])))
    state = unit_coefficients(len(stages[0]) - 1)[0]
    for number, (row, stage) in enumerate(zip(weights, stages, strict=True), start=1):
        rewritten = in_terms_of(stage, state)
        row[0] = rewritten[0]
        row[1 : number + 1] = rewritten[number:0:-1]  # the newest prediction first
        state = stage
    return weights


class LinearStep(NamedTuple):
    """One step.

    Attributes:
        t: the time of its evaluation.
        weights: those of x, m_0, m_1, ...
        noise: scale of the noise that is added after it.
        before: scale of x, and scale of the noise that is added, before the evaluation; None to
            evaluate the network at x itself.
    """

    t: Any
    weights: Any
    noise: Any
    before: Any = None


class TableState(NamedTuple):
    """A state, its mean before fresh noise, and the latest predictions, newest first."""

    x: Batch
    mean: Batch
    history: tuple[Batch, ...]


@dataclass(frozen=True, kw_only=True)
class TableStep:
    """The step function of every table.

    Args:
        prediction: "eps" or "x0".
        predictions: number of predictions in the linear combination.
        stochastic: whether steps add noise.
    """

    prediction: str
    predictions: int
    stochastic: bool
    evaluations = 1

    def start(self, x: Batch) -> TableState:
        return TableState(x, x, (jnp.zeros_like(x),) * (self.predictions - 1))

    def step(
        self, keys: Keys, denoiser: Denoiser, state: TableState, step: LinearStep, project: Project
    ) -> TableState:
        x = state.x
        if step.before is not None:
            scale, noise = step.before
            x = scale * x + noise * normal_like(fold_in_each(keys, 1), x)
        newest = getattr(denoiser.predict(x, step.t), self.prediction)
        history = (newest, *state.history)
        mean = combine(step.weights, x, *history)
        x = mean + step.noise * normal_like(keys, mean) if self.stochastic else mean
        return TableState(x, mean, history[: self.predictions - 1])


def combine(weights: Any, *terms: Batch) -> Batch:
    """Return the sum of the terms, each times its weight."""
    return jnp.asarray(sum(weight * term for weight, term in zip(weights, terms, strict=True)))


def table_plan(
    times: np.ndarray,
    weights: Float[np.ndarray, "steps terms"],
    *,
    prediction: str,
    noise: Float[np.ndarray, "steps"] | None = None,
    first: tuple[float, float] | None = None,
    clean: bool = False,
) -> Plan:
    """Return the plan of a table, which evaluates the network at all of `times` except the last.

    Args:
        times: the times of the evaluations, then the final time.
        weights: the weights of each step.
        prediction: "eps" or "x0".
        noise: the scale of the noise that is added after each step.
        first: `LinearStep.before` of the first step.
        clean: whether the last step removes all noise, so that none is left to denoise.
    """
    function = TableStep(
        prediction=prediction, predictions=weights.shape[1] - 1, stochastic=noise is not None
    )
    before = None
    if first is not None:
        before = np.tile([1.0, 0.0], (len(weights), 1))
        before[0] = first
    noise = np.zeros(len(weights)) if noise is None else noise
    steps = LinearStep(times[:-1], weights, noise, before)
    return Plan(function, steps, times, denoise=None if clean else predict_x0)
