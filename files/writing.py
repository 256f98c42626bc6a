"""Writing files atomically, and their checksums.

A file appears whole or not at all: it is written beside its final name, and moved there once it is
on the disk. Readers never see half of it, and neither a failed write nor a power cut loses the old
file. Each process writes under a name of its own, so two of them do not disturb each other.

In a bucket, an object appears whole anyway, and is safe once it is written. Files for it are made
in the temporary folder of this machine.
"""

import errno
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from files.buckets import remove, upload
from files.paths import AnyPath, bucket_errors, in_bucket

_writes = True  # this process; see `write_nothing`
_WRITER = socket.gethostname()  # in the names of unfinished files, with the process


def write_nothing() -> None:
    """Let this process write no files from now on; of several hosts, the first writes for all."""
    global _writes
    _writes = False


def write_file(path: AnyPath, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name on this machine, then move the file to `path`.

    Raises:
        OSError: if the file cannot be written; the error names `path`.
        BucketError: if `path` is in a bucket that cannot be used.
    """
    if _writes:
        with unfinished(path) as temporary:
            write(temporary)


@contextmanager
def unfinished(path: AnyPath) -> Iterator[Path]:
    """Give a temporary name for a file or folder; move what is written there to `path`.

    The files of a folder in a bucket appear one after the other, each of them whole.

    Raises:
        OSError: if it cannot be written; the error names `path`.
        BucketError: if `path` is in a bucket that cannot be used.
    """
    if in_bucket(path) or not _writes:
        with tempfile.TemporaryDirectory(prefix="scoresde-") as folder:
            temporary = Path(folder, path.name)
            yield temporary
            if _writes:
                upload(temporary, path)
        return
    temporary = path.with_name(f".{path.stem}.{_WRITER}-{os.getpid()}.partial{path.suffix}")
    try:
        make_folder(path.parent)
        yield temporary
        sync_tree(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        remove(temporary)


def remove_abandoned(folder: AnyPath) -> None:
    """Delete what processes of this machine had half-written in a folder when they were killed."""
    if in_bucket(folder):  # where nothing is half-written
        return
    for file in folder.glob(f".*.{_WRITER}-*.partial*"):
        process = file.name.rpartition(".partial")[0].rpartition("-")[2]
        if process.isdecimal() and not is_running(int(process)):
            remove(file)


def is_running(process: int) -> bool:
    """Return whether this machine runs a process with this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def make_folder(path: AnyPath) -> None:
    """Make a folder and its parents, and write their entries to the disk; buckets need none."""
    if _writes and not in_bucket(path) and not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: AnyPath) -> None:
    """Write a file's content, or a folder's list of names, from memory to the disk.

    It does nothing in a bucket, where a write ends when all is safe.
    """
    if in_bucket(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync folders, and then need not.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: AnyPath) -> None:
    """Write a file, or a folder with all that is below it, to the disk, as `sync`."""
    if in_bucket(path):
        return
    if path.is_file():
        sync(path)
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def write_npz(path: AnyPath, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write named arrays to an .npz, whole or not at all."""
    save: Any = np.savez_compressed if compress else np.savez
    write_file(path, lambda temporary: save(temporary, **arrays))


def write_json(path: AnyPath, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def sha256_of(path: AnyPath) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with bucket_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
