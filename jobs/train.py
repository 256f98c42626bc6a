"""Training an experiment in its folder: cadence, files, and stopping.

Training goes on from the folder's latest good checkpoint; because data order and randomness are
functions of the step, the result is that of a run that never stopped.
"""

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data import batches
from errors import TrainingError
from experiment.experiment import Experiment
from files.pictures import image_grid, write_png
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints
from training.metrics_log import MetricsLog
from training.step import TrainState


def train_experiment(experiment: Experiment, workdir: Workdir) -> bool:
    """Train what an experiment trains; False if it was trained already.

    SIGTERM and Ctrl-C save a checkpoint and leave with exit status 128 + the signal's number.

    Raises:
      ConfigError, WorkdirError, CheckpointError: before anything in the folder is touched.
      TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    batches = experiment.training_batches()
    workdir.check(experiment.config, training=True)
    settings = experiment.config["training"]
    checkpoints = Checkpoints(workdir.checkpoints, keep=settings["keep_checkpoints"])
    state = _initial_state(experiment, checkpoints)
    step, last = int(state.step), settings["steps"]
    if step >= last:
        print(
            f"{workdir.path} is trained: step {step} of {last}. Raise the number of steps to go on."
        )
        return False
    workdir.path.mkdir(parents=True, exist_ok=True)
    workdir.save_config(experiment.config)
    log = MetricsLog(workdir.path, step=step)
    try:
        with (
            _stop_signals() as stop,
            tqdm(
                total=last, initial=step, desc="training", dynamic_ncols=True, mininterval=0.5
            ) as bar,
        ):
            state = _train_loop(experiment, batches, state, checkpoints, log, workdir, bar, stop)
        checkpoints.wait()
    finally:
        checkpoints.close()
        log.close()
    if stop:
        name = signal.Signals(stop[0]).name
        print(f"stopped by {name} at step {int(state.step)}, saved; the same command goes on")
        sys.exit(128 + stop[0])
    print(f"trained {last} steps")
    return True


def _initial_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    restored = checkpoints.restore(experiment.trainer.abstract_state())
    if restored is None:
        return experiment.trainer.init_state(experiment.key(experiment.config["seed"], "init"))
    print(f"going on from the checkpoint at step {restored.step}")
    return restored.state


def _train_loop(
    experiment: Experiment,
    batches: batches.TrainingBatches,
    state: TrainState,
    checkpoints: Checkpoints,
    log: MetricsLog,
    workdir: Workdir,
    bar: tqdm,
    stop: list[int],
) -> TrainState:
    settings, parallel = experiment.config["training"], experiment.parallel
    last = settings["steps"]
    rows = parallel.local_rows(settings["batch_size"])
    advance = experiment.trainer.compiled_step()
    key = experiment.key(experiment.config["seed"], "training")
    pending: deque[tuple[int, dict]] = deque()
    clock = _Clock()
    for step in range(int(state.step) + 1, last + 1):
        batch = [parallel.put_batch(batches.at(step - 1, rows))]
        if experiment.classes:
            batch.append(parallel.put_batch(batches.labels_at(step - 1, rows)))
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
