"""Images that are read when they are indexed, in the place of an array that memory cannot hold."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from data.fitting import Fit
from data.stored import Item, Items
from errors import FileError, ScoreSDEError

_AT_ONCE = 8  # images that a thread reads in one call


def thread_count() -> int:
    """Return the number of threads that read images: one per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 16)
    return min(os.cpu_count() or 1, 16)  # on macOS


class StreamedImages:
    """The images of a split as stored levels, read and fitted when they are indexed.

    It has the length, shape and type of an array (n, h, w, c) of uint8, and is indexed by a row, a
    slice or an array of rows. The result is an array in memory. Threads read its images.

    Args:
        items: the images as a reader gives them.
        fit: makes images of one size.
        rows: which of them, in this order; None for all.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, items: Items, fit: Fit, rows: Int64[np.ndarray, " n"] | None = None) -> None:
        self._items, self._fit, self._rows = items, fit, rows

    def __len__(self) -> int:
        return len(self._items) if self._rows is None else len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, height, width, channels)."""
        return (len(self), *self._fit.shape)

    @property
    def size(self) -> int:
        """The numbers in all images."""
        return int(np.prod(self.shape, dtype=np.int64))

    def subset(self, rows: Int64[np.ndarray, " m"]) -> "StreamedImages":
        """Return some of the images, without reading them."""
        chosen = rows if self._rows is None else self._rows[rows]
        return StreamedImages(self._items, self._fit, chosen)

    def item(self, row: int) -> Item:
        """Return an image as it is stored.

        Raises:
            FileError: if it cannot be read.
        """
        with _one_line_errors():
            return self._items[row if self._rows is None else int(self._rows[row])]

    def read(self, rows: Int64[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w c"]:
        """Return the images of some rows, read by this thread.

        Raises:
            FileError: if one cannot be read or does not fit.
        """
        images = np.empty((len(rows), *self._fit.shape), np.uint8)
        self._read_into(images, rows)
        return images

    def _read_into(self, images: np.ndarray, rows: np.ndarray) -> None:
        for place, row in enumerate(rows.tolist()):
            item = self.item(row)
            with _one_line_errors():
                images[place] = self._fit(item)

    def __getitem__(self, key: int | slice | np.ndarray | np.integer) -> UInt8[np.ndarray, "..."]:
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"image {key} of {len(self)}")
            return self.read(np.array([key % len(self)]))[0]
        rows = np.arange(len(self))[key]
        images = np.empty((len(rows), *self._fit.shape), np.uint8)
        parts = [slice(first, first + _AT_ONCE) for first in range(0, len(rows), _AT_ONCE)]
        if len(parts) < 2:
            self._read_into(images, rows)
            return images
        with ThreadPoolExecutor(thread_count(), thread_name_prefix="read") as threads:
            done = [threads.submit(self._read_into, images[part], rows[part]) for part in parts]
            try:
                for each in done:
                    each.result()
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        return images

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        return (self[row] for row in range(len(self)))


@dataclass(frozen=True)
class Converted:
    """Some images, converted when they are indexed by a slice; all together may not fit memory.

    Args:
        images: all images, as stored levels.
        rows: which of them, in order.
        convert: from stored levels to what is wanted.
    """

    images: np.ndarray | StreamedImages
    rows: Int64[np.ndarray, " n"]
    convert: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice) -> Shaped[np.ndarray, "m ..."]:
        return self.convert(self.images[self.rows[key]])


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn a ValueError of reading an image into the FileError that is printed as one line."""
    try:
        yield
    except ScoreSDEError:
        raise
    except ValueError as error:
        raise FileError(str(error)) from error
