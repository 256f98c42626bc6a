"""Train in a run's folder: cadence, files, and stopping.

Training continues from the folder's latest good checkpoint. Data order and randomness are functions
of the step, so the result equals that of a run that never stopped.
"""

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data.batches import TrainingBatches
from errors import CheckpointError, TrainingError, WorkdirError
from experiment.data import Data
from experiment.experiment import Experiment
from experiment.options import TrainingOptions
from experiment.randomness import base_key
from experiment.sampler import Checkpoint, Sampler
from files.pictures import image_grid, write_png
from files.writing import write_json
from jobs.diagnostics import Diagnostics
from jobs.training_report import Plots, conclude
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints
from training.metrics_log import MetricsLog, last_step, read_log
from training.step import Trainer, TrainState


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, on what, and how long.

    Attributes:
        config: the resolved configuration, saved with every checkpoint.
        seed: seed of initialization, noise and data order.
        section: "model" or "classifier", the section of the configuration that is trained.
        sampler: draws sample grids during training; None draws none.
        diagnostics: what is measured during training; None for nothing.
        wandb: a project of Weights & Biases; "" for none.
    """

    config: dict[str, Any]
    seed: int
    section: str
    data: Data
    trainer: Trainer
    options: TrainingOptions
    sampler: Sampler | None
    diagnostics: Diagnostics | None = None
    wandb: str = ""

    def batches(self) -> TrainingBatches:
        """Return the training stream.

        Raises:
            ConfigError: if data are missing, or have other classes than the network.
        """
        classes = self.trainer.classes
        if classes:
            self.data.require_classes(self.data.images.train_labels, classes, self.section)
        return self.data.training_batches(self.options.batch_size, self.seed, labels=bool(classes))

    def measures_at(self, step: int) -> bool:
        """Return whether the state after a step is measured; that of the last step always is."""
        if self.diagnostics is None:
            return False
        return step == self.options.steps or _is_due(step, self.diagnostics.every)


def model_job(experiment: Experiment, diagnostics: Diagnostics | None = None) -> TrainingJob:
    """Return the job that trains an experiment's score model."""
    return TrainingJob(
        config=experiment.config,
        seed=experiment.seed,
        section="model",
        data=experiment.data,
        trainer=experiment.trainer,
        options=experiment.training,
        sampler=experiment.sampler if experiment.training.sample_every else None,
        diagnostics=diagnostics,
        wandb=experiment.logging.wandb,
    )


def classifier_job(experiment: Experiment) -> TrainingJob:
    """Return the job that trains an experiment's noise-conditional classifier.

    Raises:
        ConfigError: if the classifier does not suit the images or the devices.
    """
    model = experiment.classifier
    model.check(experiment.data)
    options = TrainingOptions(
        batch_size=model.options.batch_size,
        steps=model.options.steps,
        log_every=experiment.training.log_every,
        checkpoint_every=model.options.steps,
        keep_checkpoints=experiment.training.keep_checkpoints,
        sample_every=0,
    )
    return TrainingJob(
        config=experiment.config,
        seed=experiment.seed,
        section="classifier",
        data=experiment.data,
        trainer=model.trainer,
        options=options,
        sampler=None,
    )


def train(job: TrainingJob, workdir: Workdir) -> bool:
    """Train to the last step; return False if the run was trained already.

    SIGTERM and Ctrl-C save a checkpoint and exit with status 128 + the signal's number.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything in the folder is touched.
        TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    batches = job.batches()
    if job.diagnostics is not None:
        job.diagnostics.check()
    with workdir.locked(leads=job.data.parallel.leads):
        changes = workdir.check(job.config, training=True)
        return _train(job, workdir, batches, changes)


def _train(
    job: TrainingJob, workdir: Workdir, batches: TrainingBatches, changes: Sequence[str]
) -> bool:
    images = job.data.images.fingerprint
    workdir.check_images(images)
    checkpoints = Checkpoints(workdir.checkpoints, keep=job.options.keep_checkpoints)
    state = _initial_state(job, workdir, checkpoints)
    step, last = int(state.step), job.options.steps
    if step >= last:
        print(f"{workdir.path} is trained: step {step} of {last}. To continue, give more steps.")
        return False
    for change in changes:
        print(f"changed from step {step} on: {change}")
    workdir.save_config(job.config, images=images, changes=changes, step=step)
    if names := job.data.images.class_names:
        write_json(workdir.classes, {name: label for label, name in enumerate(names)})
    log = MetricsLog(
        workdir.path,
        step=step,
        config=job.config,
        wandb=job.wandb,
        leads=job.data.parallel.leads,
    )
    finest = math.inf if job.diagnostics is None else job.diagnostics.finest_log_snr
    plots = Plots(workdir.plots, workdir.path, finest)
    try:
        with (
            _stop_signals() as stop,
            tqdm(
                total=last, initial=step, desc="training", dynamic_ncols=True, mininterval=0.5
            ) as bar,
        ):
            loop = _Loop(job, images, checkpoints, log, plots, workdir, bar, stop)
            state = loop.run(batches, state)
        checkpoints.wait()
    finally:
        checkpoints.close()
        log.close()
    if stop:
        name = signal.Signals(stop[0]).name
        print(f"stopped by {name} at step {int(state.step)}, saved; rerun the command to continue")
        sys.exit(128 + stop[0])
    print(f"trained {last} steps")
    if job.diagnostics is not None:
        said = conclude(read_log(workdir.path), finest)
        print(f"{said or 'measured'}; plots are in {workdir.plots}")
    return True


def _initial_state(job: TrainingJob, workdir: Workdir, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the latest checkpoint, or else the first state of a new run.

    Raises:
        WorkdirError: if the run has had checkpoints, and they are gone.
        CheckpointError: if none can be loaded, or that of `config.training.init_from` cannot.
    """
    template = job.trainer.abstract_state()
    restored = checkpoints.restore(template)
    if restored is not None:
        print(f"continuing from the checkpoint at step {restored.step}")
        return restored.state
    logged = last_step(workdir.path)
    if logged >= 2 * job.options.checkpoint_every:
        raise WorkdirError(
            f"{workdir.metrics} reaches step {logged}, but {workdir.checkpoints} holds no "
            "checkpoint. Put the checkpoints back, delete metrics.jsonl to start afresh, or give "
            "another --workdir"
        )
    if not job.options.init_from:
        return job.trainer.init_state(base_key(job.seed, "init"))
    run, _, number = job.options.init_from.rpartition(":")
    run, step = (run, int(number)) if run and number.isdecimal() else (job.options.init_from, None)
    other = Checkpoints(Workdir(Path(run).expanduser()).checkpoints).restore(template, step)
    if other is None:
        raise CheckpointError(f"config.training.init_from={run!r} holds no checkpoint")
    print(f"starting with the parameters of {run} at step {other.step}")
    return job.trainer.state_from_params(other.state.params, other.state.ema_params, 0)


@dataclass(frozen=True)
class _Loop:
    """The training loop and what it writes to."""

    job: TrainingJob
    images: str
    checkpoints: Checkpoints
    log: MetricsLog
    plots: Plots
    workdir: Workdir
    bar: tqdm
    stop: list[int]

    def run(self, batches: TrainingBatches, state: TrainState) -> TrainState:
        options, parallel = self.job.options, self.job.data.parallel
        rows = parallel.local_rows(options.batch_size)
        advance = self.job.trainer.compiled_step()
        key = base_key(self.job.seed, "training")
        pending: deque[tuple[int, dict]] = deque()
        clock = _Clock()
        for step in range(int(state.step) + 1, options.steps + 1):
            batch = [parallel.put_batch(batches.at(step - 1, rows))]
            if self.job.trainer.classes:
                batch.append(parallel.put_batch(batches.labels_at(step - 1, rows)))
            state, scalars = advance(key, state, *batch)
            pending.append((step, scalars))
            stopping = bool(self.stop)  # read once: a signal may come at any line of this loop
            ends = stopping or step == options.steps
            measures = self.job.measures_at(step)
            logs = ends or _is_due(step, options.log_every)
            saves = ends or _is_due(step, options.checkpoint_every)
            samples = not stopping and options.sample_every > 0
            samples = samples and (ends or _is_due(step, options.sample_every))
            # Scalars are read one step late, so that the device never waits for Python; where
            # something is about to be written, all of them are.
            while len(pending) > (0 if logs or measures or saves or samples else 1):
                values = _finite(*pending.popleft(), self.checkpoints)
            clock.count(options.batch_size)
            self.bar.update()
            if logs:
                rate = clock.rate()
                self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.0f} images/s")
                if not stopping or _is_due(step, options.log_every):
                    self.log.write(step, {**values, "images_per_sec": round(rate, 1)})
            if measures:  # before it is saved, so that a run that resumes here has it
                self._write_measurements(state)
            if saves:
                record = self.job.config | {"images": self.images}
                self.checkpoints.save(step, state, record)
            if stopping:
                break
            if samples:
                self._write_samples(state)
            if saves or samples or measures:
                clock.restart()
        return state

    def _write_measurements(self, state: TrainState) -> None:
        if self.job.diagnostics is None:
            return
        step = int(state.step)
        self.log.write(step, self.job.diagnostics.measure(state))
        if self.job.data.parallel.leads:
            self.plots.draw(last=step == self.job.options.steps)

    def _write_samples(self, state: TrainState) -> None:
        sampler, step = self.job.sampler, int(state.step)
        if sampler is None:
            return
        denoiser = self.job.trainer.denoiser(state.ema_params, None)
        checkpoint = Checkpoint(step=step, denoiser=denoiser)
        images = sampler.draw(checkpoint, np.arange(self.job.options.sample_count)).images
        grid = image_grid(images)
        write_png(self.workdir.samples / f"step_{step}.png", grid)
        self.log.image(step, "samples", grid)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _finite(step: int, scalars: dict[str, jax.Array], checkpoints: Checkpoints) -> dict[str, float]:
    values = {name: float(value) for name, value in scalars.items()}
    if not all(map(math.isfinite, values.values())):
        checkpoints.wait()  # for a save under way
        kept = checkpoints.steps()
        remedy = (
            f"the last good checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
        )
        raise TrainingError(
            f"step {step}: {', '.join(f'{k}={v}' for k, v in values.items())}; {remedy}. "
            f"Lower config.optim.lr or config.optim.grad_clip, or look for NaN in the data"
        )
    return values


class _Clock:
    """Measures images per second since the last reading."""

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
    """Collect SIGTERM and Ctrl-C in a list that the loop reads; a second one acts at once."""
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
