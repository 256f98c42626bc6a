r"""Measure how training goes: losses, noise levels, samples, likelihood, weights.

All numbers are functions of (seed, step, parameters): the same images, times and noise at every
step, so that a change between two steps is a change of the network, and a resumed run writes what
the run that never stopped writes. The network has its averaged parameters and no dropout.

The squared error of the predicted noise per dimension, e = ||eps_hat - eps||^2 / D, is measured
at levels of equal length in log-SNR, with equally many draws each. Where the noise is hardly
predictable, e varies like n = ||eps||^2 / D, whose mean is known to be 1. So each draw counts as
e - c (n - 1), where c is the mean of e over the other draws of its level, which are independent.
The mean is unbiased, and its standard error falls where the network predicts little of the noise.

What knows nothing of the image has an error too. The best predictor that knows the mean m_i and the
variance v_i of every pixel i, and takes pixels for independent Gaussians, has at a signal-to-noise
ratio r = alpha^2 / sigma^2

    e = mean_i r v_i / (1 + r v_i)

which is about 1 for little noise, as for eps_hat = 0, and r mean(v) for much noise, as for
x0_hat = m. A level whose error is no smaller is one where the network has learned nothing.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bounds.continuous import decoder_term
from bounds.discrete import prior_divergence
from denoising import Denoiser
from errors import ConfigError, SamplingError
from experiment.class_guidance import GuidanceOptions
from experiment.experiment import Experiment, with_data_labels
from experiment.randomness import base_key
from experiment.sampler import Checkpoint, FixedSteps, Sampler
from metrics.bits_per_dim import bits_per_dim
from metrics.features import Extractor
from metrics.frechet import Accumulator, Statistics, frechet_distance, frechet_interval
from numerics.arrays import normal_like, sample_keys, sum_per_sample
from objectives.times import log_snr_range, log_snr_times
from solvers.unipc import UniPC
from time_grids import Schedule
from training.objective import Context
from training.step import TrainState, parameter_norms

Draws = Int[np.ndarray, "batch"]

SPLITS = ("train", "test")
GROUPS = 16  # of test images, whose mean losses are kept to compare steps
_IMAGES = 256
_PER_LEVEL = 8  # draws at each noise level, at least
_REFERENCE_IMAGES = 10_000  # training images for the Frechet distance, at most
_MAX_FEATURES = 256  # above, the standard error of the Frechet distance would take too long
# Random streams, folded into the key.
_LOSS, _OFFSETS, _NOISE, _DECODER = range(4)


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What is measured during training.

    Attributes:
        experiment: what is trained.
        extractor: features of the Frechet distance.
    """

    experiment: Experiment
    extractor: Extractor

    def check(self) -> None:
        """Raise ConfigError for measurements that cannot be had of these data."""
        options, data = self.experiment.diagnostics, self.experiment.data
        unknown = sorted(set(options.metrics) - set(DIAGNOSTICS))
        if unknown:
            raise ConfigError(
                f"config.diagnostics.metrics={options.metrics!r}: {unknown[0]!r} is unknown; "
                f"choose some of: {', '.join(DIAGNOSTICS)}"
            )
        count = len(data.images.test)
        if count < 2:
            raise ConfigError(
                f"config.data.name={data.options.name!r} has {count} test image, and measurements "
                "during training need 2; set config.diagnostics.every=0 for none"
            )
        if options.images is not None and options.images > count:
            raise ConfigError(
                f"config.diagnostics.images={options.images}, but config.data.name="
                f"{data.options.name!r} has {count} test images; give at most {count}, or leave it "
                "out"
            )
        classes = self.experiment.model.num_classes
        if classes:
            data.require_classes(data.images.test_labels, classes, "model")

    @property
    def every(self) -> int:
        """Steps between measurements."""
        return self.experiment.diagnostics.every

    def measure(self, state: TrainState) -> dict[str, Any]:
        """Return the measurements of a state by name, in nested dicts of numbers."""
        denoiser = self.experiment.trainer.denoiser(state.ema_params, None)
        subject = _Subject(self, state, denoiser)
        values: dict[str, Any] = {}
        for name in self.experiment.diagnostics.metrics:
            values |= DIAGNOSTICS[name](subject)
        return values

    @property
    def finest_log_snr(self) -> float:
        """The log-SNR above which the noise is smaller than that of dequantization.

        There is nothing to predict there.
        """
        data = self.experiment.data
        if not data.options.dequantize:
            return float("inf")
        width = (data.scaler.high - data.scaler.low) / data.quantizer.gray_levels
        return float(np.log(12 / width**2))

    @cached_property
    def chosen(self) -> dict[str, Int[np.ndarray, "images"]]:
        """The indices of the images of each split, drawn once for the run."""
        images, rng = self.experiment.data.images, np.random.default_rng(self.experiment.seed)
        count = self.experiment.diagnostics.images or min(_IMAGES, len(images.test))
        return {split: rng.permutation(len(getattr(images, split)))[:count] for split in SPLITS}

    @property
    def per_level(self) -> int:
        """Draws at each noise level: one for each image, and no fewer than 8."""
        count = max(len(indices) for indices in self.chosen.values())
        return max(count // self.experiment.diagnostics.levels, _PER_LEVEL)

    @property
    def batch_size(self) -> int:
        """Images per batch: those of a training step, or fewer if there are fewer images."""
        devices = self.experiment.parallel.devices
        draws = self.per_level * self.experiment.diagnostics.levels
        return min(self.experiment.training.batch_size, -(-draws // devices) * devices)

    @property
    def key(self) -> Array:
        return base_key(self.experiment.seed, "diagnostics")

    @cached_property
    def losses(self) -> Callable[..., Float[Array, "batch"]]:
        """The objective of each image, from (key, denoiser, x0, context)."""
        objective = self.experiment.loss
        return jax.jit(lambda *arguments: objective(*arguments).values)

    @cached_property
    def pixel_variances(self) -> Float[np.ndarray, "pixels"]:
        """The variance of every pixel over training images, in the network's range."""
        data, dequantize = self.experiment.data, self.experiment.data.options.dequantize
        stored = data.images.train[:_REFERENCE_IMAGES].astype(np.float32)
        bins = data.quantizer.gray_levels - (not dequantize)
        gray = (data.scaler.high - data.scaler.low) / bins
        return gray**2 * (stored.var(axis=0, dtype=np.float64).ravel() + dequantize / 12)

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler of few steps, without guidance."""
        sampler, options = self.experiment.sampler, self.experiment.diagnostics
        schedule = Schedule(
            grid="log_snr",
            steps=options.sampling_steps - 1,
            t_min=sampler.solve.t_min,
            final_step="denoise",
        )
        return dataclasses.replace(
            sampler,
            guidance=GuidanceOptions(),
            sample_classes=sampler.classes.network,
            task=None,
            solve=FixedSteps(solver=UniPC(), schedule=schedule, clipping=sampler.solve.clipping),
            evaluations=options.sampling_steps,
            needs=frozenset(),
        )

    @cached_property
    def reference(self) -> tuple[Statistics, float | None]:
        """The statistics of training images, and the distance of as many test images as samples.

        It is None if there are fewer test images, because few images are farther away.
        """
        images, to_uint8 = self.experiment.data.images, self.experiment.data.quantizer.to_uint8
        rng, count = (
            np.random.default_rng(self.experiment.seed),
            self.experiment.diagnostics.samples,
        )
        train = rng.permutation(len(images.train))[:_REFERENCE_IMAGES]
        statistics = self.accumulated(to_uint8(images.train[train])).statistics()
        if len(images.test) < count:
            return statistics, None
        test = rng.permutation(len(images.test))[:count]
        real = self.accumulated(to_uint8(images.test[test])).statistics()
        return statistics, frechet_distance(statistics, real)

    def accumulated(self, images: np.ndarray, *, groups: int = 1) -> Accumulator:
        """Return the features of uint8 images."""
        accumulator = Accumulator(len(images), groups=groups)
        size = self.experiment.evaluation.batch_size
        for first in range(0, len(images), size):
            accumulator.add(self.extractor(images[first : first + size]).features)
        return accumulator


@jax.jit
def _squared_errors(
    key: Array, denoiser: Denoiser, x0: Array, t: Array, draws: Int[Array, "batch"]
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Return ||eps_hat - eps||^2 and ||eps||^2; draw k depends on its key alone."""
    eps = normal_like(sample_keys(key, draws), x0)
    error = denoiser.predict(denoiser.sde.perturb(x0, t, eps), t).eps - eps
    return sum_per_sample(error**2), sum_per_sample(eps**2)


@dataclass(frozen=True)
class _Subject:
    """A training state under measurement, and what several measurements of it share."""

    diagnostics: Diagnostics
    state: TrainState
    denoiser: Denoiser
    found: dict[Any, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        return self.diagnostics.experiment

    @property
    def t_min(self) -> float:
        """The smallest time: that of training, or that of the bound if training states none."""
        times = getattr(self.experiment.loss, "times", None)
        return getattr(times, "t_min", self.experiment.continuous_bound.t_min)

    @cached_property
    def log_snr_ends(self) -> Float[np.ndarray, "2"]:
        """The smallest and the largest log-SNR."""
        return np.asarray(log_snr_range(self.denoiser.sde, self.t_min), np.float64)

    @property
    def log_snrs(self) -> Float[np.ndarray, "levels"]:
        """The log-SNR in the middle of each level."""
        (low, high), count = self.log_snr_ends, self.experiment.diagnostics.levels
        return low + (high - low) * (np.arange(count) + 0.5) / count

    @cached_property
    def times(self) -> Float[np.ndarray, "draws"]:
        """The time of every draw. The levels take turns, so that all have images of all kinds."""
        levels, count = self.experiment.diagnostics.levels, self.diagnostics.per_level
        key = jax.random.fold_in(self.diagnostics.key, _OFFSETS)
        offsets = np.asarray(jax.random.uniform(key, (count, levels)))
        u = (np.arange(levels) + (np.arange(count)[:, None] + offsets) / count) / levels
        u = jnp.asarray(u.ravel(), jnp.float32)
        return np.asarray(log_snr_times(self.denoiser.sde, u, self.t_min))

    def over_draws(
        self, split: str, count: int, compute: Callable[..., Any], *, dequantize: bool
    ) -> tuple[np.ndarray, ...]:
        """Return compute(denoiser, x0, draws) for draws 0 .. count - 1, batch by batch.

        Draw k sees the chosen image k, from the first again after the last. All batches have the
        same size, for one program; the surplus is dropped.
        """
        experiment, parts = self.experiment, []
        images, chosen = experiment.data.images, self.diagnostics.chosen[split]
        stored, labels = getattr(images, split), getattr(images, f"{split}_labels")
        size = self.diagnostics.batch_size
        for first in range(0, count, size):
            draws = np.arange(first, first + size) % count
            indices = experiment.parallel.split_rows(chosen[draws % len(chosen)])
            x0 = experiment.data.batch(
                stored, indices, seed=experiment.seed, draw=0, dequantize=dequantize
            )
            denoiser = with_data_labels(experiment, self.denoiser, indices, labels)
            results = compute(denoiser, x0, draws)
            fetched = (experiment.parallel.fetch(each) for each in results)
            parts.append([each[: count - first].astype(np.float64) for each in fetched])
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def level_errors(self, split: str, *, dequantize: bool) -> Float[np.ndarray, "levels draws"]:
        """Return the squared errors per dimension at each level, less their known noise."""
        if (found := self.found.get((split, dequantize))) is not None:
            return found
        parallel, levels = self.experiment.parallel, self.experiment.diagnostics.levels
        key = jax.random.fold_in(self.diagnostics.key, _NOISE)

        def compute(denoiser: Denoiser, x0: Array, draws: Draws) -> tuple[Array, Array]:
            t, placed = parallel.split_rows(self.times[draws]), parallel.split_rows(draws)
            return _squared_errors(key, denoiser, x0, t, placed)

        found = self.over_draws(split, len(self.times), compute, dequantize=dequantize)
        errors, noise = (each.reshape(-1, levels).T / self.experiment.data.size for each in found)
        others = (errors.sum(axis=1, keepdims=True) - errors) / (errors.shape[1] - 1)
        controlled = errors - np.clip(others, 0, 1) * (noise - 1)
        self.found[split, dequantize] = controlled
        return controlled


def _loss(subject: _Subject) -> dict[str, Any]:
    """Measure the training objective on training and test images, with the same noise."""
    experiment, diagnostics = subject.experiment, subject.diagnostics
    key = jax.random.fold_in(diagnostics.key, _LOSS)
    dequantize = experiment.data.options.dequantize
    losses, context = diagnostics.losses, Context(step=subject.state.step)
    count = len(diagnostics.chosen["test"])
    values: dict[str, Any] = {}
    for split in SPLITS:

        def compute(denoiser: Denoiser, x0: Array, draws: Draws) -> tuple[Array]:
            return (losses(jax.random.fold_in(key, draws[0]), denoiser, x0, context),)

        (found,) = subject.over_draws(split, count, compute, dequantize=dequantize)
        values |= {f"{split}_loss": _mean(found), f"{split}_loss_error": _error(found)}
        groups = np.array_split(found, min(GROUPS, count))
        values[f"{split}_loss_groups"] = [_mean(group) for group in groups]
    return values


def _noise_levels(subject: _Subject) -> dict[str, Any]:
    """Measure the error of the predicted noise at each level, on training and test images."""
    dequantize = subject.experiment.data.options.dequantize
    train, test = (subject.level_errors(split, dequantize=dequantize) for split in SPLITS)
    columns = {
        "train": (train.mean(axis=1), _errors(train)),
        "test": (test.mean(axis=1), _errors(test)),
        # The draws of both splits share their noise, so their difference is more precise.
        "gap": ((test - train).mean(axis=1), _errors(test - train)),
    }
    ratios = np.exp(subject.log_snrs)[:, None] * subject.diagnostics.pixel_variances
    names = [f"{middle:.2f}" for middle in subject.log_snrs]
    blind = np.mean(ratios / (1 + ratios), axis=1)
    table = {"blind": dict(zip(names, map(float, blind), strict=True))}
    for name, (means, errors) in columns.items():
        table[name] = dict(zip(names, map(float, means), strict=True))
        table[f"{name}_error"] = dict(zip(names, map(float, errors), strict=True))
    return {"noise_levels": table}


def _bits_per_dim(subject: _Subject) -> dict[str, Any]:
    """Estimate the variational bound on bits/dim of test images; see `bounds.continuous`."""
    experiment, diagnostics = subject.experiment, subject.diagnostics
    sde, t_min, dims = subject.denoiser.sde, subject.t_min, experiment.data.size
    errors = subject.level_errors("test", dequantize=True)
    low, high = subject.log_snr_ends
    diffusion = 0.5 * (high - low) * dims * errors.mean(axis=1)
    key = jax.random.fold_in(diagnostics.key, _DECODER)

    def compute(denoiser: Denoiser, x0: Array, draws: Draws) -> tuple[Array, Array]:
        t = experiment.parallel.split_rows(np.full(len(draws), t_min, np.float32))
        placed = experiment.parallel.split_rows(draws)
        squares, noise = _squared_errors(key, denoiser, x0, t, placed)
        term = decoder_term(sde, x0, t_min=t_min, error=squares, noise=noise)
        return term, prior_divergence(sde, x0)

    count = len(diagnostics.chosen["test"])
    decoder, prior = subject.over_draws("test", count, compute, dequantize=True)
    nats = -np.array([diffusion.mean() + decoder.mean() + prior.mean()])
    # The levels are strata: the variances of their means add up.
    of_diffusion = 0.5 * (high - low) * dims * np.sqrt(np.sum(_errors(errors) ** 2)) / len(errors)
    error = np.hypot(of_diffusion, _error(decoder + prior))
    data = experiment.data
    log_det = data.quantizer.log_det(dims) + data.scaler.log_det(dims)
    return {
        "bits_per_dim": float(bits_per_dim(nats, log_det=log_det, dims=dims)[0]),
        "bits_per_dim_error": float(error / (dims * np.log(2))),
    }


def _frechet(subject: _Subject) -> dict[str, Any]:
    """Measure the Frechet distance of a few samples of few steps to the training images."""
    experiment, diagnostics = subject.experiment, subject.diagnostics
    reference, real = diagnostics.reference
    checkpoint = Checkpoint(step=int(subject.state.step), denoiser=subject.denoiser)
    count, size = experiment.diagnostics.samples, diagnostics.batch_size
    try:
        drawn = [
            diagnostics.sampler.draw(checkpoint, np.arange(first, first + size) % count).images
            for first in range(0, count, size)
        ]
    except SamplingError:  # of an early network, perhaps; it does not harm training
        return {}
    few = reference.mean.size <= _MAX_FEATURES
    samples = diagnostics.accumulated(np.concatenate(drawn)[:count], groups=20 if few else 1)
    values = {} if real is None else {"frechet_real": real}
    if not few:
        return {"frechet": frechet_distance(reference, samples.statistics()), **values}
    found = frechet_interval(samples, reference)
    return {"frechet": found.distance, "frechet_error": found.standard_error, **values}


def _weights(subject: _Subject) -> dict[str, Any]:
    """Measure the norm of the parameters, and how far their average is from them."""
    found = parameter_norms(subject.state.params, subject.state.ema_params)
    return {name: float(value) for name, value in found.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _error(values: Float[np.ndarray, "draws"]) -> float:
    return float(_errors(values[None])[0])


def _errors(values: Float[np.ndarray, "levels draws"]) -> Float[np.ndarray, "levels"]:
    """Return the standard error of each row's mean."""
    return values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


# The measurements by the names in config.diagnostics.metrics.
DIAGNOSTICS: dict[str, Callable[[_Subject], dict[str, Any]]] = {
    "loss": _loss,
    "noise_levels": _noise_levels,
    "bits_per_dim": _bits_per_dim,
    "frechet": _frechet,
    "weights": _weights,
}
