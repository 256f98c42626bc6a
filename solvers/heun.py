r"""EDM's sampler: second-order Runge-Kutta steps with churn (Karras et al. 2022, arXiv:2206.00364).

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
in earlier steps.

Their last step, to noise 0, is an Euler step, which equals final_step="denoise". So their sampler
of N steps, with 2 N - 1 network evaluations, is

    Schedule(grid="karras", steps=N - 1, final_step="denoise")

There are two differences. A process ends at t = 1, so no level is raised above the level there: the
first step has no churn, where theirs reaches sqrt(2) times the largest noise. The last level, where
"denoise" evaluates, has no churn either (nor has theirs if churn_min is above it).
"""

import math
from dataclasses import dataclass

import numpy as np

from errors import require_in
from numerics.arrays import in_float64
from sampling import Plan
from sde_lib import SDE
from solvers.tables import coefficients_at, stage_weights, table_plan, unit_coefficients


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Second-order steps of two evaluations; with s_churn above 0, noise is added before a step.

    Args:
        stage: place of the second evaluation, as a fraction of the step in s, in (0, 1]: 1 is
            Heun's method, 1/2 the midpoint method, 2/3 Ralston's.
        s_churn: S_churn of the paper, the fresh noise of all steps together, 0 for none. N counts
            the times of the grid, including the last. Above 0.41 N more churn changes nothing.
        churn_min, churn_max: S_min and S_max, the noise levels s = sigma / alpha between which
            noise is added.
        churn_noise: S_noise, the scale of the fresh noise. The paper's 1.003 to 1.007 compensate
            for networks that remove too much.

    Raises:
        ValueError: for a number out of range, or for one that is not used because s_churn is 0.
    """

    stage: float = 1.0
    s_churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        require_in("stage", self.stage, "(0, 1]")
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

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        coefficients = coefficients_at(sde, times)
        s = np.exp(-coefficients.half_log_snr)
        s_hat = self._raised(sde, s)
        # Bisection only where it is needed: the times of the grid stay as they are.
        t_hat = np.where(s_hat > s[:-1], _time_of(sde, s_hat), times[:-1])
        s_stage = s_hat + self.stage * (s[1:] - s_hat)
        t_stage = times[1:] if self.stage == 1 else _time_of(sde, s_stage)
        alpha_hat = coefficients_at(sde, t_hat).alpha
        alpha_stage = coefficients_at(sde, t_stage).alpha
        # A step ends where the next one starts, with the noise of the next one added.
        s_end, alpha_end = (
            np.append(s_hat[1:], s[-1]),
            np.append(alpha_hat[1:], coefficients.alpha[-1]),
        )

        x, eps_hat, eps_stage = unit_coefficients(2)
        weight = 1 / (2 * self.stage)
        weights = []
        for i, ds in enumerate(s[1:] - s_hat):
            y_hat = x / alpha_hat[i]
            y_stage = y_hat + self.stage * ds * eps_hat
            y_next = y_hat + ds * ((1 - weight) * eps_hat + weight * eps_stage)
            weights.append(stage_weights([alpha_stage[i] * y_stage, alpha_end[i] * y_next]))
        added = self.churn_noise * alpha_end * np.sqrt(s_end**2 - s[1:] ** 2)
        return table_plan(
            np.append(np.stack([t_hat, t_stage], axis=1).ravel(), times[-1]),
            np.concatenate(weights),
            prediction="eps",
            noise=np.stack([np.zeros_like(added), added], axis=1).ravel() if self.s_churn else None,
        )

    def _raised(self, sde: SDE, s: np.ndarray) -> np.ndarray:
        """Return s_hat of every step for the noise levels s of the grid."""
        start = s[:-1]
        if not self.s_churn:
            return start
        churned = (self.churn_min <= start) & (start <= self.churn_max)
        churned[0] = False
        if not churned.any():
            raise ValueError(
                f"s_churn={self.s_churn} adds no noise: no step after the first starts at a noise "
                f"level sigma/alpha between churn_min={self.churn_min} and churn_max="
                f"{self.churn_max}; steps start at {start.min():.4g} to {start.max():.4g}"
            )
        gamma = min(self.s_churn / len(s), math.sqrt(2) - 1)
        largest = np.exp(-coefficients_at(sde, np.ones(1)).half_log_snr)
        return np.where(churned, np.minimum((1 + gamma) * start, largest), start)


def _time_of(sde: SDE, s: np.ndarray) -> np.ndarray:
    return in_float64(sde.time_of_log_snr, -2 * np.log(s))
