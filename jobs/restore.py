"""Read a run: its experiment, and what a checkpoint of it holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from denoising import Denoiser
from errors import CheckpointError, ConfigError, WorkdirError
from experiment.build import build
from experiment.class_guidance import BadModel
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from files.writing import sha256_of
from guidance.classifier import Classifier
from jobs.workdir import Workdir, run_and_step
from numerics.arrays import digest
from solvers.moments import EpsMoments
from training.checkpoints import Checkpoints, Restored


def restore_state(experiment: Experiment, workdir: Workdir, step: int | None = None) -> Restored:
    """Return the training state of a checkpoint, by default the latest good one.

    Raises:
        WorkdirError: if the run has another network.
        CheckpointError: if there is no such checkpoint.
    """
    workdir.check(experiment.config, training=False)
    template = experiment.trainer.abstract_state()
    restored = Checkpoints(workdir.checkpoints).restore(template, step)
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
        ConfigError: if the sampler needs moments, a classifier or a bad model that is not there.
        WorkdirError, CheckpointError: as `restore_state`.
    """
    restored = restore_state(experiment, workdir, step)
    moments, classifier, bad_model, digests = None, None, None, {}
    if "moments" in experiment.sampler.needs:
        moments = load_moments(workdir, restored.step)
        digests["moments"] = sha256_of(workdir.moments / f"{restored.step}.npz")[:16]
    if "classifier" in experiment.sampler.needs:
        classifier = load_classifier(experiment, workdir, "config.guidance.name")
        digests["classifier"] = digest(classifier.network.args)
    if "bad_model" in experiment.sampler.needs:
        bad_model = load_bad_model(experiment, workdir, restored.step)
        digests["bad_model"] = digest(
            experiment.parallel.fetch_tree(bad_model.denoiser.network.args)
        )
    return Checkpoint(
        step=restored.step,
        denoiser=experiment.model.denoiser(restored.state.ema_params),
        moments=moments,
        classifier=classifier,
        bad_model=bad_model,
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
    restored = Checkpoints(folder.checkpoints).restore(model.trainer.abstract_state())
    if restored is None:
        raise ConfigError(
            f"{field}='classifier', but there is none in {folder.path} yet; run "
            "--mode=train_classifier or --mode=import_classifier first, or choose another"
        )
    return model.classifier(experiment.parallel.fetch_tree(restored.state.ema_params))


def load_bad_model(experiment: Experiment, workdir: Workdir, step: int) -> BadModel:
    """Return the network of `config.guidance.run`, for autoguidance of the run's network at `step`.

    Raises:
        ConfigError: if it is missing, is the same, or has another process, images or classes.
    """
    name = experiment.sampler.guidance.run
    field, (run, bad_step) = f"config.guidance.run={name!r}", run_and_step(name)
    if not run and bad_step == step:
        raise ConfigError(f"{field} is the step to guide; give an earlier one, or another run")
    try:
        folder = Workdir(run) if run else workdir
        other = experiment_of(folder) if run else experiment
        if problem := mismatch(experiment, other):
            raise ConfigError(f"{field} {problem}")
        restored = restore_state(other, folder, bad_step)
    except (WorkdirError, CheckpointError) as error:
        raise ConfigError(f"{field}: {error}") from error
    denoiser = other.model.denoiser(restored.state.ema_params)
    return BadModel(denoiser, knows_classes=other.model.num_classes > 0)


def mismatch(good: Experiment, bad: Experiment) -> str:
    """Return why a network cannot be the bad model of another, or ""."""
    for what, ours, theirs in (
        ("the process", good.model.sde, bad.model.sde),
        ("images of shape", good.data.shape, bad.data.shape),
        ("images in the range", good.data.scaler, bad.data.scaler),
        ("config.model.upsampling", good.model.upsampling, bad.model.upsampling),
    ):
        if ours != theirs:
            return f"has {what} {theirs}, and the network to guide {ours}; give a run with the same"
    ours, theirs = good.model.num_classes, bad.model.num_classes
    if theirs not in (0, ours):
        return (
            f"has config.model.num_classes={theirs}, and the network to guide {ours}; give a run "
            "with the same classes, or with none"
        )
    return ""


def experiment_of(workdir: Workdir) -> Experiment:
    """Return the experiment of a run.

    Raises:
        WorkdirError: if there is no run, or its configuration is not valid.
    """
    try:
        return build(workdir.read_config())
    except ConfigError as error:
        raise WorkdirError(f"{workdir.config} does not describe a run: {error}") from error


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
    experiment = experiment_of(workdir)
    checkpoint = load_checkpoint(experiment, workdir, step)
    return TrainedModel(
        denoiser=checkpoint.denoiser,
        shape=experiment.data.shape,
        checkpoint=checkpoint,
        experiment=experiment,
    )
