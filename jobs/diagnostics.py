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

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bounds.continuous import decoder_term
from bounds.discrete import prior_divergence
from denoising import Denoiser
from errors import ConfigError, SamplingError, require_choices
from experiment.experiment import Experiment, with_data_labels
from experiment.images import Images
from experiment.kinds import Kind
from experiment.options import DiagnosticsOptions
from experiment.sampler import Checkpoint
from jobs.instruments import SPLITS, Instruments
from losses import Noise
from metrics.bits_per_dim import UNITS
from metrics.features import Extractor
from metrics.frechet import frechet_distance, frechet_interval
from numerics.arrays import Batch, sum_per_sample
from numerics.pixel_levels import PixelLevels
from objectives.times import log_snr_range, log_snr_times
from sde_lib import SDE
from training.objective import Context
from training.step import TrainState

Draws = Int[np.ndarray, "batch"]

_GROUPS = 16  # of images, whose mean losses are kept to compare steps
_MAX_FEATURES = 256  # above, the standard error of the Frechet distance would take too long
# Random streams.
_LOSS, _OFFSETS, _NOISE, _DECODER = range(4)


def check_metrics(options: DiagnosticsOptions, kind: Kind) -> None:
    """Raise ConfigError unless `config.diagnostics.metrics` are names in DIAGNOSTICS.

    The likelihood must be that of the kind of data.
    """
    try:
        require_choices("config.diagnostics.metrics", options.metrics, DIAGNOSTICS)
    except ValueError as error:
        raise ConfigError(f"{error}; or set config.diagnostics.every=0") from error
    for unit in UNITS:
        if unit.metric in options.metrics and unit != kind.unit:
            raise ConfigError(
                f"config.diagnostics.metrics={options.metrics!r}: {unit.metric} is not for "
                f"{kind.name}; give {kind.unit.metric}"
            )


def require_test_images(name: str, count: int) -> None:
    """Raise ConfigError for data that have too few test images to measure by."""
    if count < 2:
        raise ConfigError(
            f"config.data.name={name!r} has {count} test image, and measurements during training "
            "need 2; set config.diagnostics.every=0 for none"
        )


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
        data = self.experiment.data
        check_metrics(self.experiment.diagnostics, data.kind)
        require_test_images(data.options.name, len(data.splits.test))
        classes = self.experiment.model.num_classes
        if classes:
            data.require_classes(data.splits.test_labels, classes, "model")

    @property
    def every(self) -> int:
        """Steps between measurements."""
        return self.experiment.diagnostics.every

    def measure(self, state: TrainState) -> dict[str, Any]:
        """Return the measurements of a state by name, in nested dicts of numbers."""
        denoiser = self.experiment.trainer.denoiser(state.ema_params, None)
        subject = _Subject(self.instruments, state, denoiser)
        values: dict[str, Any] = {}
        for name in self.metrics:
            values |= DIAGNOSTICS[name](subject)
        return values

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured: of `config.diagnostics.metrics`, what the objective allows.

        A map from noise to data has no score to measure, a distillation no loss without its
        teacher, and an upsampler no samples without small images.
        """
        objective, impossible = self.experiment.trainer.loss, set()
        if objective.samplers:
            impossible |= {"noise_levels", self.experiment.data.kind.unit.metric, "frechet"}
        if objective.teacher:
            impossible |= {"loss"}
        if not self.experiment.ends.plain:
            kept = {"weights"} if self.experiment.ends.diffusion else {"frechet", "weights"}
            impossible |= set(DIAGNOSTICS) - kept
        if self.experiment.trainer.image is not None:
            impossible |= {"frechet"}
        return tuple(n for n in self.experiment.diagnostics.metrics if n not in impossible)

    @property
    def finest_log_snr(self) -> float:
        """The log-SNR above which the noise is smaller than that of dequantization.

        There is nothing to predict there.
        """
        return self.experiment.data.finest_log_snr

    @cached_property
    def instruments(self) -> Instruments:
        """What all measurements share."""
        return Instruments(experiment=self.experiment, extractor=self.extractor)


@partial(jax.jit, static_argnames="t_min")
def _log_snr_ends(sde: SDE, t_min: float) -> Float[Array, "2"]:
    return log_snr_range(sde, t_min)


@partial(jax.jit, static_argnames="t_min")
def _times(sde: SDE, u: Float[Array, "draws"], t_min: float) -> Float[Array, "draws"]:
    return log_snr_times(sde, u, t_min)


@partial(jax.jit, static_argnames="t_min")
def _decoder_term(
    sde: SDE,
    x0: Batch,
    t_min: float,
    squares: Float[Array, "batch"],
    size: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    return decoder_term(sde, x0, t_min=t_min, error=squares, noise=size)


@partial(jax.jit, static_argnames=("t_min", "levels"))
def _level_term(
    sde: SDE, x0: Batch, t_min: float, eps: Batch, levels: PixelLevels
) -> Float[Array, "batch"]:
    """Return -log P(x0 | x) in nats of gray levels x0, given x at t_min."""
    t = jnp.asarray(t_min, x0.dtype)
    log_std = -sde.log_snr(t) / 2
    return -sum_per_sample(levels.log_posterior(x0, x0 + jnp.exp(log_std) * eps, log_std))


@dataclass(frozen=True)
class _Subject:
    """A training state under measurement, and what several measurements of it share."""

    instruments: Instruments
    state: TrainState
    denoiser: Denoiser
    found: dict[Any, Any] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        return self.instruments.experiment

    @property
    def context(self) -> Context:
        """What the objective may depend on: the step, and the first state of its own."""
        return Context(step=self.state.step)

    @property
    def t_min(self) -> float:
        """The smallest time: that of training, or that of the bound if training states none."""
        times = getattr(self.experiment.trainer.loss, "times", None)
        return getattr(times, "t_min", self.experiment.likelihood.continuous_bound.t_min)

    @cached_property
    def log_snr_ends(self) -> Float[np.ndarray, "2"]:
        """The smallest and the largest log-SNR."""
        return np.asarray(_log_snr_ends(self.denoiser.sde, self.t_min), np.float64)

    @property
    def log_snrs(self) -> Float[np.ndarray, "levels"]:
        """The log-SNR in the middle of each level."""
        (low, high), count = self.log_snr_ends, self.experiment.diagnostics.levels
        return low + (high - low) * (np.arange(count) + 0.5) / count

    @cached_property
    def times(self) -> Float[np.ndarray, "draws"]:
        """The time of every draw. The levels take turns, so that all have images of all kinds."""
        levels, count = self.experiment.diagnostics.levels, self.instruments.per_level
        offsets = np.random.default_rng([self.experiment.seed, _OFFSETS]).random((count, levels))
        u = (np.arange(levels) + (np.arange(count)[:, None] + offsets) / count) / levels
        return np.asarray(_times(self.denoiser.sde, u.ravel().astype(np.float32), self.t_min))

    def over_draws(
        self, split: str, count: int, compute: Callable[..., Any], *, dequantization: str = ""
    ) -> tuple[np.ndarray, ...]:
        """Return compute(denoiser, x0, draws) for draws 0 .. count - 1, batch by batch.

        Draw k sees the chosen image k, from the first again after the last. All batches have the
        same size, for one program; the surplus is dropped.
        """
        experiment, parts = self.experiment, []
        images, chosen = experiment.data.splits, self.instruments.chosen[split]
        stored, labels = getattr(images, split), getattr(images, f"{split}_labels")
        size = self.instruments.batch_size
        for first in range(0, count, size):
            draws = np.arange(first, first + size) % count
            indices = experiment.parallel.split_rows(chosen[draws % len(chosen)])
            x0 = experiment.data.batch(
                stored, indices, seed=experiment.seed, draw=0, dequantization=dequantization
            )
            denoiser = with_data_labels(experiment, self.denoiser, indices, labels)
            denoiser = experiment.trainer.with_image(denoiser, x0)
            results = compute(denoiser, x0, draws)
            fetched = (experiment.parallel.fetch(each) for each in results)
            parts.append([each[: count - first].astype(np.float64) for each in fetched])
        return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

    def squared_errors(
        self, denoiser: Denoiser, x0: Array, times: np.ndarray, draws: Draws, stream: int
    ) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
        """Return ||eps_hat - eps||^2 and ||eps||^2 of draws at their times."""
        split = self.experiment.parallel.split_rows
        noise = Noise(split(times), self.noise(x0.shape[1:], draws, stream))
        key = self.instruments.key
        return self.instruments.at_noise(key, denoiser, x0, noise, self.context)[:2]

    def noise(self, shape: tuple[int, ...], draws: Draws, stream: int) -> Float[Array, "batch ..."]:
        """Return Gaussian noise; draw k has a generator of its own."""
        # By NumPy, which has nothing to compile.
        seed = self.experiment.seed
        eps = [
            np.random.default_rng([seed, stream, k]).standard_normal(shape, np.float32)
            for k in draws
        ]
        return self.experiment.parallel.split_rows(np.stack(eps))

    def level_errors(self, split: str, dequantization: str) -> Float[np.ndarray, "levels draws"]:
        """Return the squared errors per dimension at each level, less their known noise."""
        if (found := self.found.get((split, dequantization))) is not None:
            return found
        levels = self.experiment.diagnostics.levels

        def compute(denoiser: Denoiser, x0: Array, draws: Draws) -> tuple[Array, Array]:
            return self.squared_errors(denoiser, x0, self.times[draws], draws, _NOISE)

        found = self.over_draws(split, len(self.times), compute, dequantization=dequantization)
        errors, noise = (each.reshape(-1, levels).T / self.experiment.data.size for each in found)
        others = (errors.sum(axis=1, keepdims=True) - errors) / (errors.shape[1] - 1)
        controlled = errors - np.clip(others, 0, 1) * (noise - 1)
        self.found[split, dequantization] = controlled
        return controlled


def _loss(subject: _Subject) -> dict[str, Any]:
    """Measure the training objective on training and test images, with the same noise."""
    instruments = subject.instruments
    key = jax.random.fold_in(instruments.key, _LOSS)
    count = len(instruments.chosen["test"])
    values: dict[str, Any] = {}
    for split in SPLITS:

        def compute(denoiser: Denoiser, x0: Array, draws: Draws) -> tuple[Array]:
            batch_key = jax.random.fold_in(key, draws[0])
            return (instruments.losses(batch_key, denoiser, x0, subject.context),)

        (found,) = subject.over_draws(split, count, compute)
        # Neighbors have different times where these are stratified, so each group has all kinds.
        groups = np.array([found[first::_GROUPS].mean() for first in range(min(_GROUPS, count))])
        values |= {f"{split}_loss": float(found.mean()), f"{split}_loss_error": _error(groups)}
        values[f"{split}_loss_groups"] = groups.tolist()
    return values


def _noise_levels(subject: _Subject) -> dict[str, Any]:
    """Measure the error of the predicted noise at each level, on training and test images."""
    how = subject.experiment.data.dequantization_name
    train, test = (subject.level_errors(split, how) for split in SPLITS)
    columns = {
        "train": (train.mean(axis=1), _errors(train)),
        "test": (test.mean(axis=1), _errors(test)),
        # The draws of both splits share their noise, so their difference is more precise.
        "gap": ((test - train).mean(axis=1), _errors(test - train)),
    }
    ratios = np.exp(subject.log_snrs)[:, None] * subject.instruments.variances
    names = [f"{middle:.2f}" for middle in subject.log_snrs]
    blind = np.mean(ratios / (1 + ratios), axis=1)
    table = {"blind": dict(zip(names, map(float, blind), strict=True))}
    for name, (means, errors) in columns.items():
        table[name] = dict(zip(names, map(float, means), strict=True))
        table[f"{name}_error"] = dict(zip(names, map(float, errors), strict=True))
    return {"noise_levels": table}


def _likelihood(subject: _Subject) -> dict[str, Any]:
    """Estimate the variational bound on -log p per dimension, as `bounds.continuous`.

    Gray levels get uniform noise. Where the noise at t_min is theirs, they get none, and the last
    term compares each noisy pixel with every level.
    """
    experiment, instruments = subject.experiment, subject.instruments
    sde, t_min, dims = subject.denoiser.sde, subject.t_min, experiment.data.size
    data, levels = experiment.data, None
    if isinstance(data, Images) and data.dequantization.at_t_min:
        levels = data.pixel_levels
    how = "uniform" if data.kind.quantized and levels is None else data.dequantization_name
    errors = subject.level_errors("test", how)
    low, high = subject.log_snr_ends
    diffusion = 0.5 * (high - low) * dims * errors.mean(axis=1)

    def compute(denoiser: Denoiser, x0: Array, draws: Draws) -> tuple[Array, Array]:
        if levels is not None:
            eps = subject.noise(x0.shape[1:], draws, _DECODER)
            return _level_term(sde, x0, t_min, eps, levels), prior_divergence(sde, x0)
        times = np.full(len(draws), t_min, np.float32)
        squares, size = subject.squared_errors(denoiser, x0, times, draws, _DECODER)
        return _decoder_term(sde, x0, t_min, squares, size), prior_divergence(sde, x0)

    count = len(instruments.chosen["test"])
    decoder, prior = subject.over_draws("test", count, compute, dequantization=how)
    nats = -np.array([diffusion.mean() + decoder.mean() + prior.mean()])
    # The levels are strata: the variances of their means add up.
    of_diffusion = 0.5 * (high - low) * dims * np.sqrt(np.sum(_errors(errors) ** 2)) / len(errors)
    error = np.hypot(of_diffusion, _error(decoder + prior))
    unit, log_det = data.kind.unit, data.log_det if levels is None else 0.0
    return {
        unit.metric: float(unit.per_dim(nats, log_det=log_det, dims=dims)[0]),
        f"{unit.metric}_error": unit.of(float(error), dims),
    }


def _frechet(subject: _Subject) -> dict[str, Any]:
    """Measure the Frechet distance of a few samples of few steps to the training images."""
    experiment, instruments = subject.experiment, subject.instruments
    reference, real = instruments.reference
    checkpoint = Checkpoint(step=int(subject.state.step), denoiser=subject.denoiser)
    count, size = experiment.diagnostics.samples, instruments.batch_size
    try:
        drawn = [
            instruments.sampler.draw(checkpoint, np.arange(first, first + size) % count).samples
            for first in range(0, count, size)
        ]
    except SamplingError:  # of an early network, perhaps; it does not harm training
        return {}
    few = reference.mean.size <= _MAX_FEATURES
    samples = instruments.accumulated(np.concatenate(drawn)[:count], groups=20 if few else 1)
    values = {} if real is None else {"frechet_real": real}
    if not few:
        return {"frechet": frechet_distance(reference, samples.statistics()), **values}
    found = frechet_interval(samples, reference)
    return {"frechet": found.distance, "frechet_error": found.standard_error, **values}


def _weights(subject: _Subject) -> dict[str, Any]:
    """Measure the norm of the parameters, and the relative distance of their average from them."""
    fetch = subject.experiment.parallel.fetch_tree
    pairs = [
        jax.tree.leaves(fetch(tree)) for tree in (subject.state.params, subject.state.ema_params)
    ]
    norm = np.sqrt(sum(_square(leaf) for leaf in pairs[0]))
    distance = np.sqrt(sum(_square(np.asarray(a - b)) for a, b in zip(*pairs, strict=True)))
    return {"weight_norm": float(norm), "average_distance": float(distance / norm)}


def _square(values: np.ndarray) -> float:
    return float(np.sum(np.square(values), dtype=np.float64))


def _error(values: Float[np.ndarray, "draws"]) -> float:
    return float(_errors(values[None])[0])


def _errors(values: Float[np.ndarray, "levels draws"]) -> Float[np.ndarray, "levels"]:
    """Return the standard error of each row's mean."""
    return values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


# The measurements by the names in config.diagnostics.metrics.
DIAGNOSTICS: dict[str, Callable[[_Subject], dict[str, Any]]] = {
    "loss": _loss,
    "noise_levels": _noise_levels,
    "bits_per_dim": _likelihood,
    "nats_per_dim": _likelihood,
    "frechet": _frechet,
    "weights": _weights,
}
