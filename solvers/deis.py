r"""DEIS: exponential Adams-Bashforth steps (Zhang & Chen 2022, arXiv:2204.13902), tAB-DEIS.

With the exact solution of `solvers/exponential.py`, their Proposition 1 written in lambda,

    x_s = alpha_s / alpha_t x_t - sigma_s int exp(h - tau) P(t(lam_t + tau)) dtau

where P is the polynomial in the time t through the latest predictions of eps (Eq. 14 and 15). A
polynomial in lambda would give DPM-Solver's multistep. The integrals have no closed form; they are
Gauss-Legendre sums in lambda, where the integrand is smooth at both ends of time.
"""

from dataclasses import dataclass

import numpy as np

from errors import require_choice
from numerics.arrays import in_float64
from sampling import Plan
from sde_lib import SDE
from solvers.exponential import FRACTIONS, exponential_step, step_orders
from solvers.tables import coefficients_at, table_plan, unit_coefficients

ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class DEIS:
    """tAB-DEIS with the latest `order` predictions, 1 to 4: the paper's tAB0 (DDIM) to tAB3.

    The first steps have orders 1, 2, ...

    Raises:
        ValueError: for an unknown order, and for fewer steps than that.
    """

    order: int = 3

    def __post_init__(self) -> None:
        require_choice("order", self.order, ORDERS)

    follows_flow = True  # the probability-flow ODE, without fresh noise

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        orders = step_orders(len(times) - 1, self.order, rising=True, falling=False)
        coefficients = coefficients_at(sde, times)
        half_log_snr = coefficients.half_log_snr[:, None]
        inside = half_log_snr[:-1] + np.diff(half_log_snr, axis=0) * FRACTIONS
        inside = in_float64(sde.time_of_log_snr, 2 * inside)
        x, *predictions = unit_coefficients(self.order)
        weights = []
        for i, order in enumerate(orders):
            step = exponential_step(coefficients.at(i), coefficients.at(i + 1), "eps")
            latest = times[i - order + 1 : i + 1][::-1]
            integral = step.weights(latest, inside[i]) @ np.stack(predictions[:order])
            weights.append(step.scale * x + integral)
        return table_plan(times, np.stack(weights), prediction="eps")
