"""Fingerprints of images: of their pixels, and of their files without decoding them.

All bytes of a small data set are hashed. Of a large one, the names and sizes of all files are
hashed, and the bytes at places spread evenly over them. The fingerprint does not depend on where
the files lie, on their times, or on whether the images are held in memory.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from data.bytes import read_part

_ALL = 2**28  # bytes up to which everything is hashed
_PLACES, _PLACE = 256, 2**14  # beyond that: places, and bytes at each
_BLOCK = 2**24  # bytes read at a time
_ROWS = 1024  # images read at a time


def fingerprint_of(
    names: Sequence[str], sizes: Int64[np.ndarray, " files"], paths: Sequence[str]
) -> str:
    """Return 64 hexadecimal digits that identify files by their names, sizes and bytes.

    Args:
        names: within the data set, in order.
        sizes: in bytes.
        paths: where the files are.

    Raises:
        FileError: if a file is gone or shorter than stated.
    """
    found = hashlib.sha256()
    for name, size in zip(names, sizes.tolist(), strict=True):
        found.update(f"{len(name)} {name} {size} ".encode("utf8", "surrogateescape"))
    for file, first, size in _parts(sizes):
        for start in range(first, first + size, _BLOCK):
            found.update(read_part(paths[file], start, min(_BLOCK, first + size - start)))
    return found.hexdigest()


def _parts(sizes: Int64[np.ndarray, " files"]) -> Iterator[tuple[int, int, int]]:
    """Yield what is hashed: number of the file, first byte, number of bytes."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    if total <= _ALL:
        yield from ((file, 0, size) for file, size in enumerate(sizes.tolist()))
        return
    places = np.linspace(0, total - 1, _PLACES).astype(np.int64)
    for place, file in zip(places, np.searchsorted(ends, places, side="right"), strict=True):
        size = int(sizes[file])
        first = max(0, min(int(place - ends[file]) + size, size - _PLACE))
        yield int(file), first, min(_PLACE, size - first)


def pixel_fingerprint(images: Shaped[Any, "n ..."]) -> str:
    """Return the SHA-256 of the rows' shape and bytes in C order, in hexadecimal digits."""
    found = hashlib.sha256(repr(tuple(map(int, images.shape))).encode())
    _update(found, images)
    return found.hexdigest()


def training_fingerprint(
    images: Shaped[Any, "n ..."], labels: Int32[np.ndarray, " n"] | None
) -> str:
    """Return 16 hexadecimal digits that identify images, their order and labels."""
    found = hashlib.sha256()
    for array in (images, labels):
        if array is not None:
            found.update(f"{array.dtype}{array.shape}".encode())
            _update(found, array)
    return found.hexdigest()[:16]


def _update(found: Any, array: Any) -> None:
    for first in range(0, len(array), _ROWS):
        found.update(np.ascontiguousarray(array[first : first + _ROWS]).data)
