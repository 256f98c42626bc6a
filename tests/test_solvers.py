"""Laws that every solver keeps on every process, from exact scores.

In y = x / alpha and s = sigma / alpha the probability flow of every process is the same equation,
dy/ds = eps. So one solution by SciPy is the truth for all of them, from the same y at s = 20.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from analytic import assert_samples_follow, standardized_mixture

from arrays import in_float64, sample_keys
from denoising import Denoiser
from parallel import Layout
from sampling import run, sample
from sde_lib import SDES
from solvers import SOLVERS
from solvers.ddim import DDIM, decode, encode
from solvers.predictor_corrector import Ancestral, EulerMaruyama, PredictorCorrector
from time_grids import Schedule

KEY = jax.random.key(0)
PROCESSES = {name: cls() for name, cls in SDES.items()}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
PLANE = standardized_mixture(dims=2)
WIDE = standardized_mixture(dims=8)
S_MAX, S_MIN = 20.0, 0.1
START = 20 * np.random.default_rng(0).normal(size=(8, 2))


def times_between(sde, steps, s_max=S_MAX, s_min=S_MIN):
    """Times uniform in log-SNR between two ratios sigma / alpha."""
    return in_float64(sde.time_of_log_snr, -2 * np.linspace(np.log(s_max), np.log(s_min), steps + 1))


@pytest.fixture(scope="module")
def truth():
    """The flow's y at S_MIN, to ten digits, by SciPy and NumPy alone."""

    def velocity(log_s, y):
        s = np.exp(log_s)
        centred = y.reshape(-1, 1, 2) - PLANE.means
        covariances = PLANE.covariances + s**2 * np.eye(2)
        pulls = np.linalg.solve(covariances, centred[..., None])[..., 0]
        logs = np.log(PLANE.weights) - 0.5 * (centred * pulls).sum(-1)
        logs -= 0.5 * np.linalg.slogdet(covariances)[1]
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        score = -(shares[..., None] * pulls).sum(axis=1)
        return (-(s**2) * score).ravel()  # s eps, as d/d(log s)

    span = np.log([S_MAX, S_MIN])
    solution = scipy.integrate.solve_ivp(
        velocity, span, START.ravel(), method="DOP853", rtol=1e-11, atol=1e-11
    )
    return solution.y[:, -1].reshape(START.shape)


def flow_error(solver, sde, steps, truth):
    """RMS error in y of a deterministic solver that takes so many steps."""
    times = times_between(sde, steps)
    first, last = in_float64(sde.alpha, times[[0, -1]])
    keys = sample_keys(KEY, jnp.arange(len(START)))
    x = run(keys, PLANE.denoiser(sde), jnp.asarray(first * START), solver.plan(sde, times)).x
    return float(np.sqrt(np.mean((np.asarray(x) / last - truth) ** 2)))


# solver -> its order
ORDERS = {
    "ddim": (DDIM(), 1),
}


@pytest.mark.parametrize("name", ORDERS)
@every_process
def test_error_to_the_flow_has_the_solvers_order(x64, truth, sde, name):
    solver, order = ORDERS[name]
    steps = np.array([40, 80, 160])
    errors = [flow_error(solver, sde, count, truth) for count in steps]
    measured = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.3 < measured < order + 1, f"order {measured:.2f}, errors {errors}"
