"""A noise schedule that is trained with the network, against formulas in NumPy on Gaussian data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import TINY, UNET, assert_rejected, configuration, flags, run

import scoresde as ss
from denoising import Denoiser
from errors import ConfigError
from evaluation.protocol import samples_protocol
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.plan import parameter_table
from losses import LearnedSchedule, Noise, NoiseLevels
from numerics.pixel_levels import PixelLevels
from objectives.times import LogSNR, Stratified
from sde_lib import LearnedVPSDE
from training.objective import FIRST

LEARNED = {
    "sde.name": "learned",
    "sde.log_snr_max": 8.0,
    "loss.name": "learned_schedule",
    "data.dequantization": "truncated_normal",
}
TOP, BOTTOM = 9.0, -4.0
SPREAD = 0.5  # standard deviation of the data
T_MIN = 1e-5
LEVELS = PixelLevels(gray_levels=5, low=-0.8, high=0.8)


def random_process(seed):
    rng = np.random.default_rng(seed)
    interior = {
        "height": rng.normal(0, 1, 32),
        "steepness": rng.normal(0, 5, 32),
        "center": rng.uniform(0, 1, 32),
    }
    return LearnedVPSDE(log_snr_max=TOP, log_snr_min=BOTTOM, interior=interior)


def published_gamma(weights, t):
    """Appendix H: positive layers l1(t) + l3(sigmoid(l2(t))), then moved to the ends."""

    def network(t):
        hidden = 1 / (1 + np.exp(-(np.abs(weights["w2"]) * t[:, None] + weights["b2"])))
        return weights["b1"] + np.abs(weights["w1"]) * t + hidden @ np.abs(weights["w3"])

    start, now, end = (network(np.atleast_1d(time)) for time in (0.0, t, 1.0))
    return -TOP + (TOP - BOTTOM) * (now - start) / (end - start)


@pytest.mark.parametrize("seed", range(3))
def test_log_snr_is_that_of_the_monotone_network(seed, x64):
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 101)
    weights = {name: rng.normal(0, 2, 32) for name in ("w2", "b2", "w3")}
    weights |= {"w1": -0.7, "b1": 3.0}
    interior = {
        "height": weights["w3"] / weights["w1"],
        "steepness": weights["w2"],
        "center": -weights["b2"] / np.abs(weights["w2"]),
    }
    process = LearnedVPSDE(log_snr_max=TOP, log_snr_min=BOTTOM, interior=interior)
    gamma, time = published_gamma(weights, t), jnp.asarray(t)
    np.testing.assert_allclose(process.log_snr(time), -gamma, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(process.alpha(time) ** 2, 1 / (1 + np.exp(gamma)), rtol=1e-9)
    np.testing.assert_allclose(process.sigma(time) ** 2, 1 / (1 + np.exp(-gamma)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_log_snr_falls_from_one_end_to_the_other_whatever_the_parameters(seed, x64):
    first, second = random_process(seed), random_process(seed + 100)
    average = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, first, second)
    for process in (first, average):
        found = np.asarray(process.log_snr(jnp.linspace(0, 1, 101)))
        assert np.all(np.diff(found) < 0)
        np.testing.assert_allclose(found[[0, -1]], [TOP, BOTTOM], rtol=1e-14)


@pytest.mark.slow
def test_log_snr_is_linear_before_training(x64):
    """Every coefficient is that of gamma = gamma_0 + (gamma_1 - gamma_0) t."""
    process, t = LearnedVPSDE(), np.linspace(0.01, 1, 100)
    gamma, slope = -13.3 + 18.3 * t, 18.3
    alpha2, sigma2 = 1 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
    time, earlier = jnp.asarray(t), jnp.asarray(t / 2)
    scale, std = process.transition(earlier, time)
    before = 1 / (1 + np.exp(-13.3 + 18.3 * t / 2))
    for found, expected in (
        (process.log_snr(time), -gamma),
        (process.alpha(time), np.sqrt(alpha2)),
        (process.sigma(time), np.sqrt(sigma2)),
        (process.drift_coefficient(time), -0.5 * sigma2 * slope),
        (process.squared_diffusion(time), sigma2 * slope),
        (scale, np.sqrt(alpha2 / before)),
        (std, np.sqrt(1 - alpha2 / before)),
    ):
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=3e-5)


@pytest.mark.slow
def test_derived_coefficients_are_those_of_finite_differences(x64):
    process, t, h = random_process(1), jnp.linspace(0.05, 0.95, 19), 1e-5
    slope = (process.log_alpha(t + h) - process.log_alpha(t - h)) / (2 * h)
    np.testing.assert_allclose(process.drift_coefficient(t), slope, rtol=1e-6)
    variance = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    expected = variance - 2 * slope * process.sigma(t) ** 2
    np.testing.assert_allclose(process.squared_diffusion(t), expected, rtol=1e-6)
    np.testing.assert_allclose(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-9)


def gaussian_network(x, log_snr):
    """The exact eps_hat of data N(0, SPREAD^2), a function of the log-SNR alone."""
    alpha2, sigma2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
    return x * (jnp.sqrt(sigma2) / (alpha2 * SPREAD**2 + sigma2))[:, None]


def gaussian_model(process, gain=1.0):
    network = jax.tree_util.Partial(lambda gain, x, c: gain * gaussian_network(x, c), gain)
    return Denoiser(sde=process, network=network, parameterization="eps", conditioning="log_snr")


def objective(levels=LEVELS):
    return LearnedSchedule(times=Stratified(t_min=T_MIN), pixel_levels=levels)


def grid(count):
    """Times, images and noises whose first two moments are those of all, at each time."""
    t = T_MIN + (1 - T_MIN) * (np.arange(count) + 0.5) / count
    signs = np.array([(a, b) for a in (-1, 1) for b in (-1, 1)])
    x0, eps = np.tile(signs, (count, 1)).T
    drawn = Noise(jnp.asarray(np.repeat(t, 4)), jnp.asarray(eps[:, None], float))
    return jnp.asarray(SPREAD * x0[:, None]), drawn


def diffusion(parameters, gain, x0, drawn):
    """l_t in bits/dim, by the paper's formula."""
    process = LearnedVPSDE(**parameters)
    gamma, slope = jax.jvp(lambda t: -process.log_snr(t), (drawn.t,), (jnp.ones_like(drawn.t),))
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))
    x = alpha[:, None] * x0 + sigma[:, None] * drawn.eps
    error = drawn.eps - gain * gaussian_network(x, -gamma)
    return 0.5 * slope * jnp.sum(error**2, axis=1) * (1 - T_MIN) / math.log(2)


def at_ends(parameters, x0, noise):
    """The prior's term and the decoder's in bits/dim, for images of one pixel."""
    gamma_0 = -LearnedVPSDE(**parameters).log_snr(jnp.asarray(T_MIN))
    var_1 = jax.nn.sigmoid(-parameters["log_snr_min"])
    prior = 0.5 * ((1 - var_1) * x0**2 + var_1 - jnp.log(var_1) - 1)[:, 0]
    values = jnp.linspace(LEVELS.low, LEVELS.high, LEVELS.gray_levels)
    noisy = x0 + jnp.exp(0.5 * gamma_0) * noise
    logits = -0.5 * ((noisy - values[None]) * jnp.exp(-0.5 * gamma_0)) ** 2
    chosen = jnp.argmin(jnp.abs(x0 - values[None]), axis=1)
    return (prior - jax.nn.log_softmax(logits)[jnp.arange(len(x0)), chosen]) / math.log(2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_bound_does_not_depend_on_the_schedule_between_its_ends(seed, x64):
    """Its term in the middle is 1/2 log(1 + SPREAD^2 SNR) between the ends (Section 5.1)."""
    parameters = random_process(seed).parameters()
    found = jnp.mean(diffusion(parameters, 1.0, *grid(8000)))
    ends = LearnedVPSDE(**parameters).log_snr(jnp.array([T_MIN, 1.0]))
    of_both = 0.5 * np.log2(1 + SPREAD**2 * np.exp(np.asarray(ends)))
    np.testing.assert_allclose(found, of_both[0] - of_both[1], rtol=1e-6)


@pytest.mark.slow
def test_value_is_the_bound_and_gradients_are_those_of_the_paper(x64):
    """The interior has the gradient of the mean square of l_t, all else that of the bound."""
    drawn = grid(8)[1]
    rng, key = np.random.default_rng(0), jax.random.key(0)
    x0 = jnp.asarray(rng.choice(np.linspace(-0.8, 0.8, 5), (32, 1)))
    noise = jax.random.normal(jax.random.fold_in(key, 2), x0.shape, x0.dtype)

    def loss(parameters, gain):
        model = gaussian_model(LearnedVPSDE(**parameters), gain)
        return jnp.mean(objective().evaluate(key, drawn, model, x0, FIRST))

    def bound(parameters, gain):
        return jnp.mean(diffusion(parameters, gain, x0, drawn) + at_ends(parameters, x0, noise))

    def square(parameters, gain):
        return jnp.mean(diffusion(parameters, gain, x0, drawn) ** 2)

    at = random_process(3).parameters() | {"log_snr_max": jnp.asarray(3.0)}, jnp.asarray(0.9)
    np.testing.assert_allclose(loss(*at), bound(*at), rtol=1e-10)
    found, expected = jax.grad(loss, argnums=(0, 1))(*at), jax.grad(bound, argnums=(0, 1))(*at)
    expected[0]["interior"] = jax.grad(square)(*at)["interior"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-13), found, expected
    )
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_training_finds_the_schedule_of_least_variance(x64):
    """E l_t^2 is at least the square of the integral of root(E l_t^2) / gamma' over gamma."""
    x0, drawn = grid(64)
    first = LearnedVPSDE(log_snr_max=TOP, log_snr_min=BOTTOM).parameters()
    rule = optax.adam(optax.cosine_decay_schedule(0.05, 300))

    def squares(parameters, drawn=drawn, x0=x0):
        return diffusion(parameters, 1.0, x0, drawn) ** 2

    def loss(interior):
        model = gaussian_model(LearnedVPSDE(**first | {"interior": interior}))
        return jnp.mean(objective().evaluate(jax.random.key(0), drawn, model, x0, FIRST))

    @jax.jit
    def update(state, _):
        interior, momenta = state
        change, momenta = rule.update(jax.grad(loss)(interior), momenta)
        return (optax.apply_updates(interior, change), momenta), None

    interior = first["interior"]
    (interior, _), _ = jax.lax.scan(update, (interior, rule.init(interior)), None, 300)
    x_all, all_drawn = grid(2000)
    roots = np.sqrt(np.asarray(squares(first, all_drawn, x_all)).reshape(-1, 4).mean(axis=1))
    least = roots.mean() ** 2  # for the linear schedule, gamma is uniform
    before, after = (float(jnp.mean(squares(p))) for p in (first, first | {"interior": interior}))
    assert before > 1.3 * least
    assert least * 0.99 < after < 1.03 * least
    by_time = np.asarray(squares(first | {"interior": interior})).reshape(-1, 4).mean(axis=1)
    assert np.sqrt(by_time).std() < 0.15 * np.sqrt(by_time).mean()


@pytest.mark.slow
def test_decoder_is_normalized_over_the_levels():
    values, noisy = jnp.linspace(-0.8, 0.8, 5), jnp.asarray([[0.3, -5.0, 0.9]])
    found = [LEVELS.log_posterior(jnp.full_like(noisy, v), noisy, jnp.log(0.2)) for v in values]
    np.testing.assert_allclose(np.exp(found).sum(axis=0), 1, rtol=1e-5)


def test_noise_levels_are_given():
    levels = jnp.array([-3.0, 2.0])
    np.testing.assert_allclose(NoiseLevels(levels=levels).log_snr(jnp.ones(2)), levels)


def test_times_that_choose_noise_levels_are_refused():
    with pytest.raises(ValueError, match=r"choose config\.times\.name=stratified or uniform"):
        LearnedSchedule(times=LogSNR(), pixel_levels=LEVELS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss.name": "denoising"}, r"sde\.name=learned and config\.loss\.name=learned_schedule"),
        ({"sde.name": "vp"}, r"config\.loss\.name='learned_schedule' does not go with .*'vp'"),
        ({"sde.log_snr_min": 9.0}, r"config\.sde\.log_snr_min=9\.0 must be below log_snr_max=8\.0"),
        ({"denoiser.conditioning": "timestep_999"}, r"'timestep_999' depends on the time.*log_snr"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(TINY | LEARNED | fields))


@pytest.mark.slow
def test_what_needs_a_fixed_process_is_refused():
    model = build(configuration(TINY | LEARNED)).model
    with pytest.raises(ConfigError, match=r"--mode=export needs a process that .*sde\.name=vp"):
        model.require_fixed_process("--mode=export")
    build(configuration(TINY)).model.require_fixed_process("--mode=export")


@pytest.mark.slow
def test_process_is_part_of_the_parameters_and_of_the_protocol():
    experiment = build(configuration(UNET | LEARNED))
    abstract = experiment.trainer.abstract_state().params
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract)
    assert set(params) == {"network", "process"}
    blocks = [row.split()[:2] for row in parameter_table(params).splitlines()]
    assert ["process", "5"] in blocks
    assert ["embedding_0", "2"] in blocks

    def protocol(params):
        checkpoint = Checkpoint(step=1, denoiser=experiment.model.denoiser(params))
        return samples_protocol(experiment, checkpoint, 4)

    moved = params | {"process": params["process"] | {"log_snr_max": jnp.asarray(7.0)}}
    assert experiment.model.denoiser(moved).sde.log_snr_max == 7
    assert protocol(params).difference(protocol(moved))


@pytest.mark.slow
def test_run_resumes_samples_and_evaluates_with_its_own_schedule(tmp_path):
    fields = TINY | LEARNED | {"training.steps": 20, "optim.lr": 1e-2}
    few = {
        "eval.metrics": ("loss", "continuous_bound", "discrete_bound"),
        "eval.batch_size": 99,
        "continuous_bound.num_times": 2,
        "discrete_bound.steps": 3,
    }
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(*flags("train", whole, fields | {"diagnostics.every": 20})).status == 0
    for steps in (10, 20):
        assert run(*flags("train", stopped, fields | {"training.steps": steps})).status == 0
    ours, theirs = (ss.load(folder).denoiser for folder in (whole, stopped))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert abs(float(ours.sde.log_snr_max) - 8.0) > 1e-3
    few |= {"data.dequantization": "uniform"}  # for likelihoods, not for the loss
    for mode, changes in (("eval", few), ("sample", {}), ("check", {})):
        call = run(*flags(mode, whole, fields | changes))
        assert call.status == 0, call.stderr
    export = run(*flags("export", whole, fields), f"--target={tmp_path / 'file.pth'}")
    assert_rejected(export, "--mode=export needs a process")
