"""Reading a run: its experiment, its folder, and what a checkpoint of it holds."""

from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

import builders
from checkpoints import CheckpointError, Checkpoints, Restored
from denoising import Denoiser
from downloads import sha256_of
from experiment import ConfigError, Experiment
from solvers.moments import EpsMoments
from workdir import Workdir


def open_run(
    config: ConfigDict, path: Path, explicit: frozenset[str]
) -> tuple[Experiment, Workdir, Checkpoints]:
    """What reading a run needs; touches nothing on disk."""
    experiment = builders.build(config, explicit=explicit)
    workdir = Workdir(path)
    workdir.check(experiment.config, training=False)
    return experiment, workdir, Checkpoints(workdir.checkpoints)


def load(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, step: int | None
) -> tuple[Experiment, int, Denoiser]:
    """A checkpoint (None for the latest good one): the experiment with a sampler that has the
    network's moments if it wants them, the step, and the averaged network."""
    restored = restore(experiment, workdir, checkpoints, step)
    experiment = with_moments_of(experiment, workdir, restored.step)
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
