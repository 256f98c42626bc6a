r"""EDM's sampler: Runge-Kutta steps with churn (Karras et al. 2022, arXiv:2206.00364).

In y = x / alpha and the noise level s = sigma / alpha, the probability-flow ODE of every linear
process is dy/ds = eps: their Eq. 1, where eps is (y - x0) / s. So their steps suit every process.
For a step from level s_i to level s_n, with N levels in all,

    gamma    = min(s_churn / N, sqrt(2) - 1)  if churn_min <= s_i <= churn_max, else 0
    s_hat    = (1 + gamma) s_i
    y_hat    = y_i + churn_noise sqrt(s_hat^2 - s_i^2) z                                (churn)
    y_stage  = y_hat + stage (s_n - s_hat) eps(y_hat)
    y_n      = y_hat + (s_n - s_hat) [(1 - c) eps(y_hat) + c eps(y_stage)],   c = 1 / (2 stage)

This is Algorithm 2 for stage = 1, and Algorithm 3 for any stage (their alpha). Without churn it
solves the probability-flow ODE. Churn adds fresh noise, then removes it, which corrects errors made
in earlier steps. Their last step, to noise 0, is an Euler step, which equals final_step="denoise".
So their sampler of N levels, with 2 N - 1 network evaluations, is

    Schedule(grid="karras", steps=N - 1, final_step="denoise"),   Heun(churn_all_levels=True)

Steps may be straight in another variable u of the noise level, and in another state w = c(s) y.
The paper compares these choices (Table 1; u is their t, and c their scaling s):

    dw/du = dc/du y + c ds/du eps

The network is evaluated at y and s whatever the choice. So the choice changes coefficients only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from errors import require_choice, require_in
from numerics.arrays import in_float64
from sampling import Plan
from sde_lib import SDE
from solvers.tables import (
    LinearCombination,
    coefficients_at,
    stage_weights,
    table_plan,
    unit_coefficients,
)
from time_grids import VPTime, noise_levels

Levels = Any  # a number, or an array of numbers


class Variable(NamedTuple):
    """A variable u of the noise level s, which is 0 at noise 0.

    Attributes:
        of: the map s -> u.
        noise: its inverse.
        derivative: the map s -> ds/du.
    """

    of: Callable[[Levels], Levels]
    noise: Callable[[Levels], Levels]
    derivative: Callable[[Levels], Levels]


_SIGMA = Variable(lambda s: s, lambda u: u, lambda s: 1.0)
_SIGMA2 = Variable(np.square, np.sqrt, lambda s: 1 / (2 * s))


def _vp_time(largest: float, smallest: float) -> Variable:
    vp = VPTime.fit(largest, smallest)
    return Variable(vp.of, vp.noise, vp.derivative)


# name -> (largest level, smallest level) -> variable. "sigma2" is the time of EDM's VE.
VARIABLES: dict[str, Callable[[float, float], Variable]] = {
    "sigma": lambda largest, smallest: _SIGMA,
    "sigma2": lambda largest, smallest: _SIGMA2,
    "vp_time": _vp_time,
}

# name -> s -> (c, dc/ds)
SCALINGS: dict[str, Callable[[Levels], tuple[Levels, Levels]]] = {
    "none": lambda s: (1.0, 0.0),
    "vp": lambda s: ((1 + s**2) ** -0.5, -s * (1 + s**2) ** -1.5),
}


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Runge-Kutta steps of order 1 or 2; with s_churn above 0, noise is added before a step.

    Args:
        order: 2, with two evaluations per step; or 1, Euler's method.
        stage: place of the second evaluation, as a fraction of the step, in (0, 1]: 1 is
            Heun's method, 1/2 the midpoint method, 2/3 Ralston's. Only for order 2.
        variable: the variable in which steps are straight, a name in VARIABLES: "sigma" is the
            noise level s = sigma / alpha, "sigma2" its square, "vp_time" the time of the VP process
            with the noise of t = 1 at 1, and that of the last time at 1e-3.
        scaling: the state in which steps are straight, a name in SCALINGS: "none" is y = x / alpha,
            "vp" is y / sqrt(1 + s^2).
        final_euler: end with an Euler step in this variable and state to noise 0, one evaluation
            more. The schedule's final_step must then be "none" or "mean". With variable "sigma" and
            scaling "none" it is the same as final_step="denoise".
        s_churn: S_churn of the paper, the fresh noise of all steps together, 0 for none. N counts
            the times of the grid, including the last. Above 0.41 N more churn changes nothing.
        churn_min, churn_max: S_min and S_max, the noise levels s = sigma / alpha between which
            noise is added.
        churn_noise: S_noise, the scale of the fresh noise. The paper's 1.003 to 1.007 compensate
            for networks that remove too much.
        churn_all_levels: add noise at all levels between churn_min and churn_max, as published. At
            t = 1 this reaches sqrt(2) times the noise of the process, at a time above 1. At the
            last level, final_step must be "denoise", or final_euler True, to remove it. With False
            no level is raised above the noise at t = 1, and the last one is not raised.

    Raises:
        ValueError: for an unknown name, a number out of range, or one that is not used.
    """

    order: int = 2
    stage: float = 1.0
    variable: str = "sigma"
    scaling: str = "none"
    final_euler: bool = False
    s_churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    churn_all_levels: bool = False

    def __post_init__(self) -> None:
        require_choice("order", self.order, (1, 2))
        require_in("stage", self.stage, "(0, 1]")
        if self.order == 1 and self.stage != 1:
            raise ValueError(f"stage={self.stage} is not used with order=1; leave it out")
        require_choice("variable", self.variable, VARIABLES)
        require_choice("scaling", self.scaling, SCALINGS)
        require_in("s_churn", self.s_churn, "[0, inf)")
        require_in("churn_min", self.churn_min, "[0, inf]")
        if not self.churn_max > self.churn_min:
            raise ValueError(f"churn_max={self.churn_max} must be above churn_min={self.churn_min}")
        require_in("churn_noise", self.churn_noise, "(0, inf)")
        for name, default in (("churn_min", 0.0), ("churn_max", math.inf), ("churn_noise", 1.0)):
            if self.s_churn == 0 and getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not used with s_churn=0; set s_churn above "
                    f"0, or leave {name} out"
                )

    @property
    def follows_flow(self) -> bool:
        """Whether it integrates the probability-flow ODE, without fresh noise."""
        return self.s_churn == 0

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        at = coefficients_at(sde, times)
        s = np.exp(-at.half_log_snr)
        s_hat = self._raised(sde, s)
        # Solving for times only where it is needed: the times of the grid stay as they are.
        t_hat = np.where(s_hat > s, _time_of(sde, s_hat), times)
        alpha_hat = coefficients_at(sde, t_hat).alpha
        added = self.churn_noise * alpha_hat * np.sqrt(s_hat**2 - s**2)
        variable = VARIABLES[self.variable](*noise_levels(sde, np.array([1.0, times[-1]])))
        u_hat = variable.of(s_hat[:-1])
        s_stage = variable.noise(u_hat + self.stage * (variable.of(s[1:]) - u_hat))
        s_stage, t_stage = (
            (s[1:], times[1:]) if self.stage == 1 else (s_stage, _time_of(sde, s_stage))
        )
        alpha_stage = coefficients_at(sde, t_stage).alpha

        # A step ends where the next one starts, with the noise of the next one added.
        rows, weights, noise = [], [], []
        for i in range(len(times) - 1):
            path = s_hat[i], s_stage[i], s[i + 1]
            *stage, end = self._states(variable, self.order, alpha_hat[i], *path)
            states = [*(alpha_stage[i] * y for y in stage), alpha_hat[i + 1] * end]
            rows += [t_hat[i], t_stage[i]][: self.order]
            weights.append(stage_weights(states))
            noise += [0.0, added[i + 1]][-self.order :]
        if self.final_euler:
            rows.append(t_hat[-1])
            states = self._states(variable, 1, alpha_hat[-1], s_hat[-1], 0.0, 0.0)
            weights.append(stage_weights(states))
            noise.append(0.0)
        return table_plan(
            np.append(rows, 0.0 if self.final_euler else t_hat[-1]),
            np.concatenate(weights),
            prediction="eps",
            noise=np.array(noise) if self.s_churn else None,
            first=(alpha_hat[0] / at.alpha[0], added[0]) if added[0] else None,
            clean=self.final_euler,
        )

    def _states(
        self,
        variable: Variable,
        order: int,
        alpha_hat: float,
        s_hat: float,
        s_stage: float,
        s_end: float,
    ) -> list[LinearCombination]:
        """Return y after each evaluation of a step, in terms of the process's x at s_hat."""
        scaling = SCALINGS[self.scaling]
        x, *predictions = unit_coefficients(self.order)
        y_hat = x / alpha_hat
        w_hat = scaling(s_hat)[0] * y_hat
        first = self._slope(variable, s_hat, y_hat, predictions[0])
        h = (variable.of(s_end) if s_end else 0.0) - variable.of(s_hat)
        if order == 1:
            return [(w_hat + h * first) / scaling(s_end)[0]]
        y_stage = (w_hat + self.stage * h * first) / scaling(s_stage)[0]
        second = self._slope(variable, s_stage, y_stage, predictions[1])
        weight = 1 / (2 * self.stage)
        w_end = w_hat + h * ((1 - weight) * first + weight * second)
        return [y_stage, w_end / scaling(s_end)[0]]

    def _slope(
        self, variable: Variable, s: float, y: LinearCombination, eps: LinearCombination
    ) -> LinearCombination:
        (c, of_y), rate = SCALINGS[self.scaling](s), variable.derivative(s)
        return rate * of_y * y + rate * c * eps

    def _raised(self, sde: SDE, s: np.ndarray) -> np.ndarray:
        """Return s_hat for the noise levels s of the grid."""
        if not self.s_churn:
            return s
        churned = (self.churn_min <= s) & (s <= self.churn_max)
        if not self.churn_all_levels:
            churned[[0, -1]] = False
        if not churned.any():
            starts = s if self.churn_all_levels else s[1:-1]
            between = f"{starts.min():.4g} to {starts.max():.4g}" if len(starts) else "none"
            raise ValueError(
                f"s_churn={self.s_churn} adds no noise: no noise level sigma/alpha is between "
                f"churn_min={self.churn_min} and churn_max={self.churn_max}; the levels that can "
                f"have more noise are {between}"
            )
        gamma = min(self.s_churn / len(s), math.sqrt(2) - 1)
        raised = np.where(churned, (1 + gamma) * s, s)
        return raised if self.churn_all_levels else np.minimum(raised, _largest(sde))


def _largest(sde: SDE) -> float:
    return noise_levels(sde, np.ones(1))[0]


def _time_of(sde: SDE, s: np.ndarray) -> np.ndarray:
    """Return the times with noise levels s, which are above 1 for levels above that of t = 1."""
    log_snr = -2 * np.log(s)
    times = in_float64(sde.time_of_log_snr, log_snr)
    beyond = s > _largest(sde) * (1 + 1e-12)
    if not beyond.any():
        return times

    def with_derivative(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(sde.log_snr, (t,), (jnp.ones_like(t),))

    found = np.ones_like(s)
    for _ in range(10):  # Newton's method, from t = 1
        value, derivative = in_float64(with_derivative, found)
        found = np.where(beyond, found + (log_snr - value) / derivative, 1)
    return np.where(beyond, found, times)
