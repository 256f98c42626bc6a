"""The ODE solver against exact solutions, with every call of the field counted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics.ode import ODE_METHODS, ODEOptions, integrate, require_success

TIGHT = ODEOptions(rtol=1e-9, atol=1e-9)
COARSE = ODEOptions(rtol=1e-3, atol=1e-3)
solve = jax.jit(integrate, static_argnums=0, static_argnames=("t0", "t1", "frames"))


def spiral(t, y, rate):
    """dy/dt = (rate + 4 i cos 4t) y for a complex y, as two real numbers: it winds and grows."""
    return (rate * jnp.eye(2) + 4 * jnp.cos(4 * t) * jnp.array([[0.0, -1.0], [1.0, 0.0]])) @ y


def spiral_solution(t, y0, rate):
    angle = np.sin(4 * t)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.exp(rate * t) * np.einsum("ij,bj->bi", turn, y0)


Y0 = np.array([[1.0, 0.0], [0.3, -2.0]])


RATE = 0.5


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dopri5", "tsit5", "dopri8", "heun", "adams"])
def test_tighter_tolerance_means_smaller_error_and_every_call_is_counted(x64, solver):
    """Rejected steps, and the evaluations before the first step, are calls of the field too."""
    calls, errors = [], []

    def field(t, y, rate):
        jax.debug.callback(lambda t: calls.append(t), t)
        return spiral(t, y, rate)

    for tolerance in (1e-3, 1e-6):
        calls.clear()
        options = ODEOptions(solver=solver, rtol=tolerance, atol=tolerance, max_steps=20_000)
        solution = solve(field, Y0[:1], np.full(1, RATE), t0=0.0, t1=2.0, options=options)
        jax.effects_barrier()
        assert solution.success.all()
        assert int(solution.evaluations[0]) == len(calls)
        errors.append(np.abs(solution.y - spiral_solution(2.0, Y0[:1], RATE)).max())
    assert errors[0] > 30 * errors[1]
    assert errors[1] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dopri5", "adams"])
def test_integration_runs_backwards_and_keeps_frames(x64, solver):
    """Frames are between the solver's steps, and as exact as they are."""
    start, options = spiral_solution(2.0, Y0, RATE), replace(TIGHT, solver=solver)
    rates = np.full(2, RATE)
    solution = solve(spiral, start, rates, t0=2.0, t1=0.5, options=options, frames=4)
    assert solution.path.shape == (2, 4, 2)
    for frame, t in enumerate((2.0, 1.5, 1.0, 0.5)):
        truth = spiral_solution(t, Y0, RATE)
        np.testing.assert_allclose(solution.path[:, frame], truth, atol=1e-6)
    np.testing.assert_allclose(solution.y, spiral_solution(0.5, Y0, RATE), atol=1e-6)


@pytest.mark.slow
def test_each_sample_has_steps_of_its_own():
    rates, y0, apart = np.float32([0.5, -30.0]), np.float32(Y0), []
    together = solve(spiral, y0, rates, t0=0.0, t1=2.0, options=COARSE)
    for i in range(2):
        one = slice(i, i + 1)
        apart.append(solve(spiral, y0[one], rates[one], t0=0.0, t1=2.0, options=COARSE))
    for i, alone in enumerate(apart):
        np.testing.assert_allclose(together.y[i], alone.y[0], rtol=1e-5, atol=1e-7)
        assert together.evaluations[i] == alone.evaluations[0]
    assert together.evaluations[1] > together.evaluations[0]


@pytest.mark.slow
def test_success_passes_silently():
    rates = np.full(2, RATE, np.float32)
    solution = solve(spiral, np.float32(Y0), rates, t0=0.0, t1=0.1, options=COARSE)
    assert require_success(solution, "anything", COARSE) is None


@pytest.mark.slow
@pytest.mark.parametrize("solver", ODE_METHODS)
def test_every_call_is_counted_when_the_first_steps_are_rejected(solver):
    """A rejected step leaves no stage to reuse, so its first stage is evaluated again.

    Adams' method has the slope at the start from before its first step.
    """
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
    before = ODE_METHODS[solver].before
    assert calls.count(0.0) == 1 if before else calls.count(0.0) > 1, "it should be rejected"
    assert int(solution.evaluations[0]) == len(calls)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "no"}, "solver='no' is unknown; choose one of: adams, bosh3"),
        ({"solver": "kvaerno5"}, "solver='kvaerno5' is unknown; choose one of: adams"),
        ({"rtol": 0.0}, r"rtol=0\.0 must lie in \(0, 1\)"),
        ({"atol": 1.0}, r"atol=1\.0 must lie in \(0, 1\)"),
        (
            {"step_size_control": "no"},
            "step_size_control='no' is unknown; choose one of: batch, per",
        ),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
    ],
)
def test_invalid_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ODEOptions(**fields)
