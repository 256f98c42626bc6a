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


def test_the_large_variance_is_that_of_brownian_motion_and_exact_for_a_gaussian():
    """Of data N(0, 1) under a Brownian motion, x0 given x_t has the mean x / (1 + g^2 t).

    That is a pair of the reference process. Its reverse keeps the variance 1 + g^2 t.
    """
    g, times = 0.7, np.linspace(1, 0.01, 100)
    found = {}
    for variance in ("small", "large"):
        sde = LinearPathSDE(diffusion=g, alpha_min=1e-9)
        plan = BridgeSteps(variance=variance).plan(sde, times)
        of_x, of_x0 = plan.steps.weights.T
        total = 1 + g**2
        for t, ratio, share, noise in zip(times, of_x, of_x0, plan.steps.noise, strict=False):
            total = (ratio + share / (1 + g**2 * t)) ** 2 * total + noise**2
        found[variance] = total / (1 + g**2 * times[-1])
        if variance == "large":
            np.testing.assert_allclose(plan.steps.noise**2, -(g**2) * np.diff(times))
    assert abs(found["large"] - 1) < 0.003
    assert abs(found["small"] - 1) > 3 * abs(found["large"] - 1)
    with pytest.raises(ValueError, match=r"variance='medium' is unknown; choose one of: large"):
        BridgeSteps(variance="medium")
