r"""Langevin dynamics at one noise level, for energy-like scores and for teaching.

    x  <-  x + h score(x, t) + sqrt(2 h) z,    h = step_size sigma(t)^2

(Song & Ermon 2019, arXiv:1907.05600, Eq. 4, with their step alpha = 2 h). There is no adjustment by
accepting and rejecting, so its law is a little wider than p_t: where that is N(0, V), the chain's
is N(0, V / (1 - h / 2 V)). It forgets where it started after V / h steps, which is slow for data
much wider than the noise; annealing is a matter of `solvers.predictor_corrector`.
"""

from dataclasses import dataclass

import numpy as np

from sampling import Plan
from sde_lib import SDE
from solvers.tables import coefficients_at, table_plan


@dataclass(frozen=True, kw_only=True)
class LangevinDynamics:
    """As many Langevin steps as the grid has, all at the noise level of its last time.

    Args:
      step_size: h in units of sigma(t)^2, below 2, where data without variance of their own would
        be thrown ever farther.
    """

    step_size: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.step_size < 2:
            raise ValueError(f"step_size={self.step_size} must lie between 0 and 2")

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        level = coefficients_at(sde, np.full_like(times, times[-1]))
        sigma = level.sigma[:-1]
        # score = -eps / sigma
        weights = np.stack([np.ones_like(sigma), -self.step_size * sigma], axis=1)
        noise = np.sqrt(2 * self.step_size) * sigma
        return table_plan(level.t, weights, prediction="eps", noise=noise)
