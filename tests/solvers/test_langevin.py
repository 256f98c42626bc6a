"""Langevin dynamics at one noise level against its law on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian

from numerics.arrays import fold_in_each, normal_like, sample_keys
from sampling import run, sample
from sde_lib import VESDE, VPSDE
from solvers.langevin import LangevinDynamics
from time_grids import Schedule

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "ve": VESDE(sigma_min=0.1, sigma_max=2.0)}
VARIANCES = np.array([0.04, 0.01])
DATA = gaussian([0.5, -0.5], np.diag(VARIANCES))
T_MIN = 0.3


def level(sde):
    """alpha m, V and sigma of p_t at T_MIN."""
    t = jnp.asarray(T_MIN, float)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    return alpha * DATA.means[0], alpha**2 * VARIANCES + sigma**2, sigma


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_step_is_the_affine_map_of_the_gaussian(x64, name):
    sde = PROCESSES[name]
    mean, variance, sigma = level(sde)
    h = 0.2 * sigma**2
    keys = sample_keys(KEY, jnp.arange(5))
    x = jnp.asarray(DATA.sample(0, 5))
    plan = LangevinDynamics(step_size=0.2).plan(sde, np.linspace(1, T_MIN, 4))
    ours = run(keys, DATA.denoiser(sde), x, plan)
    assert (ours.nfe, plan.evaluations) == (3, 3)
    for number in range(3):
        z = normal_like(fold_in_each(keys, 1 + number), jnp.asarray(x))
        x = mean + (1 - h / variance) * (np.asarray(x) - mean) + np.sqrt(2 * h) * np.asarray(z)
    np.testing.assert_allclose(ours.x, x, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_chain_settles_in_its_own_stationary_law():
    """4000 chains: the variance solves S = (1 - h / V)^2 S + 2 h, not that of p_t."""
    sde = PROCESSES["ve"]
    mean, variance, sigma = level(sde)
    schedule = Schedule(steps=100, t_min=T_MIN, final_step="none")
    solver = LangevinDynamics(step_size=0.5)
    x = sample(KEY, DATA.denoiser(sde), (4000, 2), solver=solver, schedule=schedule).x
    h = 0.5 * sigma**2
    stationary = variance / (1 - h / (2 * variance))
    assert np.all(np.abs(np.mean(x, axis=0) - mean) < 4.5 * np.sqrt(stationary / 4000))
    ratio = np.var(np.asarray(x, float), axis=0) / stationary
    assert np.all(np.abs(ratio - 1) < 4.5 * np.sqrt(2 / 4000)), ratio
    assert np.all(stationary / variance - 1 > 5 * np.sqrt(2 / 4000)), "h is too small to tell"


@pytest.mark.parametrize("step_size", [0.0, 2.0, float("nan")])
def test_step_size_out_of_range_is_refused(step_size):
    with pytest.raises(ValueError, match=r"step_size=\S+ must lie in \(0, 2\)"):
        LangevinDynamics(step_size=step_size)
