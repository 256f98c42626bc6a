"""The modes: train, evaluate, sample and the others; their cadence, their files, and resuming.

A run is a working directory. Training goes on from its latest good checkpoint; because data order
and randomness are functions of the step, the result is that of a run that never stopped.
"""

import hashlib
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import builders
import calibration
import data_preparation
import evaluation
import input_pipeline
import interchange
import plan
from checkpoints import CheckpointError, Checkpoints, Restored
from denoising import Denoiser
from experiment import ConfigError, Experiment
from interchange import Candidate
from reporting import MetricsLog, image_grid, write_file, write_gif, write_png
from solvers.moments import EpsMoments
from training import TrainState
from workdir import Workdir, WorkdirError


class TrainingError(RuntimeError):
    """Training cannot go on; one line that says at which step, why, and what to do."""


# --- training ---------------------------------------------------------------------------------


def train(config: ConfigDict, path: Path, *, explicit: frozenset[str] = frozenset()) -> None:
    """Train to `config.training.steps`, from the latest good checkpoint in the workdir if any.

    SIGTERM and Ctrl-C save a checkpoint and leave with exit status 128 + the signal's number.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
      TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    experiment = builders.build(config, explicit=explicit)
    batches = experiment.training_batches()
    if experiment.with_moments and experiment.config["training"]["sample_every"]:
        raise ConfigError(
            "config.sampling.name=analytic needs the moments of a trained network; train with "
            "another sampler, or with config.training.sample_every=0"
        )
    workdir = Workdir(path)
    workdir.check(experiment.config, training=True)
    settings = experiment.config["training"]
    checkpoints = Checkpoints(workdir.checkpoints, keep=settings["keep_checkpoints"])
    state = _initial_state(experiment, checkpoints)
    step, last = int(state.step), settings["steps"]
    if step >= last:
        print(f"{path} is trained: step {step} of {last}. Raise config.training.steps to go on.")
        return
    workdir.path.mkdir(parents=True, exist_ok=True)
    workdir.save_config(experiment.config)
    log = MetricsLog(workdir.path, step=step)
    try:
        with _stop_signals() as stop, _progress_bar(last, step, "training") as bar:
            state = _train_loop(experiment, batches, state, checkpoints, log, workdir, bar, stop)
        checkpoints.wait()
    finally:
        checkpoints.close()
        log.close()
    if stop:
        name = signal.Signals(stop[0]).name
        print(f"stopped by {name} at step {int(state.step)}, saved; the same command goes on")
        sys.exit(128 + stop[0])
    print(f"trained {last} steps; samples in {workdir.samples}, next: --mode=eval or --mode=sample")


def _initial_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    restored = checkpoints.restore(experiment.trainer.abstract_state())
    if restored is None:
        return experiment.trainer.first_state(experiment.key(experiment.config["seed"], "init"))
    print(f"going on from the checkpoint at step {restored.step}")
    return restored.state


def _train_loop(
    experiment: Experiment,
    batches: input_pipeline.TrainingBatches,
    state: TrainState,
    checkpoints: Checkpoints,
    log: MetricsLog,
    workdir: Workdir,
    bar: tqdm,
    stop: list[int],
) -> TrainState:
    settings, layout = experiment.config["training"], experiment.layout
    last = settings["steps"]
    rows = layout.local_rows(settings["batch_size"])
    advance = experiment.trainer.compiled_step()
    key = experiment.key(experiment.config["seed"], "training")
    pending: deque[tuple[int, dict]] = deque()
    clock = _Clock()
    for step in range(int(state.step) + 1, last + 1):
        batch = [layout.put_batch(batches.at(step - 1, rows))]
        if experiment.classes:
            batch.append(layout.put_batch(batches.labels_at(step - 1, rows)))
        state, scalars = advance(key, state, *batch)
        pending.append((step, scalars))
        stopping = bool(stop)  # read once: a signal may come at any line of this loop
        due = {
            name: stopping or step == last or _is_due(step, settings[f"{name}_every"])
            for name in ("log", "checkpoint", "sample")
        }
        # Scalars are read one step late, so that the device never waits for Python; where
        # something is about to be written, all of them are.
        while len(pending) > (0 if any(due.values()) else 1):
            values = _finite(*pending.popleft(), checkpoints)
        clock.count(settings["batch_size"])
        bar.update()
        if due["log"]:
            rate = clock.rate()
            bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.0f} images/s")
            if not stopping or _is_due(step, settings["log_every"]):
                log.write(step, {**values, "images_per_sec": round(rate, 1)})
        if due["checkpoint"]:
            checkpoints.save(step, state, experiment.config)
        if stopping:
            break
        if due["sample"] and settings["sample_every"]:
            _write_samples(experiment, state, log, workdir)
        if due["checkpoint"] or due["sample"]:
            clock.restart()
    return state


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _finite(step: int, scalars: dict[str, jax.Array], checkpoints: Checkpoints) -> dict[str, float]:
    values = {name: float(value) for name, value in scalars.items()}
    if not all(map(math.isfinite, values.values())):
        checkpoints.wait()  # for the one that is being written
        kept = checkpoints.steps()
        remedy = (
            f"the last good checkpoint is step {kept[-1]}" if kept else "no checkpoint was made"
        )
        raise TrainingError(
            f"step {step}: {', '.join(f'{k}={v}' for k, v in values.items())}; {remedy}. "
            f"Lower config.optim.lr or config.optim.grad_clip, or look for NaN in the data"
        )
    return values


def _write_samples(
    experiment: Experiment, state: TrainState, log: MetricsLog, workdir: Workdir
) -> None:
    count = experiment.config["training"]["sample_count"]
    grid = image_grid(
        experiment.draw(experiment.denoiser(state.ema_params), np.arange(count)).images
    )
    write_png(workdir.samples / f"step_{int(state.step)}.png", grid)
    log.image(int(state.step), "samples", grid)


class _Clock:
    """Images a second since the last reading."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._images, self._start = 0, time.perf_counter()

    def count(self, images: int) -> None:
        self._images += images

    def rate(self) -> float:
        rate = self._images / (time.perf_counter() - self._start)
        self.restart()
        return rate


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and Ctrl-C in a list that the loop looks at; a second one acts at once."""
    received: list[int] = []
    previous = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        previous[each] = signal.signal(each, note)
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _progress_bar(total: int, done: int, title: str) -> tqdm:
    return tqdm(total=total, initial=done, desc=title, dynamic_ncols=True, mininterval=0.5)


# --- the other modes --------------------------------------------------------------------------


def evaluate(config: ConfigDict, path: Path, *, explicit: frozenset[str] = frozenset()) -> None:
    """Evaluate the checkpoints `config.eval.checkpoints` (none given: the latest), each once.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything is computed.
      IntegrationError: if the probability-flow ODE cannot be solved.
    """
    experiment, workdir, checkpoints = _open(config, path, explicit)
    experiment.training_batches()  # missing data show now
    steps = experiment.config["eval"]["checkpoints"]
    for step in steps:  # what is missing of one shows before the others are evaluated
        checkpoints.config(step)
        _moments_of(experiment, workdir, step)
    for step in steps or (None,):
        ready, step, denoiser = _load(experiment, workdir, checkpoints, step)
        print(evaluation.evaluate(ready, denoiser, step, workdir.eval))


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

    With `gif`, also an animation of the reverse process of the first of them.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything is computed.
    """
    if count < 1:
        raise ConfigError(f"--num_samples={count} must be at least 1")
    experiment, workdir, checkpoints = _open(config, path, explicit)
    experiment, step, denoiser = _load(experiment, workdir, checkpoints, checkpoint)
    name = workdir.samples / f"checkpoint_{step}"
    images, nfe = _draw_all(experiment, denoiser, count)
    write_file(name.with_suffix(".npz"), lambda file: np.savez_compressed(file, samples=images))
    write_png(name.with_suffix(".png"), image_grid(images[:_GRID]))
    print(f"{count} samples of step {step}, NFE {nfe}: {name}.npz and {name}.png")
    if gif:
        shown = np.arange(min(count, _GRID))
        frames = experiment.draw(denoiser, shown, frames=_FRAMES).trajectory
        write_gif(name.with_suffix(".gif"), [image_grid(frame) for frame in frames])
        print(f"their reverse process: {name}.gif")


_GRID = 100  # images that a picture shows
_FRAMES = 40  # snapshots of an animation


def _draw_all(experiment: Experiment, denoiser: Denoiser, count: int) -> tuple[np.ndarray, int]:
    """The images, and the network evaluations of one of them: the most, where they are adaptive."""
    parts, nfe = [], 0
    with _progress_bar(count, 0, "sampling") as bar:
        for indices in evaluation.batches_of(count, experiment.config["eval"]["batch_size"]):
            drawn = experiment.draw(denoiser, indices)
            parts.append(drawn.images)
            nfe = max(nfe, drawn.nfe)
            bar.update(len(indices))
    return np.concatenate(parts), nfe


def _open(
    config: ConfigDict, path: Path, explicit: frozenset[str]
) -> tuple[Experiment, Workdir, Checkpoints]:
    """What reading a run needs; touches nothing on disk."""
    experiment = builders.build(config, explicit=explicit)
    workdir = Workdir(path)
    workdir.check(experiment.config, training=False)
    return experiment, workdir, Checkpoints(workdir.checkpoints)


def _load(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, step: int | None
) -> tuple[Experiment, int, Denoiser]:
    """A checkpoint (None for the latest good one): the experiment with a sampler that has the
    network's moments if it wants them, the step, and the averaged network."""
    restored = _restore(experiment, workdir, checkpoints, step)
    experiment = _moments_of(experiment, workdir, restored.step)
    return experiment, restored.step, experiment.denoiser(restored.state.ema_params)


def _moments_of(experiment: Experiment, workdir: Workdir, step: int) -> Experiment:
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
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    sampling = experiment.config["sampling"] | {"moments": digest}
    return replace(experiment, sampler=sampler, config=experiment.config | {"sampling": sampling})


def _restore(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, step: int | None
) -> Restored:
    restored = checkpoints.restore(experiment.trainer.abstract_state(), step)
    if restored is None:
        raise CheckpointError(
            f"there is no checkpoint in --workdir={workdir.path} yet; run --mode=train or "
            "--mode=import first"
        )
    return restored


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
    experiment, workdir, checkpoints = _open(config, path, explicit)
    experiment.training_batches()  # missing data show now
    restored = _restore(experiment, workdir, checkpoints, checkpoint)
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

    `attention_order` is as in `interchange.import_state`; `known` are configurations, by name, that
    the file may be of if it is not of `config`.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
    """
    experiment = builders.build(config, explicit=explicit)
    workdir = Workdir(path)
    checkpoints = Checkpoints(workdir.checkpoints)
    if checkpoints.steps() or (path / "metrics.jsonl").exists():
        raise WorkdirError(f"--workdir={path} holds a run already; give a new folder to import to")
    others = _candidates(known)
    family, state = interchange.import_state(experiment, source, others, attention_order)
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
        f"imported step {int(state.step)} of {family} from {source} to {path}, taking its output "
        f"for {denoiser['parameterization']} of the {sde} process and its input of time for "
        f"{denoiser['conditioning']}; next: --mode=sample or --mode=eval with the same --workdir"
    )


def _candidates(known: Iterable[tuple[str, ConfigDict]]) -> Iterator[Candidate]:
    for name, config in known:
        with suppress(ConfigError):  # of somebody's own file, which nobody asked for
            yield Candidate(name, *builders.build_network(config))


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
    experiment, workdir, checkpoints = _open(config, path, explicit)
    restored = _restore(experiment, workdir, checkpoints, checkpoint)
    interchange.export_pytorch(experiment, restored.state, target)
    print(f"exported step {restored.step} of {path} to {target}")


def check(config: ConfigDict, *, explicit: frozenset[str] = frozenset()) -> None:
    """Print what `config` would do, on abstract shapes only."""
    print(plan.describe(builders.build(config, explicit=explicit)))


def prepare(config: ConfigDict) -> None:
    """Prepare the configuration's data set on disk, where it needs that.

    Raises:
      ConfigError: if it can neither be found nor downloaded.
    """
    try:
        print(data_preparation.prepare(config.data.name, data_dir=config.data.dir))
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(str(error)) from error
