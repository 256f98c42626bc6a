"""Read a run: its experiment, and what a checkpoint of it holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from bounds.dequantization import Dequantizer
from denoising import Denoiser
from errors import CheckpointError, ConfigError, WorkdirError
from experiment.build import build
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from files.writing import sha256_of
from guidance.classifier import Classifier
from jobs.workdir import Workdir
from numerics.arrays import digest
from solvers.moments import EpsMoments
from training.checkpoints import Checkpoints, Restored


def restore_parameters(
    experiment: Experiment, workdir: Workdir, step: int | None = None
) -> Restored:
    """Return the `Parameters` of a checkpoint, by default the latest good one.

    Raises:
        WorkdirError: if the run has another network.
        CheckpointError: if there is no such checkpoint.
    """
    workdir.check(experiment.config, training=False)
    template = experiment.trainer.abstract_parameters()
    restored = Checkpoints(workdir.checkpoints).restore(template, step, partial=True)
    if restored is None:
        raise CheckpointError(
            f"there is no checkpoint in --workdir={workdir.path} yet; run --mode=train or "
            "--mode=import first"
        )
    return restored


def load_checkpoint(
    experiment: Experiment, workdir: Workdir, step: int | None = None
) -> Checkpoint:
    """Return a checkpoint (by default the latest good one) with all that the sampler needs.

    Raises:
        ConfigError: if the sampler needs moments or a classifier that the run does not have.
        WorkdirError, CheckpointError: as `restore_parameters`.
    """
    restored = restore_parameters(experiment, workdir, step)
    moments, classifier, digests = None, None, {}
    if "moments" in experiment.sampler.needs:
        moments = load_moments(workdir, restored.step)
        digests["moments"] = sha256_of(workdir.moments / f"{restored.step}.npz")[:16]
    if "classifier" in experiment.sampler.needs:
        classifier = load_classifier(experiment, workdir, "config.guidance.name")
        digests["classifier"] = digest(classifier.network.args)
    return Checkpoint(
        step=restored.step,
        denoiser=experiment.model.denoiser(restored.state.ema_params),
        moments=moments,
        classifier=classifier,
        digests=digests,
    )


def load_moments(workdir: Workdir, step: int) -> EpsMoments:
    """Return the second moments measured for a checkpoint.

    Raises:
        ConfigError: if they are missing or damaged.
    """
    try:
        return EpsMoments.load(workdir.moments / f"{step}.npz")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"config.sampling.name=analytic: {error}") from error


def load_classifier(experiment: Experiment, workdir: Workdir, field: str) -> Classifier:
    """Return the latest noise-conditional classifier of a run; `field` asks for it.

    Raises:
        ConfigError: if there is none yet.
        WorkdirError: if it was trained for another configuration.
    """
    model, folder = experiment.classifier, workdir.classifier
    model.check(experiment.data)
    folder.check(experiment.config, training=False)
    template = model.trainer.abstract_parameters()
    restored = Checkpoints(folder.checkpoints).restore(template, partial=True)
    if restored is None:
        raise ConfigError(
            f"{field}='classifier', but there is none in {folder.path} yet; run "
            "--mode=train_classifier or --mode=import_classifier first, or choose another"
        )
    return model.classifier(experiment.parallel.fetch_tree(restored.state.ema_params))


def load_dequantizer(experiment: Experiment, workdir: Workdir) -> Dequantizer:
    """Return the latest dequantizer of a run.

    Raises:
        ConfigError: if there is none yet.
        WorkdirError: if it was trained for another configuration.
    """
    model, folder = experiment.dequantizer, workdir.dequantizer
    folder.check(experiment.config, training=False)
    template = model.trainer(None).abstract_parameters()
    restored = Checkpoints(folder.checkpoints).restore(template, partial=True)
    if restored is None:
        raise ConfigError(
            f"config.data.dequantization='variational', but there is no dequantizer in "
            f"{folder.path} yet; run --mode=train_dequantizer first, or choose uniform"
        )
    return model.dequantizer(restored.state.ema_params)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model for notebooks and scripts.

    Attributes:
        denoiser: the network with averaged parameters, for samplers and likelihoods.
        shape: (height, width, channels) of an image.
        checkpoint: the checkpoint it comes from.
        experiment: everything that the run's configuration describes.
    """

    denoiser: Denoiser
    shape: tuple[int, int, int]
    checkpoint: Checkpoint
    experiment: Experiment

    def to_uint8(self, x: Float[Any, "*count h w c"]) -> UInt8[np.ndarray, "*count h w c"]:
        """Convert samples from the network's range to images in 0..255."""
        return self.experiment.data.to_uint8(x)

    def from_unit_range(self, images: Float[Any, "count h w c"]) -> Float[Any, "count h w c"]:
        """Scale images in [0, 1] to the network's range."""
        return self.experiment.data.from_unit_range(images)


def load_model(path: str | Path, step: int | None = None) -> TrainedModel:
    """Load the model of a run from its folder.

    Args:
        path: the run's --workdir.
        step: step of the checkpoint; by default the latest good one.

    Raises:
        WorkdirError, CheckpointError: if there is no run, or no such checkpoint.
    """
    workdir = Workdir(path)
    try:
        experiment = build(workdir.read_config())
    except ConfigError as error:
        raise WorkdirError(f"{workdir.config} does not describe a run: {error}") from error
    checkpoint = load_checkpoint(experiment, workdir, step)
    return TrainedModel(
        denoiser=checkpoint.denoiser,
        shape=experiment.data.shape,
        checkpoint=checkpoint,
        experiment=experiment,
    )
