"""Adams' weights and steps against polynomials, which they integrate exactly."""

import jax.numpy as jnp
import numpy as np
import pytest

from numerics.adams import integrals
from numerics.ode import ODEOptions, integrate

NODES = np.array([1.0, 0.0, -0.3, -1.1, -1.5, -2.6])


@pytest.mark.parametrize("known", [1, 3, 6])
@pytest.mark.parametrize("end", [1.0, 0.4])
@pytest.mark.slow
def test_integrals_are_exact_for_polynomials_through_the_known_nodes(x64, known, end):
    weights = integrals(jnp.asarray(NODES), jnp.arange(6) < known, end)
    np.testing.assert_array_equal(weights[known:], 0)
    for degree in range(known):
        exact = end ** (degree + 1) / (degree + 1)
        np.testing.assert_allclose(weights @ NODES**degree, exact, rtol=1e-12)


def test_integrals_have_the_weights_of_equal_steps(x64):
    """The fourth order's of textbooks (Hairer, Norsett and Wanner, Sec. III.1)."""
    nodes, known = jnp.array([0.0, -1, -2, -3, 9, 9]), jnp.arange(6) < 4
    explicit = np.array([55, -59, 37, -9, 0, 0]) / 24
    np.testing.assert_allclose(integrals(nodes, known), explicit, atol=1e-14)
    implicit = np.array([9, 19, -5, 1, 0, 0]) / 24
    nodes = jnp.array([1.0, 0, -1, -2, 9, 9])
    np.testing.assert_allclose(integrals(nodes, known), implicit, atol=1e-14)


@pytest.mark.slow
def test_a_smooth_solution_takes_far_fewer_evaluations_than_by_runge_kutta(x64):
    """dy/dt = 6 cos(6 t) y at a tolerance of 1e-8: the errors are alike."""
    found = {}
    for solver in ("adams", "dopri5"):
        options = ODEOptions(solver=solver, rtol=1e-8, atol=1e-8)
        solution = integrate(
            lambda t, y, _: 6 * jnp.cos(6 * t) * y,
            jnp.ones((1, 1)),
            None,
            t0=0.0,
            t1=2.0,
            options=options,
        )
        error = abs(float(solution.y[0, 0]) - np.exp(np.sin(12.0)))
        found[solver] = error, int(solution.evaluations[0])
    assert found["adams"][0] < 1e-7
    assert found["adams"][1] < 0.6 * found["dopri5"][1]
