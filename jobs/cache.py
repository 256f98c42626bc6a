"""A cache of batches of results, so that a job that was killed continues where it stopped.

Every number belongs to an item's index and not to its batch. So a job that was killed at any moment
and started again ends with the same numbers.
"""

from collections.abc import Callable, Iterator

import numpy as np
from absl import logging
from jaxtyping import Int
from tqdm import tqdm

from errors import FileError
from files.arrays import read_arrays
from files.buckets import remove
from files.paths import AnyPath
from files.writing import write_npz
from training.hosts import agreed, leads, wait_for_all

Arrays = dict[str, np.ndarray]
Indices = Int[np.ndarray, "batch"]


def batches_of(count: int, batch_size: int) -> list[Indices]:
    """Split 0 .. count - 1 into equal batches of at most `batch_size`; the last may be shorter."""
    parts = -(-count // batch_size)
    size = -(-count // parts)
    return [np.arange(first, min(first + size, count)) for first in range(0, count, size)]


class ResultCache:
    """The folder of an unfinished job; each batch is a file.

    Names are those of `Protocol.key`: they carry a digest of all that the numbers depend on.
    """

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder

    def remove(self) -> None:
        """Delete the folder, when no host reads in it anymore."""
        wait_for_all("the cache")
        if leads():
            remove(self._folder)

    def get_or_compute(
        self, name: str, indices: Indices, compute: Callable[[Indices], Arrays]
    ) -> Arrays:
        """Return the arrays of a batch from its file, or compute and write them.

        A file that is damaged is made again.
        """
        file = self._folder / f"{name}-{indices[0]}-{indices[-1]}.npz"
        arrays = _read(file) if leads() else None
        if agreed(lambda: arrays is not None):
            return read_arrays(file, str(file)) if arrays is None else arrays
        arrays = {key: np.asarray(value) for key, value in compute(indices).items()}
        write_npz(file, arrays)
        return arrays

    def batches(
        self, name: str, count: int, batch_size: int, compute: Callable[[Indices], Arrays]
    ) -> Iterator[Arrays]:
        """Yield the arrays of each batch of the indices below `count`, in order."""
        title = name.rpartition("-")[0]
        with tqdm(total=count, desc=title, dynamic_ncols=True, mininterval=0.5) as bar:
            for indices in batches_of(count, batch_size):
                yield self.get_or_compute(name, indices, compute)
                bar.update(len(indices))

    def concatenate(
        self, name: str, count: int, batch_size: int, compute: Callable[[Indices], Arrays]
    ) -> Arrays:
        """Return the arrays of all batches, joined along their first axis."""
        parts = list(self.batches(name, count, batch_size, compute))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _read(file: AnyPath) -> Arrays | None:
    """Return the arrays in a file; None if it is missing or damaged."""
    if not file.exists():
        return None
    try:
        return read_arrays(file, str(file))
    except FileError as error:
        logging.warning("%s; it is made again", error)
        return None
