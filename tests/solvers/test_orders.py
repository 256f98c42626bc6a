"""Laws that every solver keeps on every process, from exact scores.

In y = x / alpha and s = sigma / alpha the probability flow of every process is the same equation,
dy/ds = eps. So one solution by SciPy is the truth for all of them, from the same y at s = 20.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from analytic import assert_samples_follow, standardized_mixture

from denoising import Denoiser
from numerics.arrays import fold_in_each, in_float64, normal_like, sample_keys
from sampling import run, sample
from sde_lib import SDES, LearnedVPSDE
from solvers import SOLVERS
from solvers.analytic_dpm import AnalyticDPM
from solvers.ddim import DDIM, decode, encode
from solvers.deis import DEIS
from solvers.dpm_solver import DPMSolver
from solvers.heun import Heun
from solvers.moments import estimate_moments
from solvers.predictor_corrector import Ancestral, EulerMaruyama, PredictorCorrector
from solvers.tables import coefficients_at
from solvers.unipc import UniPC
from time_grids import Schedule

KEY = jax.random.key(0)
PROCESSES = {name: cls() for name, cls in SDES.items()}
PROCESSES["learned"] = LearnedVPSDE(log_snr_min=-8.0)  # whose noise reaches S_MAX
VP = PROCESSES["vp"]
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
PLANE = standardized_mixture(dims=2)
WIDE = standardized_mixture(dims=8)
S_MAX, S_MIN = 20.0, 0.1
START = 20 * np.random.default_rng(0).normal(size=(8, 2))


def times_between(sde, steps, s_max=S_MAX, s_min=S_MIN):
    """Times uniform in log-SNR between two ratios sigma / alpha."""
    log_s = np.linspace(np.log(s_max), np.log(s_min), steps + 1)
    return in_float64(sde.time_of_log_snr, -2 * log_s)


@pytest.fixture(scope="module")
def truth():
    """The flow's y at S_MIN, to ten digits, by SciPy and NumPy alone."""

    def velocity(log_s, y):
        s = np.exp(log_s)
        centered = y.reshape(-1, 1, 2) - PLANE.means
        covariances = PLANE.covariances + s**2 * np.eye(2)
        pulls = np.linalg.solve(covariances, centered[..., None])[..., 0]
        logs = np.log(PLANE.weights) - 0.5 * (centered * pulls).sum(-1)
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


# solver -> its order. Where the orders fall in the end, the last step's error shows in the limit.
WHOLE = {"lower_order_final": False}
ORDERS = {
    "ddim": (DDIM(), 1),
    "euler": (PredictorCorrector(predictor=EulerMaruyama(churn=0.0)), 1),
    "dpm_solver_2": (DPMSolver(order=2, prediction="eps", **WHOLE), 2),
    "dpm_solver_3": (DPMSolver(order=3, prediction="eps", **WHOLE), 3),
    "dpm_solver_3_single": (
        DPMSolver(order=3, method="singlestep", prediction="eps", **WHOLE),
        3,
    ),
    "dpm_solver++_2": (DPMSolver(order=2, **WHOLE), 2),
    "dpm_solver++_3": (DPMSolver(order=3, **WHOLE), 3),
    "unipc_2": (UniPC(order=2, **WHOLE), 3),
    "deis_3": (DEIS(order=3), 3),
    "heun": (Heun(), 2),
    "heun_vp": (Heun(variable="vp_time", scaling="vp"), 2),
    "heun_euler": (Heun(order=1, variable="sigma2"), 1),
}


@pytest.mark.slow
@every_process
def test_error_to_the_flow_has_the_solvers_order(x64, truth, sde):
    steps = np.array([40, 160])
    for name, (solver, order) in ORDERS.items():
        errors = [flow_error(solver, sde, count, truth) for count in steps]
        measured = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert order - 0.3 < measured < order + 1, f"{name}: order {measured:.2f}, errors {errors}"


STOCHASTIC = {
    "ddim": DDIM(eta=1.0),
    "sde_dpm_solver++": DPMSolver(eta=1.0),
    "sde_dpm_solver++_3_singlestep": DPMSolver(order=3, method="singlestep", eta=1.0),
    "ancestral_2s": DPMSolver(method="singlestep", eta=0.5, noise_form="ancestral"),
    "heun": Heun(s_churn=20.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("process", ["vp", "ve", "linear"])
def test_samples_of_stochastic_solvers_follow_the_marginal(process, name):
    """1000 samples in 8 dimensions; 60 steps leave a bias, that of DDIM's first order 15%."""
    sde = PROCESSES[process]
    schedule = Schedule(grid="log_snr", steps=60, t_min=1e-2, final_step="none")
    denoiser = WIDE.denoiser(sde)
    x = sample(KEY, denoiser, (1000, 8), solver=STOCHASTIC[name], schedule=schedule).x
    assert_samples_follow(x, WIDE.marginal(sde, 1e-2), bias=0.15 if name == "ddim" else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_samples_with_the_best_variance_follow_the_marginal(eta):
    """The moments are estimated from 1000 of the data, as a run would; 60 steps leave a bias."""
    sde, schedule = VP, Schedule(grid="log_snr", steps=60, t_min=1e-2, final_step="none")
    denoiser, data = WIDE.denoiser(sde), jnp.asarray(WIDE.sample(1, 1000), jnp.float32)
    moments = estimate_moments(KEY, denoiser, [data], schedule.of(sde))
    solver = AnalyticDPM(eta=eta, moments=moments)
    x = sample(KEY, denoiser, (1000, 8), solver=solver, schedule=schedule).x
    assert_samples_follow(x, WIDE.marginal(sde, 1e-2), bias=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - {"pc", "analytic", "mala"}))
def test_nfe_is_the_number_of_network_calls(name):
    calls = []

    def network(x, t):
        jax.debug.callback(lambda t: calls.append(t), t[0])
        return x

    few = name == "consistency"
    denoiser = Denoiser(
        sde=PROCESSES["vp"], network=network, parameterization=name if few else "eps"
    )
    schedule = Schedule(grid="log_snr", steps=7, final_step="mean" if few else "denoise")
    samples = sample(KEY, denoiser, (2, 3), solver=SOLVERS[name](), schedule=schedule)
    jax.effects_barrier()
    assert samples.nfe == len(calls)


@pytest.mark.slow
def test_predictor_without_a_corrector_is_the_predictor(x64):
    """Its steps are DDIM's with eta = 1, as the paper writes them (arXiv:2010.02502, Eq. 12)."""
    for sde in (PROCESSES["vp"], PROCESSES["ve"]):
        x, schedule = jnp.asarray(START), Schedule(steps=20)
        times = schedule.of(sde)
        keys, at = sample_keys(KEY, jnp.arange(len(x))), coefficients_at(sde, times)
        denoiser = PLANE.denoiser(sde)
        solver = PredictorCorrector(predictor=Ancestral())
        path = run(keys, denoiser, x, solver.plan(sde, times), frames=21).trajectory
        for i, (now, after) in enumerate(itertools.pairwise(path)):
            noise = normal_like(fold_in_each(fold_in_each(keys, 1 + i), 1), x)
            x0, eps, *_ = denoiser.predict(jnp.asarray(now), times[i])
            ratio = at.alpha[i] * at.sigma[i + 1] / (at.alpha[i + 1] * at.sigma[i])
            std = at.sigma[i + 1] * np.sqrt(1 - ratio**2)
            direction = np.sqrt(at.sigma[i + 1] ** 2 - std**2) * eps
            expected = at.alpha[i + 1] * x0 + direction + std * noise
            np.testing.assert_allclose(after, expected, atol=1e-9 * at.sigma[0])


@pytest.mark.slow
def test_decoding_an_encoding_is_exact_in_the_limit_of_many_steps(x64):
    sde = PROCESSES["vp"]
    denoiser, x = PLANE.denoiser(sde), jnp.asarray(PLANE.sample(0, 8))
    steps, errors = np.array([200, 800]), []
    for count in steps:
        schedule = Schedule(grid="log_snr", steps=int(count), t_min=1e-2)
        latent = encode(denoiser, x, schedule)
        assert np.abs(latent).max() < 5  # standard normal
        errors.append(np.sqrt(np.mean((decode(denoiser, latent, schedule) - x) ** 2)))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.8 < order < 1.3, f"errors {errors}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=2.0), "eta=2.0 must lie in [0, 1]"),
        (
            lambda: DPMSolver(order=3).plan(VP, np.array([1.0, 0.5, 0.1])),
            "order=3 needs at least 3",
        ),
        (lambda: AnalyticDPM().plan(VP, np.array([1.0, 0.5])), "run --mode=moments first"),
        (lambda: Heun(churn_min=1.0), "churn_min=1.0 is not used with s_churn=0"),
    ],
)
def test_solver_that_does_not_suit_its_fields_or_grid_says_so(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
