"""The probability-flow ODE in every variable, against the closed form for a Gaussian."""

import jax
import numpy as np
import pytest
from analytic import gaussian, gaussian_ode_solution

from numerics.ode import ODEOptions
from sde_lib import VESDE, VPSDE
from solvers.ode import FlowOptions, sample_ode

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "ve": VESDE()}
DATA = gaussian([0.5, -0.5], np.diag([0.3, 0.01]))
TIGHT = ODEOptions(rtol=1e-6, atol=1e-6)
TIMES = (0.02, 1.0, 0.6)  # in any order


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ode_variable", "name"),
    [("t", "vp"), ("log_snr", "vp"), ("angle", "ve"), ("sqrt_angle", "vp")],
)
def test_the_curve_is_the_same_in_every_variable(ode_variable, name):
    """States at intermediate times too, in float32, which rounds the inverse of the log-SNR."""
    sde = PROCESSES[name]
    options = FlowOptions(ode_variable=ode_variable, t_min=0.02, final_step="none")
    samples = sample_ode(KEY, DATA.denoiser(sde), (4, 2), options=options, ode=TIGHT, frames=TIMES)
    np.testing.assert_array_equal(samples.times, [1.0, 0.6, 0.02])
    assert samples.trajectory is not None
    assert samples.times is not None
    start = samples.trajectory[0].astype(float)
    for state, t in zip(samples.trajectory, samples.times, strict=True):
        error = state - gaussian_ode_solution(DATA, sde, start, t)
        assert np.abs(error).max() < 1e-4 * max(1, np.abs(state).max()), f"at t={t}"
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
