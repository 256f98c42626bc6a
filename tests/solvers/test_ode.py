"""Sampling by the probability-flow ODE: latents, common steps, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian, gaussian_ode_solution

from denoising import Denoiser
from errors import IntegrationError, SamplingError
from numerics.ode import ODEOptions
from probability_flow import VARIABLES
from sde_lib import VESDE, VPSDE
from solvers.adaptive import frame_times
from solvers.ode import FlowOptions, decode, encode, interpolate, sample_ode

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "ve": VESDE()}
DATA = gaussian([0.5, -0.5], np.diag([0.3, 0.01]))
TIGHT = ODEOptions(rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ode_variable", VARIABLES)
@pytest.mark.parametrize("name", PROCESSES)
def test_frames_are_equally_spaced_in_the_variable(name, ode_variable):
    sde, (at, _) = PROCESSES[name], VARIABLES[ode_variable]
    times = frame_times(7, sde, 1e-3, at)
    assert (times[0], times[-1]) == (1, 1e-3)
    steps = np.diff(at.value(sde, jnp.asarray(times, jnp.float32)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert frame_times(1, sde, 1e-3, at).tolist() == [1.0]
    assert frame_times(0, sde, 1e-3, at).size == 0


def nan_below(t_end):
    """A Denoiser whose network predicts NaN at times up to t_end, and no noise above."""

    def network(x, t):
        return jnp.where(t[:, None] > t_end, jnp.zeros_like(x), jnp.nan)

    return Denoiser(sde=PROCESSES["vp"], network=network, conditioning="t")


@pytest.mark.slow
def test_nan_of_the_network_is_reported_with_its_time():
    message = r"probability-flow ODE: 3 of 3 samples became NaN or infinite at t=0\.5; check"
    options = FlowOptions(ode_variable="angle")
    with pytest.raises(IntegrationError, match=message):
        sample_ode(KEY, nan_below(0.5), (3, 2), options=options, ode=ODEOptions(rtol=1e-3))


@pytest.mark.slow
def test_nan_of_the_last_evaluation_is_reported():
    # Ralston's method has no evaluation at the end of a step.
    ode = ODEOptions(solver="ralston", rtol=1e-2, atol=1e-2)
    with pytest.raises(SamplingError, match=r"denoises the samples at t=0\.3, is not finite"):
        sample_ode(KEY, nan_below(0.3), (3, 2), options=FlowOptions(t_min=0.3), ode=ode)


@pytest.mark.slow
def test_too_few_steps_are_reported_with_the_time_reached():
    message = r"did not reach the end within max_steps=3 .*stopped .*t=0\.\d+.*; raise max_steps"
    ode = ODEOptions(max_steps=3)
    with pytest.raises(IntegrationError, match=message):
        sample_ode(KEY, nan_below(0.0), (3, 2), options=FlowOptions(), ode=ode)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FlowOptions(ode_variable="s"),
            "ode_variable='s' is unknown; choose one of: angle, log_snr, sqrt_angle, t",
        ),
        (
            lambda: FlowOptions(final_step="mean"),
            "final_step='mean' is unknown; choose one of: denoise, none",
        ),
        (lambda: FlowOptions(t_min=0.0), r"t_min=0\.0 must lie in \(0, 1\)"),
        (
            lambda: frame_times((0.5, 1.5), PROCESSES["vp"], 1e-3, VARIABLES["t"][0]),
            r"frames: t=1\.5 must lie between t_min=0\.001 and 1",
        ),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_latents_are_the_closed_form_and_decode_to_the_images():
    sde = PROCESSES["vp"]
    options = FlowOptions(ode_variable="angle", t_min=0.02, final_step="none")
    denoiser, x = DATA.denoiser(sde), jnp.asarray(DATA.sample(0, 6), jnp.float32)
    latents = encode(denoiser, x, options=options, ode=TIGHT)
    back = gaussian_ode_solution(DATA, sde, np.asarray(latents.x, float), 0.02)
    np.testing.assert_allclose(back, x, atol=1e-4)
    decoded = decode(denoiser, latents.x, options=options, ode=TIGHT)
    np.testing.assert_allclose(decoded.x, x, atol=1e-4)
    assert latents.nfe > 0


@pytest.mark.slow
def test_a_batch_may_take_common_steps(x64):
    """Its samples then agree with those of separate steps to within the tolerance."""
    sde, options = PROCESSES["vp"], FlowOptions(ode_variable="angle", final_step="none")
    own, common = (
        sample_ode(
            KEY,
            DATA.denoiser(sde),
            (4, 2),
            options=options,
            ode=ODEOptions(rtol=1e-6, atol=1e-6, step_size_control=control),
            frames=3,
        )
        for control in ("per_sample", "batch")
    )
    np.testing.assert_allclose(common.x, own.x, atol=1e-4)
    assert own.trajectory is not None
    assert common.trajectory is not None
    np.testing.assert_allclose(common.trajectory, own.trajectory, atol=1e-4)


@pytest.mark.slow
def test_latents_between_two_are_on_the_great_circle():
    a, b = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]])
    between = interpolate(a, b, jnp.array([0.0, 1 / 3, 1.0]))
    expected = 3 * np.array([[1, 0], [np.cos(np.pi / 6), np.sin(np.pi / 6)], [0, 1]])
    np.testing.assert_allclose(between[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(interpolate(a, a, jnp.array([0.3]))[0], a, atol=1e-6)
