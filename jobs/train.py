"""Train in a run's folder: cadence, files, and stopping.

Training continues from the folder's latest good checkpoint. Data order and randomness are functions
of the step, so the result equals that of a run that never stopped.
"""

import math
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from data.batches import TrainingBatches
from data.dequantization import CENTERS
from denoising import Denoiser
from errors import CheckpointError, TrainingError, WorkdirError
from experiment.data import Data
from experiment.experiment import Experiment
from experiment.options import ClassifierOptions, DequantizerOptions, TrainingOptions
from experiment.randomness import base_key
from experiment.sampler import Checkpoint, Sampler
from files.pictures import image_grid, write_png
from files.writing import write_json
from jobs.averages import Snapshots
from jobs.clock import Clock
from jobs.diagnostics import Diagnostics
from jobs.profile import ProfiledSteps, Profiler
from jobs.stop_signals import stop_signals
from jobs.teacher import load_teacher, params_of_student
from jobs.training_report import Plots, conclude
from jobs.workdir import Workdir, run_and_step
from training.checkpoints import Checkpoints
from training.metrics_log import MetricsLog, last_step, read_log
from training.prefetch import prefetched
from training.step import Trainer, TrainState


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, on what, and how long.

    Attributes:
        config: the resolved configuration, saved with every checkpoint.
        seed: seed of initialization, noise and data order.
        section: "model" or a name in jobs.workdir.PARTS: what is trained.
        sampler: draws sample grids during training; None draws none.
        dequantization: how gray levels become numbers, by default config.data.dequantization.
        diagnostics: what is measured during training; None for nothing.
        wandb: a project of Weights & Biases; "" for none.
        load_teacher: loads the frozen network of a distillation; None for other objectives.
    """

    config: dict[str, Any]
    seed: int
    section: str
    data: Data
    trainer: Trainer
    options: TrainingOptions
    sampler: Sampler | None
    dequantization: str = ""
    diagnostics: Diagnostics | None = None
    wandb: str = ""
    load_teacher: Callable[[], Denoiser | None] = lambda: None

    @property
    def rate_section(self) -> str:
        """The section of the configuration that holds the learning rate."""
        return "optim" if self.section == "model" else self.section

    def batches(self) -> TrainingBatches:
        """Return the training stream.

        Raises:
            ConfigError: if data are missing, or have other classes than the network.
        """
        classes = self.trainer.classes
        if classes:
            self.data.require_classes(self.data.images.train_labels, classes, self.section)
        return self.data.training_batches(
            self.options.batch_size,
            self.seed,
            labels=bool(classes),
            dequantization=self.dequantization,
        )

    @property
    def measure_every(self) -> int:
        """The steps between two measurements; 0 for none."""
        return 0 if self.diagnostics is None else self.diagnostics.every

    def measures_at(self, step: int) -> bool:
        """Return whether the state after a step is measured; that of the last step always is."""
        ends = self.diagnostics is not None and step == self.options.steps
        return ends or _is_due(step, self.measure_every)


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
        load_teacher=partial(load_teacher, experiment),
    )


def classifier_job(experiment: Experiment) -> TrainingJob:
    """Return the job that trains an experiment's noise-conditional classifier.

    Raises:
        ConfigError: if the classifier does not suit the images or the devices.
    """
    model = experiment.classifier
    model.check(experiment.data)
    return TrainingJob(
        config=experiment.config,
        seed=experiment.seed,
        section="classifier",
        data=experiment.data,
        trainer=model.trainer,
        options=_part_options(experiment, model.options),
        sampler=None,
    )


def dequantizer_job(experiment: Experiment, denoiser: Denoiser) -> TrainingJob:
    """Return the job that trains a dequantizer for a trained denoiser, which stays as it is.

    Raises:
        ConfigError: if its batches do not suit the devices.
    """
    model = experiment.dequantizer
    model.check(experiment.data)
    return TrainingJob(
        config=experiment.config,
        seed=experiment.seed,
        section="dequantizer",
        data=experiment.data,
        trainer=model.trainer(denoiser),
        options=_part_options(experiment, model.options),
        sampler=None,
        dequantization=CENTERS,
    )


def _part_options(
    experiment: Experiment, options: ClassifierOptions | DequantizerOptions
) -> TrainingOptions:
    """Return the options that train a network beside the model."""
    return TrainingOptions(
        batch_size=options.batch_size,
        steps=options.steps,
        log_every=experiment.training.log_every,
        checkpoint_every=options.steps,
        keep_checkpoints=experiment.training.keep_checkpoints,
        sample_every=0,
        prefetch=experiment.training.prefetch,
    )


def train(job: TrainingJob, workdir: Workdir, profiled: ProfiledSteps | None = None) -> bool:
    """Train to the last step; return False if the run was trained already.

    `profiled` are steps to trace.
    SIGTERM and Ctrl-C save a checkpoint and exit with status 128 + the signal's number.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything in the folder is touched.
        TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    batches, teacher = job.batches(), job.load_teacher()
    if job.diagnostics is not None:
        job.diagnostics.check()
    with workdir.locked(leads=job.data.parallel.leads):
        changes = workdir.check(job.config, training=True)
        return _train(job, workdir, batches, changes, profiled, teacher)


def _train(
    job: TrainingJob,
    workdir: Workdir,
    batches: TrainingBatches,
    changes: Sequence[str],
    profiled: ProfiledSteps | None,
    teacher: Denoiser | None,
) -> bool:
    images = job.data.images.fingerprint
    workdir.check_images(images)
    checkpoints = Checkpoints(workdir.checkpoints, keep=job.options.keep_checkpoints)
    state, origin = _initial_state(job, workdir, checkpoints, teacher)
    step, last = int(state.step), job.options.steps
    if step >= last:
        print(f"{workdir.path} is trained: step {step} of {last}. To continue, give more steps.")
        return False
    _report_batch_size(job.options)
    if profiled is not None:
        profiled.check(step, last)
    for change in changes:
        print(f"changed from step {step} on: {change}")
    workdir.save_config(job.config, images=images, changes=[*changes, *origin], step=step)
    if names := job.data.images.class_names:
        write_json(workdir.classes, {name: label for label, name in enumerate(names)})
    if (warmup := job.trainer.optimizer.warmup_steps) > last:
        logging.warning(
            "the warm-up of %g steps is longer than the training of %d; the learning rate stays "
            "below config.%s.lr. Lower the warm-up, or train longer",
            *(warmup, last, job.rate_section),
        )
    log = MetricsLog(
        workdir.path,
        step=step,
        config=job.config,
        wandb=job.wandb,
        leads=job.data.parallel.leads,
    )
    finest = math.inf if job.diagnostics is None else job.diagnostics.finest_log_snr
    plots = Plots(workdir.plots, workdir.path, finest)
    snapshots = Snapshots(workdir, job.trainer.more_averages, step)
    profiler = Profiler(profiled, workdir.profile)
    with closing(log), closing(checkpoints), closing(snapshots), closing(profiler):
        with (
            stop_signals() as stop,
            tqdm(
                total=last, initial=step, desc="training", dynamic_ncols=True, mininterval=0.5
            ) as bar,
        ):
            loop = _Loop(
                *(job, teacher, images, checkpoints, snapshots, log, plots, workdir, bar, stop),
                profiler,
            )
            state = loop.run(batches, state)
        checkpoints.wait()
    if stop:
        name = signal.Signals(stop[0]).name
        print(f"stopped by {name} at step {int(state.step)}, saved; rerun the command to continue")
        sys.exit(128 + stop[0])
    print(f"trained {last} steps")
    if job.diagnostics is not None:
        said = conclude(read_log(workdir.path), finest)
        print(f"{said or 'measured'}; plots are in {workdir.plots}")
    return True


def _report_batch_size(options: TrainingOptions) -> None:
    """Warn of a batch size other than that of the published numbers."""
    ours, published = options.batch_size, options.published_batch_size
    if published and ours != published:
        logging.warning(
            "config.training.batch_size=%d, but the published numbers of this configuration were "
            "made with %d; docs/recipes.md says what changes",
            *(ours, published),
        )


def _initial_state(
    job: TrainingJob, workdir: Workdir, checkpoints: Checkpoints, teacher: Denoiser | None
) -> tuple[TrainState, list[str]]:
    """Return the state of the latest checkpoint, or else the first state of a new run.

    With it come the notes for config.json on where a new run started.

    Raises:
        WorkdirError: if the run has had checkpoints, and they are gone.
        CheckpointError: if none can be loaded, or that of `config.training.init_from` cannot.
    """
    template = job.trainer.abstract_state()
    restored = checkpoints.restore(template)
    if restored is not None:
        print(f"continuing from the checkpoint at step {restored.step}")
        return restored.state, []
    logged = last_step(workdir.path)
    if logged >= 2 * job.options.checkpoint_every:
        raise WorkdirError(
            f"{workdir.metrics} reaches step {logged}, but {workdir.checkpoints} holds no "
            "checkpoint. Put the checkpoints back, delete metrics.jsonl to start afresh, or give "
            "another --workdir"
        )
    if not job.options.init_from:
        if teacher is not None and (params := params_of_student(teacher, template.params)):
            state = job.trainer.state_from_params(*params, 0)
            return state, ["started with the parameters of the teacher"]
        return job.trainer.init_state(base_key(job.seed, "init")), []
    run, step = run_and_step(job.options.init_from)
    other = Checkpoints(Workdir(Path(run).expanduser()).checkpoints).restore(
        job.trainer.abstract_parameters(), step, partial=True
    )
    if other is None:
        raise CheckpointError(f"config.training.init_from={run!r} holds no checkpoint")
    print(f"starting with the parameters of {run} at step {other.step}")
    state = job.trainer.state_from_params(other.state.params, other.state.ema_params, 0)
    return state, [f"started with the parameters of {run} at step {other.step}"]


@dataclass(frozen=True)
class _Loop:
    """The training loop and what it writes to."""

    job: TrainingJob
    teacher: Denoiser | None
    images: str
    checkpoints: Checkpoints
    snapshots: Snapshots
    log: MetricsLog
    plots: Plots
    workdir: Workdir
    bar: tqdm
    stop: list[int]
    profiler: Profiler

    def run(self, batches: TrainingBatches, state: TrainState) -> TrainState:
        options, last = self.job.options, self.job.options.steps
        one, several = self.job.trainer.compiled_step(), self.job.trainer.compiled_steps()
        key = base_key(self.job.seed, "training")
        pending: deque[tuple[range, dict]] = deque()
        clock = Clock()
        calls = self._calls(int(state.step))
        labels = () if self.job.trainer.classes else (None,)
        frozen = () if self.teacher is None else (*labels, self.teacher)
        with prefetched(partial(self._inputs, batches), calls, ahead=options.prefetch) as inputs:
            for steps, arrays in inputs:
                step = steps[-1]
                self.profiler.before(steps[0], state)
                advance = one if len(steps) == 1 else several
                state, scalars = advance(key, state, *arrays, *frozen)
                pending.append((steps, scalars))
                self.profiler.after(step, state)
                stopping = bool(self.stop)  # read once: a signal may come at any line of this loop
                ends = stopping or step == last
                logs = ends or _is_due(step, options.log_every)
                saves = ends or _is_due(step, options.checkpoint_every)
                samples = not stopping and options.sample_every > 0
                samples = samples and (ends or _is_due(step, options.sample_every))
                measures = self.job.measures_at(step)
                stores = self.snapshots.are_due(step, ends=step == last)
                # Scalars are read one call late, so that the device never waits for Python; where
                # something is about to be written, all of them are.
                while len(pending) > (0 if logs or measures or saves or samples or stores else 1):
                    values = self._finite(*pending.popleft())
                clock.count(len(steps) * options.batch_size)
                self.bar.update(len(steps))
                if logs:
                    rate = clock.rate()
                    self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.0f} images/s")
                    if not stopping or _is_due(step, options.log_every):
                        self.log.write(step, {**values, "images_per_sec": round(rate, 1)})
                if measures:  # before it is saved, so that a run that resumes here has it
                    self._write_measurements(state)
                record = self.job.config | {"images": self.images}
                if stores:
                    self.snapshots.save(step, state, record)
                if saves:
                    self.snapshots.close()  # a run that resumes here would not write them again
                    self.checkpoints.save(step, state, record)
                if stopping:
                    break
                if samples:
                    self._write_samples(state)
                if saves or samples or stores or measures:
                    clock.restart()
        return state

    def _calls(self, done: int) -> Iterator[range]:
        """Yield the steps of each call after step `done`, counted from 1.

        A call runs `steps_per_call` steps, or one if something is due before the last of them.
        """
        options, several = self.job.options, self.job.options.steps_per_call
        cadences = (options.log_every, options.checkpoint_every, options.sample_every)
        cadences += (self.job.trainer.more_averages.snapshot_every, self.job.measure_every)
        while done < options.steps:
            inside = range(done + 1, done + several)
            due = any(_is_due(step, every) for step in inside for every in cadences)
            edge = any(map(self.profiler.is_edge, inside))
            count = 1 if due or edge or done + several > options.steps else several
            yield range(done + 1, done + count + 1)
            done += count

    def _inputs(self, batches: TrainingBatches, steps: range) -> tuple[range, list[jax.Array]]:
        """Return the steps of a call with their batches, and labels if any, on the devices."""
        parallel = self.job.data.parallel
        rows = parallel.local_rows(self.job.options.batch_size)
        read = [batches.at, *([batches.labels_at] if self.job.trainer.classes else [])]
        if len(steps) == 1:
            return steps, [parallel.put_batch(at(steps[0] - 1, rows)) for at in read]
        stacked = (np.stack([at(step - 1, rows) for step in steps]) for at in read)
        return steps, [parallel.put_batches(each) for each in stacked]

    def _finite(self, steps: range, scalars: dict[str, jax.Array]) -> dict[str, float]:
        """Return the scalars of a call's last step; raise TrainingError for any not finite."""
        arrays = {name: np.atleast_1d(np.asarray(value)) for name, value in scalars.items()}
        for index, step in enumerate(steps):
            values = {name: float(array[index]) for name, array in arrays.items()}
            if all(map(math.isfinite, values.values())):
                continue
            self.checkpoints.wait()  # for a save under way
            kept = self.checkpoints.steps()
            remedy = (
                f"the last good checkpoint is step {kept[-1]}"
                if kept
                else "there is no checkpoint yet"
            )
            raise TrainingError(
                f"step {step}: {', '.join(f'{k}={v}' for k, v in values.items())}; {remedy}. "
                f"Lower config.{self.job.rate_section}.lr, or look for NaN in the data"
            )
        return values

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
