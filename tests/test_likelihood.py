"""Likelihoods and the ODE solver below them against exact densities and exact solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import standardized_mixture

from denoising import Denoiser
from errors import IntegrationError
from likelihood import PROBES, LikelihoodOptions, log_prob
from numerics.arrays import sample_keys
from numerics.ode import ODEOptions, integrate, require_success
from sde_lib import VESDE, VPSDE, SubVPSDE
from training.parallel import DataParallel

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=20.0)}
MIXTURE = standardized_mixture(dims=2)
TIGHT = ODEOptions(rtol=1e-9, atol=1e-9)
COARSE = ODEOptions(rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "t_min", "shape", "variable"),
    [
        ("vp", 1e-5, (2,), "sqrt_angle"),
        ("vp", 1e-5, (2,), "t"),
        ("subvp", 1e-5, (2, 1, 1), "angle"),
        ("ve", 0.1, (2,), "log_snr"),
    ],
)
def test_log_prob_is_the_density_up_to_the_priors_mismatch(x64, name, t_min, shape, variable):
    sde, x = PROCESSES[name], MIXTURE.sample(0, 8)
    truth = MIXTURE.marginal(sde, t_min).log_prob(x)
    options = LikelihoodOptions(trace="exact", t_min=t_min, variable=variable)
    items = jnp.asarray(x.reshape(8, *shape))
    ours = log_prob(KEY, MIXTURE.denoiser(sde), items, options=options, ode=TIGHT)
    assert ours.latent.shape == items.shape
    # The prior stands for p_1, from which it differs a little: exactly by this much.
    last = MIXTURE.marginal(sde, 1.0).log_prob(ours.latent.reshape(8, 2))
    mismatch = sde.prior_log_prob(ours.latent) - last
    np.testing.assert_allclose(ours.nats - mismatch, truth, atol=1e-7)
    if name == "vp":
        np.testing.assert_allclose(ours.nats, truth, atol=1e-4)


@pytest.mark.parametrize(("trace", "probes"), [("rademacher", 1), ("gaussian", 3)])
def test_random_probes_are_unbiased(trace, probes):
    """400 independent estimates of the same two log-densities: 3 standard errors of their mean."""
    denoiser, copies = MIXTURE.denoiser(PROCESSES["vp"]), 400
    points = jnp.asarray(MIXTURE.sample(3, 2), jnp.float32)
    ode = ODEOptions(rtol=1e-4, atol=1e-4)
    exact = log_prob(KEY, denoiser, points, options=LikelihoodOptions(trace="exact"), ode=ode)
    options = LikelihoodOptions(trace=trace, probes=probes)
    estimates = log_prob(KEY, denoiser, jnp.repeat(points, copies, 0), options=options, ode=ode)
    nats = np.asarray(estimates.nats).reshape(2, copies)
    error = nats.std(axis=1) / np.sqrt(copies)
    assert np.all(error > 1e-3), "the estimates should be random"
    assert np.all(np.abs(nats.mean(axis=1) - exact.nats) < 3 * error)


def test_each_probe_answers_what_it_would_alone():
    """All go one way; the mean over probes is the answer, and one probe has one answer."""
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.asarray(MIXTURE.sample(3, 4), jnp.float32)
    found = log_prob(KEY, denoiser, x, options=LikelihoodOptions(probes=3), ode=COARSE)
    assert found.per_probe.shape == (4, 3)
    np.testing.assert_allclose(found.per_probe.mean(axis=1), found.nats, rtol=1e-5)
    assert np.std(found.per_probe, axis=1).max() > 1e-3
    exact = log_prob(KEY, denoiser, x, options=LikelihoodOptions(trace="exact"), ode=COARSE)
    assert exact.per_probe.shape == (4, 1)


def test_batch_may_take_common_steps():
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.asarray(MIXTURE.sample(3, 6), jnp.float32)
    options = LikelihoodOptions(trace="exact", t_min=1e-3)
    own, common = (
        log_prob(
            KEY,
            denoiser,
            x,
            options=options,
            ode=ODEOptions(rtol=1e-5, atol=1e-5, control=control),
        )
        for control in ("per_sample", "batch")
    )
    np.testing.assert_allclose(common.nats, own.nats, atol=1e-3)
    np.testing.assert_allclose(common.latent, own.latent, atol=1e-3)
    assert len(set(common.nfe.tolist())) == 1 < len(set(own.nfe.tolist()))


@pytest.mark.parametrize("trace", PROBES)
def test_probes_have_unit_covariance(trace):
    x = jnp.zeros((2, 3, 1))
    probes = np.asarray(PROBES[trace](KEY, 20_000, x)).reshape(-1, 6)
    np.testing.assert_allclose(probes.T @ probes / len(probes), np.eye(6), atol=0.05)
    if trace == "rademacher":
        assert set(np.unique(probes)) == {-1.0, 1.0}


@pytest.mark.parametrize("trace", ["rademacher", "exact"])
def test_log_prob_is_a_function_of_key_number_and_sample_alone(trace):
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    options = LikelihoodOptions(trace=trace, t_min=1e-3)
    ode = ODEOptions(rtol=1e-4, atol=1e-4)
    x, indices = MIXTURE.sample(4, 8).astype(np.float32), np.arange(8)

    def nats(x, indices):
        return log_prob(KEY, denoiser, x, options=options, ode=ode, indices=indices).nats

    together = nats(jnp.asarray(x), jnp.asarray(indices))
    mates = 10 * jnp.ones((4, 2))  # far off, where the solver takes other steps
    others = nats(jnp.concatenate([mates, x[4:]]), jnp.asarray(indices))
    np.testing.assert_allclose(others[4:], together[4:], atol=1e-5)
    default = log_prob(KEY, denoiser, jnp.asarray(x), options=options, ode=ode).nats
    np.testing.assert_array_equal(default, together)
    split = DataParallel.over_all_devices().split_rows
    # Other roundings may take other steps, so this holds to within the solver's error.
    np.testing.assert_allclose(nats(split(x), split(indices)), together, atol=0.02)
    renumbered = nats(jnp.asarray(x), jnp.asarray(indices + 1))
    assert np.allclose(renumbered, together) == (trace == "exact")


def test_probes_of_a_sample_are_drawn_from_its_own_key():
    keys = sample_keys(KEY, jnp.arange(3))
    draws = [np.asarray(PROBES["gaussian"](key, 1, jnp.zeros(4))) for key in keys]
    assert len(np.unique(np.stack(draws), axis=0)) == 3


# --- the solver ---------------------------------------------------------------------------------


def spiral(t, y, rate):
    """dy/dt = (rate + 4 i cos 4t) y for a complex y, as two real numbers: it winds and grows."""
    return (rate * jnp.eye(2) + 4 * jnp.cos(4 * t) * jnp.array([[0.0, -1.0], [1.0, 0.0]])) @ y


def spiral_solution(t, y0, rate):
    angle = np.sin(4 * t)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.exp(rate * t) * np.einsum("ij,bj->bi", turn, y0)


Y0 = np.array([[1.0, 0.0], [0.3, -2.0]])
RATE = 0.5


@pytest.mark.parametrize("solver", ["dopri5", "tsit5", "dopri8", "heun"])
def test_tighter_tolerance_means_smaller_error_and_every_call_is_counted(x64, solver):
    """Rejected steps, and what the solver spends before the first one, are calls of the field."""
    errors = []
    for tolerance in (1e-3, 1e-6):
        calls = []

        def field(t, y, rate, calls=calls):
            jax.debug.callback(lambda t: calls.append(t), t)
            return spiral(t, y, rate)

        options = ODEOptions(solver=solver, rtol=tolerance, atol=tolerance, max_steps=20_000)
        y0, rate = jnp.asarray(Y0[:1]), jnp.full(1, RATE)
        solution = integrate(field, y0, rate, t0=0.0, t1=2.0, options=options)
        jax.effects_barrier()
        assert solution.success.all()
        assert int(solution.evaluations[0]) == len(calls)
        errors.append(np.abs(solution.y - spiral_solution(2.0, Y0[:1], RATE)).max())
    assert errors[0] > 30 * errors[1]
    assert errors[1] < 1e-4


def test_integration_runs_backwards_and_keeps_frames(x64):
    start = jnp.asarray(spiral_solution(2.0, Y0, RATE))
    solution = integrate(spiral, start, jnp.full(2, RATE), t0=2.0, t1=0.5, options=TIGHT, frames=4)
    assert solution.path.shape == (2, 4, 2)
    for frame, t in enumerate((2.0, 1.5, 1.0, 0.5)):
        truth = spiral_solution(t, Y0, RATE)
        np.testing.assert_allclose(solution.path[:, frame], truth, atol=1e-6)
    np.testing.assert_allclose(solution.y, spiral_solution(0.5, Y0, RATE), atol=1e-6)


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
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.ones((3, 2))
    with pytest.raises(IntegrationError, match=message):
        log_prob(KEY, denoiser, x, options=LikelihoodOptions(), ode=ode)


def test_network_that_answers_nan_is_an_error():
    def network(x, t):
        return jnp.where(x > 5, jnp.nan, 0.0)

    denoiser = Denoiser(sde=PROCESSES["vp"], network=network)
    x = jnp.array([[0.0, 0.0], [9.0, 0.0]])
    with pytest.raises(IntegrationError, match=r"1 of 2 samples .* check the network for NaN"):
        log_prob(KEY, denoiser, x, options=LikelihoodOptions(), ode=COARSE)


def test_success_passes_silently():
    assert require_success(jnp.array([True, True]), "anything", COARSE) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ODEOptions(solver="no"), "solver='no' is unknown; choose one of: bosh3, dopri5"),
        (lambda: ODEOptions(rtol=0.0), r"rtol=0\.0 must lie between 0 and 1"),
        (lambda: ODEOptions(atol=1.0), r"atol=1\.0 must lie between 0 and 1"),
        (lambda: ODEOptions(control="no"), "control='no' is unknown; choose one of: batch, per"),
        (
            lambda: LikelihoodOptions(variable="no"),
            "variable='no' is unknown; choose one of: angle, log_snr, sqrt_angle, t",
        ),
        (lambda: ODEOptions(max_steps=0), "max_steps=0 must be at least 1"),
        (lambda: LikelihoodOptions(trace="no"), "trace='no' is unknown; choose one of: exact"),
        (lambda: LikelihoodOptions(probes=0), "probes=0 must be at least 1"),
        (lambda: LikelihoodOptions(t_min=0.0), r"t_min=0\.0 must lie in \(0, 1\)"),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
