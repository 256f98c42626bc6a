"""Kept copies, on this machine, of what lies in buckets: only what has changed is copied again.

They are in the user's cache, $XDG_CACHE_HOME/scoresde/buckets or ~/.cache/scoresde/buckets, where
objects of one folder lie in one folder too. Several processes may want the same copy: one of them
makes it, and the others wait.
"""

import hashlib
import os
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from errors import BucketError
from files.buckets import AT_A_TIME, download, names_below, remove, require_access
from files.cache import cache_folder
from files.locks import locked
from files.paths import AnyPath, as_path, bucket_errors, in_bucket

_PARTIAL = re.compile(r"(.*/)?\.[^/]*\.partial")  # files that a process has not finished


def local_copy(path: AnyPath) -> Path:
    """Return a file or folder of this machine with the content of `path`: itself, or a kept copy.

    Objects are copied again if their size or time has changed. A path that does not exist is
    returned without a copy.

    Raises:
        OSError: if the copy cannot be written.
        BucketError: if the bucket cannot be read.
    """
    if not in_bucket(path):
        return path
    require_access(path.parent if path.parent.name else path)
    target = _place_of(path)
    with bucket_errors(path):
        is_folder = path.is_dir()
    if is_folder:
        _update(path, target, names_below(path), names_below(target))
        return target
    try:
        _stamp(path)
    except FileNotFoundError:
        remove(target)
        return target
    _update(path.parent, target.parent, [path.name], [])
    return target


def local_matches(path: AnyPath) -> Path:
    """Return a pattern of this machine for the files that a pattern in a bucket stands for.

    * and ? in the last part of `path` stand for several objects. All are copied, as `local_copy`.

    Raises:
        as `local_copy`.
    """
    if not in_bucket(path):
        return path
    require_access(path.parent if path.parent.name else path)
    pattern, target = path.name, _place_of(path)
    with bucket_errors(path):
        try:
            names = sorted(each.name for each in path.parent.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            names = []
    there = sorted(os.listdir(target.parent)) if target.parent.is_dir() else []
    chosen, kept = (
        [name for name in each if fnmatchcase(name, pattern)] for each in (names, there)
    )
    _update(path.parent, target.parent, chosen, kept)
    return target


def local_input(name: str) -> Path:
    """Return the file or folder of this machine that a user's path names, as `local_copy`."""
    return local_copy(as_path(name))


def _place_of(path: AnyPath) -> Path:
    """Return where the copy of a path is; what lies beside it in the bucket lies beside it here."""
    digest = hashlib.sha256(os.fspath(path.parent).encode()).hexdigest()[:16]
    return cache_folder() / "buckets" / digest / path.name


def _update(folder: AnyPath, target: Path, names: Sequence[str], there: Sequence[str]) -> None:
    """Copy the objects `names` of a folder where copies are missing or old.

    Of the files `there`, those without an object are deleted.

    Raises:
        OSError, BucketError: as `local_copy`.
    """
    gone = [name for name in set(there).difference(names) if not _PARTIAL.fullmatch(name)]
    try:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            current = list(pool.map(lambda name: _is_current(folder / name, target / name), names))
            old = [name for name, same in zip(names, current, strict=True) if not same]
            if not (old or gone):
                return
            lock = target.with_name(f".{target.name}.lock")
            lock.parent.mkdir(parents=True, exist_ok=True)
            with locked(lock, *{(target / name).parent for name in old}, waits=True):
                list(pool.map(lambda name: _copy(folder / name, target / name), old))
                for name in gone:
                    (target / name).unlink(missing_ok=True)
    except FileNotFoundError:
        raise BucketError(f"{folder} has changed while it was copied; run again") from None
    except OSError as error:
        address = os.fspath(folder / names[0] if len(names) == 1 else folder)
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"the copy of {address} cannot be written ({reason}); it needs as much space as the "
            "data: set XDG_CACHE_HOME to a folder on a larger disk",
        ) from error


def _stamp(path: AnyPath) -> tuple[int, int]:
    """Return the size and the time of an object."""
    with bucket_errors(path):
        found: Any = path.stat()
    return found.length, found.mtime


def _is_current(path: AnyPath, target: Path) -> bool:
    """Return whether the copy of an object has its size and time."""
    stamp = _stamp(path)
    try:
        there = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (there.st_size, int(there.st_mtime)) == stamp


def _copy(path: AnyPath, target: Path) -> None:
    """Copy an object, unless another process has done so."""
    if _is_current(path, target):
        return
    _, time = _stamp(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name that `files.writing` gives to unfinished files, so that it deletes abandoned ones.
    partial = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        download(path, partial)
        os.utime(partial, (time, time))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
