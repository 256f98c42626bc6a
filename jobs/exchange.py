"""Take over the parameters of published files, and write files for other projects."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from errors import ConfigError, WorkdirError
from experiment.build import build_network
from experiment.build_model import abstract_params
from experiment.configurations import known_configurations
from experiment.experiment import Experiment
from files.paths import AnyPath
from jobs.restore import restore_parameters
from jobs.shipped import is_shipped, read_parameters
from jobs.workdir import Workdir
from published import exchange, score_sde
from published.exchange import Candidate
from published.mapping import Imported
from training.checkpoints import Checkpoints
from training.hosts import agreed, leads
from training.step import TrainState


def import_checkpoint(
    experiment: Experiment, workdir: Workdir, *, source: AnyPath, attention_order: str = "legacy"
) -> None:
    """Make a published checkpoint the first one of a new run, for all other modes.

    A name in `jobs.shipped.SHIPPED` is the network that comes with the project.
    `attention_order` is a name in `published.openai.ATTENTION_ORDERS`.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
    """
    if agreed(lambda: _holds_checkpoints(workdir) or workdir.metrics.exists()):
        raise WorkdirError(
            f"--workdir={workdir.path} holds a run already; give a new folder to import to"
        )
    if is_shipped(source):
        step, params = read_parameters(experiment, str(source))
        project, imported = "this project", Imported(step, params, copy.deepcopy(params))
    else:
        project, imported = _published(experiment, source, attention_order)
    trainer, model = experiment.trainer, experiment.model
    state = trainer.state_from_params(imported.params, imported.ema_params, imported.step)
    _save_first(workdir, state, experiment.config)
    # No file says what its network's output means; a wrong guess would make wrong samples.
    print(
        f"imported step {imported.step} of {project} from {source} to {workdir.path}, "
        f"interpreting the output as {model.options.parameterization} of the {model.process} "
        f"process and the time input as {model.options.conditioning}; next: --mode=sample or "
        "--mode=eval with the same --workdir"
    )


def _published(
    experiment: Experiment, source: AnyPath, attention_order: str
) -> tuple[str, Imported]:
    """Return the project of a published file, and what it holds for the experiment's network."""
    model, shape = experiment.model, experiment.data.shape
    model.require_fixed_process("--mode=import")
    template = partial(abstract_params, shape=shape)
    candidate = Candidate(model.name, model.network, shape[0], template)
    return exchange.import_state(source, candidate, _candidates("model"), attention_order)


def import_classifier(
    experiment: Experiment, workdir: Workdir, *, source: AnyPath, attention_order: str = "legacy"
) -> None:
    """Make a published classifier of noisy images that of the run, as if it was trained here.

    `attention_order` as in `import_checkpoint`.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
    """
    workdir.check(experiment.config, training=False)
    experiment.model.require_fixed_process("a classifier")
    folder, model = workdir.classifier, experiment.parts.classifier
    if agreed(lambda: _holds_checkpoints(folder) or folder.metrics.exists()):
        raise WorkdirError(
            f"{folder.path} holds a classifier already; remove that folder, or give another "
            "--workdir"
        )
    model.check(experiment.data)
    template = partial(abstract_params, shape=experiment.data.shape)
    candidate = Candidate("classifier", model.network, experiment.data.shape[0], template)
    project, params = exchange.import_classifier(
        source, candidate, _candidates("classifier"), attention_order
    )
    averages = copy.deepcopy(params)  # no memory is shared, since a step may overwrite either
    _save_first(folder, model.trainer.state_from_params(params, averages, 0), experiment.config)
    print(
        f"imported the classifier of {project} from {source} to {folder.path}, interpreting the "
        f"time input as {model.options.conditioning}; next: --mode=sample with the same --workdir "
        "and --config.guidance.name=classifier"
    )


def _save_first(workdir: Workdir, state: TrainState, config: dict[str, Any]) -> None:
    """Save the first checkpoint of a run, and then its configuration.

    Raises:
        WorkdirError: if another process works in the folder, or has just filled it.
    """
    checkpoints = Checkpoints(workdir.checkpoints)
    with workdir.locked(leads=leads()):
        if checkpoints.steps():
            raise WorkdirError(f"{workdir.path} holds a run already; give a new folder")
        try:
            checkpoints.save(int(state.step), state, config)
            checkpoints.wait()
        finally:
            checkpoints.close()
        workdir.save_config(config)  # last: until then, the same command starts again


def _holds_checkpoints(workdir: Workdir) -> bool:
    return bool(Checkpoints(workdir.checkpoints).steps())


def _candidates(section: str) -> Iterator[Candidate]:
    for name, config in known_configurations():
        with suppress(ConfigError):  # in a user's own file, which was not chosen
            yield Candidate(name, *build_network(config, section))


def export_checkpoint(
    experiment: Experiment, workdir: Workdir, *, target: AnyPath, checkpoint: int | None = None
) -> None:
    """Write a checkpoint of the run as a file that score_sde_pytorch restores.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything is written.
    """
    experiment.model.require_fixed_process("--mode=export")
    if (name := experiment.model.options.parameterization) == "levels":
        raise ConfigError(
            f"config.denoiser.parameterization={name!r} is unknown to score_sde_pytorch; export a "
            "network that predicts noise"
        )
    restored = restore_parameters(experiment, workdir, checkpoint)
    if agreed(target.exists):
        raise ConfigError(f"--target={target} exists already; give the name of a new file")
    try:
        score_sde.export_pytorch(
            experiment.model.network,
            experiment.data.shape[0],
            experiment.parallel.fetch_tree(restored.state.params),
            experiment.parallel.fetch_tree(restored.state.ema_params),
            restored.step,
            target,
            ema_decay=experiment.trainer.average.rate,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(f"exported step {restored.step} of {workdir.path} to {target}")
