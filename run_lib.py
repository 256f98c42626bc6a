"""The modes: train, evaluate, sample and the others; their cadence, their files, and resuming.

A run is a working directory. Training goes on from its latest good checkpoint; because data order
and randomness are functions of the step, the result is that of a run that never stopped.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data import readers
from errors import ConfigError, WorkdirError
from evaluation import compare as comparison
from evaluation import evaluate as evaluation
from evaluation import features, references
from experiment import build
from files.pictures import image_grid, write_gif, write_png
from files.writing import write_file
from jobs import moments as calibration
from jobs import plan, restore
from jobs.sample import TaskRun, draw_all
from jobs.train import train_experiment
from jobs.workdir import Workdir
from published import exchange, score_sde
from published.exchange import Candidate
from training.checkpoints import Checkpoints


def train(config: ConfigDict, path: Path, *, explicit: frozenset[str] = frozenset()) -> None:
    """Train to `config.training.steps`, from the latest good checkpoint in the workdir if any.

    SIGTERM and Ctrl-C save a checkpoint and leave with exit status 128 + the signal's number.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
      TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    experiment = build.build(config, explicit=explicit)
    if experiment.config["training"]["sample_every"]:
        for wanting, what in (
            (experiment.task, "task is for --mode=sample"),
            (experiment.with_moments, "name=analytic needs the moments of a trained network"),
            (experiment.with_classifier, "guidance=classifier needs a trained classifier"),
        ):
            if wanting:
                raise ConfigError(
                    f"config.sampling.{what}; train with another choice, or with "
                    "config.training.sample_every=0"
                )
    if train_experiment(experiment, Workdir(path)):
        print(f"samples are in {Workdir(path).samples}; next: --mode=eval or --mode=sample")


def train_classifier(
    config: ConfigDict, path: Path, *, explicit: frozenset[str] = frozenset()
) -> None:
    """Train the classifier of noisy images to `config.classifier.steps`, in a folder of the run.

    Raises:
      as `train`.
    """
    experiment = build.build(config, explicit=explicit)
    workdir = Workdir(path)
    workdir.check(experiment.config, training=False)
    if not train_experiment(experiment.classifier(), Workdir(workdir.classifier, classifies=True)):
        return
    print("next: --mode=eval with --config.eval.features=\"('classifier',)\"")


def evaluate(config: ConfigDict, path: Path, *, explicit: frozenset[str] = frozenset()) -> None:
    """Evaluate the checkpoints `config.eval.checkpoints` (none given: the latest), each once.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything is computed.
      IntegrationError: if the probability-flow ODE cannot be solved.
    """
    experiment, workdir, checkpoints = restore.open_run(config, path, explicit)
    if experiment.task is not None:
        raise ConfigError(
            f"config.sampling.task={experiment.task.name!r} is for --mode=sample; evaluate with "
            "task=generate"
        )
    experiment.training_batches()  # missing data show now
    steps = experiment.config["eval"]["checkpoints"]
    # Likelihoods alone need no features, and no weights that would have to be downloaded.
    of_samples = evaluation.OF_SAMPLES.keys() & set(experiment.config["eval"]["metrics"])
    found = features.of(experiment, workdir) if of_samples else ()
    for step in steps:  # what is missing of one shows before the others are evaluated
        checkpoints.config(step)
        restore.with_moments_of(experiment, workdir, step)
    for step in steps or (None,):
        ready, step, denoiser = restore.load(experiment, workdir, checkpoints, step)
        told = evaluation.evaluate(
            ready, denoiser, step, workdir.eval, extractors=found, statistics=workdir.statistics
        )
        print(told)


def stats(
    config: ConfigDict,
    path: Path,
    *,
    target: Path | None = None,
    explicit: frozenset[str] = frozenset(),
) -> None:
    """Write the statistics of the training images by each extractor of `config.eval.features`.

    They go to `target`, or to where evaluations of this run look for them.

    Raises:
      ConfigError: if data or weights are missing, or one file is to hold several statistics.
    """
    experiment = build.build(config, explicit=explicit)
    workdir = Workdir(path)
    found = features.of(experiment, workdir)
    if target and len(found) > 1:
        names = experiment.config["eval"]["features"]
        raise ConfigError(f"--target={target} is one file, but config.eval.features={names!r}")
    for extractor in found:
        name = references.file_name(experiment, "train", extractor)
        file = target or workdir.statistics / name
        made = references.make(experiment, "train", extractor, file)
        print(f"statistics of {made.count} images, {made.mean.size} {extractor.name}: {file}")


def compare(files: Sequence[Path]) -> None:
    """Print two results of --mode=eval side by side.

    Raises:
      ConfigError: unless there are two, measured alike.
    """
    if len(files) != 2:
        raise ConfigError(
            f"--mode=compare takes two results, got {len(files)}: python main.py --mode=compare "
            "runs/a/eval/100.json runs/b/eval/100.json"
        )
    print(comparison.compare(*files))


def sample(
    config: ConfigDict,
    path: Path,
    *,
    count: int,
    checkpoint: int | None = None,
    gif: bool = False,
    explicit: frozenset[str] = frozenset(),
) -> None:
    """Write `count` images of a checkpoint as .npz (uint8, NHWC, key `samples`) and PNG grid.

    With a task, beside what it was given. With `gif`, also an animation of the reverse process of
    the first of them.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything is computed.
    """
    if count < 1:
        raise ConfigError(f"--num_samples={count} must be at least 1")
    experiment, workdir, checkpoints = restore.open_run(config, path, explicit)
    if gif and experiment.task is not None and experiment.task.coder is not None:
        raise ConfigError(
            f"--gif animates samples, and config.sampling.task={experiment.task.name!r} draws none"
        )
    experiment, step, denoiser = restore.load(experiment, workdir, checkpoints, checkpoint)
    name, drawing = workdir.samples / f"checkpoint_{step}", {}
    if experiment.task is None:
        images, nfe = draw_all(experiment, denoiser, count)
        arrays, picture, told = {}, image_grid(images[:_GRID]), f"NFE {nfe}"
    else:
        run = TaskRun(experiment, experiment.task)
        run.check_count(count)
        name = name.with_name(f"{name.name}_{experiment.task.name}")
        images, arrays, picture, told = run.answer(denoiser, count)
        drawing = run.drawing
    write_file(
        name.with_suffix(".npz"), lambda file: np.savez_compressed(file, samples=images, **arrays)
    )
    write_png(name.with_suffix(".png"), picture)
    print(f"{len(images)} samples of step {step}, {told}: {name}.npz and {name}.png")
    if gif:
        shown = np.arange(min(count, _GRID))
        frames = experiment.draw(denoiser, shown, frames=_FRAMES, **drawing).trajectory
        write_gif(name.with_suffix(".gif"), [image_grid(frame) for frame in frames])
        print(f"their reverse process: {name}.gif")


_GRID = 100  # images that a picture shows
_FRAMES = 40  # snapshots of an animation


def moments(
    config: ConfigDict,
    path: Path,
    *,
    checkpoint: int | None = None,
    explicit: frozenset[str] = frozenset(),
) -> None:
    """Measure the second moments of a checkpoint's network, which the sampler "analytic" needs.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything is computed.
    """
    experiment, workdir, checkpoints = restore.open_run(config, path, explicit)
    experiment.training_batches()  # missing data show now
    restored = restore.restore(experiment, workdir, checkpoints, checkpoint)
    denoiser = experiment.denoiser(restored.state.ema_params)
    file = workdir.moments / f"{restored.step}.npz"
    try:
        measured = calibration.measure_moments(experiment, denoiser)
    except ValueError as error:  # NaN of the network
        raise ConfigError(f"step {restored.step} cannot be measured: {error}") from error
    measured.save(file)
    print(
        f"moments of step {restored.step} at {len(measured.times)} times, standard errors up to "
        f"{measured.errors.max():.1e}: {file}; next: --config.sampling.name=analytic"
    )


def import_checkpoint(
    config: ConfigDict,
    path: Path,
    source: Path,
    *,
    attention_order: str = "legacy",
    explicit: frozenset[str] = frozenset(),
    known: Iterable[tuple[str, ConfigDict]] = (),
) -> None:
    """Make the published checkpoint `source` the first one of a new run, for all other modes.

    `attention_order` is as in `exchange.import_state`; `known` are configurations, by name, that
    the file may be of if it is not of `config`.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
    """
    experiment = build.build(config, explicit=explicit)
    workdir = Workdir(path)
    checkpoints = Checkpoints(workdir.checkpoints)
    if checkpoints.steps() or (path / "metrics.jsonl").exists():
        raise WorkdirError(f"--workdir={path} holds a run already; give a new folder to import to")
    others = _candidates(known)
    candidate = Candidate(
        experiment.config["model"]["name"],
        experiment.network,
        experiment.item_shape[0],
        experiment.trainer.abstract_state().params,
    )
    project, imported = exchange.import_state(source, candidate, others, attention_order)
    state = experiment.trainer.state_from_params(
        imported.params, imported.ema_params, imported.step
    )
    workdir.path.mkdir(parents=True, exist_ok=True)
    try:
        checkpoints.save(int(state.step), state, experiment.config)
        checkpoints.wait()
    finally:
        checkpoints.close()
    workdir.save_config(experiment.config)  # last: until then, the same command starts again
    sde, denoiser = experiment.config["sde"]["name"], experiment.config["denoiser"]
    # No file says what its network's output means; a wrong guess would make wrong samples.
    print(
        f"imported step {int(state.step)} of {project} from {source} to {path}, taking its output "
        f"for {denoiser['parameterization']} of the {sde} process and its input of time for "
        f"{denoiser['conditioning']}; next: --mode=sample or --mode=eval with the same --workdir"
    )


def _candidates(known: Iterable[tuple[str, ConfigDict]]) -> Iterator[Candidate]:
    for name, config in known:
        with suppress(ConfigError):  # of somebody's own file, which nobody asked for
            yield Candidate(name, *build.build_network(config))


def export_checkpoint(
    config: ConfigDict,
    path: Path,
    target: Path,
    *,
    checkpoint: int | None = None,
    explicit: frozenset[str] = frozenset(),
) -> None:
    """Write a checkpoint of the run as a file that score_sde_pytorch restores.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything is written.
    """
    experiment, workdir, checkpoints = restore.open_run(config, path, explicit)
    restored = restore.restore(experiment, workdir, checkpoints, checkpoint)
    if target.exists():
        raise ConfigError(f"--target={target} exists already; give the name of a new file")
    parallel = experiment.parallel
    try:
        score_sde.export_pytorch(
            experiment.network,
            experiment.item_shape[0],
            parallel.fetch_tree(restored.state.params),
            parallel.fetch_tree(restored.state.ema_params),
            restored.step,
            target,
            ema_decay=experiment.config["ema"]["rate"],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(f"exported step {restored.step} of {path} to {target}")


def check(config: ConfigDict, *, explicit: frozenset[str] = frozenset()) -> None:
    """Print what `config` would do, on abstract shapes only."""
    print(plan.describe(build.build(config, explicit=explicit)))


def prepare(config: ConfigDict) -> None:
    """Prepare the configuration's data set on disk, where it needs that.

    Raises:
      ConfigError: if it can neither be found nor downloaded.
    """
    try:
        print(readers.prepare(config.data.name, data_dir=config.data.dir))
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(str(error)) from error
