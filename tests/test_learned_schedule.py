"""A noise schedule that is trained with the network, against closed forms on Gaussian data."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import TINY, configuration, flags, run

import scoresde as ss
from denoising import Denoiser
from errors import ConfigError
from experiment.build import build
from losses import LearnedSchedule, Noise
from objectives.times import LogSNR, Stratified
from objectives.variational import PixelLevels
from sde_lib import LearnedVPSDE
from training.objective import FIRST

LEARNED = {
    "sde.name": "learned",
    "sde.log_snr_max": 8.0,
    "loss.name": "learned_schedule",
    "denoiser.conditioning": "log_snr",
    "data.dequantization": "truncated_normal",
}
SPREAD = 0.5  # standard deviation of the data
T_MIN = 1e-5


def random_process(seed):
    rng = np.random.default_rng(seed)
    steps = {name: rng.normal(0, 3, 32) for name in ("height", "steepness", "center")}
    return LearnedVPSDE(log_snr_max=9.0, log_snr_min=-4.0, steps=steps)


@pytest.mark.parametrize("seed", range(5))
def test_log_snr_falls_from_one_end_to_the_other_whatever_the_parameters(seed, x64):
    first, second = random_process(seed), random_process(seed + 100)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    for process in (first, mean):
        found = np.asarray(process.log_snr(jnp.linspace(0, 1, 101)))
        assert np.all(np.diff(found) < 0)
        np.testing.assert_allclose(found[[0, -1]], [9, -4], rtol=1e-12)


def test_log_snr_is_the_formula(x64):
    process, t = random_process(7), np.linspace(0, 1, 11)
    height, steepness = (np.log1p(np.exp(process.steps[k])) for k in ("height", "steepness"))

    def h(t):
        z = steepness * (t[:, None] - process.steps["center"])
        return t + (height / (1 + np.exp(-z))).sum(axis=1)

    start, end = h(np.zeros(1)), h(np.ones(1))
    expected = 9 - 13 * (h(t) - start) / (end - start)
    np.testing.assert_allclose(process.log_snr(jnp.asarray(t)), expected, rtol=1e-12)
    np.testing.assert_allclose(
        process.alpha(jnp.asarray(t)) ** 2, 1 / (1 + np.exp(-expected)), rtol=1e-12
    )


def test_log_snr_is_nearly_linear_at_first():
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(LearnedVPSDE().log_snr(t), 13.3 - 18.3 * t, atol=0.02 * 18.3)


def gaussian_network(x, log_snr):
    """The exact eps_hat of data N(0, SPREAD^2), a function of the log-SNR alone."""
    alpha2, sigma2 = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
    return x * (jnp.sqrt(sigma2) / (alpha2 * SPREAD**2 + sigma2))[:, None]


def gaussian_model(process):
    return Denoiser(
        sde=process, network=gaussian_network, parameterization="eps", conditioning="log_snr"
    )


def objective():
    return LearnedSchedule(times=Stratified(t_min=T_MIN), pixel_levels=PixelLevels())


def grid(count=1000):
    """Times, images and noises whose first two moments are those of all, at each time."""
    t = T_MIN + (1 - T_MIN) * (np.arange(count) + 0.5) / count
    signs = np.array([(a, b) for a in (-1, 1) for b in (-1, 1)])
    x0, eps = np.tile(signs, (count, 1)).T
    drawn = Noise(jnp.asarray(np.repeat(t, 4)), jnp.asarray(eps[:, None], float))
    return jnp.asarray(SPREAD * x0[:, None]), drawn


@pytest.mark.parametrize("seed", range(3))
def test_bound_does_not_depend_on_the_schedule_between_its_ends(seed, x64):
    """Its term in the middle is 1/2 log(1 + SPREAD^2 SNR) between the ends (Section 5.1)."""
    process = dataclasses.replace(LearnedVPSDE(), steps=random_process(seed).steps)
    x0, drawn = grid()
    found = jnp.mean(objective()._middle(gaussian_model(process), x0, drawn))
    snr = np.exp(np.asarray(process.log_snr(jnp.array([T_MIN, 1.0]))))
    expected = 0.5 * np.log((1 + SPREAD**2 * snr[0]) / (1 + SPREAD**2 * snr[1]))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_gradient_of_the_steps_is_that_of_the_mean_square_and_of_the_rest_that_of_the_bound(x64):
    process = random_process(3)
    x0, (t, eps) = grid(8)
    x0 = jnp.round((x0 + 1) * 127.5) / 127.5 - 1  # pixel levels
    key, levels = jax.random.key(0), PixelLevels()

    def model(parameters, gain):
        network = jax.tree_util.Partial(lambda gain, x, c: gain * gaussian_network(x, c), gain)
        return dataclasses.replace(
            gaussian_model(process.with_parameters(parameters)), network=network
        )

    def terms(parameters, gain):
        """The middle and the ends of the bound, written anew, in bits/dim."""
        sde = process.with_parameters(parameters)
        gamma, slope = jax.jvp(lambda t: -sde.log_snr(t), (t,), (jnp.ones_like(t),))
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))
        x = alpha[:, None] * x0 + sigma[:, None] * eps
        error = eps - gain * gaussian_network(x, -gamma)
        middle = 0.5 * slope * jnp.sum(error**2, axis=1) * (1 - T_MIN)
        alpha2 = jax.nn.sigmoid(sde.log_snr(jnp.ones(())))
        prior = 0.5 * (alpha2 * x0[:, 0] ** 2 - alpha2 - jnp.log1p(-alpha2))
        std = jnp.exp(-sde.log_snr(jnp.asarray(T_MIN)) / 2)
        noisy = x0 + std * jax.random.normal(key, x0.shape)
        decoder = -levels.log_prob(x0, noisy, jnp.log(std))[:, 0]
        return middle / math.log(2), (prior + decoder) / math.log(2)

    def bound(parameters, gain):
        middle, ends = terms(parameters, gain)
        return jnp.mean(middle + ends)

    def loss(parameters, gain):
        drawn = Noise(t, eps)
        found = objective().evaluate(key, drawn, model(parameters, gain), x0, FIRST)
        return jnp.mean(found)

    at = process.parameters() | {"steps": process.steps}, jnp.asarray(0.9)
    at = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), at)
    np.testing.assert_allclose(loss(*at), bound(*at), rtol=1e-10)
    (ours, gain), (expected, gain_expected) = (
        jax.grad(function, argnums=(0, 1))(*at) for function in (loss, bound)
    )
    squares = jax.grad(lambda parameters: jnp.mean(terms(parameters, at[1])[0] ** 2))(at[0])
    np.testing.assert_allclose(gain, gain_expected, rtol=1e-8)
    for name in ("log_snr_min", "log_snr_max"):
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-8)
    for name, found in ours["steps"].items():
        np.testing.assert_allclose(found, squares["steps"][name], rtol=1e-7, atol=1e-12)


def test_trained_steps_make_the_bound_vary_least():
    """It is the integral of v^2 m with that of v fixed, and least where v root(m) is constant."""
    x0, drawn = grid(64)
    process = LearnedVPSDE()
    fixed = process.parameters()
    rule = optax.adam(optax.cosine_decay_schedule(0.05, 200))

    def middle(steps):
        sde = process.with_parameters(fixed | {"steps": steps})
        return objective()._middle(gaussian_model(sde), x0, drawn)

    def unevenness(steps):
        roots = np.sqrt(np.mean(np.asarray(middle(steps)).reshape(-1, 4) ** 2, axis=1))
        return roots.std() / roots.mean()

    @jax.jit
    def update(steps, state):
        gradient = jax.grad(lambda steps: jnp.mean(middle(steps) ** 2))(steps)
        change, state = rule.update(gradient, state)
        return optax.apply_updates(steps, change), state

    steps = fixed["steps"]
    state = rule.init(steps)
    before = unevenness(steps)
    for _ in range(200):
        steps, state = update(steps, state)
    assert before > 0.5
    assert unevenness(steps) < 0.2


def test_times_that_choose_noise_levels_are_refused():
    with pytest.raises(ValueError, match=r"choose config\.times\.name=stratified or uniform"):
        LearnedSchedule(times=LogSNR(), pixel_levels=PixelLevels())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss.name": "denoising"}, r"sde\.name=learned and config\.loss\.name=learned_schedule"),
        ({"sde.name": "vp"}, r"config\.loss\.name='learned_schedule' does not go with .*'vp'"),
        ({"data.dequantization": "uniform"}, r"needs images on gray levels"),
        ({"sde.log_snr_min": 9.0}, r"config\.sde\.log_snr_min=9\.0 must be below log_snr_max=8\.0"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(TINY | LEARNED | fields))


def test_what_needs_a_fixed_process_is_refused():
    model = build(configuration(TINY | LEARNED)).model
    with pytest.raises(ConfigError, match=r"--mode=export needs a process that .*sde\.name=vp"):
        model.require_fixed_process("--mode=export")
    build(configuration(TINY)).model.require_fixed_process("--mode=export")


@pytest.mark.slow
def test_run_samples_and_evaluates_with_its_own_schedule(tmp_path):
    fields = TINY | LEARNED | {"training.steps": 20, "optim.lr": 1e-2}
    few = {"eval.metrics": ("continuous_bound",), "eval.batch_size": 99}
    for mode, changes in (
        ("train", {}),
        ("eval", few | {"continuous_bound.num_times": 2}),
        ("sample", {}),
    ):
        assert run(*flags(mode, tmp_path, fields | changes)).status == 0
    process = ss.load(tmp_path).denoiser.sde
    assert abs(float(process.log_snr_max) - 8.0) > 1e-3
    exported = run(*flags("export", tmp_path, fields), f"--target={tmp_path / 'file.pth'}")
    assert "--mode=export needs a process" in exported.stderr
