"""The training loop: its cadences, what it writes, and how it stops."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from denoising import Denoiser
from errors import TrainingError
from experiment.data import Batches
from experiment.randomness import base_key
from experiment.sampler import Checkpoint
from files.pictures import write_png
from jobs.averages import Snapshots
from jobs.clock import Clock
from jobs.profile import Profiler
from jobs.stop_signals import Stop
from jobs.training_job import TrainingJob, is_due
from jobs.training_report import Plots
from jobs.workdir import Workdir
from numerics.memory import keep_freed_memory
from training.checkpoints import Checkpoints
from training.metrics_log import MetricsLog
from training.prefetch import prefetched
from training.step import TrainState


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The training loop and what it writes to."""

    job: TrainingJob
    teacher: Denoiser | None
    checkpoints: Checkpoints
    snapshots: Snapshots
    log: MetricsLog
    plots: Plots
    workdir: Workdir
    bar: tqdm
    stop: Stop
    profiler: Profiler

    def run(self, batches: Batches, state: TrainState) -> TrainState:
        options, last = self.job.options, self.job.options.steps
        rows = self.job.data.kind.name
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
                stopping = bool(self.stop.after_call())  # read once: signals come at any line
                ends = stopping or step == last
                logs = ends or is_due(step, options.log_every)
                saves = ends or is_due(step, options.checkpoint_every)
                samples = not stopping and options.sample_every > 0
                samples = samples and (ends or is_due(step, options.sample_every))
                measures = self.job.measures_at(step)
                stores = self.snapshots.are_due(step, ends=step == last)
                # Scalars are read one call late, so that the device never waits for Python; where
                # something is about to be written, all of them are.
                while len(pending) > (0 if logs or measures or saves or samples or stores else 1):
                    values = self._finite(*pending.popleft())
                clock.count(len(steps) * options.batch_size)
                self.bar.update(len(steps))
                if logs:
                    keep_freed_memory()
                    rate = clock.rate()
                    self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.0f} {rows}/s")
                    if not stopping or is_due(step, options.log_every):
                        self.log.write(step, {**values, "images_per_sec": float(f"{rate:.4g}")})
                if measures:  # before it is saved, so that a run that resumes here has it
                    self._write_measurements(state)
                record = self.job.config | {"images": self.job.data.splits.fingerprint}
                if stores:
                    self.snapshots.save(step, state, record)
                if saves:
                    self.snapshots.close()  # a run that resumes here would not write them again
                    self.log.flush()  # nor these
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
            due = any(is_due(step, every) for step in inside for every in cadences)
            edge = any(map(self.profiler.is_edge, inside))
            count = 1 if due or edge or done + several > options.steps else several
            yield range(done + 1, done + count + 1)
            done += count

    def _inputs(self, batches: Batches, steps: range) -> tuple[range, list[jax.Array]]:
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
        self.log.flush()  # the plots are drawn from it
        if self.job.data.parallel.leads:
            self.plots.draw(last=step == self.job.options.steps)

    def _write_samples(self, state: TrainState) -> None:
        sampler, step = self.job.sampler, int(state.step)
        if sampler is None:
            return
        denoiser = self.job.trainer.denoiser(state.ema_params, None)
        checkpoint = Checkpoint(step=step, denoiser=denoiser)
        samples = sampler.draw(checkpoint, np.arange(self.job.options.sample_count)).samples
        (grid,) = self.job.data.pictures([samples])
        write_png(self.workdir.samples / f"step_{step}.png", grid)
        self.log.image(step, "samples", grid)
