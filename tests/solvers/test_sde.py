"""The reverse SDE: its law, its strong order, its Brownian path, and every call counted."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian, standardized_mixture

from denoising import Denoiser
from errors import IntegrationError
from numerics.stochastic import SDE_METHODS, SDEOptions, integrate_sde
from sde_lib import VESDE, VPSDE
from solvers.sde import ReverseSDE, sample_sde

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "ve": VESDE(sigma_max=20.0)}
PLANE = standardized_mixture(dims=2)
DATA = gaussian([0.5, -0.5], np.diag([0.3, 0.1]))
SAMPLE = ReverseSDE(final_step="none")


def assert_moments(x, truth, *, bias):
    """Mean and covariance to 4.5 standard errors, and a bias in units of the variances."""
    variance = np.diag(truth.covariance)
    errors = (np.mean(x, axis=0) - truth.mean) / np.sqrt(variance / len(x))
    assert np.abs(errors).max() < 4.5, f"mean is off by {errors} standard errors"
    products = np.outer(variance, variance)
    allowed = 4.5 * np.sqrt((products + truth.covariance**2) / len(x)) + bias * np.sqrt(products)
    difference = np.cov(np.asarray(x, float).T) - truth.covariance
    assert np.all(np.abs(difference) < allowed), f"covariance is off by {difference}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "churn"), [("vp", 1.0), ("ve", 0.7)])
def test_samples_and_frames_follow_the_marginals(name, churn):
    """2000 samples, 40 steps."""
    sde, options = PROCESSES[name], ReverseSDE(final_step="none", churn=churn)
    samples = sample_sde(
        KEY,
        PLANE.denoiser(sde),
        (2000, 2),
        options=options,
        solving=SDEOptions(steps=40),
        frames=(1e-3, 0.5, 1.0),
    )
    assert samples.nfe == 80
    np.testing.assert_array_equal(samples.times, [1.0, 0.5, 1e-3])
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
    assert_moments(samples.x, PLANE.marginal(sde, 1e-3), bias=0.02)
    np.testing.assert_allclose(samples.trajectory[0].std(), float(sde.prior_std), rtol=0.05)
    # The nearest step may be half a step away: 7 to 17 % in the deviation of pure noise.
    middle = PLANE.marginal(sde, 0.5)
    width = samples.trajectory[1].var() / np.trace(middle.covariance) * 2
    assert abs(np.log(width)) < 0.35


def contraction(t, y, _):
    return -8.0 * y


def growing(t):
    return 1 + 2 * t


def solve(drift=contraction, batch=32, **fields):
    """States at 1 of dy = drift dt + (1 + 2 t) dw from 1, sample k always on the same path."""
    keys = jax.random.split(KEY, batch)
    integrate = partial(integrate_sde, drift, growing, options=SDEOptions(**fields))
    return jax.jit(integrate)(jnp.ones((batch, 1)), None, keys)


@pytest.mark.slow
def test_sra1_has_strong_order_above_1():
    """Euler's strong order is 1; steps are refined along the path that the keys say."""
    coarse, middle, fine = (solve(steps=steps).y for steps in (24, 48, 96))
    errors = [float(jnp.sqrt(jnp.mean((a - fine) ** 2))) for a in (coarse, middle)]
    # Against a reference of half the step, order p has the ratio 2^p + 1.
    assert np.log2(errors[0] / errors[1] - 1) > 1.4, errors


@pytest.mark.slow
def test_sample_is_a_function_of_seed_and_number_alone():
    def draw(indices):
        return sample_sde(
            KEY,
            DATA.denoiser(PROCESSES["ve"]),
            (8, 2),
            options=SAMPLE,
            solving=SDEOptions(rtol=0.1, atol=0.1),
            indices=jnp.asarray(indices),
        ).x

    together = draw(np.arange(8))
    np.testing.assert_array_equal(draw(np.arange(8)), together)
    moved = draw([4, 5, 6, 7, 100, 101, 102, 103])
    np.testing.assert_allclose(moved[:4], together[4:], atol=1e-5)
    assert not np.allclose(moved[4:], together[:4])


@pytest.mark.slow
def test_every_call_is_counted_and_every_solver_sees_the_same_path():
    ends = []
    for solver, fields in (
        ("euler", {"steps": 60}),
        ("slowrk", {"steps": 60}),
        ("shark", {"rtol": 0.01, "atol": 0.01}),
    ):
        calls = []

        def drift(t, y, _, calls=calls):
            jax.debug.callback(lambda t: calls.append(float(t)), t)
            return contraction(t, y, _)

        solution = solve(drift, batch=1, solver=solver, **fields)
        jax.effects_barrier()
        assert solution.success.all()
        assert int(solution.evaluations[0]) == len(calls)
        if "steps" in fields:
            assert len(calls) == 60 * SDE_METHODS[solver].evaluations
        ends.append(float(solution.y[0, 0]))
    # The state's own deviation is 0.7.
    assert abs(ends[0] - ends[1]) < 0.15
    assert abs(ends[2] - ends[1]) < 0.03


@pytest.mark.parametrize("solver", SDE_METHODS)
def test_evaluations_of_a_step_are_the_stages_of_the_method(solver):
    method = SDE_METHODS[solver]
    tableau = getattr(getattr(diffrax, method.solver), "tableau", None)  # Euler has none
    weights = [1.0] if tableau is None else tableau.b_sol
    idle = getattr(tableau, "ignore_stage_f", None)
    assert method.evaluations == len(weights) - (0 if idle is None else sum(idle))
    assert method.estimates_error == (getattr(tableau, "b_error", None) is not None)


def noise_until(t_end):
    """A network that returns NaN from t_end down, and zeros before."""

    def network(x, t):
        return jnp.where(t[:, None] > t_end, jnp.zeros_like(x), jnp.nan)

    return Denoiser(sde=PROCESSES["ve"], network=network, conditioning="t")


@pytest.mark.slow
def test_nan_of_the_network_is_reported_with_its_time():
    message = r"reverse SDE sampler: 3 of 3 samples became NaN or infinite at t=0\.49[89]\d*; check"
    solving = SDEOptions(solver="euler", steps=1000)
    with pytest.raises(IntegrationError, match=message):
        sample_sde(KEY, noise_until(0.5), (3, 2), options=SAMPLE, solving=solving)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReverseSDE(churn=0.0), r"churn=0\.0 must be finite and above 0"),
        (
            lambda: ReverseSDE(final_step="mean"),
            "final_step='mean' is unknown; choose one of: denoise, none",
        ),
        (lambda: ReverseSDE(t_min=1.0), r"t_min=1\.0 must lie in \(0, 1\)"),
        (lambda: SDEOptions(solver="no"), "solver='no' is unknown; choose one of: euler, heun"),
        (lambda: SDEOptions(steps=0), r"steps=0 must lie in \[1, 4096\]"),
        (lambda: SDEOptions(rtol=0.1), r"rtol=0\.1 and atol=None go together"),
        (lambda: SDEOptions(rtol=0.1, atol=2.0), r"atol=2\.0 must lie in \(0, 1\)"),
        (lambda: SDEOptions(steps=9, rtol=0.1, atol=0.1), r"steps=9 has no meaning beside rtol"),
        (
            lambda: SDEOptions(solver="sea", rtol=0.1, atol=0.1),
            "solver='sea' does not estimate its error .* choose one of: heun, shark, spark, sra1",
        ),
        (lambda: SDEOptions(max_steps=0), "max_steps=0 must be at least 1"),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
