"""Power-function averages in the folder of a run: snapshots, and averages of any length from them.

    ema/snapshots/<step>/          the stored averages at that step, a checkpoint
    ema/length_<length>/<step>/    an average that `reconstruct` has made, a checkpoint

Training writes the first, `--mode=ema` the second (`training.post_hoc` has the mathematics).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, final

import jax
import numpy as np
from tqdm import tqdm

from errors import CheckpointError, ConfigError, WorkdirError, require_in
from experiment.experiment import Experiment
from experiment.reader import to_builtin
from files.locks import locked
from jobs.workdir import Workdir
from training.averages import MoreAverages, length_name
from training.checkpoints import Checkpoints
from training.post_hoc import LENGTHS, Fit, PowerFunction, fit
from training.step import TrainState

# Relative errors of a reconstructed average: what is refused, and what earns a warning.
_REFUSED, _COARSE = 0.1, 0.01


@final
class Snapshots:
    """The snapshots that a training run writes; none if it keeps no power-function averages.

    They have the parameters' type, float32. Coefficients of short lengths have both signs, so the
    rounding of float16 would show; and parameters below 3e-8 would become 0.

    Args:
        workdir: the folder of the run.
        averages: what is kept, and how often it is stored.
        step: the step at which training starts. Snapshots of later steps are deleted, because
            training may take another path to them.
    """

    def __init__(self, workdir: Workdir, averages: MoreAverages, step: int) -> None:
        self._averages = averages
        self._checkpoints = Checkpoints(workdir.snapshots, keep=0)
        for folder in (workdir.snapshots, *workdir.averages.glob("length_*")):
            Checkpoints(folder).remove_after(step)

    def are_due(self, step: int, *, ends: bool) -> bool:
        """Return whether this step is stored; the last one of training is."""
        every = self._averages.snapshot_every
        return every > 0 and (ends or step % every == 0)

    def save(self, step: int, state: TrainState, record: dict[str, Any]) -> None:
        """Store the averages in the background; raise CheckpointError as `Checkpoints.save`."""
        stored = {name: state.averages[name] for name in self._averages.powers}
        self._checkpoints.save(step, stored, record)

    def close(self) -> None:
        """Wait until all are on the disk. The object may be used again.

        Raises:
            CheckpointError: if they cannot be written.
        """
        self._checkpoints.close()


def kept_averages(workdir: Workdir) -> MoreAverages:
    """Return what a run keeps beside its main average, from its own configuration.

    Raises:
        WorkdirError: if there is no run.
    """
    saved = workdir.read_config()["ema"]
    names = [field.name for field in dataclasses.fields(MoreAverages)]
    given: dict[str, Any] = {name: saved[name] for name in names if saved.get(name) is not None}
    return MoreAverages(**to_builtin(given))


class Reconstructed(NamedTuple):
    """An average in the run's folder, and the relative error of its weights."""

    length: float
    step: int
    error: float
    snapshots: int

    @property
    def name(self) -> str:
        """Its name, as --ema takes it."""
        return length_name(self.length)

    def __str__(self) -> str:
        coarse = ", coarse: more snapshots would make it better" if self.error > _COARSE else ""
        return (
            f"average of length {self.length} at step {self.step}, from {self.snapshots} "
            f"snapshots, relative error {self.error:.1e}{coarse}"
        )


def parse_lengths(text: str) -> list[float]:
    """Return lengths from numbers that are separated by commas, ascending.

    Raises:
        ConfigError: for other text, or a length out of range.
    """
    try:
        lengths = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError(
            f"--length={text} must be a number or several, such as 0.08 or 0.05,0.08,0.1"
        ) from error
    try:
        for length in lengths:
            require_in("--length", length, LENGTHS)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return lengths


def reconstruct(
    experiment: Experiment, workdir: Workdir, length: float, step: int | None = None
) -> Reconstructed:
    """Make the power-function average of a length at a step, by default the last one stored.

    Raises:
        ConfigError: for a length that the snapshots cannot represent, or no snapshot at `step`.
        WorkdirError: if there are no snapshots of this run.
        CheckpointError: if snapshots are damaged.
    """
    workdir.check(experiment.config, training=False)
    stored, averages = Checkpoints(workdir.snapshots, keep=0), kept_averages(workdir)
    steps = _steps(averages, workdir, stored, step)
    name, last = length_name(length), steps[-1]
    found = _fit(averages, steps, length)
    kept = Checkpoints(workdir.averages / name, keep=0)
    with locked(workdir.averages / f".{name}.lock", leads=experiment.parallel.leads):
        if not _is_there(kept, last, experiment):
            average = _combine(experiment, averages, stored, steps, found)
            kept.save(last, average, workdir.read_config() | {"relative_error": found.error})
            kept.close()
    return Reconstructed(length, last, found.error, len(steps))


def _steps(
    averages: MoreAverages, workdir: Workdir, stored: Checkpoints, step: int | None
) -> list[int]:
    """Return the steps with snapshots up to `step`.

    Raises:
        WorkdirError: if there are none, or one is of another run.
        ConfigError: if there is none at `step`.
    """
    steps = list(stored.steps())
    if not steps:
        every = averages.snapshot_every
        remedy = (
            f"train on: the first comes at step {every}"
            if every
            else (
                "train a new run with --config.ema.snapshot_every=STEPS, such as a hundredth of "
                "config.training.steps"
            )
        )
        raise WorkdirError(f"there are no snapshots of averages in {workdir.snapshots}; {remedy}")
    if step is not None and step not in steps:
        raise ConfigError(
            f"--checkpoint={step} has no snapshot in {workdir.snapshots}; steps with one are: "
            f"{', '.join(map(str, steps))}"
        )
    steps = [found for found in steps if step is None or found <= step]
    for found in steps:
        with _damage_has_a_remedy():
            recorded = stored.config(found)
        if misfits := workdir.misfits(recorded):
            raise WorkdirError(
                f"{workdir.snapshots / str(found)} is a snapshot of another run: "
                f"{'; '.join(misfits)}. Remove it"
            )
    return steps


def _fit(averages: MoreAverages, steps: list[int], length: float) -> Fit:
    lengths = averages.lengths
    functions = [PowerFunction(step, each) for step in steps for each in lengths]
    found = fit(functions, PowerFunction(steps[-1], length))
    if found.error > _REFUSED:
        raise ConfigError(
            f"--length={length} cannot be made of {len(steps)} snapshots of the lengths "
            f"{', '.join(map(str, lengths))}: the relative error would be {found.error:.2f}, above "
            f"{_REFUSED}. Choose a length closer to these, or train with a smaller "
            "config.ema.snapshot_every"
        )
    return found


def _is_there(kept: Checkpoints, step: int, experiment: Experiment) -> bool:
    """Return whether an average is made already; a damaged one is to be made again."""
    if step not in kept.steps():
        return False
    with suppress(CheckpointError):
        return kept.restore(experiment.trainer.abstract_state().params, step) is not None
    return False


def _combine(
    experiment: Experiment,
    averages: MoreAverages,
    stored: Checkpoints,
    steps: list[int],
    found: Fit,
) -> Any:
    """Return the sum of the snapshots, in double precision, as parameters."""
    params = experiment.trainer.abstract_state().params
    names = list(averages.powers)
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    coefficients = found.coefficients.reshape(len(steps), len(names))
    rows = zip(steps, coefficients, strict=True)
    for step, row in tqdm(rows, total=len(steps), desc="snapshots", dynamic_ncols=True):
        with _damage_has_a_remedy():
            restored = stored.restore(dict.fromkeys(names, params), step)
        assert restored is not None
        parts = [experiment.parallel.fetch_tree(restored.state[name]) for name in names]
        total = jax.tree.map(partial(_add, row), total, *parts)
    return jax.tree.map(lambda sum, leaf: sum.astype(leaf.dtype), total, params)


@contextmanager
def _damage_has_a_remedy() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Remove this snapshot; the others make the average, with a larger error"
        ) from error


def _add(coefficients: np.ndarray, total: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    return total + sum(c * part.astype(float) for c, part in zip(coefficients, parts, strict=True))
