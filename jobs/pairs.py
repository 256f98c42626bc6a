"""Pairs (x0, x1) that another run simulates: its samples x0, and the ends x1 where they started.

A network that is trained on the pairs of a flow has straighter paths (reflow, Liu et al. 2022,
arXiv:2209.03003). One that is trained in the other direction on the pairs of a bridge is a step of
iterative Markovian fitting (Shi et al. 2023, arXiv:2303.16852).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from data.couplings import Simulated
from errors import CheckpointError, ConfigError, WorkdirError
from experiment.experiment import Experiment
from experiment.randomness import base_key
from experiment.sampler import Checkpoint, Conditioned
from jobs.cache import batches_of
from jobs.restore import experiment_of, load_checkpoint
from jobs.workdir import Workdir, run_and_step
from numerics.arrays import normal_like, sample_keys

_FIELD = "config.coupling.run"


def simulate_pairs(experiment: Experiment) -> Float32[np.ndarray, "n two ..."] | None:
    """Return the pairs that the run of config.coupling.run simulates, in the network's range.

    They depend on the seed, the run's parameters and their number alone. None if the coupling
    needs no run. Where the data sets of the two runs have changed places, so have the pairs' ends.

    Raises:
        ConfigError: if there is no such run, or it has other data sets or another scaling.
    """
    if (found := find_simulator(experiment)) is None:
        return None
    teacher, workdir, step = found
    coupling: Any = experiment.ends.coupling
    try:
        checkpoint = load_checkpoint(teacher, workdir, step)
    except (CheckpointError, WorkdirError) as error:
        raise ConfigError(f"{_FIELD}={coupling.run!r}: {error}") from error
    print(f"the pairs are those of {workdir.path} at step {checkpoint.step}")
    ends = teacher.ends.given or teacher.data
    count = coupling.samples or len(ends.splits.train)
    pairs = _simulated(teacher, checkpoint, count, experiment.seed)
    return pairs if experiment.ends.sets == teacher.ends.sets else pairs[:, ::-1]


def find_simulator(experiment: Experiment) -> tuple[Experiment, Workdir, int | None] | None:
    """Return the experiment, the folder and the step that `config.coupling.run` names.

    None if the coupling needs no run.

    Raises:
        ConfigError: if there is no such run or checkpoint, or it has other data sets or another
            scaling.
    """
    coupling = experiment.ends.coupling
    if not isinstance(coupling, Simulated):
        return None
    run, step = run_and_step(coupling.run)
    workdir, field = Workdir(run), f"{_FIELD}={coupling.run!r}"
    try:
        teacher = experiment_of(workdir)
        _require_fitting(experiment, teacher, field)
        workdir.require_checkpoint(step)
    except (CheckpointError, WorkdirError) as error:
        raise ConfigError(f"{field}: {error}") from error
    return teacher, workdir, step


def _require_fitting(experiment: Experiment, teacher: Experiment, field: str) -> None:
    """Raise ConfigError unless the data sets are the same, perhaps with their places changed."""
    ours, theirs = experiment.ends.sets, teacher.ends.sets
    if ours not in (theirs, theirs[::-1]):
        raise ConfigError(
            f"{field} has config.data.name={theirs[0]!r} and config.coupling.data={theirs[1]!r}, "
            f"and this run {ours[0]!r} and {ours[1]!r}; give the same two"
        )
    if experiment.data.scaler != teacher.data.scaler or experiment.data.shape != teacher.data.shape:
        raise ConfigError(
            f"{field} has data of shape {teacher.data.shape} in another scaling, "
            f"{teacher.data.scaler}, not {experiment.data.scaler}; give config.data.mean and "
            "config.data.std to both runs"
        )


def _simulated(
    teacher: Experiment, checkpoint: Checkpoint, count: int, seed: int
) -> Float32[np.ndarray, "n two ..."]:
    parallel, ends, parts = teacher.parallel, teacher.ends, []
    key = base_key(seed, "pairs")
    with tqdm(total=count, desc="simulating pairs", dynamic_ncols=True, mininterval=0.5) as bar:
        for indices in batches_of(count, teacher.evaluation.batch_size):
            placed = parallel.place(indices)
            x1: Any
            if ends.given is None:
                noise = jnp.zeros((len(placed), *teacher.data.shape))
                x1 = normal_like(sample_keys(key, placed), noise)
            else:
                rows = parallel.fetch(placed) % len(ends.given.splits.train)
                x1 = ends.rows("train", rows, seed)
            denoiser = teacher.sampler.with_classes(checkpoint, placed)
            x0 = teacher.sampler.states(Conditioned(denoiser, initial=x1), placed, seed).x
            pair = np.stack([parallel.fetch(x0), parallel.fetch(x1)], axis=1)
            parts.append(pair[: len(indices)])
            bar.update(len(indices))
    return np.concatenate(parts)
