"""Shipped configurations leave no noise in samples, and the moments that published samplers leave.

Some numbers of an image are known, the others are Gaussian. So the exact denoiser is known, and one
run of each configuration shows both.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from jax.tree_util import Partial
from published_sampler import PublishedSampler

from data.scaling import ImageScaler
from denoising import Denoiser
from experiment.build import build
from experiment.build_data import build_data
from experiment.build_sampler import build_sampler
from experiment.class_guidance import Classes
from experiment.configurations import known_configurations, load_configuration
from experiment.ends import build_ends
from experiment.leftover_noise import leftover_noise
from experiment.reader import Reader
from experiment.resolve import resolve
from losses import LOSSES
from numerics.arrays import expand_like
from sde_lib import SDES
from training.parallel import DataParallel

KNOWN, GAUSSIAN = 32, 256  # numbers of an image
SHAPE, WIDTH = (8, KNOWN + GAUSSIAN), 0.25  # of the Gaussian ones, as a fraction of the range


def sampler_of(config):
    """Build the sampler alone: these networks take seconds to trace."""
    reader = Reader(resolve(config))
    sde = reader.build_named("sde", SDES)
    data = build_data(reader, DataParallel.over_all_devices())
    classes = Classes(network=0, classifier=10, label_dropout=0.1)
    return build_sampler(reader, sde, data, classes, build_ends(reader, sde, data)), sde


@functools.cache
def distinct():
    """One configuration for each sampler, process and range of the data."""
    found = {}
    for name, config in known_configurations():
        if LOSSES[config.loss.name].samplers:  # they sample with their own networks only
            continue
        if config.coupling.data or config.coupling.measurement:  # samples do not start from noise
            continue
        sections = config.sde.to_dict(), config.sampling.to_dict(), config.data.centered
        found.setdefault(str(sections), name.removeprefix("configs/"))
    return tuple(found.values())


def data_of(scaler):
    """The mean, and the variance of each number of an image."""
    spread = WIDTH * (scaler.high - scaler.low)
    return (scaler.low + scaler.high) / 2, np.repeat([[0.0, spread**2]], [KNOWN, GAUSSIAN], axis=1)


def eps_of(x, alpha, sigma, mean, variance):
    return (x - alpha * mean) * sigma / (alpha**2 * variance + sigma**2)


def _network(sde, mean, variance, x, t):
    alpha, sigma = (expand_like(f(t), x) for f in (sde.alpha, sde.sigma))
    eps = eps_of(x, alpha, sigma, mean, variance)
    return jnp.concatenate([eps, -jnp.ones_like(eps)], axis=-1)  # and the smallest variance


def left(x, scaler):
    """The noise in gray levels; mean and width of the Gaussian numbers, over the true width."""
    mean, variance = data_of(scaler)
    known, gaussian = np.split(np.asarray(x, np.float64) - mean, [KNOWN], axis=1)
    levels = 255 * np.sqrt(np.mean(known**2)) / (scaler.high - scaler.low)
    spread = np.sqrt(variance.max())
    return levels, np.mean(gaussian) / spread, np.std(gaussian) / spread


def published_samples(config, scaler):
    """Sample as published, in the number of steps of the published file."""
    mean, variance = data_of(scaler)
    name, sampling = config.sde.name, config.sampling
    continuous = name not in ("ddpm", "smld")
    kind = {"ddpm": "vp", "smld": "ve"}.get(name, name)
    count = sampling.steps + 1 if continuous else config.sde.num_timesteps or 1000
    sigma_max = config.sde.sigma_max if kind == "ve" else 50.0
    theirs = PublishedSampler(kind, count, continuous, sigma=(0.01, sigma_max))

    def network(x, label):
        if kind == "ve":
            sigma = np.exp(label) if continuous else theirs.sigmas[::-1][label]
            return -eps_of((x + 1) / 2, 1.0, sigma, mean, variance)
        if not continuous:
            log_alpha = np.log1p(-theirs.noises) / 2
            alpha = np.exp(np.interp(label, np.arange(count), log_alpha))
            return eps_of(x, alpha, np.sqrt(1 - alpha**2), mean, variance)
        sigma = theirs.level(label / 999)
        alpha = np.sqrt(1 - (sigma if kind == "subvp" else sigma**2))
        return eps_of(x, alpha, sigma, mean, variance)

    rng = np.random.default_rng(0)
    return theirs.sample(
        network,
        lambda: rng.standard_normal(SHAPE),
        t_min=1e-5 if kind == "ve" else 1e-3,
        predictor=sampling.predictor,
        corrector=sampling.corrector,
        snr=sampling.snr,
        corrector_steps=sampling.corrector_steps or 1,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct())
def test_shipped_configuration_leaves_no_noise_and_the_published_moments(name):
    """Of 2048 numbers the mean is known to 2.2% of their width, and the width to 1.6%."""
    config = load_configuration(f"configs/{name}")
    sampler, sde = sampler_of(config)
    scaler = sampler.data.scaler if sampler.data.kind.quantized else ImageScaler()
    network = Partial(_network, sde, *(jnp.asarray(a, jnp.float32) for a in data_of(scaler)))
    denoiser = Denoiser(
        sde=sde, network=network, parameterization="eps_learned_variance", conditioning="t"
    )
    samples = sampler.solve(jax.random.key(0), denoiser, SHAPE, None)
    noise, mean, width = left(samples.x, scaler)
    assert noise < 1e-3
    assert abs(mean) < 0.1
    if config.sampling.name == "pc" and config.sampling.variance != "learned":
        published_noise, _, published_width = left(published_samples(config, scaler), scaler)
        assert noise <= published_noise + 1e-6
        assert abs(width - 1) < abs(published_width - 1) + 0.06
    else:
        # The smallest of the learned variances is right for the known numbers only.
        assert abs(width - 1) < (0.1 if config.sampling.variance == "learned" else 0.06)


@pytest.mark.slow
def test_noise_of_a_known_sampler_is_known():
    """The ancestral sampler keeps the marginals, so that at t_min the noise is sigma / alpha."""
    fields = {
        "sampling.predictor": "ancestral",
        "sampling.final_step": "none",
        "sampling.t_min": 0.1,
        "sampling.grid": "log_snr",
    }
    experiment = build(configuration(TINY | fields))
    sde, t = experiment.model.sde, jnp.float32(0.1)
    measured = leftover_noise(experiment.sampler, sde)
    assert measured == pytest.approx(255 * float(sde.sigma(t)) / 2, rel=0.05)


def test_measure_of_what_needs_more_than_a_denoiser_is_none():
    experiment = build(configuration(TINY | {"sampling.name": "analytic"}))
    assert leftover_noise(experiment.sampler, experiment.model.sde) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ode", "sde", "dpm_adaptive"])
def test_adaptive_samplers_are_measured_too(name):
    experiment = build(configuration(TINY | {"sampling.name": name, "sampling.steps": None}))
    assert leftover_noise(experiment.sampler, experiment.model.sde) < 0.01


@pytest.mark.slow
def test_editing_starts_at_the_image_itself():
    fields = {"sampling.steps": 10, "task.name": "sdedit", "task.input": "test", "task.start": 0.5}
    experiment = build(configuration(TINY | fields))
    assert leftover_noise(experiment.sampler, experiment.model.sde) < 0.01
