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


def read_file(path: str, stamp: Stamp) -> bytes:
    """Return a file's content.

    Args:
        path: a local file, or a name with "://".
        stamp: its stamp when it was listed; of a name with "://", the size alone is compared.

    Raises:
        FileError: if it is gone, is no regular file or has another stamp.
    """
    return read_part(path, 0, stamp.size, whole=True, time=stamp.changed)


def read_part(
    path: str, first: int, size: int, *, whole: bool = False, time: int | None = None
) -> bytes:
    """Return `size` bytes of a file from byte `first` on; `whole` if the file must end there.

    `time` is that of its last change in ns, if that is compared.

    Raises:
        FileError: if the file is gone, is no regular file, is too short or has another time.
    """
    try:
        if "://" in path:
            from etils import epath

            with epath.Path(path).open("rb") as stream:
                stream.seek(first)
                found = stream.read(size + whole)
        else:
            found = _read_local(path, first, size + whole, time)
    except FileNotFoundError as error:
        raise FileError(f"{path}: the file is gone since it was listed; {_REMEDY}") from error
    except OSError as error:
        raise FileError(f"{path}: it cannot be read ({error.strerror or error})") from error
    if len(found) != size:
        raise changed(path)
    return found


def _read_local(path: str, first: int, size: int, time: int | None) -> bytes:
    # Not blocking: a pipe that took the file's place would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise FileError(f"{path}: it is no longer a regular file; {_REMEDY}")
        if time is not None and about.st_mtime_ns != time:
            raise changed(path)
        parts = []
        while size and (part := os.pread(descriptor, min(size, 2**30), first)):
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
