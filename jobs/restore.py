"""Reading a run: its experiment, its folder, and what a checkpoint of it holds."""

from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from denoising import Denoiser
from errors import CheckpointError, ConfigError
from experiment import build
from experiment.experiment import Experiment
from files.writing import sha256_of
from guidance.classifier import Classifier
from jobs.workdir import Workdir
from numerics.arrays import digest
from solvers.moments import EpsMoments
from training.checkpoints import Checkpoints, Restored


def open_run(
    config: ConfigDict, path: Path, explicit: frozenset[str]
) -> tuple[Experiment, Workdir, Checkpoints]:
    """What reading a run needs; touches nothing on disk."""
    experiment = build.build(config, explicit=explicit)
    workdir = Workdir(path)
    workdir.check(experiment.config, training=False)
    return experiment, workdir, Checkpoints(workdir.checkpoints)


def load(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, step: int | None
) -> tuple[Experiment, int, Denoiser]:
    """A checkpoint (None for the latest good one): the experiment with the network's moments and
    the classifier if it wants them, the step, and the averaged network."""
    restored = restore(experiment, workdir, checkpoints, step)
    experiment = with_classifier_of(with_moments_of(experiment, workdir, restored.step), workdir)
    return experiment, restored.step, experiment.denoiser(restored.state.ema_params)


def with_moments_of(experiment: Experiment, workdir: Workdir, step: int) -> Experiment:
    """The experiment with a sampler that has the moments of this step's network, if it needs them.

    Its configuration, which is the protocol of an evaluation, tells them apart from others.
    """
    if not experiment.with_moments:
        return experiment
    file = workdir.moments / f"{step}.npz"
    try:
        sampler = experiment.with_moments(EpsMoments.load(file))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"config.sampling.name=analytic: {error}") from error
    digest = sha256_of(file)[:16]
    sampling = experiment.config["sampling"] | {"moments": digest}
    return replace(experiment, sampler=sampler, config=experiment.config | {"sampling": sampling})


def with_classifier_of(experiment: Experiment, workdir: Workdir) -> Experiment:
    """The experiment whose samples are guided by the run's classifier, if they are to be.

    Its configuration, which is the protocol of an evaluation, tells classifiers apart.
    """
    if experiment.with_classifier is None:
        return experiment
    classifier = trained_classifier(experiment, workdir, "config.sampling.guidance")
    sampling = experiment.config["sampling"] | {"classifier": digest(classifier.network.args)}
    return replace(
        experiment,
        guided=experiment.with_classifier(classifier),
        with_classifier=None,
        config=experiment.config | {"sampling": sampling},
    )


def trained_classifier(experiment: Experiment, workdir: Workdir, field: str) -> Classifier:
    """The latest classifier of noisy images in the run's folder, which `field` asks for.

    Raises:
      ConfigError: if there is none yet.
      WorkdirError: if it was trained for something else.
    """
    trained = experiment.classifier()
    folder = Workdir(workdir.classifier, classifies=True)
    folder.check(trained.config, training=False)
    restored = Checkpoints(folder.checkpoints).restore(trained.trainer.abstract_state())
    if restored is None:
        raise ConfigError(
            f"{field}='classifier', but there is none in {folder.path} yet; run "
            "--mode=train_classifier first, or choose another"
        )
    return trained.denoiser(trained.parallel.fetch_tree(restored.state.ema_params))


def restore(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, step: int | None
) -> Restored:
    restored = checkpoints.restore(experiment.trainer.abstract_state(), step)
    if restored is None:
        raise CheckpointError(
            f"there is no checkpoint in --workdir={workdir.path} yet; run --mode=train or "
            "--mode=import first"
        )
    return restored
