"""Guidance and projection where p(x | y) is known: classes and measurements of Gaussians, mixtures.

What is exact is compared with the posterior itself. What approximates is compared with its own
closed form, by NumPy: on a Gaussian DPS is a linear ODE, and a projecting sampler a linear
recursion of means and covariances. Then the test says how far that is from the posterior.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from analytic import Mixture, gaussian, standardized_mixture

from denoising import Denoiser
from guidance.base import guide
from guidance.classifier import ClassifierGuidance
from guidance.classifier_free import ClassifierFreeGuidance
from guidance.operators import from_matrix
from guidance.posterior import DPS, LossGuidance, PiGDM
from guidance.projection import Projection
from numerics.arrays import in_float64, sample_keys
from numerics.clipping import Clipping
from numerics.ode import ODEOptions
from sampling import Step, run, sample
from sde_lib import VESDE, VPSDE
from solvers.ddim import decode
from solvers.ode import FlowOptions
from solvers.ode import decode as decode_ode
from solvers.predictor_corrector import Ancestral, AnnealedLangevin, PredictorCorrector
from solvers.unipc import UniPC
from time_grids import Schedule

KEY = jax.random.key(0)
VP, VE = VPSDE(), VESDE(sigma_max=20.0)

PLANE = standardized_mixture()
CLASSES = jnp.array([0, 3, 1, 2, 2])

MATRIX = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]])
MEASUREMENT, NOISE = np.array([0.8, -0.4]), 0.5
CORRELATED = gaussian([0.3, -0.2, 0.5], [[1.0, 0.6, 0.2], [0.6, 1.5, 0.3], [0.2, 0.3, 0.5]])


_score = jax.jit(lambda denoiser, x, t: denoiser.score(x, t))


def score(denoiser, x, t):
    return np.asarray(_score(denoiser, x, jnp.asarray(t)))


def coefficients(sde, t):
    return in_float64(sde.alpha, t), in_float64(sde.sigma, t)


def noisy(truth, sde, count=5):
    """Some x_t (count, dims) at as many times from 0.02 to 0.9."""
    t = np.linspace(0.02, 0.9, count)
    alpha, sigma = coefficients(sde, t)
    eps = np.random.default_rng(0).normal(size=(count, truth.dims))
    return jnp.asarray(alpha[:, None] * truth.sample(1, count) + sigma[:, None] * eps), t


def gaussian_scores(truths, sde, x, t):
    """The score at x_t of as many Gaussians as rows, by NumPy."""
    marginals = [truth.marginal(sde, time) for truth, time in zip(truths, t, strict=True)]
    pairs = zip(marginals, np.asarray(x), strict=True)
    return np.stack([-np.linalg.solve(m.covariances[0], row - m.means[0]) for m, row in pairs])


def by_classifier(sde, scale=1.0, labels=CLASSES):
    guidance = ClassifierGuidance(classifier=PLANE.classifier(sde), labels=labels, scale=scale)
    return guide(PLANE.denoiser(sde), guidance)


def of_class(sde, labels=CLASSES):
    return dataclasses.replace(PLANE.denoiser(sde), labels=labels)


@pytest.mark.slow
def test_classifier_guidance_answers_the_score_given_the_class(x64):
    x, t = noisy(PLANE, VP)
    truth = gaussian_scores([PLANE.component(k) for k in CLASSES], VP, x, t)
    guided = score(by_classifier(VP), x, t)
    np.testing.assert_allclose(guided, truth, rtol=1e-9)
    # Scale 3 goes three times as far from the score without a class.
    without = score(PLANE.denoiser(VP), x, t)
    np.testing.assert_allclose(score(by_classifier(VP, 3.0), x, t), 3 * truth - 2 * without)


@pytest.mark.slow
def test_sampler_with_an_exact_classifier_samples_the_class(x64):
    # The same scores and the same noise make the same samples, each of its own class.
    schedule = Schedule(grid="log_snr", steps=12, t_min=1e-3)
    guided, conditional = (
        sample(KEY, denoiser, (5, 2), solver=UniPC(), schedule=schedule)
        for denoiser in (by_classifier(VE), of_class(VE))
    )
    np.testing.assert_allclose(guided.x, conditional.x, atol=1e-6)
    assert guided.nfe == conditional.nfe


@pytest.mark.slow
def test_flow_with_an_exact_classifier_decodes_into_the_class(x64):
    """The flow of N(m, C) takes x_1 to x_t by the roots of its covariances, which commute."""
    start = np.random.default_rng(3).normal(size=(5, 2))
    options, ode = FlowOptions(t_min=0.01, final_step="none"), ODEOptions(rtol=1e-7, atol=1e-7)
    x = np.asarray(decode_ode(by_classifier(VP), jnp.asarray(start), options=options, ode=ode).x)
    for row, latent, k in zip(x, start, CLASSES, strict=True):
        first, last = (PLANE.component(k).marginal(VP, t) for t in (1.0, 0.01))
        widths = last.covariance @ np.linalg.inv(first.covariance)
        expected = last.mean + scipy.linalg.sqrtm(widths) @ (latent - first.mean)
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.slow
def test_mean_form_moves_the_mean_by_the_variance_times_the_gradient(x64):
    x, _ = noisy(PLANE, VP)
    t, s, keys = jnp.asarray(0.5), jnp.asarray(0.4), sample_keys(KEY, jnp.arange(5))
    times = np.full(5, 0.5)
    truth = gaussian_scores([PLANE.component(k) for k in CLASSES], VP, x, times)
    gradient = truth - score(PLANE.denoiser(VP), x, times)
    move = jax.jit(Ancestral(guidance_form="mean").step)
    plain = move(keys, PLANE.denoiser(VP), Step(x, x), t, s)
    guided = move(keys, by_classifier(VP), Step(x, x), t, s)
    std = VP.transition(s, t)[1] * VP.sigma(s) / VP.sigma(t)
    np.testing.assert_allclose(guided.mean - plain.mean, std**2 * gradient, rtol=1e-8)
    np.testing.assert_allclose(guided.x - plain.x, std**2 * gradient, rtol=1e-8)


def test_classifier_free_guidance_from_none_to_the_class(x64):
    x, t = noisy(PLANE, VE)
    given, none = score(of_class(VE), x, t), score(PLANE.denoiser(VE), x, t)
    for scale, interval, expected in (
        (1.0, (0.0, 1.0), given),
        (0.0, (0.0, 1.0), none),
        (4.0, (0.0, 1.0), none + 4 * (given - none)),
        (4.0, (0.3, 0.6), np.where((t >= 0.3) & (t <= 0.6), 4 * given.T - 3 * none.T, given.T).T),
    ):
        guidance = ClassifierFreeGuidance(null_label=4, scale=scale, interval=interval)
        np.testing.assert_allclose(score(guide(of_class(VE), guidance), x, t), expected)


@pytest.mark.slow
def test_rescaled_guidance_has_the_spread_of_the_class(x64):
    """With phi = 1 in each sample, with phi = 0 none of it, in between the mixture of both."""
    x, t = noisy(PLANE, VP)
    t = jnp.asarray(t)

    def predicted(**fields):
        guidance = ClassifierFreeGuidance(null_label=4, scale=5.0, **fields)
        return guide(of_class(VP), guidance).predict(x, t)

    given, plain = of_class(VP).predict(x, t), predicted()
    jax.tree.map(np.testing.assert_array_equal, predicted(rescale=0.0), plain)
    whole, half = predicted(rescale=1.0), predicted(rescale=0.5)
    spread, before = (np.std(found.x0, axis=1) for found in (given, plain))
    assert np.any(before > 2 * spread)
    np.testing.assert_allclose(np.std(whole.x0, axis=1), spread)
    np.testing.assert_allclose(whole.x0, plain.x0 * (spread / before)[:, None])
    np.testing.assert_allclose(half.x0, (plain.x0 + whole.x0) / 2)
    alpha, sigma = (np.asarray(c(t))[:, None] for c in (VP.alpha, VP.sigma))
    np.testing.assert_allclose(alpha * whole.x0 + sigma * whole.eps, x)


@pytest.mark.slow
def test_rescaling_leaves_a_constant_sample_and_refuses_other_fractions(x64):
    denoiser = Denoiser(
        sde=VP,
        network=lambda x, t, label: label[:, None] + 0 * x,
        parameterization="x0",
        conditioning="t",
        labels=jnp.array([1, 2]),
    )
    guidance = ClassifierFreeGuidance(null_label=0, scale=3.0, rescale=1.0)
    x0 = guide(denoiser, guidance).predict(jnp.ones((2, 3)), 0.5).x0
    np.testing.assert_array_equal(x0, np.array([[3.0], [6.0]]) * np.ones(3))
    for rescale in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"rescale={rescale} must lie in \[0, 1\]"):
            ClassifierFreeGuidance(null_label=0, rescale=rescale)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["small", "large"])
def test_mean_form_is_of_what_was_clipped_before_it(x64, variance):
    """Algorithm 1 of Dhariwal and Nichol: the network's x0 is clipped, the gradient whole."""
    x, _ = noisy(PLANE, VP)
    t, s, keys = jnp.asarray(0.5), jnp.asarray(0.4), sample_keys(KEY, jnp.arange(5))
    clipping = Clipping(clip="range", low=-0.2, high=0.2)
    plain, guided = (
        dataclasses.replace(denoiser, clipping=clipping)
        for denoiser in (PLANE.denoiser(VP), by_classifier(VP))
    )
    free = score(by_classifier(VP), x, np.full(5, 0.5)) - score(
        PLANE.denoiser(VP), x, np.full(5, 0.5)
    )
    assert not np.allclose(plain.predict(x, t).x0, PLANE.denoiser(VP).predict(x, t).x0)
    move = Ancestral(guidance_form="mean", variance=variance).step
    means = [move(keys, denoiser, Step(x, x), t, s).mean for denoiser in (plain, guided)]
    std = VP.transition(s, t)[1] * (VP.sigma(s) / VP.sigma(t) if variance == "small" else 1)
    np.testing.assert_allclose(means[1] - means[0], std**2 * free, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.35, 0.6)], ids=["always", "interval"])
def test_classifier_free_guidance_of_gaussians_is_a_linear_flow(x64, interval):
    """In y = x / alpha and s = sigma / alpha, dy/ds = eps_none + scale (eps_class - eps_none)."""
    means = np.array([[1.0, 0.0], [0.0, 0.5]])
    covariances = np.array([[[0.3, 0.1], [0.1, 0.2]], [[1.0, 0.2], [0.2, 0.8]]])
    pair = Mixture(np.ones(2) / 2, means, covariances)
    scale = 2.5
    times = Schedule(grid="log_snr", steps=400, t_min=1e-3).of(VP)
    alpha, sigma = coefficients(VP, times)
    ends = np.divide(*coefficients(VP, np.array(interval))[::-1])

    def velocity(s, y):
        weight = scale if ends[0] <= s <= ends[1] else 1.0
        eps = [
            s * np.linalg.solve(c + s**2 * np.eye(2), y - m)
            for m, c in zip(means, covariances, strict=True)
        ]
        return eps[1] + weight * (eps[0] - eps[1])

    start = np.array([0.7, -1.1])
    span = sigma[[0, -1]] / alpha[[0, -1]]
    truth = scipy.integrate.solve_ivp(velocity, span, start / alpha[0], rtol=1e-7, atol=1e-7).y[
        :, -1
    ]
    guidance = ClassifierFreeGuidance(null_label=1, scale=scale, interval=interval)
    denoiser = dataclasses.replace(pair.denoiser(VP), labels=jnp.array([0]))
    plan = UniPC().plan(VP, times)
    x = run(
        sample_keys(KEY, jnp.arange(1)), guide(denoiser, guidance), jnp.asarray(start)[None], plan
    ).x
    np.testing.assert_allclose(x[0] / alpha[-1], truth, atol=4e-3)


METHODS = {
    "dps": lambda y: DPS(
        operator=from_matrix(MATRIX), measurement=y, noise=NOISE, variance="noise"
    ),
    "loss": lambda y: LossGuidance(loss=_minus_log_likelihood, data=(y,)),
    "pigdm": lambda y: PiGDM(operator=from_matrix(MATRIX), measurement=y, noise=NOISE),
}


def _minus_log_likelihood(x0, y):
    return jnp.sum((y - x0 @ jnp.asarray(MATRIX).T) ** 2, axis=1) / (2 * NOISE**2)


def guided_score(method, alpha, sigma, y):
    """P and q of the guided score P x + q on CORRELATED: all that is guided is linear there.

    x0 = m + J (x - alpha m) with J = alpha C S^-1 and S = alpha^2 C + sigma^2 I the covariance of
    x_t; guidance adds J^T A^T W (y - A x0), W the inverse of the variance it takes y to have.
    """
    mean, covariance = CORRELATED.mean, CORRELATED.covariance
    precision = np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(3))
    jacobian = alpha * covariance @ precision
    variance = NOISE**2 * np.eye(2)
    if method == "pigdm":
        variance += sigma**2 / (alpha**2 + sigma**2) * MATRIX @ MATRIX.T
    pull = jacobian.T @ MATRIX.T @ np.linalg.inv(variance)
    slope = -precision - pull @ MATRIX @ jacobian
    at_mean = pull @ (y - MATRIX @ mean)
    return slope, at_mean - slope @ (alpha * mean)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "sde"), [("dps", VP), ("loss", VE), ("pigdm", VE)], ids=["dps", "loss", "pigdm"]
)
def test_guidance_by_a_measurement_is_linear_on_a_gaussian(x64, method, sde):
    x, t = noisy(CORRELATED, sde)
    y = np.random.default_rng(2).normal(size=(5, 2))
    guided = score(guide(CORRELATED.denoiser(sde), METHODS[method](jnp.asarray(y))), x, t)
    pairs = [
        guided_score(method, *at, row) for *at, row in zip(*coefficients(sde, t), y, strict=True)
    ]
    expected = [slope @ row + shift for (slope, shift), row in zip(pairs, x, strict=True)]
    np.testing.assert_allclose(guided, expected, rtol=1e-9)


@pytest.mark.parametrize("sde", [VP, VE], ids=["vp", "ve"])
def test_pigdm_is_exact_where_data_are_as_wide_as_it_is_told(x64, sde):
    prior = gaussian([0.3, -0.2, 0.5], 1.7**2 * np.eye(3))
    x, t = noisy(prior, sde)
    y = np.random.default_rng(2).normal(size=(5, 2))
    for noise in (NOISE, 0.01):
        guidance = PiGDM(
            operator=from_matrix(MATRIX), measurement=jnp.asarray(y), noise=noise, data_std=1.7
        )
        posteriors = [prior.posterior(MATRIX, row, noise) for row in y]
        guided = score(guide(prior.denoiser(sde), guidance), x, t)
        np.testing.assert_allclose(guided, gaussian_scores(posteriors, sde, x, t), rtol=1e-7)


@pytest.mark.slow
def test_dps_with_the_variance_of_the_residual(x64):
    x, t = noisy(CORRELATED, VP)
    y = np.random.default_rng(2).normal(size=(5, 2))
    plain = CORRELATED.denoiser(VP)
    guidance = DPS(operator=from_matrix(MATRIX), measurement=jnp.asarray(y), noise=0.8)
    added = score(guide(plain, guidance), x, t) - score(plain, x, t)
    dps = METHODS["dps"](jnp.asarray(y))
    unbounded = score(guide(plain, dps), x, t) - score(plain, x, t)
    alpha, sigma = coefficients(VP, t)
    x0 = (np.asarray(x) + sigma[:, None] ** 2 * score(plain, x, t)) / alpha[:, None]
    residual = y - x0 @ MATRIX.T
    left = (sigma**2 / (sigma**2 + alpha**2))[:, None]  # of x_0 given x_t, for unit variance
    terms = np.mean(residual**2, axis=1, keepdims=True), np.full((5, 1), 0.8**2), left
    variance = np.max(terms, axis=0)
    assert len(set(np.argmax(terms, axis=0).ravel())) == 3, "every term should be the largest once"
    np.testing.assert_allclose(added, unbounded * NOISE**2 / variance, rtol=1e-9)


def ddim_map(method, sde, times):
    """DDIM's samples as a linear map of its start, slope x + shift, step by step."""
    alpha, sigma = coefficients(sde, times)
    slope, shift = np.eye(3), np.zeros(3)
    for i in range(len(times) - 1):
        score_slope, score_shift = guided_score(method, alpha[i], sigma[i], MEASUREMENT)
        of_x = alpha[i + 1] / alpha[i]
        of_score = of_x * sigma[i] ** 2 - sigma[i + 1] * sigma[i]
        step = of_x * np.eye(3) + of_score * score_slope
        slope, shift = step @ slope, step @ shift + of_score * score_shift
    return slope, shift


# What the samples' mean is off by, in the posterior's standard deviations, at most; and the trace
# of their covariance over the posterior's.
BIASES = {"dps": (0.26, 0.63), "pigdm": (0.071, 0.965)}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dps", "pigdm"])
def test_samples_of_a_gaussian_are_biased_by_so_much(x64, method):
    schedule = Schedule(grid="log_snr", steps=30, t_min=1e-4)
    start = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    guidance = METHODS[method](jnp.tile(MEASUREMENT, (4, 1)))
    x = np.asarray(decode(guide(CORRELATED.denoiser(VP), guidance), jnp.asarray(start), schedule))
    slope, shift = ddim_map(method, VP, schedule.of(VP))
    np.testing.assert_allclose(x, start @ slope.T + shift, atol=1e-9)

    times = Schedule(grid="log_snr", steps=1500, t_min=1e-4).of(VP)
    slope, shift = ddim_map(method, VP, times)
    posterior = CORRELATED.posterior(MATRIX, MEASUREMENT, NOISE)
    errors = (shift - posterior.mean) / np.sqrt(np.diag(posterior.covariance))
    off, ratio = BIASES[method]
    np.testing.assert_allclose(np.abs(errors).max(), off, rtol=0.02)
    width = np.trace(slope @ slope.T) / np.trace(posterior.covariance)
    np.testing.assert_allclose(width, ratio, rtol=0.02)


def projected_moments(sde, times, strength, snr):
    """Mean and covariance of states that project between correction and prediction, and finished.

    The first pair is of the last time, the second of the samples.
    """
    pull = strength * np.linalg.pinv(MATRIX) @ MATRIX
    target = strength * np.linalg.pinv(MATRIX) @ MEASUREMENT
    alpha, sigma = coefficients(sde, times)
    mean, covariance = np.zeros(3), sde.prior_std**2 * np.eye(3)

    def move(step, shift, noise):
        nonlocal mean, covariance
        mean = step @ mean + shift
        covariance = step @ covariance @ step.T + noise

    def project(i):
        move(np.eye(3) - pull, alpha[i] * target, sigma[i] ** 2 * pull @ pull.T)

    project(0)
    for i in range(len(times) - 1):
        slope = -np.linalg.inv(alpha[i] ** 2 * CORRELATED.covariance + sigma[i] ** 2 * np.eye(3))
        shift = -alpha[i] * slope @ CORRELATED.mean
        scale = alpha[i] / alpha[i + 1]
        step = 2 * (scale * snr * sigma[i]) ** 2
        move(np.eye(3) + step * slope, step * shift, 2 * step * np.eye(3))
        project(i)
        large = sigma[i] ** 2 - (scale * sigma[i + 1]) ** 2
        small = large * (sigma[i + 1] / sigma[i]) ** 2
        move((np.eye(3) + large * slope) / scale, large / scale * shift, small * np.eye(3))
        project(i + 1)
    last = mean, covariance
    move(np.eye(3) - pull, target, np.zeros((3, 3)))
    return last, (mean, covariance)


def assert_moments(x, mean, covariance, slack=0.0):
    """Mean and covariance of samples, within 4.5 standard errors and some slack."""
    variance = np.diag(covariance)
    allowed = 4.5 * np.sqrt(variance / len(x)) + slack * np.sqrt(variance)
    assert np.all(np.abs(x.mean(axis=0) - mean) < allowed)
    product = np.outer(variance, variance)
    allowed = 4.5 * np.sqrt((product + covariance**2) / len(x)) + slack * np.sqrt(product)
    assert np.all(np.abs(np.cov(x.T) - covariance) < allowed)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_projection_samples_as_its_linear_recursion(strength):
    count, snr = 12_000, 0.2
    schedule = Schedule(grid="log_snr", steps=30, t_min=1e-3, final_step="none")
    times = schedule.of(VP)
    measurement = jnp.tile(jnp.asarray(MEASUREMENT), (count, 1))
    projection = Projection(
        operator=from_matrix(MATRIX), measurement=measurement, strength=strength
    )
    denoiser = CORRELATED.denoiser(VP)
    solver = PredictorCorrector(predictor=Ancestral(), corrector=AnnealedLangevin(snr=snr))
    samples = sample(
        KEY,
        denoiser,
        (count, 3),
        solver=solver,
        schedule=schedule,
        projection=projection,
        frames=[times[15]],
    )
    # Half way, what the last projection drew is most of the variance of what is measured.
    half_way, _ = projected_moments(VP, times[:16], strength, snr)
    assert_moments(samples.trajectory[0], *half_way)
    _, final = projected_moments(VP, times, strength, snr)
    assert_moments(np.asarray(samples.x), *final, slack=1e-4)
    if strength == 1:
        measured = np.asarray(samples.x) @ MATRIX.T
        np.testing.assert_allclose(measured, np.tile(MEASUREMENT, (count, 1)), atol=1e-5)


@pytest.mark.parametrize(("snr", "off", "ratio"), [(0.0, 0.0955, 1.0934), (0.4, 0.0033, 1.0059)])
def test_projection_misses_the_posterior_by_so_much(snr, off, ratio):
    """Off in mean, in posterior standard deviations, and in variance, where nothing is measured.

    The predictor alone is too slow to follow what is put in its place; a corrector makes up for it.
    """
    posterior = CORRELATED.posterior(MATRIX, MEASUREMENT, 0.0)
    free = np.linalg.svd(MATRIX)[2][2]
    variance = free @ posterior.covariance @ free
    times = Schedule(grid="log_snr", steps=2000, t_min=1e-4).of(VP)
    _, (mean, covariance) = projected_moments(VP, times, 1.0, snr)
    error = np.abs(free @ (mean - posterior.mean)) / np.sqrt(variance)
    np.testing.assert_allclose(error, off, rtol=0.02)
    np.testing.assert_allclose(free @ covariance @ free / variance, ratio, rtol=1e-3)
