"""What a configuration would do, told without allocating the network: `--mode=check`.

Everything is evaluated on abstract shapes (`jax.eval_shape`), so a network of any size is planned
in seconds.
"""

import json
from collections import Counter
from functools import partial
from typing import Any

import jax
import numpy as np

from data import datasets
from experiment.build import abstract_batch
from experiment.experiment import Experiment
from files.text import table


def describe(experiment: Experiment) -> str:
    """The resolved configuration, the parameters, and what training and sampling will cost."""
    config, training = experiment.config, experiment.config["training"]
    params = experiment.trainer.abstract_state().params
    evaluations = experiment.evaluations
    rows = [
        ("parameters", f"{_count(params):,} ({_count(params) / 1e6:.1f}M)"),
        ("train step", _memory(experiment)),
        ("batch", experiment.parallel.describe(training["batch_size"])),
        ("training", _epochs(config)),
        (
            "sampler",
            f"{config['sampling']['name']}: "
            + (f"{evaluations} network evaluations" if evaluations is not None else "adaptive")
            + " an image",
        ),
    ]
    asked = [config["sampling"][name] for name in ("task", "guidance")]
    if asked != ["generate", "none"]:
        rows.append(("asked", f"task {asked[0]}, guidance {asked[1]}"))
    return "\n\n".join([json.dumps(config, indent=2), parameter_table(params), table(rows)])


def parameter_table(params: Any) -> str:
    """Parameters of each top-level block of the network: arrays, count, share."""
    counts, arrays = Counter(), Counter()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        block = path[0].key
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


def _memory(experiment: Experiment) -> str:
    """State, gradients, and what the forward pass keeps for the backward pass, on each device."""
    trainer, parallel = experiment.trainer, experiment.parallel
    state, batch = trainer.abstract_state(), abstract_batch(experiment)

    def kept(params: Any, key: jax.Array, batch: jax.Array) -> Any:
        return jax.vjp(partial(trainer.objective, key=key, batch=batch), params)[1]

    activations = _bytes(jax.eval_shape(kept, state.params, jax.random.key(0), batch))
    activations = max(activations - _bytes(state.params), 0) / parallel.devices
    static = _bytes(state) + _bytes(state.params)
    return (
        f"about {(static + activations) / 1e9:.2f} GB a device "
        f"({static / 1e9:.2f} state and gradients, {activations / 1e9:.2f} activations at most)"
    )


def _epochs(config: dict) -> str:
    steps, batch_size = config["training"]["steps"], config["training"]["batch_size"]
    images = datasets.train_count(config["data"]["name"])
    if images is None:
        return f"{steps:,} steps (the epoch's length shows when the data are read)"
    return f"{steps:,} steps, {images / batch_size:.1f} steps an epoch of {images:,} images"
