"""Steps of a bridge's posterior: DDIM without noise, and the exact Brownian bridge with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from denoising import Denoiser
from sampling import sample
from sde_lib import LinearPathSDE
from solvers.bridge import BridgeSteps
from solvers.ddim import DDIM
from time_grids import Schedule

TIMES = np.linspace(1, 1e-3, 9)


@pytest.mark.slow
def test_without_diffusion_it_is_ddim():
    with jax.enable_x64(True):
        sde, x1 = LinearPathSDE(), jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
        denoiser = Denoiser(
            sde=sde, network=lambda x, t: jnp.sin(x), parameterization="x0", conditioning="t"
        )
        found = [
            sample(
                jax.random.key(0),
                denoiser,
                x1.shape,
                solver=solver,
                schedule=Schedule(times=tuple(TIMES.tolist()), final_step="none"),
                initial=x1,
            ).x
            for solver in (BridgeSteps(), DDIM())
        ]
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_with_known_x0_every_state_is_that_of_the_brownian_bridge():
    """Propagate mean and variance through the steps of the plan."""
    g, x0, x1 = 0.7, -2.0, 3.0
    plan = BridgeSteps().plan(LinearPathSDE(diffusion=g, alpha_min=1e-9), TIMES)
    mean, variance = x1, 0.0
    for s, (of_x, of_x0), noise in zip(
        TIMES[1:], plan.steps.weights, plan.steps.noise, strict=True
    ):
        mean, variance = of_x * mean + of_x0 * x0, of_x**2 * variance + noise**2
        assert mean == pytest.approx((1 - s) * x0 + s * x1, rel=1e-6)
        assert variance == pytest.approx(g**2 * s * (1 - s), rel=1e-6)
