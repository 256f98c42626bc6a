"""Data parallelism: one `data` axis over all devices.

`jax.jit` runs on global arrays: parameters are replicated, batches are split along their first
axis, and a mean over the batch is the mean over all devices. No other file of the project knows
about devices.

With several hosts (`training.hosts`) the axis is over the devices of all, and each host places its
own rows of a batch.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from numerics.arrays import digest, whole

_LEVEL = "xla_backend_optimization_level"


def in_order_of_hosts(devices: Any) -> list[Any]:
    """Return devices host by host, as the rows of a batch are divided over the hosts.

    Within a host they keep their order, which suits the network between them.
    """
    return sorted(devices, key=lambda device: device.process_index)


@dataclass(frozen=True)
class DataParallel:
    """A mesh of devices, and how arrays are placed on it."""

    mesh: Mesh

    @classmethod
    def over_all_devices(cls) -> "DataParallel":
        """Return the mesh of all devices that jax finds."""
        count = jax.device_count()
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
        devices = np.array(in_order_of_hosts(mesh.devices))
        return cls(Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types))

    @cached_property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def split(self) -> NamedSharding:
        """The sharding of an array whose rows are divided over the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @cached_property
    def split_second(self) -> NamedSharding:
        """The sharding of stacked batches, whose rows are divided over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(None, "data"))

    @property
    def leads(self) -> bool:
        """Whether this process writes what one process of several should write."""
        return jax.process_index() == 0

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.mesh.size

    @property
    def once(self) -> dict[str, int]:
        """Options of XLA for a program that runs rarely, and so is worth little optimization.

        On the CPU this is LLVM's first level. Level 0 is faster still, but rounds differently.
        """
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        chosen = _LEVEL in os.environ.get("XLA_FLAGS", "")  # by the user, for all programs
        return {_LEVEL: 1} if on_cpu and not chosen else {}

    @property
    def kind(self) -> str:
        """The kind of the devices, such as "cpu" or "Tesla V100-SXM2-32GB"."""
        return self.mesh.devices.flat[0].device_kind

    def matches(self, hardware: str) -> bool:
        """Return whether these are the devices that `hardware` names, as "8 V100" or "V100"."""
        *count, kind = hardware.split()
        return kind in self.kind and count in ([], [str(self.devices)])

    def describe(self, batch_size: int) -> str:
        """Return one line about a batch's division, for people."""
        hosts = jax.process_count()
        return (
            f"{batch_size} = {self.devices} device(s) x {batch_size // self.devices} "
            f"({self.kind}, {hosts} host(s))"
        )

    def check_batch(self, batch_size: int, field: str) -> None:
        """Raise ValueError unless the batch is positive and divides over the devices."""
        if batch_size < 1 or batch_size % self.devices:
            below = batch_size - batch_size % self.devices
            remedy = sorted({max(below, self.devices), max(below, 0) + self.devices})
            hosts = jax.process_count()
            where = f"{self.devices} device(s)" + (f" of {hosts} hosts" if hosts > 1 else "")
            raise ValueError(
                f"{field}={batch_size} does not divide over {where}; "
                f"use a positive multiple, such as {' or '.join(map(str, remedy))}"
            )

    def check_parts(self, batch_size: int, parts: int, field: str) -> None:
        """Raise ValueError unless each device's rows of a batch divide into `parts`."""
        rows = batch_size // self.devices
        if parts < 1 or rows % parts:
            fits = [str(number) for number in range(1, rows + 1) if rows % number == 0]
            shown = ", ".join(fits if len(fits) < 9 else [*fits[:8], "..."])
            raise ValueError(
                f"{field}={parts} does not divide the {rows} images of each device: batch_size="
                f"{batch_size} over {self.devices} device(s); use one of {shown}"
            )

    def part(self, rows: jax.Array, *, index: jax.Array, parts: int) -> jax.Array:
        """Return part `index` of a batch under jit, an equal share of each device's rows."""
        shares = rows.reshape(self.devices, parts, -1, *rows.shape[1:])
        chosen = jax.lax.dynamic_index_in_dim(shares, index, axis=1, keepdims=False)
        return self._constrained(chosen.reshape(-1, *rows.shape[1:]))

    def joined(self, parts: jax.Array) -> jax.Array:
        """Return the batch from all of its parts, stacked along a first axis; undoes `part`."""
        shares = parts.reshape(len(parts), self.devices, -1, *parts.shape[2:])
        return self._constrained(shares.swapaxes(0, 1).reshape(-1, *parts.shape[2:]))

    def _constrained(self, rows: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(rows, self.split)

    def local_rows(self, batch_size: int) -> slice:
        """Return the rows of a global batch that this process provides."""
        rows = batch_size // jax.process_count()
        return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def put_batch(self, local: np.ndarray) -> jax.Array:
        """Return a global array split over the devices, from the rows of this process."""
        return jax.make_array_from_process_local_data(self.split, local)

    def put_batches(self, local: np.ndarray) -> jax.Array:
        """Return global batches, stacked along a first axis that is not split."""
        return jax.make_array_from_process_local_data(self.split_second, local)

    def split_rows(self, everything: np.ndarray) -> jax.Array:
        """Return a global array split over the devices, from all of its rows."""
        return self.put_batch(everything[self.local_rows(len(everything))])

    def own_rows(self, indices: jax.Array) -> np.ndarray:
        """Return those of split indices that this process provides."""
        return self.fetch(indices)[self.local_rows(len(indices))]

    def divided(
        self, indices: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the float32 rows that `compute` makes of indices; each process makes its own.

        All processes must call it together.
        """
        local = compute(self.own_rows(self.place(indices)))
        return self.fetch(self.put_batch(local))[: len(indices)]

    def place(self, indices: np.ndarray) -> jax.Array:
        """Split indices over the devices; the last one is repeated until they divide."""
        padded = np.pad(indices, (0, -len(indices) % self.devices), mode="edge")
        return self.split_rows(padded)

    def largest(self, number: int) -> jax.Array:
        """Return the largest of the numbers that the hosts give, before it is known."""
        return self._largest(self.put_batch(np.full(jax.local_device_count(), number, np.int32)))

    @cached_property
    def _largest(self) -> Any:
        return jax.jit(jnp.max, out_shardings=self.replicated)

    def fetch(self, array: jax.Array | np.ndarray) -> np.ndarray:
        """Return the whole of a global array."""
        return whole(array)

    def fetch_tree(self, tree: Any) -> Any:
        """Return a tree of global arrays as NumPy arrays; all processes must call it together."""

        def whole(leaf: jax.Array) -> np.ndarray:
            if leaf.is_fully_replicated:
                return np.asarray(leaf.addressable_data(0))
            return self.fetch(leaf)

        return jax.tree.map(whole, tree)

    def digest(self, tree: Any) -> str:
        """Return the digest of the global arrays among the leaves of a tree, as `fetch_tree`."""
        arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
        return digest(self.fetch_tree(arrays))
