"""Sampling of consistency models, with the exact function of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from denoising import Denoiser
from sampling import sample
from sde_lib import EDMSDE, VPSDE, SubVPSDE
from solvers.consistency import ConsistencySampler
from time_grids import Schedule

SPREAD, SIGMA_MIN = 0.8, 0.01


def exact_model(sde):
    """f = y sqrt(c^2 + sigma_min^2) / sqrt(c^2 + s^2), with y = x / alpha and s = sigma / alpha."""

    def network(shown, t):
        s = jnp.exp(-sde.log_snr(t) / 2)[:, None]
        y = shown * jnp.sqrt(s**2 + 0.25)
        x0 = y * jnp.sqrt((SPREAD**2 + SIGMA_MIN**2) / (SPREAD**2 + s**2))
        r = s - SIGMA_MIN
        skip, out = 0.25 / (r**2 + 0.25), r * 0.5 / jnp.sqrt(s**2 + 0.25)
        return (x0 - skip * y) / out

    return Denoiser(
        sde=sde,
        network=network,
        parameterization="consistency",
        conditioning="t",
        sigma_min=SIGMA_MIN,
    )


def drawn(sde, steps, shape=(20_000, 1), indices=None, **fields):
    schedule = Schedule(grid="log_snr", final_step="mean", **fields)
    return sample(
        jax.random.key(0),
        exact_model(sde),
        shape,
        solver=ConsistencySampler(),
        schedule=schedule,
        steps=steps,
        indices=indices,
    )


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), EDMSDE()])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.slow
def test_samples_follow_the_data_in_any_number_of_steps(sde, steps):
    samples = drawn(sde, steps)
    assert samples.nfe == steps
    x = np.asarray(samples.x, np.float64)
    # Data and the noise sigma_min, of a variance that is known to 1% (one standard error).
    assert abs(x.mean()) < 4 * SPREAD / np.sqrt(x.size)
    assert x.var() == pytest.approx(SPREAD**2 + SIGMA_MIN**2, rel=4 * np.sqrt(2 / x.size) + 2e-4)


@pytest.mark.slow
def test_noise_is_added_anew_between_steps():
    """With one step samples are a function of the prior; each later step forgets it."""
    sde, keys = VPSDE(), jax.random.key(0)
    one, two = (np.asarray(drawn(sde, steps).x)[:, 0] for steps in (1, 2))
    assert np.corrcoef(one, two)[0, 1] < 0.9
    assert keys is not None


@pytest.mark.slow
def test_sample_k_depends_on_its_index_alone():
    whole = drawn(VPSDE(), 3, (6, 2)).x
    part = drawn(VPSDE(), 3, (2, 2), indices=jnp.array([4, 1])).x
    np.testing.assert_array_equal(part, whole[jnp.array([4, 1])])


@pytest.mark.slow
def test_last_prediction_is_the_sample():
    """The end of the grid has no part in one step."""
    np.testing.assert_array_equal(
        drawn(VPSDE(), 1, (6, 2), t_min=1e-3).x, drawn(VPSDE(), 1, (6, 2), t_min=0.3).x
    )


def test_final_step_that_has_nothing_to_denoise_is_refused():
    with pytest.raises(ValueError, match="final_step='denoise' has nothing to remove"):
        sample(
            jax.random.key(0),
            exact_model(VPSDE()),
            (2, 2),
            solver=ConsistencySampler(),
            schedule=Schedule(final_step="denoise"),
            steps=2,
        )


def test_network_that_is_no_consistency_model_is_refused():
    denoiser = Denoiser(sde=VPSDE(), network=lambda x, t: x)
    with pytest.raises(ValueError, match=r"needs a consistency model.*not 'eps'; choose another"):
        sample(
            jax.random.key(0),
            denoiser,
            (2, 2),
            solver=ConsistencySampler(),
            schedule=Schedule(final_step="mean"),
            steps=2,
        )
