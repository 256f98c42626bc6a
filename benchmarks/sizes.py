"""Sizes of differences between two experiments, on small cases."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from data import datasets
from denoising import Denoiser
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from guidance.classifier import Classifier
from likelihood import log_prob

SAMPLES = 64
DIGIT = (8, 8, 1)


@dataclass(frozen=True)
class Measure:
    """A measurement.

    Attributes:
        numbers: from the experiments of ours and theirs to numbers by name.
        text: describes them; a format of their names.
    """

    numbers: Callable[[Experiment, Experiment], dict[str, float]]
    text: str


def digits_denoiser(experiment: Experiment, width: float = 0.0) -> Denoiser:
    """Return the exact denoiser of the training digits, for the process and range.

    The data are the digits with Gaussian noise of standard deviation `width`.
    """
    data = datasets.load("digits", image_size=8, channels=1)
    points = data.quantizer.normalize(data.train).reshape(len(data.train), -1)
    sde = experiment.model.sde
    points = jnp.asarray(experiment.data.scaler.forward(points))
    network = Partial(_expected_eps, sde, points, jnp.asarray(width))
    return Denoiser(sde=sde, network=network, parameterization="eps", conditioning="t")


def digits_classifier(experiment: Experiment) -> Classifier:
    """Return the exact p(class | x_t) of the training digits."""
    data = datasets.load("digits", image_size=8, channels=1)
    points = data.quantizer.normalize(data.train).reshape(len(data.train), -1)
    points = jnp.asarray(experiment.data.scaler.forward(points))
    sde = experiment.model.sde
    network = Partial(_classify, sde, points, jnp.eye(10)[data.train_labels])
    return Classifier(sde=sde, network=network, conditioning="t", scale_input=False)


def _log_weights(sde: Any, points: Any, width: Any, flat: Any, t: Any) -> tuple[jax.Array, ...]:
    """Return log p(point | x_t) without what all points share, and alpha, sigma and variance."""
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    variance = sigma**2 + (alpha * width) ** 2
    # |x - alpha p|^2 / (2 variance)
    logs = (alpha * flat @ points.T - alpha**2 * jnp.sum(points**2, axis=1) / 2) / variance
    return logs, alpha, sigma, variance


def _classify(sde: Any, points: Any, members: Any, x: Any, t: Any) -> tuple[jax.Array, jax.Array]:
    flat = x.reshape(len(x), -1)
    logs, *_ = _log_weights(sde, points.astype(x.dtype), 0.0, flat, t)
    each = jnp.where(members.T[None] > 0, logs[:, None], -jnp.inf)
    return jax.nn.logsumexp(each, axis=2), flat


def _expected_eps(
    sde: Any, points: Any, width: Any, x: Any, t: Any, labels: Any = None
) -> jax.Array:
    """Return E[eps | x_t] for a mixture of equal Gaussians around the points."""
    points, width = points.astype(x.dtype), width.astype(x.dtype)
    flat = x.reshape(len(x), -1)
    logs, alpha, sigma, variance = _log_weights(sde, points, width, flat, t)
    mean = jax.nn.softmax(logs) @ points
    return (sigma * (flat - alpha * mean) / variance).reshape(x.shape)


def samples(experiment: Experiment) -> np.ndarray:
    """Return samples by the exact score of the digits, in gray levels 0..255, without rounding."""
    checkpoint = Checkpoint(
        step=0, denoiser=digits_denoiser(experiment), classifier=digits_classifier(experiment)
    )
    denoiser = experiment.sampler.with_classes(checkpoint, jnp.arange(SAMPLES))
    drawn = experiment.sampler.solve(jax.random.key(0), denoiser, (SAMPLES, *DIGIT), None)
    return 255 * experiment.data.scaler.inverse(
        np.asarray(drawn.x, np.float64).reshape(SAMPLES, -1)
    )


def samples_differ(ours: Experiment, theirs: Experiment) -> dict[str, float]:
    """Compare the noise left in samples, and the samples themselves."""
    data = datasets.load("digits", image_size=8, channels=1)
    points = 255.0 * data.quantizer.normalize(data.train).reshape(len(data.train), -1)
    noise, nearest, x = [], [], [samples(ours), samples(theirs)]
    for each in x:
        distances = ((each[:, None] - points) ** 2).mean(axis=2)
        nearest.append(distances.argmin(axis=1))
        noise.append(np.sqrt(distances.min(axis=1).mean()))
    same = nearest[0] == nearest[1]
    apart = np.sqrt(((x[0] - x[1])[same] ** 2).mean()) if same.any() else np.nan
    found = {"theirs": noise[1], "ours": noise[0], "same": same.mean(), "apart": apart}
    return {name: float(value) for name, value in found.items()}


def guided_samples_differ(ours: Experiment, theirs: Experiment) -> dict[str, float]:
    """Compare the samples of a guided class, and how many are of it."""
    data = datasets.load("digits", image_size=8, channels=1)
    points = 255.0 * data.quantizer.normalize(data.train).reshape(len(data.train), -1)
    shares = []
    for each in (theirs, ours):
        distances = ((samples(each)[:, None] - points) ** 2).mean(axis=2)
        labels = data.train_labels[distances.argmin(axis=1)]
        shares.append(float((labels == np.arange(SAMPLES) % 10).mean()))
    return samples_differ(ours, theirs) | {"share": shares[0], "our_share": shares[1]}


def log_probs_differ(ours: Experiment, theirs: Experiment) -> dict[str, float]:
    """Compare the solver errors of log-likelihoods of test digits, and the evaluations."""
    data = datasets.load("digits", image_size=8, channels=1)
    noise = np.random.default_rng(0).random((SAMPLES, *DIGIT), np.float32)
    images = data.quantizer.dequantize(data.test[:SAMPLES], noise)
    x = jnp.asarray(ours.data.scaler.forward(images), float)
    denoiser = digits_denoiser(ours, width=0.5)
    tight = replace(ours.likelihood.ode, rtol=1e-9, atol=1e-9)
    runs = (ours, tight), (theirs, theirs.likelihood.ode), (ours, ours.likelihood.ode)
    true, *found = [
        log_prob(jax.random.key(0), denoiser, x, options=each.likelihood.options, ode=ode)
        for each, ode in runs
    ]
    errors = [float(np.abs(one.nats - true.nats).max()) / np.log(2) / x[0].size for one in found]
    nfe = [int(one.nfe.max()) for one in found]
    return {"theirs": errors[0], "nfe": nfe[0], "ours": errors[1], "our_nfe": nfe[1]}


def networks_differ(ours: Experiment, theirs: Experiment) -> dict[str, float]:
    """Compare the outputs of both networks for the same random parameters."""
    outputs = []
    for each in (ours, theirs):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, *each.data.shape)), jnp.float32)
        cond = jnp.asarray([10.0, 500.0])
        network = each.model.network
        params = jax.tree.map(
            lambda leaf, rng=rng: (
                leaf + 0.02 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
            ),
            jax.jit(partial(network.init, train=False))(jax.random.key(0), x, cond),
        )
        outputs.append(np.asarray(network.apply(params, x, cond, train=False)))
    difference = np.linalg.norm(outputs[0] - outputs[1]) / np.linalg.norm(outputs[1])
    return {"difference": float(difference)}


def averages_differ(ours: Experiment, theirs: Experiment) -> dict[str, float]:
    """Compare the weight of the initial parameters after 1000 updates."""
    weights = []
    for each in (ours, theirs):
        weight = jnp.ones(())
        for step in range(1000):
            weight = each.trainer.average.update(weight, jnp.zeros(()), step)
        weights.append(float(weight))
    return {"theirs": weights[1], "ours": weights[0]}


_SAMPLES = (
    "digits: noise left {theirs:.2g} gray levels, ours {ours:.2g}; {same:.0%} of samples end at "
    "the same digit, {apart:.2g} gray levels apart"
)
SAMPLES_DIFFER = Measure(samples_differ, _SAMPLES)
GUIDED_SAMPLES_DIFFER = Measure(
    guided_samples_differ,
    f"{_SAMPLES}; {{share:.0%}} are of their class, ours {{our_share:.0%}}, exact classifier",
)
LOG_PROBS_DIFFER = Measure(
    log_probs_differ,
    "digits with noise 0.5, exact trace: error {theirs:.1e} bits/dim, {nfe} evaluations; "
    "ours error {ours:.1e} bits/dim, {our_nfe} evaluations",
)
NETWORKS_DIFFER = Measure(networks_differ, "outputs differ by {difference:.0%}, random parameters")
AVERAGES_DIFFER = Measure(
    averages_differ,
    "weight of the initial parameters after 1000 steps: {theirs:.2g}, ours {ours:.1g}",
)
