"""Likelihoods and the ODE solver below them against exact densities and exact solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analytic import standardized_mixture
from arrays import sample_keys
from denoising import Denoiser
from likelihood import TRACES, LikelihoodOptions, log_prob
from ode import SOLVERS, IntegrationError, ODEOptions, integrate, require_success
from parallel import Layout
from sde_lib import SubVPSDE, VESDE, VPSDE

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=20.0)}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
MIXTURE = standardized_mixture(dims=2)
EXACT = LikelihoodOptions(trace="exact", t_min=1e-5)
TIGHT = ODEOptions(rtol=1e-9, atol=1e-9)
COARSE = ODEOptions(rtol=1e-3, atol=1e-3)


# --- densities ----------------------------------------------------------------------------------


@every_process
def test_log_prob_is_the_density_up_to_the_priors_mismatch(x64, sde):
    x = MIXTURE.sample(0, 8)
    truth = MIXTURE.marginal(sde, EXACT.t_min).log_prob(x)
    ours = log_prob(KEY, MIXTURE.denoiser(sde), jnp.asarray(x), options=EXACT, ode=TIGHT)
    # The prior stands for p_1, from which it differs a little: exactly by this much.
    mismatch = sde.prior_log_prob(ours.latent) - MIXTURE.marginal(sde, 1.0).log_prob(ours.latent)
    np.testing.assert_allclose(ours.nats - mismatch, truth, atol=1e-5)
    if sde == PROCESSES["vp"]:
        np.testing.assert_allclose(ours.nats, truth, atol=1e-4)


@every_process
def test_latents_of_data_follow_the_prior(sde):
    """Whitened latents of 1000 data points: mean and variance within 4.5 standard errors."""
    x = jnp.asarray(MIXTURE.sample(1, 1000), jnp.float32)
    options = LikelihoodOptions(t_min=1e-3)
    latent = log_prob(KEY, MIXTURE.denoiser(sde), x, options=options, ode=COARSE).latent
    white = np.asarray(latent) / np.sqrt(MIXTURE.marginal(sde, 1.0).covariance[0, 0])
    assert np.abs(white.mean(axis=0)).max() < 4.5 / np.sqrt(1000)
    assert np.abs(np.cov(white.T) - np.eye(2)).max() < 4.5 * np.sqrt(2 / 1000)


def test_log_prob_works_on_items_of_any_shape(x64):
    sde, x = PROCESSES["vp"], MIXTURE.sample(2, 4)
    flat = log_prob(KEY, MIXTURE.denoiser(sde), jnp.asarray(x), options=EXACT, ode=TIGHT)
    shaped = x.reshape(4, 2, 1, 1)
    images = log_prob(KEY, MIXTURE.denoiser(sde), jnp.asarray(shaped), options=EXACT, ode=TIGHT)
    np.testing.assert_allclose(images.nats, flat.nats, rtol=1e-10)
    np.testing.assert_allclose(images.latent, flat.latent.reshape(4, 2, 1, 1), rtol=1e-10)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_random_probes_are_unbiased(trace):
    """400 independent estimates of the same two log-densities: 3 standard errors of their mean."""
    denoiser, copies = MIXTURE.denoiser(PROCESSES["vp"]), 400
    points = jnp.asarray(MIXTURE.sample(3, 2), jnp.float32)
    ode = ODEOptions(rtol=1e-4, atol=1e-4)
    exact = log_prob(KEY, denoiser, points, options=LikelihoodOptions(trace="exact"), ode=ode)
    options = LikelihoodOptions(trace=trace)
    estimates = log_prob(KEY, denoiser, jnp.repeat(points, copies, 0), options=options, ode=ode)
    nats = np.asarray(estimates.nats).reshape(2, copies)
    error = nats.std(axis=1) / np.sqrt(copies)
    assert np.all(error > 1e-3), "the estimates should be random"
    assert np.all(np.abs(nats.mean(axis=1) - exact.nats) < 3 * error)


@pytest.mark.parametrize("trace", TRACES)
def test_probes_have_unit_covariance(trace):
    x = jnp.zeros((2, 3, 1))
    probes = np.asarray(TRACES[trace](KEY, 20_000, x)).reshape(-1, 6)
    share = 1.0 if trace == "exact" else 1 / len(probes)
    np.testing.assert_allclose(share * probes.T @ probes, np.eye(6), atol=0.05)
    if trace == "rademacher":
        assert set(np.unique(probes)) == {-1.0, 1.0}


def test_more_probes_lower_the_spread():
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.zeros((100, 2))

    def spread(probes):
        options = LikelihoodOptions(probes=probes, trace="gaussian", t_min=1e-3)
        return np.std(log_prob(KEY, denoiser, x, options=options, ode=COARSE).nats)

    assert 2 < spread(1) / spread(9) < 4.5  # 3 in the mean


@pytest.mark.parametrize("trace", ["rademacher", "exact"])
def test_log_prob_is_a_function_of_key_number_and_sample_alone(trace):
    denoiser, options = MIXTURE.denoiser(PROCESSES["vp"]), LikelihoodOptions(trace=trace, t_min=1e-3)
    x, indices = MIXTURE.sample(4, 8).astype(np.float32), np.arange(8)

    def nats(x, indices):
        return log_prob(KEY, denoiser, x, options=options, ode=COARSE, indices=indices).nats

    together = nats(jnp.asarray(x), jnp.asarray(indices))
    mates = 10 * jnp.ones((4, 2))  # far off, where the solver takes other steps
    others = nats(jnp.concatenate([mates, x[4:]]), jnp.asarray(indices))
    np.testing.assert_allclose(others[4:], together[4:], atol=1e-5)
    default = log_prob(KEY, denoiser, jnp.asarray(x), options=options, ode=COARSE).nats
    np.testing.assert_array_equal(default, together)
    split = Layout.over_all_devices().split_rows
    np.testing.assert_allclose(nats(split(x), split(indices)), together, atol=1e-5)
    renumbered = nats(jnp.asarray(x), jnp.asarray(indices + 1))
    assert np.allclose(renumbered, together) == (trace == "exact")


def test_probes_of_a_sample_are_drawn_from_its_own_key():
    keys = sample_keys(KEY, jnp.arange(3))
    draws = [np.asarray(TRACES["gaussian"](key, 1, jnp.zeros(4))) for key in keys]
    assert len(np.unique(np.stack(draws), axis=0)) == 3


def test_t_min_is_where_the_density_is_taken(x64):
    sde, x = PROCESSES["vp"], MIXTURE.sample(5, 4)
    options = LikelihoodOptions(trace="exact", t_min=0.2)
    ours = log_prob(KEY, MIXTURE.denoiser(sde), jnp.asarray(x), options=options, ode=TIGHT).nats
    np.testing.assert_allclose(ours, MIXTURE.marginal(sde, 0.2).log_prob(x), atol=1e-4)


# --- the solver ---------------------------------------------------------------------------------


def spiral(t, y, rate):
    """dy/dt = (rate + 4 i cos 4t) y, which winds and grows; three numbers of a sample at once."""
    return (rate * jnp.eye(2) + 4 * jnp.cos(4 * t) * jnp.array([[0.0, -1.0], [1.0, 0.0]])) @ y


def spiral_solution(t, y0, rate):
    angle = np.sin(4 * t)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.exp(rate * t) * np.einsum("ij,bj->bi", turn, y0)


Y0 = np.array([[1.0, 0.0], [0.3, -2.0]])
RATE = 0.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_tighter_tolerance_means_smaller_error(x64, solver):
    truth = spiral_solution(2.0, Y0, RATE)
    errors = []
    for rtol in (1e-3, 1e-5, 1e-7):
        options = ODEOptions(solver=solver, rtol=rtol, atol=rtol, max_steps=20_000)
        rates = jnp.full(2, RATE)
        solution = integrate(spiral, jnp.asarray(Y0), rates, t0=0.0, t1=2.0, options=options)
        assert np.all(solution.success)
        errors.append(np.abs(solution.y - truth).max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-5


def test_integration_runs_backwards_and_keeps_frames(x64):
    start = jnp.asarray(spiral_solution(2.0, Y0, RATE))
    solution = integrate(
        spiral, start, jnp.full(2, RATE), t0=2.0, t1=0.5, options=TIGHT, frames=4
    )
    assert solution.path.shape == (2, 4, 2)
    for frame, t in enumerate((2.0, 1.5, 1.0, 0.5)):
        truth = spiral_solution(t, Y0, RATE)
        np.testing.assert_allclose(solution.path[:, frame], truth, atol=1e-6)
    np.testing.assert_allclose(solution.y, spiral_solution(0.5, Y0, RATE), atol=1e-6)


@pytest.mark.parametrize("times", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_the_calls_of_the_field(solver, times):
    """Rejected steps and what the solver spends before the first step are counted too."""
    calls = []

    def field(t, y, _):
        jax.debug.callback(lambda t: calls.append(t), t)
        return spiral(t, y, RATE)

    options = ODEOptions(solver=solver, rtol=1e-4, atol=1e-4)
    y0, (t0, t1) = jnp.asarray(Y0[:1], jnp.float32), times
    solution = integrate(field, y0, None, t0=t0, t1=t1, options=options)
    jax.effects_barrier()
    assert solution.evaluations.shape == (1,)
    assert int(solution.evaluations[0]) == len(calls) > 20


def test_each_sample_has_steps_of_its_own():
    rates = jnp.array([0.5, -30.0])
    y0, apart = jnp.asarray(Y0, jnp.float32), []
    together = integrate(spiral, y0, rates, t0=0.0, t1=2.0, options=COARSE)
    for i in range(2):
        one = slice(i, i + 1)
        apart.append(integrate(spiral, y0[one], rates[one], t0=0.0, t1=2.0, options=COARSE))
    for i, alone in enumerate(apart):
        np.testing.assert_allclose(together.y[i], alone.y[0], rtol=1e-5, atol=1e-7)
        assert together.evaluations[i] == alone.evaluations[0]
    assert together.evaluations[1] > together.evaluations[0]


def test_too_few_steps_are_an_error_with_a_remedy():
    ode = ODEOptions(rtol=1e-6, atol=1e-6, max_steps=2)
    message = r"log-likelihood: 3 of 3 samples .* max_steps=2 .* raise max_steps, loosen rtol=1e-06"
    with pytest.raises(IntegrationError, match=message):
        log_prob(KEY, MIXTURE.denoiser(PROCESSES["vp"]), jnp.ones((3, 2)), options=EXACT, ode=ode)


def test_network_that_answers_nan_is_an_error():
    def network(x, t):
        return jnp.where(x > 5, jnp.nan, 0.0)

    denoiser, x = Denoiser(sde=PROCESSES["vp"], network=network), jnp.array([[0.0, 0.0], [9.0, 0.0]])
    with pytest.raises(IntegrationError, match=r"1 of 2 samples .* check the network for NaN"):
        log_prob(KEY, denoiser, x, options=LikelihoodOptions(), ode=COARSE)


def test_success_passes_silently():
    assert require_success(jnp.array([True, True]), "anything", COARSE) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ODEOptions(solver="no"), "solver='no' is unknown; choose one of: dopri5, dopri8"),
        (lambda: ODEOptions(rtol=0.0), r"rtol=0\.0 must lie between 0 and 1"),
        (lambda: ODEOptions(atol=1.0), r"atol=1\.0 must lie between 0 and 1"),
        (lambda: ODEOptions(max_steps=0), "max_steps=0 must be at least 1"),
        (lambda: LikelihoodOptions(trace="no"), "trace='no' is unknown; choose one of: exact"),
        (lambda: LikelihoodOptions(probes=0), "probes=0 must be at least 1"),
        (lambda: LikelihoodOptions(t_min=0.0), r"t_min=0\.0 must lie between 0 and 1"),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
