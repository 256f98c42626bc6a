r"""Sampling of consistency models: predict x0, add noise again, and repeat.

    x0 = f(x_t, t),    x_u = alpha_u (x0 + sqrt(s_u^2 - sigma_min^2) z),    s = sigma / alpha

from each time t to the next time u (Song et al. 2023, arXiv:2303.01469, Algorithm 1). A prediction
has the noise sigma_min, so the variances add up to s_u^2. The last prediction is the sample. n
steps are n evaluations, and one step is enough.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from denoising import Denoiser
from numerics.arrays import Batch, normal_like
from numerics.parameterizations import PARAMETERIZATIONS
from sampling import Keys, Plan, Project, Step
from sde_lib import SDE


class Jump(NamedTuple):
    """One step: the time of its evaluation, the next time, and whether noise is added there."""

    t: Any
    end: Any
    noisy: Any


@dataclass(frozen=True)
class ConsistencyStep:
    """The step function: one evaluation, then fresh noise."""

    evaluations = 1

    def start(self, x: Batch) -> Step:
        return Step(x, x)

    def step(
        self, keys: Keys, denoiser: Denoiser, state: Step, step: Jump, project: Project
    ) -> Step:
        require_consistency(denoiser)
        x0 = denoiser.predict(state.x, step.t).x0
        level = jnp.exp(-denoiser.sde.log_snr(step.end) / 2)
        noise = jnp.sqrt(jnp.maximum(level**2 - denoiser.sigma_min**2, 0))
        noisy = denoiser.sde.alpha(step.end) * (x0 + noise * normal_like(keys, x0))
        return Step(jnp.where(step.noisy > 0, noisy, x0), x0)


@dataclass(frozen=True, kw_only=True)
class ConsistencySampler:
    """Multistep sampling of a consistency model; it has no fields of its own."""

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        noisy = np.ones(len(times) - 1)
        noisy[-1] = 0
        steps = Jump(times[:-1], times[1:], noisy)
        return Plan(ConsistencyStep(), steps, times, denoise=None)


def require_consistency(denoiser: Denoiser) -> None:
    """Raise ValueError unless the network is a consistency model."""
    if PARAMETERIZATIONS[denoiser.parameterization].predicts_mean:
        raise ValueError(
            "the consistency sampler needs a consistency model, with parameterization='consistency'"
            f", not {denoiser.parameterization!r}; choose another solver, such as ddim"
        )
