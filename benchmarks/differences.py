"""The differences between published code and ours, and how `fidelity.py` measures their sizes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from data import datasets
from denoising import Denoiser
from experiment.build import build
from experiment.configurations import load_configuration
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from guidance.classifier import Classifier
from likelihood import log_prob

SAMPLES = 64
DIGIT = (8, 8, 1)
Measure = Callable[[Experiment, Experiment], str]


@dataclass(frozen=True)
class Difference:
    """A published behavior that ours differs from by default.

    Attributes:
        name: short name, for --only.
        topic: heading in the page.
        published: what the published code does.
        ours: what ours does by default.
        config: the configuration that shows it.
        settings: fields of both sides.
        fields: fields that give the published behavior; none if ours cannot do it.
        measure: the size, from the experiments of ours and theirs; None where `size` states it.
        size: the size, where nothing is measured here.
        case: the case of the size, where it is not obvious from the page.
    """

    name: str
    topic: str
    published: str
    ours: str
    config: str = "configs/vp_digits.py"
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    measure: Measure | None = None
    size: str = ""
    case: str = ""

    def experiments(self) -> tuple[Experiment, Experiment]:
        """Build the configuration with our defaults, and with the published fields."""
        return _build(self.config, self.settings), _build(self.config, self.settings | self.fields)


def _build(name: str, fields: dict[str, Any]) -> Experiment:
    config = load_configuration(name)
    for path, value in fields.items():
        section, _, leaf = path.rpartition(".")
        config[section][leaf] = value
    return build(config, overrides=frozenset(fields))


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
    """Return samples with the exact score of the digits, in gray levels 0..255, without rounding."""
    checkpoint = Checkpoint(
        step=0, denoiser=digits_denoiser(experiment), classifier=digits_classifier(experiment)
    )
    denoiser = experiment.sampler.with_classes(checkpoint, jnp.arange(SAMPLES))
    drawn = experiment.sampler.solve(jax.random.key(0), denoiser, (SAMPLES, *DIGIT), None)
    return 255 * experiment.data.scaler.inverse(
        np.asarray(drawn.x, np.float64).reshape(SAMPLES, -1)
    )


def samples_differ(ours: Experiment, theirs: Experiment) -> str:
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
    return (
        f"digits: noise left {noise[1]:.2g} gray levels, ours {noise[0]:.2g}; {same.mean():.0%} of "
        f"samples end at the same digit, {apart:.2g} gray levels apart"
    )


def guided_samples_differ(ours: Experiment, theirs: Experiment) -> str:
    """Compare the samples of a guided class, and how many are of it."""
    data = datasets.load("digits", image_size=8, channels=1)
    points = 255.0 * data.quantizer.normalize(data.train).reshape(len(data.train), -1)
    shares = []
    for each in (theirs, ours):
        distances = ((samples(each)[:, None] - points) ** 2).mean(axis=2)
        labels = data.train_labels[distances.argmin(axis=1)]
        shares.append((labels == np.arange(SAMPLES) % 10).mean())
    compared = samples_differ(ours, theirs)
    return f"{compared}; {shares[0]:.0%} are of their class, ours {shares[1]:.0%}, exact classifier"


def log_probs_differ(ours: Experiment, theirs: Experiment) -> str:
    """Compare the solver errors of log-likelihoods of test digits, and the evaluations."""
    data = datasets.load("digits", image_size=8, channels=1)
    noise = np.random.default_rng(0).random((SAMPLES, *DIGIT), np.float32)
    images = data.quantizer.dequantize(data.test[:SAMPLES], noise)
    x = jnp.asarray(ours.data.scaler.forward(images), float)
    denoiser = digits_denoiser(ours, width=0.5)
    tight = replace(ours.ode, rtol=1e-9, atol=1e-9)
    true, *found = [
        log_prob(jax.random.key(0), denoiser, x, options=each.likelihood, ode=ode)
        for each, ode in ((ours, tight), (theirs, theirs.ode), (ours, ours.ode))
    ]
    errors = [np.abs(one.nats - true.nats).max() / np.log(2) / x[0].size for one in found]
    texts = [
        f"error {error:.1e} bits/dim, {int(one.nfe.max())} evaluations"
        for one, error in zip(found, errors, strict=True)
    ]
    return f"digits with noise 0.5, exact trace: {texts[0]}; ours {texts[1]}"


def networks_differ(ours: Experiment, theirs: Experiment) -> str:
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
    return f"outputs differ by {difference:.0%}, random parameters"


def averages_differ(ours: Experiment, theirs: Experiment) -> str:
    """Compare the weight of the initial parameters after 1000 updates."""
    weights = []
    for each in (ours, theirs):
        weight = jnp.ones(())
        for step in range(1000):
            weight = each.trainer.average.update(weight, jnp.zeros(()), step)
        weights.append(float(weight))
    text = "weight of the initial parameters after 1000 steps"
    return f"{text}: {weights[1]:.2g}, ours {weights[0]:.1g}"


_VE, _VP = "configs/ve_cifar10.py", "configs/vp_cifar10.py"
_PUBLISHED_PC = {"sampling.discretization": "published", "sampling.final_step": "mean"}

DIFFERENCES = (
    Difference(
        name="ve_discretization",
        topic="Sampling (Song et al.)",
        published="Predictor-Corrector steps look sigma up in a table of N levels; N steps start at N times from 1 to t_min, and the last one goes past t_min",
        ours="the exact transition from each time to the next; N - 1 steps and a denoising step",
        config=_VE,
        fields=_PUBLISHED_PC,
        measure=samples_differ,
    ),
    Difference(
        name="vp_discretization",
        topic="Sampling (Song et al.)",
        published="Euler-Maruyama takes steps of 1 / N on a grid whose spacing is (1 - t_min) / (N - 1)",
        ours="steps of the grid's own spacing; N - 1 steps and a denoising step",
        config=_VP,
        fields=_PUBLISHED_PC,
        measure=samples_differ,
    ),
    Difference(
        name="chain_labels",
        topic="Sampling (Song et al.)",
        published="networks of a chain get fractional timesteps 999, ..., 1.998, 0.999, while sigma comes from the timestep below",
        ours="the timesteps 999, ..., 1, 0 of training, for both",
        config=f"{_VP}:ddpm",
        settings={},
        fields=_PUBLISHED_PC | {"sampling.grid": "uniform", "sampling.steps": 999},
        measure=samples_differ,
    ),
    Difference(
        name="langevin_norms",
        topic="Sampling (Song et al.)",
        published="the Langevin step size comes from mean norms over the batch, so a sample depends on its batch",
        ours="norms of each sample",
        config=_VE,
        fields={"sampling.norm_reduction": "batch"},
        measure=samples_differ,
    ),
    Difference(
        name="ncsn_noise",
        topic="Sampling (Song et al.)",
        published="corrector-only samplers (NCSN, NCSNv2) return the last state with its noise",
        ours="a denoising step at the end",
        config="configs/ve_cifar10.py:ncsnv2",
        fields={"sampling.final_step": "none"},
        measure=samples_differ,
    ),
    Difference(
        name="ode_end",
        topic="Sampling (Song et al.)",
        published="the ode sampler ends with a step of reverse diffusion, without its noise",
        ours="Tweedie's formula, the mean of the data given the last state",
        size="noise left by theirs: none for VE, about 0.1 gray levels for VP",
    ),
    Difference(
        name="edm_churn",
        topic="Sampling (others)",
        published="EDM adds noise before its first and last steps too, which for the first goes beyond the prior",
        ours="no noise before these steps; the configurations of EDM set the field",
        config="configs/edm_cifar10.py",
        settings={"sampling.s_churn": 10.0, "sampling.churn_all_levels": False},
        fields={"sampling.churn_all_levels": True},
        measure=samples_differ,
    ),
    Difference(
        name="edm_time",
        topic="Sampling (others)",
        published="EDM's ablation integrates VP in its own time and scaling, and ends with a step to noise 0",
        ours="in the noise level sigma / alpha, and a denoising step",
        config="configs/edm_cifar10.py",
        settings={"sampling.steps": 255},
        case="256 steps",
        fields={
            "sampling.variable": "vp_time",
            "sampling.scaling": "vp",
            "sampling.grid": "vp_time",
            "sampling.final_euler": True,
            "sampling.final_step": "none",
        },
        measure=samples_differ,
    ),
    Difference(
        name="singlestep_orders",
        topic="Sampling (others)",
        published="DPM-Solver's singlestep method spaces the ends of its steps by their orders",
        ours="all evaluations on the grid",
        settings={
            "sampling.name": "dpm_solver",
            "sampling.method": "singlestep",
            "sampling.order": 3,
            "sampling.steps": 12,
        },
        fields={"sampling.step_ends": "by_order"},
        measure=samples_differ,
    ),
    Difference(
        name="adm_guidance",
        topic="Sampling (others)",
        published="ADM's classifier moves the mean of each step, by its gradient times the step's variance",
        ours="it moves the score",
        config=f"{_VP}:ddpm",
        settings={
            "guidance.name": "classifier",
            "guidance.scale": 2.0,
            "classifier.num_classes": 10,
        },
        fields={"sampling.guidance_form": "mean"},
        measure=guided_samples_differ,
    ),
    Difference(
        name="iddpm_levels",
        topic="Sampling (others)",
        published="EDM computes the levels of iDDPM's grid in float32",
        ours="in float64",
        size="4.6e-4 of the smallest level, 3e-3 to 3e-2 in samples",
    ),
    Difference(
        name="classifier_input",
        topic="Sampling (Song et al.)",
        published="the classifier of noisy images sees x_t, with CIFAR-10's channels whitened",
        ours="x_t / sqrt(alpha^2 + sigma^2), not whitened; `ve_cifar10` sets the fields `channel_means` and `channel_stds` too",
        config=_VP,
        fields={"classifier.scale_input": False},
        size="5.7% of the largest logit without whitening",
        case="the tests' narrow wide ResNet, measured once",
    ),
    Difference(
        name="edm_rounding",
        topic="Sampling (others)",
        published="EDM rounds the levels of grid and churn to those of an iDDPM network",
        ours="the time input is rounded alone",
        size="up to 6% of a level near sigma = 80",
    ),
    Difference(
        name="rtol_of_batch",
        topic="Likelihood",
        published="RK45 with one adaptive step size for the whole batch, in t",
        ours="Adams' method, a step size per image, in the angle arctan sqrt(sigma / alpha)",
        fields={
            "likelihood.solver": "dopri5",
            "likelihood.step_size_control": "batch",
            "likelihood.ode_variable": "t",
        },
        settings={"likelihood.trace": "exact"},
        measure=log_probs_differ,
    ),
    Difference(
        name="likelihood_truncation",
        topic="Likelihood",
        published="the density at t_min counts as the density of the data",
        ours="the same number, and an estimate of the difference beside it (`eval.error_budget_images`)",
        size="`truncation` in each report",
    ),
    Difference(
        name="ema_warmup",
        topic="Training",
        published="score_sde in JAX averages with the full rate from the first step",
        ours="min(rate, (1 + n) / (10 + n)), as score_sde_pytorch does",
        config=_VP,
        fields={"ema.warmup": False},
        measure=averages_differ,
    ),
    Difference(
        name="groups",
        topic="Networks",
        published="OpenAI's networks normalize 32 groups of channels whatever the width",
        ours="min(channels // 4, 32), as EDM and NCSN++; an import refuses the wrong one",
        config="configs/iddpm_cifar10.py",
        settings={"model.features": 64, "model.num_groups": 0},
        fields={"model.num_groups": 32},
        measure=networks_differ,
        case="64 features",
    ),
    Difference(
        name="attention",
        topic="Networks",
        published="the first DDPM has attention after every block of the decoder; the DDPM of score_sde after the last of a resolution",
        ours="that of score_sde",
        config=f"{_VP}:ddpm",
        fields={"model.decoder_attention": "block"},
        size="35.7M parameters instead of 35.2M",
    ),
    Difference(
        name="instance_norm",
        topic="Networks",
        published="the PyTorch code of NCSNv2 has the unbiased variance in InstanceNorm++, and aligned corners",
        ours="the JAX code's biased variance and interpolation",
        config="configs/ve_cifar10.py:ncsnv2",
        settings={"model.features": 32, "data.image_size": 32},
        fields={"model.implementation": "pytorch"},
        size="1 / (n - 1) of a norm's shift, and the corners of resized features",
    ),
    Difference(
        name="test_images",
        topic="Evaluation",
        published="score_sde drops the last incomplete batch: 9,216 of 10,000 test images",
        ours="all test images",
        size="784 images",
    ),
    Difference(
        name="rounding",
        topic="Evaluation",
        published="samples are floored to 8 bits",
        ours="rounded to the nearest level",
        size="half a gray level of brightness",
    ),
    Difference(
        name="normal_cdf",
        topic="Evaluation",
        published="improved-diffusion approximates the normal distribution function by a tanh in its bound",
        ours="the function itself",
        size="3e-4 to 4e-3 bits/dim",
        case="digits and CIFAR-sized chains, measured once beside the original",
    ),
    Difference(
        name="inception_large",
        topic="Evaluation",
        published="score_sde evaluates images of 256 pixels and more with TF-Hub's Inception at their own size",
        ours="the Inception of the original FID, at 299 pixels",
        size="not comparable",
    ),
    Difference(
        name="inception_splits",
        topic="Evaluation",
        published="score_sde computes the Inception Score of all 50,000 images at once",
        ours="the mean over 10 parts, as in the literature",
        size="a lower score by sampling bias",
    ),
    Difference(
        name="celeba_crop",
        topic="Data",
        published="score_sde crops the central 140 pixels of CelebA",
        ours="the central square of 178; give an image folder or .npz with the published crop to compare",
        size="other images",
    ),
)
