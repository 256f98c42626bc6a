r"""DPM-Solver and DPM-Solver++ (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095).

`solvers/exponential.py` solves the linear part of a step exactly, along the probability-flow ODE or
the reverse SDE. A solver of order k replaces the prediction by a polynomial through k predictions:
of the steps before (multistep), or of stages inside the step (singlestep).

Multistep order 3 is in no paper. The published code halves the second derivative of the parabola,
and so has order 2. Here it is the parabola.
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
        order: 1, 2 or 3. Order 1 is DDIM with eta = 0; stochastic with prediction x0, eta = 1.
        method: "multistep" costs one evaluation per step; its first steps have orders 1, 2, ...,
            because there are no predictions yet. With "singlestep" a step of order k costs k
            evaluations; the grid has the ends of the steps, and the stages lie between, evenly in
            lambda.
        prediction: "x0" is DPM-Solver++, "eps" DPM-Solver.
        stochastic: solve the reverse SDE instead of the probability-flow ODE. With few steps "eps"
            is then unstable.
        lower_order_final: lower the order by one per step at the end, down to 1, which is stabler
            with few steps. The step of order 1 has an error of order h^2, in proportion to sigma
            where sampling stops. It is small, but with many steps it dominates that of order 3.

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
        coefficients = coefficients_at(sde, times)
        weights_of = self._multistep if multistep else self._singlestep
        weights = weights_of(coefficients, orders)
        # Each stage has independent noise. It is carried on to the end of the step, which so has
        # the noise of the whole step, as along one path.
        steps = [self._step(coefficients, number, number + 1) for number in range(len(weights))]
        noise = np.array([step.noise for step in steps]) if self.stochastic else None
        return table_plan(times, weights, prediction=self.prediction, noise=noise)

    def _step(self, coefficients: Coefficients, start: int, end: int) -> ExponentialStep:
        return exponential_step(coefficients, start, end, self.prediction, self.stochastic)

    def _multistep(self, coefficients: Coefficients, orders: list[int]) -> np.ndarray:
        """Return weights of 2M (2211.01095, Algorithm 2), its version for eps, and order 3."""
        x, *predictions = unit_coefficients(self.order)
        weights = []
        for number, order in enumerate(orders):
            step = self._step(coefficients, number, number + 1)
            half_log_snr = coefficients.half_log_snr[number - order + 1 : number + 1][::-1]
            integral = polynomial_integral(
                step, half_log_snr, predictions[:order], step.constant_weight
            )
            weights.append(step.scale * x + integral)
        return np.stack(weights)

    def _singlestep(self, coefficients: Coefficients, orders: list[int]) -> np.ndarray:
        """Return weights of Algorithms 1 and 2 of 2206.00927; for x0, 2211.01095, Algorithm 1."""
        weights, start = [], 0
        for order in orders:
            steps = [self._step(coefficients, start, start + stage + 1) for stage in range(order)]
            stages = stage_weights(_stages(steps))
            weights.append(np.pad(stages, ((0, 0), (0, self.order - order))))
            start += order
        return np.concatenate(weights)


def _stages(steps: list[ExponentialStep]) -> list[LinearCombination]:
    """Return the states after the stages of a step, given the steps from its start to each."""
    x, *predictions = unit_coefficients(len(steps))
    first, states = predictions[0], [steps[0].scale * x + steps[0].constant_weight * predictions[0]]
    if len(steps) == 2:
        slope = (predictions[1] - first) / _STAGES[2][1]
        states.append(steps[1].scale * x + steps[1].constant_weight * (first + slope / 2))
    if len(steps) == 3:
        _, r_1, r_2 = _STAGES[3]
        # The line through the first prediction and the latest, which is this fraction of h ahead.
        for step, latest, fraction in zip(
            steps[1:], predictions[1:], (r_1 / r_2, r_2), strict=True
        ):
            weights = step.weights(np.array([0.0, fraction]), FRACTIONS)
            states.append(step.scale * x + weights @ np.stack([first, latest]))
    return states


def _with_stages(sde: SDE, times: np.ndarray, orders: list[int]) -> np.ndarray:
    """Return the times of all evaluations, then the final time."""
    half_log_snr = coefficients_at(sde, times).half_log_snr
    number = np.repeat(np.arange(len(orders)), orders)
    fraction = np.concatenate([_STAGES[order] for order in orders])
    between = (1 - fraction) * half_log_snr[number] + fraction * half_log_snr[number + 1]
    stages = in_float64(sde.time_of_log_snr, 2 * between)
    return np.append(np.where(fraction == 0, times[number], stages), times[-1])
