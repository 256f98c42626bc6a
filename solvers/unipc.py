r"""UniPC: a predictor and a corrector with one evaluation per step (Zhao et al. 2023).

With the exact solution of `solvers/exponential.py` and p the predicted eps or x0, a step from t_i-1
to t_i is (arXiv:2302.04867, Algorithms 2 and 1)

    UniP-k    x~_i = scale x_i-1 + gain int exp(.) P dtau,  P through p_i-1, ..., p_i-k
    UniC-k    x_i  = scale x_i-1 + gain int exp(.) C dtau,  C through p_i, p_i-1, ..., p_i-k

where p_i is the prediction at x~_i. The predictor of the next step uses it again, so a step costs
one evaluation, and the corrector raises the order to k + 1. No corrector follows the last step.

Integrating that polynomial solves the paper's linear system for the weights of the differences
(Theorem 3.1), whatever the function B(h). B(h) matters only for a line through two points, in
UniP-2 and UniC-1, where the paper takes the weight 1/2: B = h ("bh1") or expm1 of it ("bh2").
"""

from dataclasses import dataclass

import numpy as np

from errors import require_choice
from sampling import Plan
from sde_lib import SDE
from solvers.exponential import (
    PREDICTIONS,
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
        order: k, 1 to 4; the first steps have orders 1, 2, ...
        variant: B(h), "bh1" or "bh2"; from order 3 on they differ at the two ends only.
        prediction: the prediction that the polynomial replaces, "x0" or "eps".
        lower_order_final: lower the order by one per step at the end, down to 1, as in DPMSolver.

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

    follows_flow = True  # the probability-flow ODE, without fresh noise

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        steps = len(times) - 1
        orders = step_orders(steps, self.order, rising=True, falling=self.lower_order_final)
        coefficients = coefficients_at(sde, times)
        # A step starts at x~_i with p_i, p_i-1, ..., corrects to x_i, and predicts x~_i+1.
        x, *predictions = unit_coefficients(self.order + 1)
        weights = [self._step(coefficients, 0, 0, x, predictions[: orders[0]])]
        for i in range(1, steps):
            order = orders[i - 1]
            predicted = self._step(coefficients, i - 1, i - 1, x, predictions[1 : order + 1])
            corrected = self._step(coefficients, i - 1, i, x, predictions[: order + 1])
            following = self._step(coefficients, i, i, corrected, predictions[: orders[i]])
            weights.append(in_terms_of(following, predicted))
        return table_plan(times, np.stack(weights), prediction=self.prediction)

    def _step(
        self,
        coefficients: Coefficients,
        start: int,
        newest: int,
        x: LinearCombination,
        predictions: list[LinearCombination],
    ) -> LinearCombination:
        """Step from x at t_start to the next time, by predictions at t_newest, t_newest-1, ..."""
        step = exponential_step(coefficients.at(start), coefficients.at(start + 1), self.prediction)
        half_log_snr = coefficients.half_log_snr[newest + 1 - len(predictions) : newest + 1][::-1]
        b = step.gain * step.h if self.variant == "bh1" else step.constant_weight
        return step.scale * x + polynomial_integral(
            step, half_log_snr, predictions, b, start=newest - start
        )
