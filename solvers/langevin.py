r"""Langevin dynamics at one noise level, for energy-like scores and for teaching.

    x  <-  x + h score(x, t) + sqrt(2 h) z,    h = step_size sigma(t)^2

(Song & Ermon 2019, arXiv:1907.05600, Eq. 4, with their step alpha = 2 h). Steps are not accepted or
rejected, so the stationary distribution is a little wider than p_t: for p_t = N(0, V) it is
N(0, V / (1 - h / 2 V)). The chain forgets its start after V / h steps, which is slow for data much
wider than the noise. Annealed Langevin dynamics is in `solvers/predictor_corrector.py`.
"""

from dataclasses import dataclass

import numpy as np

from errors import require_in
from sampling import Plan
from sde_lib import SDE
from solvers.tables import coefficients_at, table_plan


@dataclass(frozen=True, kw_only=True)
class LangevinDynamics:
    """Langevin steps at the noise level of the grid's last time, one per step of the grid.

    Args:
        step_size: h in units of sigma(t)^2, below 2, where the chain diverges for data without
            variance.

    Raises:
        ValueError: for a step size outside (0, 2).
    """

    step_size: float = 0.1

    def __post_init__(self) -> None:
        require_in("step_size", self.step_size, "(0, 2)")

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        coefficients = coefficients_at(sde, np.full_like(times, times[-1]))
        sigma = coefficients.sigma[:-1]
        # score = -eps / sigma
        weights = np.stack([np.ones_like(sigma), -self.step_size * sigma], axis=1)
        noise = np.sqrt(2 * self.step_size) * sigma
        return table_plan(coefficients.t, weights, prediction="eps", noise=noise)
