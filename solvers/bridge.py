r"""Steps of the bridge's posterior, from x_t to x_s given the predicted x0 (Liu et al. 2023, I2SB).

Given its ends x0 and x_t, a Brownian bridge of diffusion g is at the time s < t

    x_s = alpha_s x0 + (sigma_s / sigma_t) (x_t - alpha_t x0) + g sqrt(s (t - s) / t) z

(arXiv:2302.05872, Proposition 3.3, with time measured by the variance). With x0 the mean given x_t,
and small steps, this is the process in reverse time. For g = 0 it is DDIM with eta = 0, flow
matching's Euler step.

As of DDPM's chain, this is the "small" variance of a step, that of a known x0. Given x_t alone, x0
varies, by about g^2 t where the data have a density. The mean of x_s then varies by (t - s)^2 / t^2
of that, and the sum is the "large" variance g^2 (t - s), that of Euler-Maruyama steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from errors import require_choice
from sampling import Plan
from sde_lib import SDE
from solvers.tables import coefficients_at, table_plan


@dataclass(frozen=True, kw_only=True)
class BridgeSteps:
    """The sampler of the module docstring.

    Args:
        variance: of the steps, "small" or "large".

    Raises:
        ValueError: for an unknown name.
    """

    variance: str = "small"

    follows_flow: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_choice("variance", self.variance, ("small", "large"))

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        at = coefficients_at(sde, times)
        ratio = at.sigma[1:] / at.sigma[:-1]
        of_x0 = at.alpha[1:] - ratio * at.alpha[:-1]
        noise = None
        if sde.diffusion:
            large = sde.diffusion * np.sqrt(-np.diff(times))
            noise = large if self.variance == "large" else sde.bridge_std(times[1:], times[:-1])
        return table_plan(times, np.stack([ratio, of_x0], axis=1), prediction="x0", noise=noise)
