r"""DPM-Solver and DPM-Solver++ (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095).

`exponential.py` has the exact way from t to s, along the probability-flow ODE or the reverse SDE,
but for the prediction on it. A solver of order k puts a polynomial through k predictions: those of
the steps before (multistep), or of stages inside the step (singlestep).

Multistep order 3 is in no paper; the published code halves the parabola's second derivative, and so
has order 2. Here it is the parabola.
"""

from dataclasses import dataclass

import numpy as np

from errors import require_choice
from numerics.arrays import in_float64
from sampling import Plan
from sde_lib import SDE
from solvers.exponential import (
    FRACTIONS,
    PREDICTIONS,
    ExponentialStep,
    exponential_step,
    polynomial_integral,
    step_orders,
)
from solvers.tables import (
    Coefficients,
    LinearCombination,
    coefficients_at,
    stage_weights,
    table_plan,
    unit_coefficients,
)

ORDERS = (1, 2, 3)
METHODS = ("multistep", "singlestep")


# Stages of a step, as fractions of h: r_1, and r_1 and r_2 of the papers.
_STAGES = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}


@dataclass(frozen=True, kw_only=True)
class DPMSolver:
    """DPM-Solver, DPM-Solver++, and their versions for the reverse SDE.

    Args:
      order: 1, 2 or 3. Order 1 is DDIM: with eta = 0, and stochastic with prediction x0, eta = 1.
      method: "multistep" evaluates once a step; its first steps are of orders 1, 2, ..., as there
        are no predictions yet. With "singlestep" a step of order k costs k evaluations; the grid
        has the ends of the steps, and the stages lie between, evenly in lambda.
      prediction: "x0" is DPM-Solver++, "eps" DPM-Solver.
      stochastic: solve the reverse SDE in place of the probability-flow ODE. With few steps "eps"
        is then unstable.
      lower_order_final: in the end orders fall by one a step, down to 1, which is stabler where
        the steps are few. One step of order 1 has an error of order h^2, in proportion to sigma
        where sampling stops: small, but with many steps it is what is left of order 3.

    Raises:
      ValueError: for an unknown name or order, and for fewer steps than the orders need.
    """

    order: int = 2
    method: str = "multistep"
    prediction: str = "x0"
    stochastic: bool = False
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        require_choice("order", self.order, ORDERS)
        require_choice("method", self.method, METHODS)
        require_choice("prediction", self.prediction, PREDICTIONS)

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        multistep = self.method == "multistep"
        orders = step_orders(
            len(times) - 1, self.order, rising=multistep, falling=self.lower_order_final
        )
        if not multistep:
            times = _with_stages(sde, times, orders)
        level = coefficients_at(sde, times)
        weights = self._multistep(level, orders) if multistep else self._singlestep(level, orders)
        # Neighbouring rows have independent noise. A stage's is carried on to the step's end, so
        # that the end has the noise of the whole step, as of one path.
        rows = [self._step(level, number, number + 1) for number in range(len(weights))]
        noise = np.array([row.noise for row in rows]) if self.stochastic else None
        return table_plan(times, weights, prediction=self.prediction, noise=noise)

    def _step(self, level: Coefficients, start: int, end: int) -> ExponentialStep:
        return exponential_step(level, start, end, self.prediction, self.stochastic)

    def _multistep(self, level: Coefficients, orders: list[int]) -> np.ndarray:
        """2M (2211.01095, Algorithm 2), its like for eps, and the parabola of order 3."""
        x, *predictions = unit_coefficients(self.order)
        rows = []
        for number, order in enumerate(orders):
            step = self._step(level, number, number + 1)
            half_log_snr = level.half_log_snr[number - order + 1 : number + 1][::-1]
            integral = polynomial_integral(
                step, half_log_snr, predictions[:order], step.constant_weight
            )
            rows.append(step.scale * x + integral)
        return np.stack(rows)

    def _singlestep(self, level: Coefficients, orders: list[int]) -> np.ndarray:
        """Algorithms 1 and 2 of 2206.00927, and the same for x0 (2211.01095, Algorithm 1)."""
        rows, start = [], 0
        for order in orders:
            steps = [self._step(level, start, start + stage + 1) for stage in range(order)]
            stages = stage_weights(_stages(steps))
            rows.append(np.pad(stages, ((0, 0), (0, self.order - order))))
            start += order
        return np.concatenate(rows)


def _stages(steps: list[ExponentialStep]) -> list[LinearCombination]:
    """The states that one step's stages reach, of its passages from the start to each of them."""
    x, *predictions = unit_coefficients(len(steps))
    first, states = predictions[0], [steps[0].scale * x + steps[0].constant_weight * predictions[0]]
    if len(steps) == 2:
        slope = (predictions[1] - first) / _STAGES[2][1]
        states.append(steps[1].scale * x + steps[1].constant_weight * (first + slope / 2))
    if len(steps) == 3:
        _, r_1, r_2 = _STAGES[3]
        # The line through the first prediction and the latest, which is so far on the passage.
        for step, latest, far in zip(steps[1:], predictions[1:], (r_1 / r_2, r_2), strict=True):
            weights = step.weights(np.array([0.0, far]), FRACTIONS)
            states.append(step.scale * x + weights @ np.stack([first, latest]))
    return states


def _with_stages(sde: SDE, times: np.ndarray, orders: list[int]) -> np.ndarray:
    """The times of all evaluations, and in the end the last one's."""
    half_log_snr = coefficients_at(sde, times).half_log_snr
    number = np.repeat(np.arange(len(orders)), orders)
    far = np.concatenate([_STAGES[order] for order in orders])
    between = (1 - far) * half_log_snr[number] + far * half_log_snr[number + 1]
    stages = in_float64(sde.time_of_log_snr, 2 * between)
    return np.append(np.where(far == 0, times[number], stages), times[-1])
