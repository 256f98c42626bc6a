"""Describe what a configuration would do, without allocating the network: `--mode=check`.

The network is evaluated on abstract shapes (`jax.eval_shape`), so one of any size takes seconds.
Only the sampler runs, without a network, to measure the noise that it leaves.
"""

import json
import math
from collections import Counter
from functools import partial
from typing import Any

import jax
import numpy as np

from data import datasets
from experiment.build import abstract_batch
from experiment.experiment import Experiment
from experiment.leftover_noise import leftover_noise
from files.text import table
from jobs.compiled import describe_compiled
from jobs.data_plan import DataPlan, describe_data
from jobs.diagnostics import require_test_images
from training.objective import Context


def describe(experiment: Experiment, *, compiled: bool = False) -> str:
    """Return the resolved configuration, the parameters, and the cost of training and sampling.

    With `compiled`, XLA's own numbers and the accelerators that fit come last.

    Raises:
        ConfigError: for labels that are no classes of the network, and for two data sets whose rows
            cannot be paired as the coupling says.
    """
    training, sampler = experiment.training, experiment.sampler
    params = experiment.trainer.abstract_state().params
    evaluations = sampler.evaluations
    cost = (
        "adaptive"
        if evaluations is None
        else f"{evaluations} network evaluations per {experiment.data.kind.one}"
    )
    data = describe_data(experiment.data, experiment.model.num_classes)
    if experiment.diagnostics.every and data.test_count is not None:
        require_test_images(experiment.data.options.name, data.test_count)
    other = _other_data(experiment, data)
    rows = [
        ("parameters", f"{_count(params):,} ({_count(params) / 1e6:.1f}M)"),
        ("train step", _memory(experiment)),
        ("batch", experiment.parallel.describe(training.batch_size)),
        ("data", data.text),
        *([("data of the other ends", other.text)] if other else []),
        ("training", _epochs(experiment, data.train_count)),
        ("sampler", f"{sampler.name}: {cost}"),
    ]
    if experiment.trainer.sharding.divides:
        rows.append(("sharding", _sharding(experiment)))
    if averages := _averages(experiment, _bytes(params)):
        rows.append(("averages", averages))
    noise = leftover_noise(sampler, experiment.model.sde)
    if noise is not None:
        digits = 1 if experiment.data.kind.quantized else 4
        unit = experiment.data.noise_unit[1]
        rows.append(("noise left in samples", f"{noise:.{digits}f} {unit}"))
    if sampler.task is not None:
        rows.append(("task", sampler.task.name))
    if sampler.guidance.method is not None:
        rows.append(("guidance", sampler.guidance.name))
    config = json.dumps(experiment.config, indent=2)
    parts = [config, parameter_table(params), table(rows)]
    return "\n\n".join([*parts, describe_compiled(experiment)] if compiled else parts)


def _other_data(experiment: Experiment, data: DataPlan) -> DataPlan | None:
    """Return the plan of the second data set, if there is one; raise as `describe`."""
    ends = experiment.ends
    if ends.other is None:
        return None
    if not ends.other.kind.quantized:  # images are not read here
        ends.check_rows()
    other = describe_data(ends.other)
    if data.train_count and other.train_count:
        ends.check_counts(data.train_count, other.train_count)
    return other


def parameter_table(params: Any) -> str:
    """Return a table of the network's top-level blocks: arrays, parameters, share.

    A process that is trained with the network is one block more.
    """
    counts, arrays = Counter(), Counter()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [part.key for part in path]
        block = names[1] if names[0] == "network" else names[0]  # beside it is the process
        counts[block] += int(np.prod(leaf.shape))
        arrays[block] += 1
    total = sum(counts.values())
    rows = [("block", "arrays", "parameters", "share")]
    rows += [(b, str(arrays[b]), f"{n:,}", f"{n / total:.1%}") for b, n in counts.items()]
    return table([*rows, ("total", str(sum(arrays.values())), f"{total:,}", "100.0%")])


def _count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any) -> int:
    """Return the bytes that a device holds of a tree with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _sharding(experiment: Experiment) -> str:
    """Return how much of the state each device holds, or why it holds all."""
    trainer, state = experiment.trainer, experiment.trainer.abstract_state()
    if note := trainer.sharding.note(state.params, experiment.parallel):
        return note
    return (
        f"{trainer.sharding.shard}: each device holds {_bytes_per_device(state) / 1e9:.2f} of the "
        f"state's {_bytes(state) / 1e9:.2f} GB"
    )


def _memory(experiment: Experiment) -> str:
    """Return the memory per device: state, gradients, activations kept for the backward pass."""
    trainer = experiment.trainer
    state, batch = trainer.abstract_state(), abstract_batch(experiment)
    part = jax.ShapeDtypeStruct((len(batch) // trainer.accumulate, *batch.shape[1:]), batch.dtype)

    def kept(params: Any, key: jax.Array, batch: jax.Array) -> Any:
        # A teacher is taken to have the network of its student.
        teacher = experiment.model.denoiser(params) if experiment.trainer.loss.teacher else None
        context = Context(teacher=jax.lax.stop_gradient(teacher))
        objective = partial(trainer.objective, key=key, batch=batch, context=context)
        return jax.vjp(objective, params)[1]

    activations = _bytes(jax.eval_shape(kept, state.params, jax.random.key(0), part))
    activations = max(activations - _bytes(state.params), 0) / experiment.parallel.devices
    gradients = 1 if trainer.accumulate == 1 else 2  # that of a part, and their sum
    static = _bytes_per_device(state) + gradients * _bytes_per_device(state.params)
    return (
        f"about {(static + activations) / 1e9:.2f} GB per device "
        f"({static / 1e9:.2f} state and gradients, {activations / 1e9:.2f} activations at most)"
    )


def _averages(experiment: Experiment, size: int) -> str:
    """Return how many averages are kept besides the main one, and the disk that snapshots take."""
    more, steps = experiment.trainer.more_averages, experiment.training.steps
    stored, kept = len(more.powers), len(more.rates) + len(more.powers)
    if not stored:
        return f"{kept} besides the main one" if kept else ""
    snapshots = -(-steps // more.snapshot_every)
    total = snapshots * stored * size / 1e9
    return f"{kept} besides the main one; {snapshots} snapshots of {stored}, {total:.2f} GB on disk"


def _epochs(experiment: Experiment, images: int | None) -> str:
    steps, batch_size = experiment.training.steps, experiment.training.batch_size
    images = images or datasets.train_count(experiment.data.options.name)
    if images is None:
        return f"{steps:,} steps (the length of an epoch is known once the data are read)"
    return f"{steps:,} steps, {images / batch_size:.1f} steps per epoch of {images:,} rows"
