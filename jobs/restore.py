"""Read a run: its experiment, and what a checkpoint of it holds."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Shaped

from bounds.dequantization import Dequantizer
from denoising import Denoiser
from errors import CheckpointError, ConfigError, WorkdirError
from experiment.build import build
from experiment.class_guidance import BadModel
from experiment.configurations import with_younger_sections
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint, checkpoint_name
from files.paths import AnyPath
from files.writing import sha256_of
from guidance.classifier import Classifier
from jobs.averages import kept_averages
from jobs.perceptor import load_perceptor
from jobs.workdir import Workdir, run_and_step
from numerics.arrays import digest
from objectives.uncertainty import VarianceHead
from solvers.moments import EpsMoments
from training.checkpoints import Checkpoints, Restored
from training.hosts import agreed
from training.step import Trainer


def restore_parameters(
    experiment: Experiment, workdir: Workdir, step: int | None = None
) -> Restored:
    """Return the `Parameters` of a checkpoint, by default the latest good one.

    Raises:
        WorkdirError: if the run has another network.
        CheckpointError: if there is no such checkpoint.
    """
    return _restore_part(experiment, workdir, experiment.trainer.abstract_parameters(), step)


def _restore_part(
    experiment: Experiment, workdir: Workdir, template: Any, step: int | None
) -> Restored:
    workdir.check(experiment.config, training=False)
    workdir.require_checkpoint(step)
    restored = Checkpoints(workdir.checkpoints).restore(template, step, partial=True)
    assert restored is not None
    return restored


class Averaged(NamedTuple):
    """The parameters of a network, averaged over training up to a step."""

    step: int
    params: Any


class _OtherAverage(NamedTuple):
    """The part of a training state that holds an average other than the main one."""

    averages: dict[str, Any]


def restore_average(
    experiment: Experiment, workdir: Workdir, step: int | None = None, ema: str = ""
) -> Averaged:
    """Return an average of the parameters, by default the main one of the latest good checkpoint.

    Args:
        step: the step up to which it averages; None for the latest.
        ema: "" for the main average, or the name of another, such as "rate_0.999" for one of
            `config.ema.more_rates`, or "length_0.08" for one made by `--mode=ema`.

    Raises:
        ConfigError: if the run has no such average.
        WorkdirError, CheckpointError: as `restore_parameters`.
    """
    checkpoints = checkpoints_of(workdir, ema)
    if not ema:
        found = restore_parameters(experiment, workdir, step)
        return Averaged(found.step, found.state.ema_params)
    params = experiment.trainer.abstract_state().params
    if ema in kept_averages(workdir).rates:
        template = _OtherAverage({ema: params})
        found = _restore_part(experiment, workdir, template, step)
        return Averaged(found.step, found.state.averages[ema])
    workdir.check(experiment.config, training=False)
    made = checkpoints.restore(params, step)
    assert made is not None
    return Averaged(made.step, made.state)


def checkpoints_of(workdir: Workdir, ema: str = "") -> Checkpoints:
    """Return the checkpoints that hold an average, as in `restore_average`.

    Raises:
        ConfigError: if the run has no such average.
    """
    if not ema or ema in (rates := kept_averages(workdir).rates):
        return Checkpoints(workdir.checkpoints)
    made = agreed(lambda: _made_averages(workdir))
    if ema not in made:
        raise ConfigError(
            f"--ema={ema} is no average of the run in {workdir.path}; it has: "
            f"{', '.join([*rates, *made]) or 'only the main one'}. --mode=ema --length=0.08 makes "
            "length_0.08, from the snapshots of a run with config.ema.snapshot_every"
        )
    return Checkpoints(workdir.averages / ema)


def _made_averages(workdir: Workdir) -> list[str]:
    """Return the names of the averages that --mode=ema has made."""
    names = {folder.name for folder in workdir.averages.glob("length_*")}
    return sorted(name for name in names if Checkpoints(workdir.averages / name).steps())


def load_checkpoint(
    experiment: Experiment,
    workdir: Workdir,
    step: int | None = None,
    ema: str = "",
    needs: frozenset[str] | None = None,
) -> Checkpoint:
    """Return a checkpoint (by default the latest good one) with all that is needed beside it.

    Args:
        experiment, workdir: of the run.
        step, ema: as in `restore_average`.
        needs: what it must come with, as in `Sampler.needs`; by default what the sampler needs.

    Raises:
        ConfigError: if moments, a variance head, a classifier, a bad model or a perceptor is needed
            and not there, if the moments do not suit the sampler, or there is no such average.
        WorkdirError, CheckpointError: as `restore_parameters`.
    """
    restored = restore_average(experiment, workdir, step, ema)
    needs = experiment.sampler.needs if needs is None else needs
    moments, head, classifier, bad_model, digests = None, None, None, None, {}
    if "moments" in needs:
        name = checkpoint_name(restored.step, ema)
        moments = load_moments(experiment, workdir, name)
        digests["moments"] = sha256_of(workdir.moments / f"{name}.npz")[:16]
    if "variance_head" in needs:
        head = load_variance_head(experiment, workdir, checkpoint_name(restored.step, ema))
        digests["variance_head"] = experiment.parallel.digest(head.network.args)
    if "classifier" in needs:
        classifier = load_classifier(experiment, workdir, "config.guidance.name")
        digests["classifier"] = digest(classifier.network.args)
    if "bad_model" in needs:
        bad_model = load_bad_model(experiment, workdir, restored.step)
        digests["bad_model"] = experiment.parallel.digest(bad_model.denoiser.network.args)
    perceptor = None
    if "perceptor" in needs:
        perceptor = load_perceptor(experiment, workdir)
        of_network = perceptor.perceptor.network
        digests["perceptor"] = digest(jax.device_get((of_network.args, *perceptor[1:])))
    checkpoint = Checkpoint(
        step=restored.step,
        denoiser=experiment.model.denoiser(restored.params),
        average=ema,
        moments=moments,
        variance_head=head,
        classifier=classifier,
        bad_model=bad_model,
        perceptor=perceptor,
        digests=digests,
    )
    if needs >= experiment.sampler.needs:
        experiment.sampler.check(checkpoint)
    return checkpoint


def load_moments(experiment: Experiment, workdir: Workdir, name: str) -> EpsMoments:
    """Return the second moments measured for a checkpoint, by its name.

    Raises:
        ConfigError: if they are missing or damaged.
    """
    try:
        return EpsMoments.load(workdir.moments / f"{name}.npz")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{experiment.field_that_needs('moments')}: {error}") from error


def _params_of_part(experiment: Experiment, part: Workdir, trainer: Trainer, missing: str) -> Any:
    """Return the averaged parameters of a network that was trained beside the model.

    Raises:
        ConfigError: with the message `missing`, if there are none yet.
        WorkdirError: if it was trained for another configuration.
    """
    part.check(experiment.config, training=False)
    template = trainer.abstract_parameters()
    restored = Checkpoints(part.checkpoints).restore(template, partial=True)
    if restored is None:
        raise ConfigError(missing)
    return restored.state.ema_params


def load_variance_head(experiment: Experiment, workdir: Workdir, name: str) -> VarianceHead:
    """Return the variance head that was trained for a checkpoint, by the checkpoint's name.

    Raises:
        ConfigError: if there is none; the message lists the checkpoints that have one.
        WorkdirError: if it was trained for another configuration.
    """
    model, heads = experiment.parts.variance_head, workdir.variance_heads
    others = [each for each in agreed(lambda: _with_heads(workdir)) if each != name]
    instead = f", or take one that has a head: {', '.join(map(_flags, others))}" if others else ""
    params = _params_of_part(
        experiment,
        workdir.variance_head(name),
        model.trainer,
        f"{experiment.field_that_needs('variance_head')}: there is no variance head of checkpoint "
        f"{name} in {heads}; run --mode=train_variance {_flags(name)} first, or choose analytic"
        f"{instead}",
    )
    return model.head(params)


def _with_heads(workdir: Workdir) -> list[str]:
    """Return the names of the checkpoints that have variance heads."""
    heads = workdir.variance_heads
    names = {folder.name for folder in heads.glob("*")}
    return sorted(name for name in names if Checkpoints(heads / name / "checkpoints").steps())


def _flags(name: str) -> str:
    """Return the flags that choose a checkpoint, by its name."""
    step, _, average = name.partition("-")
    return f"--checkpoint={step} --ema={average}" if average else f"--checkpoint={step}"


def load_classifier(experiment: Experiment, workdir: Workdir, field: str) -> Classifier:
    """Return the latest noise-conditional classifier of a run; `field` asks for it.

    Raises:
        ConfigError: if there is none yet.
        WorkdirError: if it was trained for another configuration.
    """
    model, folder = experiment.parts.classifier, workdir.classifier
    model.check(experiment.data)
    params = _params_of_part(
        experiment,
        folder,
        model.trainer,
        f"{field}='classifier', but there is none in {folder.path} yet; run "
        "--mode=train_classifier or --mode=import_classifier first, or choose another",
    )
    return model.classifier(experiment.parallel.fetch_tree(params))


def load_dequantizer(experiment: Experiment, workdir: Workdir) -> Dequantizer:
    """Return the latest dequantizer of a run.

    Raises:
        ConfigError: if there is none yet.
        WorkdirError: if it was trained for another configuration.
    """
    model, folder = experiment.parts.dequantizer, workdir.dequantizer
    params = _params_of_part(
        experiment,
        folder,
        model.trainer,
        f"config.data.dequantization='variational', but there is no dequantizer in "
        f"{folder.path} yet; run --mode=train_dequantizer first, or choose uniform",
    )
    return model.dequantizer(params)


def load_bad_model(experiment: Experiment, workdir: Workdir, step: int) -> BadModel:
    """Return the network of `config.guidance.run`, for autoguidance of the run's network at `step`.

    Raises:
        ConfigError: if it is missing, is the same, or has another process, images or classes.
    """
    name = experiment.sampler.guidance.run
    experiment.model.require_fixed_process("config.guidance.name=autoguidance")
    field, (run, bad_step) = f"config.guidance.run={name!r}", run_and_step(name)
    if not run and bad_step == step:
        raise ConfigError(f"{field} is the step to guide; give an earlier one, or another run")
    try:
        folder = Workdir(run) if run else workdir
        other = experiment_of(folder) if run else experiment
        if problem := mismatch(experiment, other):
            raise ConfigError(f"{field} {problem}")
        restored = restore_parameters(other, folder, bad_step)
    except (WorkdirError, CheckpointError) as error:
        raise ConfigError(f"{field}: {error}") from error
    denoiser = other.model.denoiser(restored.state.ema_params)
    return BadModel(denoiser, knows_classes=other.model.num_classes > 0)


def mismatch(good: Experiment, bad: Experiment) -> str:
    """Return why a network cannot be the bad model of another, or ""."""
    for what, ours, theirs in (
        ("the process", good.model.sde, bad.model.sde),
        ("data of shape", good.data.shape, bad.data.shape),
        ("data in the range", good.data.scaler, bad.data.scaler),
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
        return build(with_younger_sections(workdir.read_config()))
    except ConfigError as error:
        raise WorkdirError(f"{workdir.config} does not describe a run: {error}") from error


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model for notebooks and scripts.

    Attributes:
        denoiser: the network with averaged parameters, for samplers and likelihoods.
        shape: (height, width, channels) of an image, (coordinates,) of a point, or (length,
            channels) of a series.
        checkpoint: the checkpoint it comes from.
        experiment: everything that the run's configuration describes.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    checkpoint: Checkpoint
    experiment: Experiment

    @classmethod
    def of(cls, experiment: Experiment, checkpoint: Checkpoint) -> "TrainedModel":
        """Return the model of a checkpoint."""
        return cls(
            denoiser=checkpoint.denoiser,
            shape=experiment.data.shape,
            checkpoint=checkpoint,
            experiment=experiment,
        )

    def to_data(self, x: Float[Any, "count ..."]) -> Shaped[np.ndarray, "count ..."]:
        """Convert samples from the network's range to what the data are.

        Args:
            x: samples (count, *shape); images outside the range are clipped.

        Returns:
            Images as uint8 (count, height, width, channels) in 0..255, at the gray levels of the
            data; points or series as float32 in their own units.

        Raises:
            ValueError: for images with NaN.
        """
        return self.experiment.data.decode(x)

    def from_data(self, rows: Shaped[Any, "count ..."]) -> Float[Any, "count ..."]:
        """Convert data to the network's range: `limits` of `experiment.data`, such as [-1, 1].

        Args:
            rows: images (count, height, width, channels) as uint8 in 0..255; or points or series as
                floats in their own units, which become standardized.

        Returns:
            Floats of the same shape.
        """
        return self.experiment.data.encode(rows)

    @property
    def log_det(self) -> float:
        """log |d x / d row| in nats: added to `log_prob` of x, it gives that of the stored row.

        It is the log-density of a point or series in its own units; of an image with its noise of
        dequantization, that of the gray levels.
        """
        return self.experiment.data.log_det


def load_model(path: str | AnyPath, step: int | None = None, ema: str = "") -> TrainedModel:
    """Load the model of a run from its folder.

    Args:
        path: the run's --workdir.
        step: step of the checkpoint; by default the latest good one.
        ema: the average of its parameters, as in `restore_average`; by default the main one.

    Raises:
        WorkdirError, CheckpointError: if there is no run, or no such checkpoint.
        ConfigError: if there is no such average.
    """
    workdir = Workdir(path)
    experiment = experiment_of(workdir)
    return TrainedModel.of(experiment, load_checkpoint(experiment, workdir, step, ema))
