"""Lists of many files: compact in memory, and kept in the user's cache folder.

To list a million files takes minutes on a slow disk. So the list is kept, with the time of change
of each folder in it. A file that is added, removed or renamed changes the time of its folder, and
the list is then made again. A file that is overwritten does not: readers compare its size and its
own time, and forget the list if one differs.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int64, UInt8

from data.bytes import Stamp
from errors import FileError
from files.arrays import read_arrays
from files.cache import cache_folder
from files.writing import write_npz

_FORMAT = 2
_KEPT_FROM = 10_000  # files; shorter lists are made at once
_SETTLED = 2.0  # seconds: a folder that was changed later may change again at the same time stamp


class Names(Sequence[str]):
    """Many names in one array of bytes, an eighth of the memory of a list of text."""

    def __init__(self, content: UInt8[np.ndarray, " bytes"], ends: Int64[np.ndarray, " n"]) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Pack names; bytes that are no UTF-8 are kept."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        first = self.ends[index - 1] if index else 0
        return os.fsdecode(self.content[first : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        content, first = self.content.tobytes(), 0
        for end in self.ends.tolist():
            yield os.fsdecode(content[first:end])
            first = end


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files below a folder.

    Args:
        root: the folder.
        names: relative to it, in the order of their parts.
        sizes: in bytes.
        times: of their last changes, in ns.
    """

    root: str
    names: Names
    sizes: Int64[np.ndarray, " files"]
    times: Int64[np.ndarray, " files"]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Return the path of a file."""
        return f"{self.root}/{self.names[index]}"

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a file when it was listed."""
        return Stamp(int(self.sizes[index]), int(self.times[index]))


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies below a folder.

    Args:
        files: the files by split.
        folders: all folders that were read, with the times of their last change in ns.
        facts: whatever else was found; JSON.
    """

    files: dict[str, Files]
    folders: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)


def kept_listing(folder: Path, make: Callable[[], Listing]) -> Listing:
    """Return the list of a folder from the cache if the folder is unchanged; else make it."""
    file = _file_of(folder)
    if (found := _read(file, str(folder))) is not None:
        return found
    start = time.time()
    listing = make()
    settled = all(changed < (start - _SETTLED) * 1e9 for changed in listing.folders.values())
    if settled and sum(map(len, listing.files.values())) >= _KEPT_FROM:
        with suppress(OSError):  # a home that may not be written: it is listed again next time
            _write(file, str(folder), listing)
    return listing


@contextmanager
def as_listed(folder: str | Path) -> Iterator[None]:
    """Forget the kept list of a folder if files are read that are not as they were listed.

    The folders do not tell: a file that is overwritten leaves their times unchanged. So the next
    run would fail as this one.
    """
    try:
        yield
    except FileError:
        with suppress(OSError):
            _file_of(folder).unlink()
        raise


def _file_of(folder: str | Path) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    return cache_folder() / "listings" / f"{digest[:16]}.npz"


def _write(file: Path, folder: str, listing: Listing) -> None:
    folders = Names.of(listing.folders)
    about = {
        "format": _FORMAT,
        "folder": folder,
        "facts": listing.facts,
        "roots": {split: files.root for split, files in listing.files.items()},
    }
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "folders": folders.content,
        "folder_ends": folders.ends,
        "changed": np.array(list(listing.folders.values()), np.int64),
    }
    for split, files in listing.files.items():
        arrays[f"{split}_names"] = files.names.content
        arrays[f"{split}_ends"] = files.names.ends
        arrays[f"{split}_sizes"] = files.sizes
        arrays[f"{split}_times"] = files.times
    write_npz(file, arrays)


def _read(file: Path, folder: str) -> Listing | None:
    """Return the list in a file; None if it is missing, damaged or out of date."""
    if not file.exists():
        return None
    try:
        arrays = read_arrays(file, str(file))
        about = json.loads(arrays["about"].tobytes())
        if about["format"] != _FORMAT or about["folder"] != folder:
            return None
        names = Names(arrays["folders"], arrays["folder_ends"])
        folders = dict(zip(names, arrays["changed"].tolist(), strict=True))
        if any(os.stat(name).st_mtime_ns != changed for name, changed in folders.items()):
            return None
        files = {
            split: Files(
                root=root,
                names=Names(arrays[f"{split}_names"], arrays[f"{split}_ends"]),
                sizes=arrays[f"{split}_sizes"],
                times=arrays[f"{split}_times"],
            )
            for split, root in about["roots"].items()
        }
        return Listing(files=files, folders=folders, facts=about["facts"])
    except (FileError, OSError, KeyError, ValueError, TypeError):
        return None
