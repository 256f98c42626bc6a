"""The discrete bound against the papers' formulas written plainly, and against known entropies."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.tree_util import Partial

from bounds import discrete as module
from bounds.discrete import (
    DiscreteBoundOptions,
    discrete_bound,
    prior_divergence,
    received_images,
)
from denoising import Denoiser
from errors import BoundError
from numerics.arrays import fold_in_each, in_float64, normal_like, sample_keys
from numerics.clipping import Clipping
from numerics.pixel_levels import PixelLevels
from sde_lib import VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from time_grids import Schedule

KEY = jax.random.key(0)
LEVELS, SHAPE = 40, (3, 4)
# Kept levels by the rules of the second paper's code, see test_ancestral.py.
GRIDS = {
    "timesteps": range(40),
    "ddim10": range(0, 40, 4),
    "7,2,1": [0, 2, 4, 6, 9, 11, 13, 14, 26, 27],
}
STORED = np.array([[0, 1, 128, 255], [77, 255, 3, 0], [254, 200, 100, 10]])
IMAGES = 2 * STORED / 255 - 1.0
UNKNOWN = 0.3  # E (eps_t - eps)^2


def draws(count):
    keys = sample_keys(KEY, jnp.arange(SHAPE[0]))
    noise = [normal_like(fold_in_each(keys, i), jnp.asarray(IMAGES)) for i in range(count)]
    return np.asarray(noise)


def per_image(values):
    return values.reshape(len(values), -1).sum(axis=1)


def answer(x, level, numbers=jnp):
    """Some smooth network: eps, and the numbers from -1 to 1 that stand for its variances."""
    angle = 3 * x + level.reshape(-1, 1) / LEVELS
    return numbers.concatenate([0.8 * x + 0.3 * numbers.sin(angle), numbers.cos(2 * angle)], -1)


def kl(mean, variance, other_mean, other_variance):
    """Of one Gaussian from another, in nats."""
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - other_mean) ** 2 / other_variance)


def betas(schedule):
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, LEVELS) * 1000 / LEVELS
    alpha_bar = np.cos((np.arange(LEVELS + 1) / LEVELS + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def plainly(schedule, kept, variance, clip):
    """Prior, steps from the last level down, decoder: Ho et al., Eq. 5-8, 12 and 13, in betas."""
    alpha_bar = np.cumprod(1 - betas(schedule))[list(kept)]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    posterior = beta * (1 - before) / (1 - alpha_bar)
    # The first posterior variance is 0; the published code has the second in its place, as it has
    # in the place of the first of the large ones.
    small = np.append(posterior[1], posterior[1:])
    large = np.append(posterior[1], beta[1:])
    noise, terms = iter(draws(len(kept))), []
    for i in reversed(range(len(kept))):
        x = np.sqrt(alpha_bar[i]) * IMAGES + np.sqrt(1 - alpha_bar[i]) * next(noise)
        eps, number = np.split(answer(x, np.float64([kept[i]]), np), 2, axis=-1)
        x0 = (x - np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(alpha_bar[i])
        x0 = np.clip(x0, -1, 1) if clip else x0
        of_x0 = beta[i] * np.sqrt(before[i]) / (1 - alpha_bar[i])
        of_x = (1 - before[i]) * np.sqrt(1 - beta[i]) / (1 - alpha_bar[i])
        true_mean, mean = of_x0 * IMAGES + of_x * x, of_x0 * x0 + of_x * x
        v = (number + 1) / 2
        width = {
            "small": small[i],
            "large": large[i],
            "learned": np.exp(v * np.log(beta[i]) + (1 - v) * np.log(small[i])),
            # Bao et al. 2022, Theorem 1: the variance of x0 given x_t adds to that of the step.
            "analytic": small[i] + of_x0**2 * (1 / alpha_bar[i] - 1) * UNKNOWN if i else small[0],
        }[variance]
        if i > 0:
            terms.append(per_image(kl(true_mean, small[i], mean, width)))
    edges = (np.arange(256) - 0.5) * 2 / 255 - 1
    edges = np.append(np.append(-np.inf, edges[1:]), np.inf)
    cdf = scipy.stats.norm(mean, np.sqrt(width)).cdf
    decoder = -np.log(cdf(edges[STORED + 1]) - cdf(edges[STORED]))
    prior = kl(np.sqrt(alpha_bar[-1]) * IMAGES, 1 - alpha_bar[-1], 0.0, 1.0)
    return per_image(prior), np.array(terms), per_image(decoder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "variance", "clip"),
    [("linear", "large", "none"), ("cosine", "learned", "range"), ("linear", "analytic", "none")],
)
def test_bound_of_a_chain_is_the_papers(x64, schedule, variance, clip):
    denoiser = Denoiser(
        sde=DiscreteVPSDE(schedule=schedule, num_timesteps=LEVELS),
        network=Partial(answer),
        parameterization="eps_learned_variance",
        conditioning="timestep",
        num_timesteps=LEVELS,
        clipping=Clipping(clip=clip),
        uncertainty=Partial(lambda sde, x, t, eps: jnp.full((len(x), 1), UNKNOWN)),
    )
    options, programs = DiscreteBoundOptions(variance=variance), module._terms._cache_size()
    for grid, kept in GRIDS.items():
        times = Schedule(grid=grid).of(denoiser.sde)
        x0 = jnp.asarray(IMAGES)
        ours = discrete_bound(
            KEY, denoiser, x0, times=times, pixel_levels=PixelLevels(), options=options
        )
        prior, terms, decoder = plainly(schedule, kept, variance, clip == "range")
        np.testing.assert_allclose(ours.prior, prior, rtol=1e-9)
        np.testing.assert_allclose(ours.terms, terms, rtol=1e-7)
        np.testing.assert_allclose(ours.decoder, decoder, rtol=1e-7)
        np.testing.assert_allclose(ours.total, prior + terms.sum(axis=0) + decoder, rtol=1e-9)
        assert ours.nfe == len(kept)
    assert module._terms._cache_size() <= programs + 1, "one program serves any number of levels"


def coefficients(sde, times):
    times = jnp.asarray(times)
    return np.asarray(sde.alpha(times)), np.asarray(sde.sigma(times))


def conditional(alpha, sigma, x, x0):
    """Mean and variance of x_s given x_t and x0, from their joint Gaussian; alpha = alpha_t, _s."""
    covariance = alpha[0] / alpha[1] * sigma[1] ** 2
    mean = alpha[1] * x0 + covariance / sigma[0] ** 2 * (x - alpha[0] * x0)
    return mean, sigma[1] ** 2 - covariance**2 / sigma[0] ** 2


@pytest.mark.slow
def test_any_process_and_grid(x64):
    """The KL divergence of two Gaussian conditionals, of the true x0 and of the predicted one."""
    sde, times, pixel_levels = SubVPSDE(), np.array([1.0, 0.6, 0.5, 0.3]), PixelLevels(low=0.0)
    denoiser = Denoiser(
        sde=sde, network=lambda x, t: jnp.sin(x) / 2, parameterization="x0", conditioning="t"
    )
    x0, noise = (IMAGES + 1) / 2, draws(len(times))
    options = DiscreteBoundOptions(decoder="tweedie")
    ours = discrete_bound(
        KEY, denoiser, jnp.asarray(x0), times=times, pixel_levels=pixel_levels, options=options
    )
    alpha, sigma = coefficients(sde, times)
    for i in range(3):
        x = alpha[i] * x0 + sigma[i] * noise[i]
        mean, variance = conditional(alpha[i : i + 2], sigma[i : i + 2], x, x0)
        guess, _ = conditional(alpha[i : i + 2], sigma[i : i + 2], x, np.sin(x) / 2)
        expected = per_image(kl(mean, variance, guess, variance))
        np.testing.assert_allclose(ours.terms[i], expected, rtol=1e-9)
    mean = np.sin(alpha[-1] * x0 + sigma[-1] * noise[-1]) / 2
    density = scipy.stats.norm(mean, sigma[-1] / alpha[-1])
    left = np.where(STORED == 0, 0, density.cdf(x0 - 1 / 510))
    right = np.where(STORED == 255, 1, density.cdf(x0 + 1 / 510))
    np.testing.assert_allclose(ours.decoder, -per_image(np.log(right - left)), rtol=1e-7)
    prior = kl(alpha[0] * x0, sigma[0] ** 2, 0.0, 1.0)
    np.testing.assert_allclose(ours.prior, per_image(prior), rtol=1e-9)
    ve = prior_divergence(VESDE(sigma_max=5.0), jnp.asarray(x0), 0.9)
    prior = kl(x0, (0.01**0.1 * 5**0.9) ** 2, 0.0, 25.0)
    np.testing.assert_allclose(ve, per_image(prior), rtol=1e-9)


VALUES, SHARES = np.linspace(-1, 1, 4), np.array([0.1, 0.2, 0.3, 0.4])


def posterior_mean(sde, x, t):
    """E[x0 | x_t] of single pixels that have VALUES with probabilities SHARES."""
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    values, shares = jnp.asarray(VALUES, x.dtype)[None], jnp.asarray(SHARES, x.dtype)[None]
    logits = jnp.log(shares) - (x - alpha * values) ** 2 / (2 * sigma**2)
    return jnp.sum(jax.nn.softmax(logits) * values, axis=1, keepdims=True)


@pytest.mark.slow
def test_best_network_attains_each_probability_as_the_grid_is_refined():
    """With the exact posterior mean the reverse process is the data's, and each value's bound tends
    to its own -log probability; the loss of n steps falls as 1 / n, and so can be extrapolated."""
    sde, copies, pixel_levels = VPSDE(), 4000, PixelLevels(gray_levels=4)
    denoiser = Denoiser(
        sde=sde, network=Partial(posterior_mean, sde), parameterization="x0", conditioning="t"
    )
    x0 = jnp.asarray(np.repeat(VALUES, copies)[:, None], jnp.float32)
    excess, error = {}, {}
    for steps in (128, 512):
        times = Schedule(grid="log_snr", steps=steps, t_min=1e-3).of(sde)
        bound = discrete_bound(
            KEY,
            denoiser,
            x0,
            times=times,
            pixel_levels=pixel_levels,
            options=DiscreteBoundOptions(),
        )
        nats = np.asarray(bound.total, np.float64).reshape(4, copies)
        snr = np.exp(np.asarray(in_float64(sde.log_snr, times)))
        # The divergence of a step is half its gain in SNR times the squared error of x0.
        expected = 0.5 * np.diff(snr)[:, None] * bound.squares[:-1]
        np.testing.assert_allclose(bound.terms, expected, rtol=2e-3, atol=1e-5)
        excess[steps] = nats.mean(axis=1) + np.log(SHARES)
        error[steps] = nats.std(axis=1) / math.sqrt(copies)
    assert np.all(excess[128] < 0.2)
    assert np.all(excess[512] < excess[128] / 3)
    limit = (4 * excess[512] - excess[128]) / 3
    assert np.all(np.abs(limit) < 0.005 + 4 * np.hypot(4 * error[512], error[128]) / 3)


@pytest.mark.slow
def test_received_images_have_the_errors_of_the_bound(x64):
    """At the times that are asked for, and with indices as given."""
    sde, levels = VPSDE(), PixelLevels(gray_levels=256)
    denoiser = Denoiser(
        sde=sde, network=lambda x, t: 0.5 * jnp.sin(3 * x), parameterization="x0", conditioning="t"
    )
    x0, indices = jnp.asarray(IMAGES), jnp.array([7, 2, 5])
    times = Schedule(grid="uniform", steps=5, t_min=1e-2).of(sde)
    given = {"times": times, "indices": indices}
    options = DiscreteBoundOptions()
    bound = discrete_bound(KEY, denoiser, x0, pixel_levels=levels, options=options, **given)
    chosen = np.array([1, 5])
    images = received_images(KEY, denoiser, x0, chosen=chosen, **given)
    squares = jnp.mean((jnp.clip(images, -1, 1) - x0[None]) ** 2, axis=-1)
    np.testing.assert_allclose(squares, bound.squares[chosen], rtol=1e-9)


@pytest.mark.slow
def test_known_image_costs_what_its_variances_do(x64):
    """A network that knows x0 pays nothing, but for a variance that is not the posterior's."""
    x0, sde = jnp.asarray(IMAGES), VPSDE()
    denoiser = Denoiser(sde=sde, network=Partial(lambda x0, x, t: x0, x0), parameterization="x0")
    times = Schedule(steps=5, t_min=1e-3).of(sde)
    options = DiscreteBoundOptions(variance="large")
    bound = discrete_bound(
        KEY, denoiser, x0, times=times, pixel_levels=PixelLevels(), options=options
    )
    alpha, sigma = coefficients(sde, times)
    for i in range(5):
        _, variance = conditional(alpha[i : i + 2], sigma[i : i + 2], 0.0, 0.0)
        large = sigma[i] ** 2 - (alpha[i] / alpha[i + 1] * sigma[i + 1]) ** 2
        expected = IMAGES[0].size * kl(0.0, variance, 0.0, large)
        np.testing.assert_allclose(bound.terms[i], expected, rtol=1e-6)
    # A cell of half width 1/255 around the mean, of p's standard deviation at the last step.
    half = 1 / 255 / math.sqrt(variance)
    inner, edge = 2 * scipy.stats.norm.cdf(half) - 1, scipy.stats.norm.cdf(half)
    at_edge = (STORED == 0) | (STORED == 255)
    expected = -per_image(np.log(np.where(at_edge, edge, inner)))
    np.testing.assert_allclose(bound.decoder, expected, rtol=1e-6)


@pytest.mark.parametrize("levels", [2, 256])
def test_probabilities_of_all_levels_sum_to_one(levels):
    pixel_levels = PixelLevels(gray_levels=levels, low=-0.5, high=1.5)
    values, means = np.linspace(-0.5, 1.5, levels), np.array([-40.0, -0.5, 0.1234, 1.49, 3.0])
    grid = np.meshgrid(values, means, np.array([-7.0, -3.0, 0.0, 3.0]), indexing="ij")
    log_prob = jax.jit(pixel_levels.log_prob)(*(jnp.asarray(axis, jnp.float32) for axis in grid))
    assert np.isfinite(log_prob).all()
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=0), 1, atol=1e-4)


def test_probability_far_from_the_mean_is_exact_on_both_sides(x64):
    """Up to 200 standard deviations, where probabilities are 1e-8700."""
    pixel_levels, std = PixelLevels(gray_levels=5), 0.01
    means = np.array([-1.9, -0.6, 0.1, 0.7, 2.0])
    ours = jax.jit(pixel_levels.log_prob)(jnp.zeros(5), jnp.asarray(means), jnp.log(std))
    low, high = (np.abs(means) - 0.25) / std, (np.abs(means) + 0.25) / std
    tail = scipy.special.log_ndtr
    expected = [
        tail(-a) + np.log1p(-np.exp(tail(-b) - tail(-a))) for a, b in zip(low, high, strict=True)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def of_labels(threshold, x, t, labels):
    """Something that its class matters to, and NaN before a time."""
    return jnp.where(t[:, None] < threshold, jnp.nan, jnp.sin(x * (1 + labels[:, None])))


@pytest.mark.slow
def test_bound_is_a_function_of_key_number_and_sample_alone_and_names_the_time_of_nan():
    sde, options = VPSDE(), DiscreteBoundOptions()
    times = Schedule(steps=6).of(sde)

    def bound(rows, indices=None, threshold=0.0, times=times):
        network = Partial(of_labels, threshold)
        denoiser = Denoiser(sde=sde, network=network, labels=jnp.asarray(rows), conditioning="t")
        x0 = jnp.asarray(IMAGES[rows], jnp.float32)
        return discrete_bound(
            KEY,
            denoiser,
            x0,
            times=times,
            pixel_levels=PixelLevels(),
            options=options,
            indices=indices,
        )

    first, second = bound([0, 1, 2]), bound([1, 2, 1], jnp.array([1, 7, 2]))
    np.testing.assert_allclose(second.terms[:, 0], first.terms[:, 1], rtol=1e-5)
    np.testing.assert_allclose(second.total[0], first.total[1], rtol=1e-5)
    assert np.all(np.abs(second.terms[:, 2] - first.terms[:, 1]) > 1e-6)
    assert np.all(np.abs(second.terms[:, 1] - first.terms[:, 2]) > 1e-6)
    assert first.terms.shape == (6, 3)
    assert first.nfe == 7
    with pytest.raises(BoundError, match=r"3 of 3 samples .* the first at t=0\.5; check the netw"):
        bound([0, 1, 2], threshold=0.55, times=np.array([1.0, 0.8, 0.5, 0.3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0": IMAGES + 0.4 / 255}, "x0 spans -0.9984 to 1.002 and is up to 0.2 of their spacing"),
        ({"x0": (IMAGES + 1) * 127.5}, " to 255 and is up to 0.5 "),
        ({"x0": IMAGES * math.nan}, "x0 spans nan "),
        (
            {"times": np.array([1.0])},
            "times=[1.] must be two or more in [0, 1], strictly decreasing",
        ),
        ({"times": np.array([1.0, 0.5, 0.5])}, "strictly decreasing"),
        ({"times": np.array([1.0, 0.0])}, "times end at t=0.0, where this process has no noise"),
        ({"options": DiscreteBoundOptions(variance="learned")}, "variance='learned' needs a net"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    denoiser = Denoiser(sde=VPSDE(), network=lambda x, t: x)
    given = {
        "x0": IMAGES,
        "times": np.array([1.0, 0.5]),
        "options": DiscreteBoundOptions(),
        **change,
    }
    x0 = jnp.asarray(given.pop("x0"), jnp.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        discrete_bound(KEY, denoiser, x0, pixel_levels=PixelLevels(), **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DiscreteBoundOptions(variance="no"),
            "variance='no' is unknown; choose one of: analytic, diagonal, large, learned, small",
        ),
        (
            lambda: DiscreteBoundOptions(decoder="no"),
            "decoder='no' is unknown; choose one of: chain, tweedie",
        ),
        (lambda: PixelLevels(gray_levels=1), "gray_levels=1 must be at least 2"),
        (
            lambda: PixelLevels(low=1.0),
            r"low=1\.0, high=1\.0 must be finite, and low must be below",
        ),
    ],
)
def test_invalid_field_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
