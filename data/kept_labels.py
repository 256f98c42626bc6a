"""Labels that lie within records: read in a pass over all of them, and kept in the cache folder.

They are read again when a file has another size or time of change.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Int32

from data.bytes import stamp_of
from errors import FileError
from files.arrays import read_arrays
from files.cache import cache_folder
from files.writing import write_npz

_KEPT_FROM = 10_000  # labels; fewer are read at once
_ARRAY = "labels"


def kept_labels(
    paths: Sequence[str], make: Callable[[], Int32[np.ndarray, " n"] | None]
) -> Int32[np.ndarray, " n"] | None:
    """Return the labels in some files from the cache if these are unchanged; else make them.

    Args:
        paths: the files.
        make: reads the labels; None if a record has none.
    """
    about = json.dumps([(path, stamp_of(path)) for path in paths])
    name = f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz"
    file = cache_folder() / "labels" / name
    if file.exists():
        with suppress(FileError, OSError, KeyError):  # a damaged copy is made again
            return read_arrays(file, str(file))[_ARRAY]
    labels = make()
    if labels is not None and len(labels) >= _KEPT_FROM:
        with suppress(OSError):  # a home that may not be written
            write_npz(file, {_ARRAY: labels})
    return labels
