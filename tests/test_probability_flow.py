"""The probability-flow ODE: in every variable against closed forms, and every call counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian

from denoising import Denoiser
from errors import IntegrationError, SamplingError
from numerics.ode import SOLVERS, ODEOptions, integrate
from probability_flow import VARIABLES
from sde_lib import VESDE, VPSDE
from solvers.adaptive import frame_times
from solvers.ode import FlowOptions, decode, encode, interpolate, sample_ode

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "ve": VESDE()}
VARIANCES = np.array([0.3, 0.01])
DATA = gaussian([0.5, -0.5], np.diag(VARIANCES))
TIGHT = ODEOptions(rtol=1e-6, atol=1e-6)
TIMES = (0.02, 1.0, 0.6)  # in any order


def flow_of_gaussian(sde, x, t):
    """Where the flow takes x from t = 1: the standardized state is the same at all times."""

    def spread(t):
        alpha, sigma = (float(a(jnp.float32(t))) for a in (sde.alpha, sde.sigma))
        return alpha * DATA.means[0], np.sqrt(alpha**2 * VARIANCES + sigma**2)

    (mean, deviation), (mean_t, deviation_t) = spread(1.0), spread(t)
    return mean_t + deviation_t * (x - mean) / deviation


@pytest.mark.parametrize(
    ("variable", "name"),
    [("t", "vp"), ("log_snr", "vp"), ("angle", "ve"), ("sqrt_angle", "vp")],
)
def test_the_same_curve_in_every_variable(variable, name):
    """In float32, whose rounding the inversion of the log-SNR must survive; frames on the way."""
    sde = PROCESSES[name]
    options = FlowOptions(variable=variable, t_min=0.02, finish="sample")
    samples = sample_ode(KEY, DATA.denoiser(sde), (4, 2), options=options, ode=TIGHT, frames=TIMES)
    np.testing.assert_array_equal(samples.times, [1.0, 0.6, 0.02])
    start = samples.trajectory[0].astype(float)
    for state, t in zip(samples.trajectory, samples.times, strict=True):
        error = state - flow_of_gaussian(sde, start, t)
        assert np.abs(error).max() < 1e-4 * max(1, np.abs(state).max()), f"at t={t}"
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("name", PROCESSES)
def test_frames_are_equally_spaced_in_the_variable(name, variable):
    sde, (at, _) = PROCESSES[name], VARIABLES[variable]
    times = frame_times(7, sde, 1e-3, at)
    assert (times[0], times[-1]) == (1, 1e-3)
    steps = np.diff(at.value(sde, jnp.asarray(times, jnp.float32)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert frame_times(1, sde, 1e-3, at).tolist() == [1.0]
    assert frame_times(0, sde, 1e-3, at).size == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_call_is_counted_when_the_first_steps_are_rejected(solver):
    """Then nothing can be taken over from the step before, and its first stage comes again."""
    calls = []

    def field(t, y, _):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return -2000.0 * jnp.exp(-500.0 * t) * y  # steep at the start alone

    solution = integrate(
        field,
        jnp.ones((1, 1)),
        None,
        t0=0.0,
        t1=1.0,
        options=ODEOptions(solver=solver, rtol=1e-3, atol=1e-3),
    )
    jax.effects_barrier()
    assert solution.success.all()
    assert calls.count(0.0) > 1, "the first step should have been rejected"
    assert int(solution.evaluations[0]) == len(calls)


def noise_until(t_end):
    """A network that answers NaN from t_end down, and no noise before."""

    def network(x, t):
        return jnp.where(t[:, None] > t_end, jnp.zeros_like(x), jnp.nan)

    return Denoiser(sde=PROCESSES["vp"], network=network, conditioning="t")


def test_nan_of_the_network_is_reported_with_its_time():
    message = r"probability-flow ODE: 3 of 3 samples became NaN or infinite at t=0\.5; check"
    options = FlowOptions(variable="angle")
    with pytest.raises(IntegrationError, match=message):
        sample_ode(KEY, noise_until(0.5), (3, 2), options=options, ode=ODEOptions(rtol=1e-3))


def test_nan_of_the_last_evaluation_is_reported():
    # Ralston's method never looks at the end of a step.
    ode = ODEOptions(solver="ralston", rtol=1e-2, atol=1e-2)
    with pytest.raises(SamplingError, match=r"denoises the samples at t=0\.3, is not finite"):
        sample_ode(KEY, noise_until(0.3), (3, 2), options=FlowOptions(t_min=0.3), ode=ode)


def test_too_few_steps_are_reported_with_the_time_reached():
    message = r"did not reach the end within max_steps=3 .*stopped .*t=0\.\d+.*; raise max_steps"
    ode = ODEOptions(max_steps=3)
    with pytest.raises(IntegrationError, match=message):
        sample_ode(KEY, noise_until(0.0), (3, 2), options=FlowOptions(), ode=ode)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FlowOptions(variable="s"),
            "variable='s' is unknown; choose one of: angle, log_snr, sqrt_angle, t",
        ),
        (lambda: FlowOptions(finish="mean"), "finish='mean' is not defined for the ode sampler"),
        (lambda: FlowOptions(t_min=0.0), r"t_min=0\.0 must lie between 0 and 1"),
        (lambda: ODEOptions(solver="kvaerno5"), "solver='kvaerno5' is unknown; choose one of: bos"),
        (
            lambda: frame_times((0.5, 1.5), PROCESSES["vp"], 1e-3, VARIABLES["t"][0]),
            r"frames: t=1\.5 lies outside the sampler's way from 1 to 0\.001",
        ),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_codes_are_where_the_closed_form_says_and_lead_back():
    sde = PROCESSES["vp"]
    options = FlowOptions(variable="angle", t_min=0.02, finish="sample")
    denoiser, x = DATA.denoiser(sde), jnp.asarray(DATA.sample(0, 6), jnp.float32)
    codes = encode(denoiser, x, options=options, ode=TIGHT)
    back = flow_of_gaussian(sde, np.asarray(codes.x, float), 0.02)
    np.testing.assert_allclose(back, x, atol=1e-4)
    decoded = decode(denoiser, codes.x, options=options, ode=TIGHT)
    np.testing.assert_allclose(decoded.x, x, atol=1e-4)
    assert codes.nfe > 0


def test_a_batch_may_take_common_steps():
    """Then its samples agree with their own ways to the tolerance, and cost alike."""
    sde, options = PROCESSES["vp"], FlowOptions(variable="angle", finish="sample")
    own, common = (
        sample_ode(
            KEY,
            DATA.denoiser(sde),
            (4, 2),
            options=options,
            ode=ODEOptions(rtol=1e-6, atol=1e-6, control=control),
            frames=3,
        )
        for control in ("per_sample", "batch")
    )
    np.testing.assert_allclose(common.x, own.x, atol=1e-4)
    np.testing.assert_allclose(common.trajectory, own.trajectory, atol=1e-4)


def test_codes_between_two_are_on_the_great_circle():
    a, b = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]])
    between = interpolate(a, b, jnp.array([0.0, 1 / 3, 1.0]))
    expected = 3 * np.array([[1, 0], [np.cos(np.pi / 6), np.sin(np.pi / 6)], [0, 1]])
    np.testing.assert_allclose(between[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(interpolate(a, a, jnp.array([0.3]))[0], a, atol=1e-6)
