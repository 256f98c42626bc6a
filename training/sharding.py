"""Fully sharded data parallelism: each device keeps a part of the parameters.

    at rest     a device holds 1/n of each large array: parameters, averages, optimizer state
    in a layer  the whole array, put together from the devices for this layer, and dropped again
    gradient    added up over the devices, of which each keeps its part

This is ZeRO's third stage (Rajbhandari et al. 2020, arXiv:1910.02054), as shardings of global
arrays: XLA inserts the communication. The mathematics is that of replicated arrays; sums may round
in another order. An array is divided along its largest dimension that the devices divide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from errors import require_choice, require_in
from training.parallel import DataParallel


def _replicated(shape: tuple[int, ...], devices: int, least: int) -> PartitionSpec:
    """Return the division of an array that each device holds whole."""
    return PartitionSpec()


def _divided(shape: tuple[int, ...], devices: int, least: int) -> PartitionSpec:
    """Return the division of an array with `least` elements along a dimension, else of none."""
    size = 1
    for length in shape:
        size *= length
    fitting = [axis for axis, length in enumerate(shape) if length and length % devices == 0]
    if devices == 1 or size < least or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, "data")


SHARDINGS: dict[str, Callable[[tuple[int, ...], int, int], PartitionSpec]] = {
    "none": _replicated,
    "params": _divided,
}


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How the arrays of a training state are divided over the devices.

    Args:
        shard: a name in SHARDINGS.
        min_size: elements of the smallest array that is divided.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    shard: str = "none"
    min_size: int = 65_536

    def __post_init__(self) -> None:
        require_choice("shard", self.shard, SHARDINGS)
        require_in("min_size", self.min_size, "[1, inf)")

    @property
    def divides(self) -> bool:
        """Whether it may divide arrays."""
        return self.shard != "none"

    def of(self, tree: Any, parallel: DataParallel) -> Any:
        """Return the sharding of each leaf of a tree of arrays or shapes."""
        rule, mesh = SHARDINGS[self.shard], parallel.mesh
        return jax.tree.map(
            lambda leaf: NamedSharding(mesh, rule(leaf.shape, parallel.devices, self.min_size)),
            tree,
        )

    def abstract(self, tree: Any, parallel: DataParallel) -> Any:
        """Return the shapes of a tree with their shardings: a template for restoring."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            *(tree, self.of(tree, parallel)),
        )

    def note(self, tree: Any, parallel: DataParallel) -> str:
        """Return why nothing of a tree is divided, though it is asked for; "" otherwise."""
        divided = [
            not found.is_fully_replicated for found in jax.tree.leaves(self.of(tree, parallel))
        ]
        if not self.divides or any(divided):
            return ""
        if parallel.devices == 1:
            return f"config.parallel.shard={self.shard!r} divides nothing: there is 1 device"
        return (
            f"config.parallel.shard={self.shard!r} divides nothing: no array has "
            f"config.parallel.min_size={self.min_size} elements and a dimension that "
            f"{parallel.devices} devices divide; lower min_size"
        )

    def with_whole_parameters(
        self, function: Callable, parallel: DataParallel, *, keep: bool = False
    ) -> Callable:
        """Return a function of (parameters, ...) that puts divided parameters together.

        Its derivative puts them together again, so that the memory holds them whole for as long as
        a layer needs them. What else the derivative needs is kept as always. With `keep`, whole
        parameters are kept from the forward to the backward pass. Functions with `jax.checkpoint`
        inside need that: from outside, what is kept of them would be everything.
        """
        if not self.divides or parallel.devices == 1:
            return function

        def whole(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
            if sharding.is_fully_replicated:
                return leaf
            # The first constraint is for the gradient, which is divided as soon as it is made.
            leaf = jax.lax.with_sharding_constraint(leaf, sharding)
            return jax.lax.with_sharding_constraint(leaf, parallel.replicated)

        @wraps(function)
        def wrapped(params: Any, *arguments: Any, **named: Any) -> Any:
            shardings = self.of(params, parallel)

            def of_divided(params: Any, *arguments: Any) -> Any:
                return function(jax.tree.map(whole, params, shardings), *arguments, **named)

            if keep:
                return of_divided(params, *arguments)
            leaves = zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)
            divided = {leaf.shape for leaf, found in leaves if not found.is_fully_replicated}
            policy = partial(_is_kept, frozenset(divided))
            return jax.checkpoint(of_divided, policy=policy)(params, *arguments)

        return wrapped


def _is_kept(divided: frozenset, primitive: Any, *inputs: Any, **_: Any) -> bool:
    """Return whether a backward pass keeps the result of an operation in the forward pass.

    `divided` are the shapes of divided parameters. These put together, and casts of them, are not
    kept.
    """
    if primitive.name == "convert_element_type":
        return inputs[0].shape not in divided
    return primitive.name != "sharding_constraint"
