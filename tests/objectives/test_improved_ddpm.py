"""Losses and loss-aware timesteps of the original improved DDPM on the same numbers.

tests/fixtures/improved_ddpm_losses.npz has what openai/improved-diffusion computed in double
precision, for random images, noises and outputs of a network (NHWC). Of the cosine chain of 20
timesteps these are all, of the linear one of 1000 a dozen:

    vlb, hybrid             `training_losses` of LossType.RESCALED_KL and RESCALED_MSE, with
                            learned_range variances
    vlb_gradient, ...       their gradients with respect to the output
    vlb_exact, ...          those of timestep 0 with the normal distribution function in place of
                            its approximation by a hyperbolic tangent
    resampler_...           timesteps and losses of 50 batches, and the probabilities of 8 timesteps
                            after each, of `LossSecondMomentResampler`

Its tables were kept in double precision; they are rounded there.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import quick_jit

from denoising import Denoiser
from losses import Hybrid, Noise, VariationalBound
from numerics.pixel_levels import PixelLevels
from objectives.times import LossAware, Timesteps
from sde_lib import DiscreteVPSDE
from training.objective import FIRST

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "improved_ddpm_losses.npz")
OBJECTIVES = {"vlb": VariationalBound, "hybrid": Hybrid}


@pytest.mark.slow
@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_losses_and_their_gradients_are_the_original_ones(x64, schedule, loss):
    """Except for L_0, which the original approximates: there they are those without that."""
    given = {
        name.removeprefix(f"{schedule}_"): FIXTURE[name]
        for name in FIXTURE
        if name.startswith(schedule)
    }
    count, index = int(given["num_timesteps"]), given["index"]
    sde = DiscreteVPSDE(schedule=schedule, num_timesteps=count)
    objective = OBJECTIVES[loss](
        times=Timesteps(num_timesteps=count), sde=sde, pixel_levels=PixelLevels(gray_levels=256)
    )
    x0 = jnp.asarray(given["levels"] / 127.5 - 1)
    drawn = Noise(jnp.asarray(index / (count - 1)), jnp.asarray(given["eps"]))

    def values(output):
        denoiser = Denoiser(
            sde=sde,
            network=lambda x, t: output,
            parameterization="eps_learned_variance",
            conditioning="timestep",
            num_timesteps=count,
        )
        found = objective.evaluate(jax.random.key(0), drawn, denoiser, x0, FIRST)
        return jnp.sum(found), found

    gradient, found = quick_jit(jax.grad(values, has_aux=True))(jnp.asarray(given["output"]))
    for ours, name in ((found, loss), (gradient, f"{loss}_gradient")):
        exact = name.replace(loss, f"{loss}_exact")
        np.testing.assert_allclose(ours[1:], given[name][1:], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(ours[0], given[exact], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found[0], given[loss][0], rtol=1e-3)


def test_probabilities_of_loss_aware_timesteps_are_the_original_ones(x64):
    timesteps, losses, recorded = (
        FIXTURE[f"resampler_{name}"] for name in ("timesteps", "losses", "probabilities")
    )
    times = LossAware(num_timesteps=8)
    state, update = times.init_state(), jax.jit(times.updated)
    for drawn, values, expected in zip(timesteps, losses, recorded, strict=True):
        state = update(state, jnp.asarray(drawn / 7), jnp.asarray(values))
        np.testing.assert_allclose(times.probabilities(state), expected, rtol=1e-12)
    assert len(np.unique(recorded[-1])) == 8
