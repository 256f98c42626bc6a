r"""Solvers as tables: one network evaluation a row, then a linear combination, and that is all.

Exponential integrators, single- and multistep alike, and Runge-Kutta methods along the probability
flow differ only in numbers that follow from the process and the grid. A family computes them once,
in float64, before anything runs; what runs is the same for all,

    m_0 = eps or x0 predicted at (x, t)
    x  <-  w_0 x + w_1 m_0 + w_2 m_1 + ... + noise z,

with m_1, m_2, ... the predictions of the rows before. So the network is compiled once, whatever the
order, and an evaluation is a row: they need no counting.

A family writes its paper's formulas as they stand there, with vectors of coefficients in place of
states: `unit_coefficients` gives those of x and of the predictions, and NumPy adds and scales them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from denoising import Denoiser
from numerics.arrays import Batch, in_float64, normal_like
from sampling import Keys, Plan, Project, Scalar
from sde_lib import SDE

LinearCombination = Float[np.ndarray, "terms"]


class Coefficients(NamedTuple):
    """A process at some times, in float64; lam = log(alpha / sigma) is half the log-SNR."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    half_log_snr: np.ndarray


def coefficients_at(sde: SDE, times: np.ndarray) -> Coefficients:
    """alpha, sigma and lambda of a process at these times."""

    def coefficients(t: Any) -> tuple:
        return sde.alpha(t), sde.sigma(t), sde.log_snr(t) / 2

    return Coefficients(times, *in_float64(coefficients, times))


def unit_coefficients(predictions: int) -> tuple[LinearCombination, ...]:
    """Unit vectors that stand for x and for so many predictions: x, m_0, m_1, ..."""
    return tuple(np.eye(1 + predictions))


def in_terms_of(target: LinearCombination, state: LinearCombination) -> LinearCombination:
    """`target`, a combination of x and predictions, as one of `state` and the same predictions.

    So x need not be kept beside a state that was made of it.
    """
    ratio = target[0] / state[0]
    told = target - ratio * state
    told[0] = ratio
    return told


def stage_weights(stages: list[LinearCombination]) -> np.ndarray:
    """Weights of the rows of one step with several stages, of shape (stages, terms).

    Stage k is the combination of x and the predictions p_1, ..., p_k that is reached by the k-th
    evaluation: the next state to be evaluated, in the end the step's result.
    """
    rows = np.zeros((len(stages), len(stages[0])))
    state = unit_coefficients(len(stages[0]) - 1)[0]
    for number, (row, stage) in enumerate(zip(rows, stages, strict=True), start=1):
        told = in_terms_of(stage, state)
        row[0] = told[0]
        row[1 : number + 1] = told[number:0:-1]  # the newest prediction first
        state = stage
    return rows


class TableRow(NamedTuple):
    """The time of an evaluation, the weights of x, m_0, m_1, ..., and the noise that is added."""

    t: Any
    weights: Any
    noise: Any


class TableState(NamedTuple):
    """A state, its mean before fresh noise, and the latest predictions, newest first."""

    x: Batch
    mean: Batch
    history: tuple[Batch, ...]


@dataclass(frozen=True, kw_only=True)
class TableStep:
    """The loop's part of every table: `prediction` is "eps" or "x0"."""

    prediction: str
    predictions: int
    stochastic: bool
    evaluations = 1

    def start(self, x: Batch) -> TableState:
        return TableState(x, x, (jnp.zeros_like(x),) * (self.predictions - 1))

    def step(
        self,
        keys: Keys,
        denoiser: Denoiser,
        state: TableState,
        row: TableRow,
        project: Project,
    ) -> TableState:
        newest = getattr(denoiser.predict(state.x, row.t), self.prediction)
        history = (newest, *state.history)
        mean = combine(row.weights, state.x, *history)
        x = mean + row.noise * normal_like(keys, mean) if self.stochastic else mean
        return TableState(x, mean, history[: self.predictions - 1])


def combine(weights: Scalar | Any, *terms: Batch) -> Batch:
    """The sum of terms times weights."""
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def table_plan(
    times: np.ndarray,
    weights: Float[np.ndarray, "rows terms"],
    *,
    prediction: str,
    noise: Float[np.ndarray, "rows"] | None = None,
) -> Plan:
    """The plan of a table: an evaluation at each of `times` but the last, where it ends."""
    kernel = TableStep(
        prediction=prediction, predictions=weights.shape[1] - 1, stochastic=noise is not None
    )
    rows = TableRow(times[:-1], weights, np.zeros(len(weights)) if noise is None else noise)
    return Plan(kernel, rows, times)
