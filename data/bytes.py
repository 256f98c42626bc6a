"""Bytes of files that lie where they were when they were listed; else one clear line.

Files are read by position instead of being mapped: a mapped file that is cut short ends the process
by a signal, and its pages count as memory of the process. Names such as gs://bucket/file are read
through `etils.epath`.
"""

import os
import stat
from typing import NamedTuple

from errors import FileError

_REMEDY = "put it back as it was, or rerun to list the files again"


class Stamp(NamedTuple):
    """What differs for another file at a path: its size, and the time of its last change in ns."""

    size: int
    changed: int


def stamp_of(path: str) -> Stamp:
    """Return the stamp of a local file."""
    found = os.stat(path)
    return Stamp(found.st_size, found.st_mtime_ns)


def require_unchanged(path: str, stamp: Stamp) -> None:
    """Raise FileError unless a local file has the stamp of when it was listed."""
    try:
        same = stamp_of(path) == stamp
    except FileNotFoundError as error:
        raise FileError(f"{path}: the file is gone since it was listed; {_REMEDY}") from error
    if not same:
        raise changed(path)


def changed(path: str) -> FileError:
    """Return the error for a file that is not as it was listed."""
    return FileError(f"{path}: the file has changed since it was listed; {_REMEDY}")


def read_file(path: str, size: int) -> bytes:
    """Return a file's content.

    Args:
        path: a local file, or a name with "://".
        size: its size in bytes when it was listed.

    Raises:
        FileError: if it is gone, is no regular file or has another size.
    """
    return read_part(path, 0, size, whole=True)


def read_part(path: str, first: int, size: int, *, whole: bool = False) -> bytes:
    """Return `size` bytes of a file from byte `first` on; `whole` if the file must end there.

    Raises:
        FileError: if the file is gone, is no regular file or is too short.
    """
    try:
        if "://" in path:
            from etils import epath

            with epath.Path(path).open("rb") as stream:
                stream.seek(first)
                found = stream.read(size + whole)
        else:
            found = _read_local(path, first, size + whole)
    except FileNotFoundError as error:
        raise FileError(f"{path}: the file is gone since it was listed; {_REMEDY}") from error
    except OSError as error:
        raise FileError(f"{path}: it cannot be read ({error.strerror or error})") from error
    if len(found) != size:
        raise changed(path)
    return found


def _read_local(path: str, first: int, size: int) -> bytes:
    # Not blocking: a pipe that took the file's place would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileError(f"{path}: it is no longer a regular file; {_REMEDY}")
        parts = []
        while size and (part := os.pread(descriptor, min(size, 2**30), first)):
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
