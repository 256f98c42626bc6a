"""Samplers against exact marginals, published formulas, their order, and their determinism.

Monte-Carlo comparisons allow 4.5 standard errors, and a bias where the step size leaves one.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian, standardized_mixture

import sampling
from arrays import fold_in_each, normal_like, sample_keys
from denoising import CONDITIONINGS, Denoiser
from likelihood import LikelihoodOptions, log_prob
from ode import ODEOptions, integrate
from parallel import Layout
from sampling import (
    CORRECTORS,
    PREDICTORS,
    TIME_GRIDS,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Schedule,
    Step,
    sample,
)
from sde_lib import VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from solvers.probability_flow import FlowOptions, sample_ode

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=20.0)}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
KERNELS = {
    "euler": EulerMaruyama(),
    "euler_half_churn": EulerMaruyama(churn=0.5),
    "flow": EulerMaruyama(churn=0.0),
    "reverse_diffusion": ReverseDiffusion(),
    "ancestral_small": Ancestral(variance="small"),
    "ancestral_large": Ancestral(variance="large"),
}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
MIXTURE = standardized_mixture(dims=8)
PLANE = standardized_mixture(dims=2)
BATCH, T_MIN = 1000, 1e-3
TIGHT = ODEOptions(rtol=1e-9, atol=1e-9)


def assert_samples_follow(x, truth, *, bias=0.0, deviations=4.5):
    """Mean, covariance, component weights and component widths of samples of a mixture."""
    x = np.asarray(x, np.float64)
    mean, covariance, count = truth.mean, truth.covariance, len(x)
    variance = np.diag(covariance)
    errors = (x.mean(axis=0) - mean) / np.sqrt(variance / count)
    assert np.abs(errors).max() < deviations, f"mean is off by {errors} standard errors"

    difference = np.cov(x.T) - covariance
    allowed = deviations * np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    allowed += bias * np.sqrt(np.outer(variance, variance))
    assert np.all(np.abs(difference) < allowed), f"covariance is off by {difference}"
    total = np.trace(difference) / np.trace(covariance)
    assert abs(total) < deviations * np.sqrt(2 / x.size) + bias, f"variance is off by {total:.1%}"

    component = truth.nearest(x)
    share = np.bincount(component, minlength=len(truth.weights)) / count
    errors = (share - truth.weights) / np.sqrt(truth.weights * (1 - truth.weights) / count)
    assert np.abs(errors).max() < deviations, f"weights are off by {errors} standard errors"
    # The components differ in the first two dimensions, whose width settles last.
    narrow = truth.covariances[component][:, :2, :2]
    centred = (x - truth.means[component])[:, :2]
    squares = np.einsum("bi,bij,bj->b", centred, np.linalg.inv(narrow), centred) / 2
    width = squares.mean() - 1
    assert abs(width) < deviations / np.sqrt(count) + 2 * bias, f"widths are off by {width:.1%}"


# --- one step -----------------------------------------------------------------------------------


def one_step(kernel, denoiser, x, t, s):
    """mean, noise std (one number a sample) and the standard normal noise of one step."""
    keys = sample_keys(KEY, jnp.arange(len(x)))
    t, s = jnp.asarray(t, x.dtype), jnp.asarray(s, x.dtype)
    step = kernel.step(keys, denoiser, Step(x, x), t, s)
    z = normal_like(keys, x)
    std = jnp.sum((step.x - step.mean) * z, axis=-1) / jnp.sum(z**2, axis=-1)
    np.testing.assert_allclose(step.x - step.mean, std[:, None] * z, atol=1e-10)
    return step.mean, std, z


@pytest.mark.parametrize("churn", [0.0, 0.7, 1.0])
@every_process
def test_euler_maruyama_is_the_formula(x64, sde, churn):
    t, s = jnp.float64(0.6), jnp.float64(0.55)
    x = jnp.asarray(PLANE.sample(0, 5))
    mean, std, _ = one_step(EulerMaruyama(churn=churn), PLANE.denoiser(sde), x, t, s)
    f, g2 = sde.drift_coefficient(t), sde.squared_diffusion(t)
    drift = f * x - (1 + churn**2) / 2 * g2 * PLANE.marginal(sde, t).score(x)
    np.testing.assert_allclose(mean, x - 0.05 * drift, rtol=1e-8)
    np.testing.assert_allclose(std, churn * np.sqrt(0.05 * g2), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "noise"),
    [
        (ReverseDiffusion(), lambda late, early: late - early),
        (Ancestral(variance="large"), lambda late, early: late - early),
        (Ancestral(variance="small"), lambda late, early: early * (late - early) / late),
    ],
)
def test_ve_steps_are_the_published_ones(x64, kernel, noise):
    """x + (sigma_t^2 - sigma_s^2) score, and the noise of the paper's appendix E or F."""
    sde, t, s = PROCESSES["ve"], 0.6, 0.55
    late, early = (float(sde.sigma(jnp.float64(u))) ** 2 for u in (t, s))
    x = jnp.asarray(PLANE.sample(0, 5))
    mean, std, _ = one_step(kernel, PLANE.denoiser(sde), x, t, s)
    score = PLANE.marginal(sde, t).score(x)
    np.testing.assert_allclose(mean, x + (late - early) * score, rtol=1e-8)
    np.testing.assert_allclose(std, np.sqrt(noise(late, early)), rtol=1e-8)


@pytest.mark.parametrize(
    ("kernel", "published"),
    [
        (ReverseDiffusion(), lambda x, score, b: (2 - np.sqrt(1 - b)) * x + b * score),
        (Ancestral(variance="large"), lambda x, score, b: (x + b * score) / np.sqrt(1 - b)),
    ],
)
def test_vp_steps_are_the_published_ones(x64, kernel, published):
    """With beta_i = 1 - (alpha_t / alpha_s)^2; the table's beta(t) / N differs by O(1 / N^2)."""
    sde, t = PROCESSES["vp"], jnp.float64(0.6)
    x = jnp.asarray(PLANE.sample(0, 5))
    score = PLANE.marginal(sde, t).score(x)
    differences = []
    for steps in (1000, 2000):
        s = t - 1 / steps
        beta = 1 - (sde.alpha(t) / sde.alpha(s)) ** 2
        mean, std, _ = one_step(kernel, PLANE.denoiser(sde), x, t, s)
        np.testing.assert_allclose(mean, published(x, score, beta), rtol=1e-9)
        np.testing.assert_allclose(std**2, beta, rtol=1e-9)
        table = (sde.beta_min + t * (sde.beta_max - sde.beta_min)) / steps
        differences.append(beta - table)
    np.testing.assert_allclose(differences[0] / differences[1], 4, rtol=0.05)


@every_process
def test_ancestral_step_is_exact_on_a_point_mass_for_any_step(x64, sde):
    """Known data make p(x_s | x_t) the posterior that Ancestral samples: marginals are kept."""
    point = np.array([0.5, -0.3])
    denoiser = gaussian(point, np.zeros((2, 2))).denoiser(sde)
    t, s = jnp.float64(0.9), jnp.float64(0.2)
    centre = sde.alpha(t) * jnp.asarray(point)
    x = jnp.stack([centre, centre + 1])
    mean, std, _ = one_step(Ancestral(variance="small"), denoiser, x, t, s)
    slope = mean[1] - mean[0]
    np.testing.assert_allclose(mean[0], sde.alpha(s) * point, rtol=1e-9)
    variance = slope**2 * sde.sigma(t) ** 2 + std[0] ** 2
    np.testing.assert_allclose(variance, sde.sigma(s) ** 2, rtol=1e-9)


@every_kernel
@every_process
def test_error_of_the_variance_is_of_first_order(x64, sde, kernel):
    """On Gaussian data a step is affine, so the law of the whole chain is computed, not sampled."""
    width = 0.5
    denoiser = gaussian(np.zeros(1), width**2 * np.eye(1)).denoiser(sde)

    @jax.jit
    @jax.vmap
    def coefficients(t, s):
        ones, keys = jnp.ones((1, 1)), sample_keys(KEY, jnp.arange(1))
        step = kernel.step(keys, denoiser, Step(ones, ones), t, s)
        return step.mean[0, 0], (step.x - step.mean)[0, 0] / normal_like(keys, ones)[0, 0]

    def error(steps):
        times = jnp.asarray(Schedule(grid="log_snr", steps=steps, t_min=1e-2).times(sde))
        pairs = times[:-1].reshape(-1, 200), times[1:].reshape(-1, 200)
        slopes, stds = np.concatenate([coefficients(t, s) for t, s in zip(*pairs, strict=True)], 1)
        exact = sde.alpha(times) ** 2 * width**2 + sde.sigma(times) ** 2
        variances = [float(exact[0])]
        for slope, std in zip(slopes, stds, strict=True):
            variances.append(slope**2 * variances[-1] + std**2)
        return np.abs(np.array(variances) / exact - 1).max()

    steps = [400, 800, 1600]
    errors = np.array([error(count) for count in steps])
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.9 < order < 1.1, f"errors {errors}"
    assert errors[-1] < 0.05


# --- correctors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["per_sample", "batch"])
@every_process
def test_langevin_step_is_the_algorithm(x64, sde, norms):
    """Algorithms 4 and 5: h = 2 a (r |z| / |score|)^2, with a the one-step alpha_i."""
    t, s, snr = 0.5, 0.48, 0.16
    x, keys = jnp.asarray(MIXTURE.sample(0, 6)), sample_keys(KEY, jnp.arange(6))
    kernel = Langevin(snr=snr, norms=norms)
    step = kernel.step(keys, MIXTURE.denoiser(sde), Step(x, x), jnp.float64(t), jnp.float64(s))
    score = np.asarray(MIXTURE.marginal(sde, t).score(x))
    z = np.asarray(normal_like(fold_in_each(keys, 0), x))
    noise_norm, score_norm = np.linalg.norm(z, axis=1), np.linalg.norm(score, axis=1)
    if norms == "batch":
        noise_norm, score_norm = np.full(6, noise_norm.mean()), np.full(6, score_norm.mean())
    alpha = (sde.alpha(jnp.float64(t)) / sde.alpha(jnp.float64(s))) ** 2
    h = 2 * alpha * (snr * noise_norm / score_norm)[:, None] ** 2
    np.testing.assert_allclose(step.mean, x + h * score, rtol=1e-8)
    np.testing.assert_allclose(step.x, x + h * score + np.sqrt(2 * h) * z, rtol=1e-8)


@every_process
def test_annealed_langevin_step_follows_the_noise_level(x64, sde):
    t, s, snr = jnp.float64(0.5), jnp.float64(0.48), 0.16
    x, keys = jnp.asarray(MIXTURE.sample(0, 6)), sample_keys(KEY, jnp.arange(6))
    step = AnnealedLangevin(snr=snr).step(keys, MIXTURE.denoiser(sde), Step(x, x), t, s)
    h = 2 * (sde.alpha(t) / sde.alpha(s)) ** 2 * (snr * sde.sigma(t)) ** 2
    drift = h * MIXTURE.marginal(sde, t).score(x)
    z = normal_like(fold_in_each(keys, 0), x)
    np.testing.assert_allclose(step.mean, x + drift, rtol=1e-8)
    np.testing.assert_allclose(step.x, x + drift + jnp.sqrt(2 * h) * z, rtol=1e-8)


@pytest.mark.parametrize(
    "kernel",
    [
        Langevin(snr=0.15, corrections=100),
        Langevin(snr=0.15, corrections=100, norms="batch"),
        AnnealedLangevin(snr=0.15, corrections=100),
    ],
    ids=["per_sample", "batch", "annealed"],
)
def test_corrector_settles_at_the_marginal_from_a_wrong_width(kernel):
    """Of 500 x 64 numbers the variance is known to 3.6%, at 4.5 standard errors.

    The step size leaves a relative bias of snr^2. Norms of the sample itself add 4 / d: 2 / d since
    |z|^2 weighs the noise z, and 2 / d since steps are longer where the score is small.
    """
    sde, t, dims = PROCESSES["vp"], jnp.float32(0.3), 64
    data = gaussian(np.zeros(dims), 0.25 * np.eye(dims))
    marginal = data.marginal(sde, t)
    x = 1.5 * jnp.asarray(marginal.sample(1, 500), jnp.float32)
    keys = sample_keys(KEY, jnp.arange(500))
    step = jax.jit(kernel.step)(keys, data.denoiser(sde), Step(x, x), t, t - 1e-4)
    ratio = np.var(step.x) / marginal.covariance[0, 0]
    bias = kernel.snr**2 + (4 / dims if getattr(kernel, "norms", "") == "per_sample" else 0)
    assert abs(ratio - 1 - bias) < 4.5 * np.sqrt(2 / x.size)
    assert abs(np.mean(step.x)) < 4.5 * np.sqrt(ratio / x.size)


def test_sample_depends_on_its_batch_only_with_batch_norms():
    x, keys = jnp.asarray(MIXTURE.sample(0, 6), jnp.float32), sample_keys(KEY, jnp.arange(6))
    t, s, denoiser = jnp.float32(0.5), jnp.float32(0.4), MIXTURE.denoiser(PROCESSES["vp"])
    for norms, independent in (("per_sample", True), ("batch", False)):
        kernel = Langevin(norms=norms)
        together = kernel.step(keys, denoiser, Step(x, x), t, s).x[:2]
        apart = kernel.step(keys[:2], denoiser, Step(x[:2], x[:2]), t, s).x
        assert np.allclose(together, apart, rtol=1e-5) == independent


def test_predictor_and_corrector_draw_different_noise_and_run_in_order():
    zero = gaussian(np.zeros(2), np.eye(2)).denoiser(PROCESSES["ve"])
    keys, x = sample_keys(KEY, jnp.arange(3)), jnp.ones((3, 2))
    t, s = jnp.float32(0.5), jnp.float32(0.4)
    predictor, corrector = Ancestral(), AnnealedLangevin()
    both = PredictorCorrector(predictor=predictor, corrector=corrector)
    step = both.step(keys, zero, Step(x, x), t, s)
    corrected = corrector.step(fold_in_each(keys, 0), zero, Step(x, x), t, s)
    expected = predictor.step(fold_in_each(keys, 1), zero, corrected, t, s)
    np.testing.assert_array_equal(step.x, expected.x)
    np.testing.assert_array_equal(step.mean, expected.mean)


# --- whole samplers -----------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", ["none", *CORRECTORS])
@pytest.mark.parametrize("predictor", PREDICTORS)
@every_process
def test_samples_follow_the_marginal(sde, predictor, corrector):
    """1000 samples in 8 dimensions; 100 steps and the corrector's size leave a bias below 12%."""
    # Norms of the batch, as in the paper: per sample they need many dimensions.
    fields = {"langevin": {"norms": "batch"}}.get(corrector, {})
    kernel = PredictorCorrector(
        predictor=PREDICTORS[predictor](),
        corrector=None if corrector == "none" else CORRECTORS[corrector](snr=0.08, **fields),
    )
    schedule = Schedule(grid="log_snr", steps=100, t_min=T_MIN, finish="sample")
    samples = sample(KEY, MIXTURE.denoiser(sde), (BATCH, 8), kernel=kernel, schedule=schedule)
    assert_samples_follow(samples.x, MIXTURE.marginal(sde, T_MIN), bias=0.12)


@every_process
def test_flow_samples_follow_the_marginal(sde):
    """1000 samples in 8 dimensions, without a bias but the prior's."""
    options, ode = FlowOptions(t_min=T_MIN, finish="sample"), ODEOptions(rtol=1e-4, atol=1e-4)
    samples = sample_ode(KEY, MIXTURE.denoiser(sde), (BATCH, 8), options=options, ode=ode)
    assert_samples_follow(samples.x, MIXTURE.marginal(sde, T_MIN), bias=0.005)


def flow_and_its_samples():
    """The denoiser, where sampling stops, and 16 samples of the flow to nine digits."""
    denoiser, t_min = PLANE.denoiser(PROCESSES["vp"]), 0.05
    options = FlowOptions(t_min=t_min, finish="sample")
    return denoiser, t_min, sample_ode(KEY, denoiser, (16, 2), options=options, ode=TIGHT).x


def test_euler_without_churn_converges_to_the_flow_at_first_order(x64):
    denoiser, t_min, truth = flow_and_its_samples()
    kernel = PredictorCorrector(predictor=EulerMaruyama(churn=0.0))
    steps, errors = [100, 200, 400], []
    for count in steps:
        schedule = Schedule(steps=count, t_min=t_min, finish="sample")
        x = sample(KEY, denoiser, (16, 2), kernel=kernel, schedule=schedule).x
        errors.append(np.sqrt(np.mean((x - truth) ** 2)))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.9 < order < 1.1, f"errors {errors}"


def test_encoding_and_decoding_are_inverse(x64):
    """The likelihood's latent is the prior noise that the flow sampler started from, and back."""
    denoiser, t_min, x = flow_and_its_samples()
    encoding = LikelihoodOptions(t_min=t_min)
    latent = log_prob(KEY, denoiser, x, options=encoding, ode=TIGHT).latent
    prior = denoiser.sde.prior_sample(fold_in_each(sample_keys(KEY, jnp.arange(16)), 0), x)
    np.testing.assert_allclose(latent, prior, atol=1e-6)

    def field(t, y, _):
        return denoiser.flow(y[None], t)[0]

    decoded = integrate(field, latent, None, t0=1.0, t1=t_min, options=TIGHT).y
    np.testing.assert_allclose(decoded, x, atol=1e-6)


# --- the loop -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walker:
    """A kernel that adds up the time it walked, and marks each step with its own noise."""

    evaluations = 3

    def step(self, keys, denoiser, carry, t, s):
        return Step(carry.x + (t - s), carry.mean + normal_like(keys, carry.x))


def idle(x, t):
    return jnp.zeros_like(x)


def counting_denoiser(calls):
    def network(x, t):
        jax.debug.callback(lambda t: calls.append(t), t[0])
        return x

    return Denoiser(sde=PROCESSES["vp"], network=network)


def prior_of(sde, count, dims):
    keys = fold_in_each(sample_keys(KEY, jnp.arange(count)), 0)
    return sde.prior_sample(keys, jnp.zeros((count, dims)))


@pytest.mark.parametrize("grid", sorted(TIME_GRIDS.keys() - {"levels"}))
@every_process
def test_loop_walks_the_whole_grid_from_the_prior(sde, grid):
    denoiser = Denoiser(sde=sde, network=idle)
    schedule = Schedule(grid=grid, steps=20, t_min=T_MIN, finish="sample")
    samples = sample(KEY, denoiser, (2, 3), kernel=Walker(), schedule=schedule)
    walked = samples.x - prior_of(sde, 2, 3)
    np.testing.assert_allclose(walked, 1 - T_MIN, rtol=1e-4)
    assert samples.nfe == 60
    assert samples.trajectory is None


def test_every_step_and_sample_draws_fresh_noise():
    denoiser = Denoiser(sde=PROCESSES["vp"], network=idle)
    samples = sample(KEY, denoiser, (100, 8), kernel=Walker(), schedule=Schedule(steps=50))
    walk = np.asarray(samples.x - prior_of(PROCESSES["vp"], 100, 8))
    # 50 independent steps of variance 1; repeated noise would give up to 2500
    assert abs(walk.var() / 50 - 1) < 4.5 * np.sqrt(2 / 800)


def test_without_kernels_samples_are_the_priors():
    denoiser = Denoiser(sde=PROCESSES["ve"], network=idle)
    kernel, schedule = PredictorCorrector(predictor=None), Schedule(steps=10)
    samples = sample(KEY, denoiser, (4, 3), kernel=kernel, schedule=schedule)
    np.testing.assert_allclose(samples.x, prior_of(PROCESSES["ve"], 4, 3), rtol=1e-6)
    assert samples.nfe == 0


@pytest.mark.parametrize("finish", sampling.FINISHES)
@pytest.mark.parametrize(
    "kernel",
    [
        PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin(corrections=2)),
        PredictorCorrector(predictor=EulerMaruyama()),
        PredictorCorrector(predictor=None, corrector=AnnealedLangevin(corrections=3)),
    ],
    ids=["3", "1", "0+3"],
)
def test_nfe_is_the_number_of_network_calls(kernel, finish):
    calls = []
    schedule = Schedule(steps=20, finish=finish)
    samples = sample(KEY, counting_denoiser(calls), (2, 3), kernel=kernel, schedule=schedule)
    jax.effects_barrier()
    assert samples.nfe == len(calls)


@pytest.mark.parametrize("finish", ["denoise", "sample"])
def test_nfe_of_the_flow_is_the_number_of_network_calls(finish):
    calls = []
    options = FlowOptions(finish=finish)
    samples = sample_ode(
        KEY, counting_denoiser(calls), (1, 3), options=options, ode=ODEOptions(rtol=1e-3)
    )
    jax.effects_barrier()
    assert samples.nfe == len(calls)


def test_finish_is_the_state_its_mean_or_tweedies_estimate():
    sde = PROCESSES["vp"]
    denoiser, prior = PLANE.denoiser(sde), prior_of(sde, 4, 2)
    finished = {}
    for finish in sampling.FINISHES:
        schedule = Schedule(steps=1, t_min=0.5, finish=finish)
        finished[finish] = sample(KEY, denoiser, (4, 2), kernel=Ancestral(), schedule=schedule).x
    keys = fold_in_each(sample_keys(KEY, jnp.arange(4)), 1)
    t, s = jnp.float32(1), jnp.float32(0.5)
    step = Ancestral().step(keys, denoiser, Step(prior, prior), t, s)
    np.testing.assert_allclose(finished["sample"], step.x, atol=1e-4)
    np.testing.assert_allclose(finished["mean"], step.mean, atol=1e-4)
    score = PLANE.marginal(sde, 0.5).score(step.x)
    tweedie = (step.x + sde.sigma(s) ** 2 * score) / sde.alpha(s)
    np.testing.assert_allclose(finished["denoise"], tweedie, rtol=1e-3, atol=1e-4)


def test_finish_of_the_flow_is_the_state_or_tweedies_estimate():
    sde, t_min = PROCESSES["vp"], 0.3
    x, x0 = (
        sample_ode(
            KEY,
            PLANE.denoiser(sde),
            (4, 2),
            options=FlowOptions(t_min=t_min, finish=finish),
            ode=ODEOptions(),
        ).x
        for finish in ("sample", "denoise")
    )
    score, t = PLANE.marginal(sde, t_min).score(x), jnp.float32(t_min)
    tweedie = (x + sde.sigma(t) ** 2 * score) / sde.alpha(t)
    np.testing.assert_allclose(x0, tweedie, rtol=1e-3, atol=1e-4)


DETERMINISM = PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin())


def draw_pc(indices, **options):
    schedule = Schedule(steps=20)
    shape = (len(indices), 8)
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    return sample(
        KEY, denoiser, shape, kernel=DETERMINISM, schedule=schedule, indices=indices, **options
    )


def draw_flow(indices, **options):
    flow, ode = FlowOptions(), ODEOptions(rtol=1e-3, atol=1e-3)
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    return sample_ode(
        KEY, denoiser, (len(indices), 8), options=flow, ode=ode, indices=indices, **options
    )


# Bit for bit; the flow to within its solver's tolerance, as other roundings may take other steps.
@pytest.mark.parametrize(("draw", "atol"), [(draw_pc, 0), (draw_flow, 1e-3)])
def test_sample_is_a_function_of_seed_and_number_alone(draw, atol):
    together = draw(jnp.arange(12)).x
    apart = np.concatenate([draw(jnp.arange(4 * i, 4 * i + 4)).x for i in range(3)])
    np.testing.assert_allclose(apart, together, rtol=0, atol=atol)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(draw(jnp.asarray(order)).x, together[order], rtol=0, atol=atol)
    split = draw(Layout.over_all_devices().split_rows(np.arange(12))).x
    assert len(split.sharding.device_set) == 4
    np.testing.assert_allclose(split, together, rtol=0, atol=atol)
    assert len(np.unique(np.asarray(together), axis=0)) == 12


@pytest.mark.parametrize("draw", [draw_pc, draw_flow])
def test_trajectory_goes_from_the_prior_to_the_samples(draw):
    samples = draw(jnp.arange(4), frames=5)
    frames, *shape = samples.trajectory.shape
    assert tuple(shape) == (4, 8)
    assert frames == {"draw_pc": 11, "draw_flow": 5}[draw.__name__]
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
    np.testing.assert_array_equal(samples.trajectory[0], prior_of(PROCESSES["vp"], 4, 8))
    np.testing.assert_allclose(draw(jnp.arange(4)).x, samples.x, atol=1e-3)
    changes = [np.abs(b - a).max() for a, b in itertools.pairwise(samples.trajectory)]
    assert min(changes) > 0


def test_progress_adds_up_to_the_steps():
    done = []
    draw_pc(jnp.arange(4), progress=done.append)
    assert sum(done) == 20
    assert len(done) >= 10


@pytest.mark.parametrize("parts", [1, 10, 37])
def test_chunks_are_equal_and_cover_all_steps(parts):
    for steps in [*range(1, 300), 997, 1000, 2000]:
        chunk = sampling._chunk_length(steps, parts)
        assert 1 <= chunk <= steps
        assert steps % chunk == 0
        # enough pieces, or, where the divisors allow none, a single one; never absurdly many
        assert steps // chunk == 1 or parts <= steps // chunk <= 10 * parts
    assert 1000 // sampling._chunk_length(1000, 10) == 10


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 100])
@pytest.mark.parametrize("grid", sorted(TIME_GRIDS.keys() - {"levels"}))
@every_process
def test_grid_descends_from_one_to_t_min(sde, grid, steps):
    times = Schedule(grid=grid, steps=steps, t_min=T_MIN).times(sde)
    assert times.shape == (steps + 1,)
    assert times.dtype == np.float64
    assert np.all(np.diff(times) < 0)
    np.testing.assert_allclose(times[[0, -1]], [1, T_MIN], rtol=1e-9)


@pytest.mark.parametrize(
    ("grid", "even"),
    [
        ("uniform", lambda sde, t: t),
        ("quadratic", lambda sde, t: np.sqrt(t)),
        ("log_snr", lambda sde, t: np.asarray(sde.log_snr(jnp.asarray(t)))),
    ],
)
@every_process
def test_grid_is_even_in_its_variable(x64, sde, grid, even):
    gaps = np.diff(even(sde, Schedule(grid=grid, steps=50, t_min=T_MIN).times(sde)))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Schedule(grid="no"),
            "grid='no' is unknown; choose one of: levels, log_snr, quadratic",
        ),
        (lambda: Schedule(finish="no"), "finish='no' is unknown; choose one of: mean, denoise"),
        (lambda: Schedule(steps=0), "steps=0 must be at least 1"),
        (lambda: Schedule(t_min=1.0), r"t_min=1\.0 must lie between 0 and 1"),
        (lambda: Schedule(t_min=0.0), r"t_min=0\.0 must lie between 0 and 1"),
        (lambda: EulerMaruyama(churn=-1.0), r"churn=-1\.0 must be finite and at least 0"),
        (lambda: Ancestral(variance="no"), "variance='no' is unknown; choose one of: large, small"),
        (lambda: Langevin(snr=0.0), r"snr=0\.0 must be finite and above 0"),
        (lambda: Langevin(norms="no"), "norms='no' is unknown; choose one of: batch, per_sample"),
        (lambda: AnnealedLangevin(corrections=0), "corrections=0 must be at least 1"),
        (lambda: FlowOptions(finish="mean"), "finish='mean' is not defined for the ode sampler"),
        (lambda: FlowOptions(t_min=2.0), r"t_min=2\.0 must lie between 0 and 1"),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_times_that_coincide_in_float32_are_refused():
    schedule = Schedule(steps=1000, t_min=1 - 1e-6)
    with pytest.raises(ValueError, match="steps=1000: times coincide"):
        schedule.times(VPSDE())


# --- levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [10, 232, 500, 1000, 1086])
def test_grid_of_levels_shows_the_network_each_level_once(levels):
    """The grid itself, and the number that a network of so many levels is fed on it in float32."""
    times = Schedule(grid="levels", steps=levels, t_min=1e-5).times(VESDE())
    np.testing.assert_allclose(times[:-1], 1 - np.arange(levels) / (levels - 1), atol=1e-15)
    assert times[-1] == 0
    t = jnp.asarray(times[:-1], jnp.float32)
    seen = CONDITIONINGS["sigma_index"](VESDE(), t, levels)
    np.testing.assert_array_equal(seen, np.arange(levels))
    np.testing.assert_allclose(VESDE().sigma(t), np.geomspace(50, 0.01, levels), rtol=1e-5)


def test_grid_of_levels_needs_noise_at_its_end():
    with pytest.raises(ValueError, match="ends at t = 0, where this process has no noise"):
        Schedule(grid="levels").times(VPSDE())
    with pytest.raises(ValueError, match="steps=1 must be at least 2"):
        Schedule(grid="levels", steps=1).times(VESDE())


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_level_by_level_is_its_algorithm(variance):
    """Ho et al. 2020, Algorithm 2, on a Gaussian: by hand the variance after each level."""
    sde, spread, count = DiscreteVPSDE(levels=100), 0.25, 4000
    data = gaussian(np.zeros(1), spread**2 * np.eye(1))
    t = np.arange(100) / 99
    alpha_bar = np.asarray(sde.alpha(jnp.asarray(t)), np.float64) ** 2
    expected = 1.0
    for i in range(99, -1, -1):
        before = alpha_bar[i - 1] if i else 1.0
        beta = 1 - alpha_bar[i] / before
        score = -1 / (alpha_bar[i] * spread**2 + 1 - alpha_bar[i])
        noise = {"small": (1 - before) / (1 - alpha_bar[i]) * beta, "large": beta}[variance]
        expected = (1 + beta * score) ** 2 / (1 - beta) * expected + (noise if i else 0.0)
    samples = sample(
        jax.random.key(0),
        data.denoiser(sde),
        (count, 1),
        kernel=PredictorCorrector(predictor=Ancestral(variance=variance)),
        schedule=Schedule(grid="levels", steps=100, finish="denoise"),
    )
    assert samples.nfe == 101
    assert np.var(samples.x) == pytest.approx(expected, rel=5 * math.sqrt(2 / count))
