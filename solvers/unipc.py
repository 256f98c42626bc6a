r"""UniPC: a predictor and a corrector, one evaluation a step (Zhao et al. 2023, arXiv:2302.04867).

From t_i-1 to t_i, with the exact solution of `exponential.py` and p the predicted eps or x0:

    UniP-k    x~_i = scale x_i-1 + gain int exp(.) P dtau,  P through p_i-1, ..., p_i-k
    UniC-k    x_i  = scale x_i-1 + gain int exp(.) C dtau,  C through p_i, p_i-1, ..., p_i-k

(Algorithms 2 and 1), where p_i is the prediction at x~_i, which the next step's predictor uses
again. So a step costs one evaluation, and the corrector raises the order to k + 1. No corrector
follows the last step.

Solving the paper's linear system for the weights of the differences (Theorem 3.1) is integrating
that polynomial, whatever the function B(h). B(h) counts only where two points make a line, UniP-2
and UniC-1, for which the paper takes the weight 1/2: B = h ("bh1") or expm1 of it ("bh2").
"""

from dataclasses import dataclass

import numpy as np

from errors import require_choice
from sampling import Plan
from sde_lib import SDE
from solvers.exponential import (
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
    in_terms_of,
    table_plan,
    unit_coefficients,
)

ORDERS = (1, 2, 3, 4)
VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True, kw_only=True)
class UniPC:
    """The predictor UniP and the corrector UniC, both of order k, together of order k + 1.

    Args:
      order: k, 1 to 4; the first steps are of orders 1, 2, ...
      variant: B(h), "bh1" or "bh2"; from order 3 on they differ at the two ends alone.
      prediction: what is taken for a polynomial, "x0" or "eps".
      lower_order_final: in the end orders fall by one a step, down to 1; as in DPMSolver.

    Raises:
      ValueError: for an unknown name or order, and for fewer steps than the order.
    """

    order: int = 3
    variant: str = "bh2"
    prediction: str = "x0"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        require_choice("order", self.order, ORDERS)
        require_choice("variant", self.variant, VARIANTS)
        require_choice("prediction", self.prediction, PREDICTIONS)

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        steps = len(times) - 1
        orders = step_orders(steps, self.order, rising=True, falling=self.lower_order_final)
        level = coefficients_at(sde, times)
        # A row starts at x~_i with p_i, p_i-1, ... at hand, corrects to x_i, and predicts x~_i+1.
        x, *predictions = unit_coefficients(self.order + 1)
        weights = [self._predicted(level, 0, orders[0], x, predictions)]
        for i in range(1, steps):
            predicted = self._predicted(level, i - 1, orders[i - 1], x, predictions[1:])
            corrected = self._corrected(level, i, orders[i - 1], x, predictions)
            following = self._predicted(level, i, orders[i], corrected, predictions)
            weights.append(in_terms_of(following, predicted))
        return table_plan(times, np.stack(weights), prediction=self.prediction)

    def _predicted(
        self,
        level: Coefficients,
        i: int,
        order: int,
        x: LinearCombination,
        predictions: list[LinearCombination],
    ) -> LinearCombination:
        """UniP from x at t_i to t_i+1, by the predictions at t_i, t_i-1, ..."""
        step = exponential_step(level, i, i + 1, self.prediction)
        half_log_snr = level.half_log_snr[i - order + 1 : i + 1][::-1]
        return step.scale * x + polynomial_integral(
            step, half_log_snr, predictions[:order], self._b(step)
        )

    def _corrected(
        self,
        level: Coefficients,
        i: int,
        order: int,
        x: LinearCombination,
        predictions: list[LinearCombination],
    ) -> LinearCombination:
        """UniC from x at t_i-1 to t_i, by the predictions at t_i, t_i-1, ..."""
        step = exponential_step(level, i - 1, i, self.prediction)
        half_log_snr = level.half_log_snr[i - order : i + 1][::-1]
        return step.scale * x + polynomial_integral(
            step, half_log_snr, predictions[: order + 1], self._b(step), start=1
        )

    def _b(self, step: ExponentialStep) -> float:
        return step.gain * step.h if self.variant == "bh1" else step.constant_weight
