"""The Denoiser predicts the same x0, eps and score with every parameterization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import standardized_mixture
from jax.tree_util import Partial

from denoising import CONDITIONINGS, Denoiser
from experiment.options import DenoiserOptions
from numerics.clipping import Clipping
from numerics.parameterizations import PARAMETERIZATIONS
from sde_lib import VESDE, VPSDE, SubVPSDE, reverse_drift

PROCESSES = [
    pytest.param(VPSDE(), id="vp"),
    pytest.param(SubVPSDE(), id="subvp"),
    pytest.param(VESDE(), id="ve"),
]
every_process = pytest.mark.parametrize("sde", PROCESSES)

# The output of a perfect network, by the definitions of the papers.
OUTPUTS = {
    "eps": lambda x0, eps, alpha, sigma: eps,
    "score": lambda x0, eps, alpha, sigma: -eps / sigma,
    "x0": lambda x0, eps, alpha, sigma: x0,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "velocity": lambda x0, eps, alpha, sigma: eps - x0,
    "scaled_score": lambda x0, eps, alpha, sigma: -eps,
    "score_centered_input": lambda x0, eps, alpha, sigma: -eps / sigma,
    "edm": lambda x0, eps, alpha, sigma: edm_target(x0, eps, sigma / alpha),
    "eps_learned_variance": lambda x0, eps, alpha, sigma: jnp.concatenate([eps, 7 + eps], axis=-1),
    "iddpm": lambda x0, eps, alpha, sigma: jnp.concatenate([eps, 7 + eps], axis=-1),
    "consistency": lambda x0, eps, alpha, sigma: consistency_target(x0, eps, sigma / alpha),
    "bridge": lambda x0, eps, alpha, sigma: (alpha * x0 + sigma * eps - x0) / jnp.sqrt(sigma),
}


def consistency_target(x0, eps, s, sigma_data=0.5, sigma_min=0.002):
    """(x0 - c_skip y) / c_out, coefficients of Song et al. 2023, arXiv:2303.01469, Appendix C."""
    c_skip = sigma_data**2 / ((s - sigma_min) ** 2 + sigma_data**2)
    c_out = sigma_data * (s - sigma_min) / np.sqrt(sigma_data**2 + s**2)
    return (x0 - c_skip * (x0 + s * eps)) / c_out


def edm_target(x0, eps, s, sigma_data=0.5):
    """Karras et al. 2022, Eq. 8: (x0 - c_skip y) / c_out, coefficients of their Table 1."""
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / np.sqrt(sigma_data**2 + s**2)
    return (x0 - c_skip * (x0 + s * eps)) / c_out


def nearest_level(s, count=1000):
    """Karras et al. 2022, Table 1, iDDPM: the timestep of the nearest noise level."""
    levels = [0.0]
    for j in range(count, 0, -1):
        ratio = np.sin(np.pi / 2 * np.array([j - 1, j]) / count / 1.008) ** 2
        levels.append(np.sqrt((levels[-1] ** 2 + 1) / max(ratio[0] / ratio[1], 0.001) - 1))
    return np.abs(np.array(levels[1:])[:, None] - np.asarray(s)).argmin(axis=0)


INPUTS = {
    "scaled_score": lambda x, alpha, sigma: 2 * x - 1,
    "score_centered_input": lambda x, alpha, sigma: 2 * x - 1,
    "edm": lambda x, alpha, sigma: x / alpha / np.sqrt((sigma / alpha) ** 2 + 0.5**2),
    "iddpm": lambda x, alpha, sigma: x / alpha / np.sqrt((sigma / alpha) ** 2 + 1),
    "consistency": lambda x, alpha, sigma: x / alpha / np.sqrt((sigma / alpha) ** 2 + 0.5**2),
}
CONDITIONS = {
    "t": lambda sde, t: t,
    "timestep_999": lambda sde, t: 999 * t,
    "log_sigma": lambda sde, t: np.log(sde.sigma(t)),
    "log_snr": lambda sde, t: np.log(sde.alpha(t) ** 2 / sde.sigma(t) ** 2),
    "timestep": lambda sde, t: 999 * t,
    "rescaled_timestep": lambda sde, t: 999 * t,  # times 1000 / n, for n = 1000
    "reversed_timestep": lambda sde, t: np.round(999 * (1 - t)),
    "edm": lambda sde, t: np.log(sde.sigma(t) / sde.alpha(t)) / 4,
    "iddpm": lambda sde, t: nearest_level(sde.sigma(t) / sde.alpha(t)),
}


# The others have outputs that x0 and eps do not determine; see tests/numerics/test_pixel_levels.py.
LINEAR = [name for name, row in PARAMETERIZATIONS.items() if not row.of_levels]


def recording(output, seen):
    """A network that records its inputs."""

    def network(x, condition):
        seen.append((x, condition))
        return output

    return network


@pytest.mark.parametrize("name", LINEAR)
@every_process
def test_every_parameterization_gives_the_same_prediction(x64, sde, name):
    t = jnp.array([1e-3, 0.3, 1.0])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    alpha, sigma = sde.alpha(t).reshape(3, 1, 1, 1), sde.sigma(t).reshape(3, 1, 1, 1)
    seen = []
    output = OUTPUTS[name](x0, eps, alpha, sigma)
    denoiser = Denoiser(sde=sde, network=recording(output, seen), parameterization=name)
    x = sde.perturb(x0, t, eps)
    prediction = denoiser.predict(x, t)
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(prediction.eps, eps, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(denoiser.score(x, t), -eps / sigma, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(
        seen[0][0], INPUTS.get(name, lambda x, alpha, sigma: x)(x, alpha, sigma), rtol=1e-12
    )


@every_process
def test_sigma_data_scales_the_edm_parameterization(x64, sde):
    t, seen = jnp.array([1e-3, 0.3, 1.0]), []
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 2))
    s = (sde.sigma(t) / sde.alpha(t))[:, None]
    network = recording(edm_target(x0, eps, s, sigma_data=0.7), seen)
    denoiser = Denoiser(sde=sde, network=network, parameterization="edm", sigma_data=0.7)
    prediction = denoiser.predict(sde.perturb(x0, t, eps), t)
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(prediction.eps, eps, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(seen[0][0], (x0 + s * eps) / np.hypot(s, 0.7), rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sigma_data": 0.7},
            r"sigma_data=0\.7 is used with parameterization=edm or consistency, not with 'eps'",
        ),
        (
            {"parameterization": "edm", "sigma_min": 0.1},
            r"sigma_min=0\.1 is used with parameterization=consistency, not with 'edm'",
        ),
        ({"parameterization": "edm", "sigma_data": 0.0}, r"sigma_data=0\.0 must be above 0"),
    ],
)
def test_parameter_that_is_not_used_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(sde=VPSDE(), network=lambda x, t: x, **fields)
    with pytest.raises(ValueError, match=message):
        DenoiserOptions(**fields)


@every_process
def test_consistency_function_is_the_identity_at_the_smallest_noise(x64, sde):
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.full(3, 0.2)
    alpha = float(sde.alpha(t[0]))
    s = float(sde.sigma(t[0])) / alpha
    network = recording(jnp.ones((3, 2)), [])
    fields = {"parameterization": "consistency", "sigma_min": s}
    prediction = Denoiser(sde=sde, network=network, **fields).predict(x, t)
    np.testing.assert_allclose(prediction.x0, x / alpha, rtol=1e-7)
    np.testing.assert_allclose(prediction.eps, 0, atol=1e-7)


@pytest.mark.parametrize("name", CONDITIONINGS)
@every_process
def test_time_input_of_each_sample_follows_the_conditioning(sde, name):
    x, t = jnp.zeros((3, 2)), jnp.array([0.1, 0.5, 0.9])
    seen = []
    denoiser = Denoiser(sde=sde, network=recording(x, seen), conditioning=name)
    denoiser.predict(x, t)
    denoiser.predict(x, 0.5)
    np.testing.assert_allclose(seen[0][1], CONDITIONS[name](sde, t), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen[1][1], np.broadcast_to(seen[0][1][1], 3), rtol=1e-5)


def test_timestep_counts_a_longer_chain():
    """The last of 4000 timesteps is 3999, or 999.75 where they are scaled to 1000."""
    seen = []
    for conditioning in ("timestep", "rescaled_timestep", "reversed_timestep"):
        network = recording(jnp.zeros((2, 1)), seen)
        denoiser = Denoiser(
            sde=VPSDE(), network=network, conditioning=conditioning, num_timesteps=4000
        )
        denoiser.predict(jnp.zeros((2, 1)), jnp.array([0.25, 1.0]))
    conditions = [condition for _, condition in seen]
    np.testing.assert_allclose(conditions, [[999.75, 3999], [249.9375, 999.75], [2999, 0]])


@pytest.mark.slow
@every_process
def test_scalar_and_batched_times_agree(sde):
    denoiser = standardized_mixture().denoiser(sde)
    x = jax.random.normal(jax.random.key(1), (4, 2))
    for method in (denoiser.score, denoiser.ode_velocity):
        scalar, batched = method(x, jnp.float32(0.4)), method(x, jnp.full(4, 0.4))
        np.testing.assert_allclose(scalar, batched, rtol=1e-6)


@pytest.mark.slow
@every_process
def test_ode_velocity_is_the_reverse_drift_without_churn(sde):
    mixture = standardized_mixture()
    x, t = jax.random.normal(jax.random.key(2), (4, 2)), jnp.float32(0.6)
    score = mixture.marginal(sde, t).score(x)
    expected = reverse_drift(sde, score, x, t, churn=0.0)
    np.testing.assert_allclose(
        mixture.denoiser(sde).ode_velocity(x, t), expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_analytic_score_is_the_gradient_of_the_analytic_density(x64):
    mixture = standardized_mixture().marginal(VPSDE(), 0.2)
    x = mixture.sample(0, 5)
    step = 1e-6 * np.eye(2)
    slopes = [(mixture.log_prob(x + e) - mixture.log_prob(x - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(mixture.score(x), np.stack(slopes, axis=1), rtol=1e-6, atol=1e-8)


WITH_ENERGY = [
    name
    for name, row in PARAMETERIZATIONS.items()
    if row.channels == 1 and row.predicts_mean and not row.of_levels
]


def quartic(x, t):
    """An energy that depends on t, and no Gaussian."""
    return jnp.cos(t) * jnp.sum(x**4 / 4 - x[:, ::-1] * x, axis=1)


def quartic_denoiser(sde, name="eps", **fields):
    def network(x, t):
        return jax.grad(lambda x: jnp.sum(quartic(x, t)))(x)

    return Denoiser(
        sde=sde,
        network=network,
        energy=quartic,
        parameterization=name,
        conditioning="t",
        **fields,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ENERGY)
def test_gradient_of_the_log_density_is_the_score(x64, name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
    denoiser, t = quartic_denoiser(VPSDE(), name), jnp.array([0.1, 0.5, 0.9])

    @jax.jit
    def both(x):
        return jax.grad(lambda x: jnp.sum(denoiser.log_density(x, t)))(x), denoiser.score(x, t)

    np.testing.assert_allclose(*both(x), rtol=1e-9, atol=1e-9)


@every_process
@pytest.mark.slow
def test_differences_of_log_densities_are_those_of_the_mixture(x64, sde):
    data = standardized_mixture()
    x, t = data.sample(0, 50), 0.2
    found = jax.jit(data.energy_denoiser(sde).log_density)(x, t)
    truth = data.marginal(sde, t).log_prob(x)
    np.testing.assert_allclose(found - found[0], truth - truth[0], rtol=0, atol=1e-9)
    assert np.ptp(truth) > 1


def test_score_without_an_energy_has_no_log_density():
    x = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match=r"train one with config\.denoiser\.energy=True"):
        standardized_mixture().denoiser(VPSDE()).log_density(x, 0.5)
    clipped = quartic_denoiser(VPSDE(), clipping=Clipping(clip="range"))
    with pytest.raises(
        ValueError, match="a score with clipping of x0 is the gradient of no energy"
    ):
        clipped.log_density(x, 0.5)
    with pytest.raises(
        ValueError, match="a log-density needs scores, which parameterization='cons"
    ):
        quartic_denoiser(VPSDE(), "consistency").log_density(x, 0.5)


@pytest.mark.parametrize("field", ["parameterization", "conditioning"])
def test_unknown_name_lists_the_known_ones(field):
    with pytest.raises(ValueError, match=rf"{field}='nonsense' is unknown; choose one of: \w+, "):
        Denoiser(sde=VPSDE(), network=lambda x, t: x, **{field: "nonsense"})


def test_new_parameters_need_no_new_compilation():
    traces = []

    @jax.jit
    def score(denoiser, x):
        traces.append(x)
        return denoiser.score(x, jnp.float32(0.5))

    def network(weight, x, t):
        return weight * x

    x, sde = jnp.ones((2, 3)), VPSDE()
    for weight in (1.0, 2.0):
        denoiser = Denoiser(sde=sde, network=Partial(network, jnp.float32(weight)))
        expected = -weight * x / sde.sigma(jnp.float32(0.5))
        np.testing.assert_allclose(score(denoiser, x), expected, rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize(("name", "channels"), [("eps", 2), ("eps_learned_variance", 1), ("x0", 3)])
def test_output_of_another_shape_is_an_error_where_it_would_broadcast(name, channels):
    denoiser = Denoiser(
        sde=VPSDE(),
        network=lambda x, t: jnp.zeros((*x.shape[:-1], channels)),
        parameterization=name,
    )
    with pytest.raises(ValueError, match=rf"parameterization='{name}' needs a network output"):
        denoiser.predict(jnp.zeros((2, 4, 4, 1)), 0.5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("clip", ["range", "dynamic"])
@every_process
def test_clipped_prediction_lies_in_the_range_and_still_makes_x(x64, sde, clip, low, high):
    """One sample's x0 is within the range and stays the same; the other's is far outside."""
    rng = np.random.default_rng(0)
    inside = rng.uniform(low, high, (1, 4, 4, 1))
    x0 = jnp.asarray(np.concatenate([inside, 3 * rng.normal(size=inside.shape)]))
    x, t = x0 + 1, jnp.float64(0.4)
    denoiser = Denoiser(
        sde=sde,
        network=lambda x, t: x0,
        parameterization="x0",
        clipping=Clipping(
            clip=clip, quantile=0.8 if clip == "dynamic" else None, low=low, high=high
        ),
    )
    prediction = denoiser.predict(x, t)
    middle, radius = (low + high) / 2, (high - low) / 2
    size = 1 if clip == "range" else np.quantile(np.abs(x0[1] - middle) / radius, 0.8)
    outside = middle + radius * np.clip((x0[1] - middle) / radius, -size, size) / size
    np.testing.assert_allclose(prediction.x0[0], x0[0], rtol=1e-12)
    np.testing.assert_allclose(prediction.x0[1], outside, rtol=1e-9)
    made = sde.alpha(t) * prediction.x0 + sde.sigma(t) * prediction.eps
    np.testing.assert_allclose(made, x, rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": "no"}, "clip='no' is unknown; choose one of: dynamic, none, range"),
        ({"clip": "range", "quantile": 0.9}, "quantile=0.9 needs clip='dynamic', not clip='range'"),
        ({"clip": "dynamic", "quantile": 1.5}, r"quantile=1.5 must lie in \(0, 1\)"),
    ],
)
def test_invalid_clipping_is_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        Clipping(**fields)


@pytest.mark.slow
def test_classes_and_small_images_travel_with_their_image():
    """A batch of one, as adaptive samplers take it, has its own."""
    rng = np.random.default_rng(0)
    x, small = rng.normal(size=(3, 4, 4, 2)), rng.normal(size=(3, 2, 2, 2))

    def network(x, condition, labels, image):
        enlarged = image.repeat(2, axis=1).repeat(2, axis=2)
        return x * labels[:, None, None, None] + enlarged

    denoiser = Denoiser(
        sde=VPSDE(), network=network, labels=jnp.arange(3), image=jnp.asarray(small)
    )
    eps = denoiser.predict(jnp.asarray(x), 0.5).eps
    wanted = x * np.arange(3)[:, None, None, None] + small.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(eps, wanted, atol=1e-5)
    one_by_one = jax.vmap(lambda x, entry: denoiser.index(entry).predict(x[None], 0.5).eps[0])(
        jnp.asarray(x), denoiser.batched_fields
    )
    np.testing.assert_allclose(one_by_one, wanted, atol=1e-5)
