"""Work that is cut into batches, each kept in a file when done, so that a killed job goes on.

Every number belongs to an item's index, not to its batch, so the job that was killed at any moment
and started again ends with the same numbers. A file's name tells the part of the protocol that its
numbers depend on: what another protocol has in common with the one before is not done again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from files.writing import write_file
from jobs.workdir import flatten

Arrays = dict[str, np.ndarray]


def batches_of(count: int, batch_size: int) -> list[Int[np.ndarray, "batch"]]:
    """0, ..., count - 1 in equal batches (the last may be shorter) of at most `batch_size`."""
    parts = -(-count // batch_size)
    size = -(-count // parts)
    return [np.arange(first, min(first + size, count)) for first in range(0, count, size)]


class Resumable:
    """The folder of an unfinished job."""

    def __init__(self, folder: Path, protocol: dict) -> None:
        self._folder, self._fields = folder, flatten(protocol)

    def remove(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def stamped(self, name: str, *parts: str) -> str:
        """`name` with a digest of the protocol's fields that begin with one of `parts`."""
        fields = {key: value for key, value in self._fields.items() if key.startswith(parts)}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return f"{name}-{digest[:12]}"

    def keep(
        self,
        name: str,
        indices: Int[np.ndarray, "batch"],
        compute: Callable[[Int[np.ndarray, "batch"]], Arrays],
    ) -> Arrays:
        """`compute` of a batch of indices, from its file if it has one."""
        file = self._folder / f"{name}-{indices[0]}-{indices[-1]}.npz"
        if not file.exists():
            values = compute(indices)
            write_file(file, lambda temporary: np.savez(temporary, **values))
        with np.load(file) as stored:
            return dict(stored)

    def collect(
        self,
        name: str,
        count: int,
        batch_size: int,
        compute: Callable[[Int[np.ndarray, "batch"]], Arrays],
    ) -> Iterator[Arrays]:
        """`keep` of each batch of the indices below `count`, in order."""
        title = name.rpartition("-")[0]
        with tqdm(total=count, desc=title, dynamic_ncols=True, mininterval=0.5) as bar:
            for indices in batches_of(count, batch_size):
                yield self.keep(name, indices, compute)
                bar.update(len(indices))

    def gather(
        self,
        name: str,
        count: int,
        batch_size: int,
        compute: Callable[[Int[np.ndarray, "batch"]], Arrays],
    ) -> Arrays:
        """The same with the batches joined along their first axis."""
        parts = list(self.collect(name, count, batch_size, compute))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
