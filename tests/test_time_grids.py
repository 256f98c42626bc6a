"""Time grids: where they lie, and which are refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from denoising import CONDITIONINGS
from sde_lib import EDMSDE, VESDE, VPSDE, DiscreteVESDE, DiscreteVPSDE, SubVPSDE
from time_grids import TIME_GRIDS, Schedule, respaced_timesteps

PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=20.0)}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
T_MIN = 1e-3


@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("grid", TIME_GRIDS)
@every_process
def test_grid_descends_from_one_to_t_min(sde, grid, steps):
    schedule = Schedule(grid=grid, steps=steps, t_min=T_MIN)
    times = schedule.of(sde)
    assert times.shape == (steps + 1,)
    assert schedule.count(sde) == steps
    assert times.dtype == np.float64
    assert np.all(np.diff(times) < 0)
    np.testing.assert_allclose(times[[0, -1]], [1, T_MIN], rtol=1e-9)


@pytest.mark.parametrize(
    ("grid", "even"),
    [
        ("uniform", lambda sde, t: t),
        ("quadratic", lambda sde, t: np.sqrt(t)),
        ("log_snr", lambda sde, t: np.asarray(sde.log_snr(jnp.asarray(t)))),
        ("karras", lambda sde, t: np.exp(np.asarray(sde.log_snr(jnp.asarray(t))) / -14)),
    ],
)
@every_process
def test_grid_is_even_in_its_variable(x64, sde, grid, even):
    gaps = np.diff(even(sde, Schedule(grid=grid, steps=50, t_min=T_MIN).of(sde)))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


def levels(sde, **fields):
    """The noise levels sigma / alpha of a schedule."""
    times = Schedule(**fields).of(sde)
    return np.exp(-np.asarray(sde.log_snr(jnp.asarray(times))) / 2)


@pytest.mark.parametrize("rho", [1.0, 3.0])
@every_process
def test_polyexponential_is_a_power_in_log_sigma(x64, sde, rho):
    found = levels(sde, grid="polyexponential", steps=9, t_min=T_MIN, rho=rho)
    ramp = np.linspace(1, 0, 10) ** rho
    expected = np.exp(ramp * np.log(found[0] / found[-1]) + np.log(found[-1]))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@every_process
def test_vp_time_is_uniform_in_the_time_of_a_vp_process(x64, sde):
    """The betas from the two equations of EDM's Table 1 for the ends."""
    found = levels(sde, grid="vp_time", steps=9, t_min=T_MIN)
    t = np.linspace(1, 1e-3, 10)
    ends = np.log1p(found[[0, -1]] ** 2)
    slope, start = np.linalg.solve(np.stack([t[[0, -1]] ** 2 / 2, t[[0, -1]]], axis=1), ends)
    np.testing.assert_allclose(found**2, np.expm1(slope * t**2 / 2 + start * t), rtol=1e-6)


def test_vp_time_of_a_vp_process_is_its_own():
    found = Schedule(grid="vp_time", steps=9, t_min=1e-3).of(VPSDE())
    np.testing.assert_allclose(found, np.linspace(1, 1e-3, 10), rtol=1e-9)


def iddpm_levels():
    """u_j of EDM's Table 1 by its recursion, with C_1 = 0.001, C_2 = 0.008 and M = 1000."""

    def alpha_bar(j):
        return np.sin(np.pi / 2 * j / (1000 * 1.008)) ** 2

    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        ratio = max(alpha_bar(j - 1) / alpha_bar(j), 0.001)
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / ratio - 1)
    return u


@pytest.mark.parametrize("steps", [7, 17, 100])
def test_iddpm_grid_is_rounded_to_the_chain(x64, steps):
    u = iddpm_levels()
    u = u[(u >= 0.002) & (u <= 81)]
    found = levels(EDMSDE(sigma_max=u[0]), grid="iddpm", steps=steps, t_min=u[-1] / u[0])
    expected = u[np.rint((len(u) - 1) / steps * np.arange(steps + 1)).astype(int)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Schedule(grid="no"),
            "grid='no' is unknown; choose one of: iddpm, karras, log_snr, polyexponential",
        ),
        (
            lambda: Schedule(final_step="no"),
            "final_step='no' is unknown; choose one of: denoise, mean, none",
        ),
        (lambda: Schedule(steps=0), "steps=0 must lie in"),
        (lambda: Schedule(t_min=1.0), "t_min=1.0 must lie in (0, 1)"),
        (lambda: Schedule(t_min=0.0), "t_min=0.0 must lie in (0, 1)"),
        (
            lambda: Schedule(rho=7.0),
            "rho=7.0 is used with grid='karras' or 'polyexponential', not with 'uniform'",
        ),
        (
            lambda: Schedule(grid="vp_time", t_min=0.9).of(VPSDE()),
            "vp_time fits no VP process to noise levels sigma/alpha from 152.2 to 58.83",
        ),
        (lambda: Schedule(times=(1.0,)), "give at least two, from 1 to the final time"),
        (lambda: Schedule(times=(0.9, 0.1)), "the first must be 1, where the prior is"),
        (lambda: Schedule(times=(1.0, 0.1, 0.2)), "0.2 follows 0.1; they must strictly decrease"),
        (lambda: Schedule(times=(1.0, 0.5, 0.5)), "0.5 follows 0.5; they must strictly decrease"),
        (lambda: Schedule(times=(1.0, -0.5)), "the last must not be below 0"),
        (lambda: Schedule(times=(1.0, float("nan"))), "nan follows 1.0"),
        (lambda: Schedule(times=(1.0, 0.1), grid="karras"), "grid='karras' has no meaning"),
        (lambda: Schedule(times=(1.0, 0.0)).of(VPSDE()), "times end at t = 0, where this process"),
        (lambda: Schedule(times=(1.0, 0.1), steps=5).of(VPSDE()), "steps=5, but the grid has 1"),
        (
            lambda: Schedule(grid="ddim50").of(VPSDE()),
            "respaces a chain, but this process has no timesteps",
        ),
        (
            lambda: Schedule(grid="ddim300").of(DiscreteVPSDE()),
            "no integer stride keeps 300 of 1000",
        ),
        (lambda: Schedule(grid="ddim0").of(DiscreteVPSDE()), "has 1000 timesteps, keep 2 or more"),
        (lambda: Schedule(grid="1").of(DiscreteVPSDE()), "keeps one timestep; keep at least two"),
        (
            lambda: Schedule(grid="0,5").of(DiscreteVPSDE()),
            "section 1 has 500 timesteps, cannot keep 0",
        ),
        (lambda: Schedule(grid="2,600").of(DiscreteVPSDE()), "section 2 has 500 timesteps"),
    ],
)
def test_impossible_grid_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_times_that_coincide_in_float32_are_refused():
    schedule = Schedule(steps=1000, t_min=1 - 1e-6)
    with pytest.raises(ValueError, match="steps=1000: times coincide"):
        schedule.of(VPSDE())


@pytest.mark.parametrize("count", [10, 232, 500, 1000, 1086])
def test_grid_of_timesteps_shows_the_network_each_once(count):
    """The grid itself, and the number that a network of this chain is fed on it in float32."""
    times = Schedule(grid="timesteps", steps=count, t_min=1e-5).of(VESDE())
    np.testing.assert_allclose(times, 1 - np.arange(count) / (count - 1), atol=1e-15)
    t = jnp.asarray(times, jnp.float32)
    seen = CONDITIONINGS["reversed_timestep"](VESDE(), t, count)
    np.testing.assert_array_equal(seen, np.arange(count))
    np.testing.assert_allclose(VESDE().sigma(t), np.geomspace(50, 0.01, count), rtol=1e-5)


def test_grid_of_timesteps_needs_noise_at_its_end():
    with pytest.raises(ValueError, match="ends at t = 0, where this process has no noise"):
        Schedule(grid="timesteps").of(VPSDE())
    with pytest.raises(ValueError, match="steps=1 must be at least 2"):
        Schedule(grid="timesteps", steps=1).of(VESDE())


@pytest.mark.parametrize("sde", [DiscreteVPSDE(), DiscreteVESDE()], ids=["ddpm", "smld"])
@pytest.mark.parametrize(
    ("grid", "kept"),
    [
        ("timesteps", range(1000)),
        ("ddim50", range(0, 1000, 20)),
        ("ddim1000", range(1000)),
        ("5", [0, 250, 500, 749, 999]),
        ("2,1,3", [0, 333, 334, 667, 833, 999]),
    ],
)
def test_chain_is_respaced(sde, grid, kept):
    """Of 1000 timesteps in three sections, the first has 334; a section's ends are always kept."""
    times = Schedule(grid=grid).of(sde)
    np.testing.assert_allclose(times[::-1] * 999, list(kept), atol=1e-9)


def test_given_times_are_taken_as_they_are():
    times = Schedule(times=(1.0, 0.5, 0.1)).of(VPSDE())
    np.testing.assert_array_equal(times, [1, 0.5, 0.1])
    assert Schedule(times=(1.0, 0.5, 0.0)).of(VESDE())[-1] == 0


def test_respacing_a_short_chain_keeps_every_timestep_once():
    for count in range(2, 11):
        kept = respaced_timesteps(10, str(count))
        assert len(set(kept)) == count
        assert kept[0] == 0
        assert kept[-1] == 9


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule(start=0.5, steps=10),
        Schedule(grid="timesteps"),
        Schedule(grid="ddim50"),
        Schedule(times=(1.0, 0.5, 0.1)),
    ],
)
def test_steps_are_counted(schedule):
    sde = DiscreteVPSDE()
    assert schedule.count(sde) == len(schedule.of(sde)) - 1
