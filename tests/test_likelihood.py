"""Log-likelihoods by the probability-flow ODE against exact densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import standardized_mixture

from denoising import Denoiser
from errors import IntegrationError
from likelihood import LikelihoodOptions, log_prob
from numerics.ode import ODEOptions
from sde_lib import VESDE, VPSDE, SubVPSDE
from training.parallel import DataParallel

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=20.0)}
MIXTURE = standardized_mixture(dims=2)
TIGHT = ODEOptions(solver="adams", rtol=1e-9, atol=1e-9)
COARSE = ODEOptions(solver="adams", rtol=1e-3, atol=1e-3)


def test_consistency_model_has_no_likelihood():
    model = Denoiser(sde=VPSDE(), network=lambda x, t: x, parameterization="consistency")
    message = "a likelihood needs scores, which parameterization='consistency' does not have"
    with pytest.raises(ValueError, match=message):
        log_prob(KEY, model, jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("name", "t_min", "shape", "ode_variable"),
    [
        ("vp", 1e-5, (2,), "sqrt_angle"),
        pytest.param("vp", 1e-5, (2,), "t", marks=pytest.mark.slow),
        pytest.param("subvp", 1e-5, (2, 1, 1), "angle", marks=pytest.mark.slow),
        pytest.param("ve", 0.1, (2,), "log_snr", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_log_prob_is_the_density_up_to_the_prior_mismatch(x64, name, t_min, shape, ode_variable):
    sde, x = PROCESSES[name], MIXTURE.sample(0, 8)
    truth = MIXTURE.marginal(sde, t_min).log_prob(x)
    options = LikelihoodOptions(trace="exact", t_min=t_min, ode_variable=ode_variable)
    items = jnp.asarray(x.reshape(8, *shape))
    ours = log_prob(KEY, MIXTURE.denoiser(sde), items, options=options, ode=TIGHT)
    assert ours.latent.shape == items.shape
    # The prior replaces p_1, which changes the log-density by exactly this much.
    last = MIXTURE.marginal(sde, 1.0).log_prob(ours.latent.reshape(8, 2))
    mismatch = sde.prior_log_prob(ours.latent) - last
    np.testing.assert_allclose(ours.nats - mismatch, truth, atol=1e-7)
    if name == "vp":
        np.testing.assert_allclose(ours.nats, truth, atol=1e-4)


@pytest.mark.slow
def test_default_solver_is_more_exact_than_dopri5_with_fewer_evaluations(x64):
    """The mean error in nats at the default tolerance, against the density at t_min."""
    sde, x = PROCESSES["vp"], MIXTURE.sample(1, 64)
    truth = MIXTURE.marginal(sde, 1e-5).log_prob(x)
    options, found = LikelihoodOptions(trace="exact"), {}
    denoiser, points = MIXTURE.denoiser(sde), jnp.asarray(x)
    for name, chosen in {"default": {}, "dopri5": {"ode": ODEOptions(solver="dopri5")}}.items():
        ours = log_prob(KEY, denoiser, points, options=options, **chosen)
        mismatch = sde.prior_log_prob(ours.latent)
        mismatch = mismatch - MIXTURE.marginal(sde, 1.0).log_prob(ours.latent)
        found[name] = np.abs(ours.nats - mismatch - truth).mean(), np.mean(ours.nfe)
    assert found["default"][0] < found["dopri5"][0] < 1e-3
    assert found["default"][1] < 0.8 * found["dopri5"][1]


@pytest.mark.slow
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


@pytest.mark.slow
def test_each_probe_has_an_estimate_of_its_own():
    """All probes share one path. The result is their mean; the exact trace has one estimate."""
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.asarray(MIXTURE.sample(3, 4), jnp.float32)
    found = log_prob(KEY, denoiser, x, options=LikelihoodOptions(probes=3), ode=COARSE)
    assert found.per_probe.shape == (4, 3)
    np.testing.assert_allclose(found.per_probe.mean(axis=1), found.nats, rtol=1e-5)
    assert np.std(found.per_probe, axis=1).max() > 1e-3
    exact = log_prob(KEY, denoiser, x, options=LikelihoodOptions(trace="exact"), ode=COARSE)
    assert exact.per_probe.shape == (4, 1)


@pytest.mark.slow
def test_default_options_need_not_be_given():
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.asarray(MIXTURE.sample(3, 4), jnp.float32)
    ode = ODEOptions(solver="adams")
    explicit = log_prob(KEY, denoiser, x, options=LikelihoodOptions(), ode=ode)
    np.testing.assert_array_equal(log_prob(KEY, denoiser, x).nats, explicit.nats)


@pytest.mark.slow
def test_batch_may_take_common_steps():
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.asarray(MIXTURE.sample(3, 6), jnp.float32)
    options = LikelihoodOptions(trace="exact", t_min=1e-3)
    own, common = (
        log_prob(
            KEY,
            denoiser,
            x,
            options=options,
            ode=ODEOptions(rtol=1e-5, atol=1e-5, step_size_control=control),
        )
        for control in ("per_sample", "batch")
    )
    np.testing.assert_allclose(common.nats, own.nats, atol=1e-3)
    np.testing.assert_allclose(common.latent, own.latent, atol=1e-3)
    assert len(set(common.nfe.tolist())) == 1 < len(set(own.nfe.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["rademacher", "exact"])
def test_log_prob_is_a_function_of_key_index_and_sample_alone(trace):
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    options = LikelihoodOptions(trace=trace, t_min=1e-3)
    ode = ODEOptions(rtol=1e-4, atol=1e-4)
    x, indices = MIXTURE.sample(4, 8).astype(np.float32), np.arange(8)

    def nats(x, indices):
        return log_prob(KEY, denoiser, x, options=options, ode=ode, indices=indices).nats

    together = nats(jnp.asarray(x), jnp.asarray(indices))
    distant = 10 * jnp.ones((4, 2))  # where the solver takes other steps
    others = nats(jnp.concatenate([distant, x[4:]]), jnp.asarray(indices))
    np.testing.assert_allclose(others[4:], together[4:], atol=1e-5)
    default = log_prob(KEY, denoiser, jnp.asarray(x), options=options, ode=ode).nats
    np.testing.assert_array_equal(default, together)
    split = DataParallel.over_all_devices().split_rows
    # Other roundings may take other steps, so this holds to within the solver's error.
    np.testing.assert_allclose(nats(split(x), split(indices)), together, atol=0.02)
    renumbered = nats(jnp.asarray(x), jnp.asarray(indices + 1))
    assert np.allclose(renumbered, together) == (trace == "exact")


@pytest.mark.slow
def test_too_few_steps_are_an_error_with_a_remedy():
    ode = ODEOptions(rtol=1e-6, atol=1e-6, max_steps=2)
    message = r"log-likelihood: 3 of 3 samples .* max_steps=2 .* raise max_steps, loosen rtol=1e-06"
    denoiser, x = MIXTURE.denoiser(PROCESSES["vp"]), jnp.ones((3, 2))
    with pytest.raises(IntegrationError, match=message):
        log_prob(KEY, denoiser, x, options=LikelihoodOptions(), ode=ode)


@pytest.mark.slow
def test_nan_from_the_network_is_an_error():
    def network(x, t):
        return jnp.where(x > 5, jnp.nan, 0.0)

    denoiser = Denoiser(sde=PROCESSES["vp"], network=network)
    x = jnp.array([[0.0, 0.0], [9.0, 0.0]])
    with pytest.raises(IntegrationError, match=r"1 of 2 samples .* check the network for NaN"):
        log_prob(KEY, denoiser, x, options=LikelihoodOptions(), ode=COARSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LikelihoodOptions(ode_variable="no"),
            "ode_variable='no' is unknown; choose one of: angle, log_snr, sqrt_angle, t",
        ),
        (lambda: LikelihoodOptions(trace="no"), "trace='no' is unknown; choose one of: exact"),
        (lambda: LikelihoodOptions(probes=0), "probes=0 must be at least 1"),
        (lambda: LikelihoodOptions(t_min=0.0), r"t_min=0\.0 must lie in \(0, 1\)"),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
