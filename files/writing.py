"""Writing files atomically, and their checksums.

A file appears whole or not at all: it is written beside its final name, and moved there once it is
on the disk. Readers never see half of it, and neither a failed write nor a power cut loses the old
file. Each process writes under a name of its own, so two of them do not disturb each other.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_writes = True  # this process; see `write_nothing`
_WRITER = socket.gethostname()  # in the names of unfinished files, with the process


def write_nothing() -> None:
    """Let this process write no files from now on; of several hosts, the first writes for all."""
    global _writes
    _writes = False


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name in the same folder, then move the file to `path`.

    Raises:
        OSError: if the file cannot be written; the error names `path`.
    """
    if _writes:
        with unfinished(path) as temporary:
            write(temporary)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Give a temporary name for a file or folder; move what is written there to `path`.

    Raises:
        OSError: if it cannot be written; the error names `path`.
    """
    if not _writes:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, path.name)
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
        _remove(temporary)


def _remove(path: Path) -> None:
    """Delete a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Delete what processes of this machine had half-written in a folder when they were killed."""
    for file in folder.glob(f".*.{_WRITER}-*.partial*"):
        process = file.name.rpartition(".partial")[0].rpartition("-")[2]
        if process.isdecimal() and not _is_running(int(process)):
            _remove(file)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and write their entries to the disk."""
    if _writes and not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, from memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync folders, and then need not.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Write a file, or a folder with all that is below it, to the disk."""
    if path.is_file():
        sync(path)
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write named arrays to an .npz, whole or not at all."""
    save: Any = np.savez_compressed if compress else np.savez
    write_file(path, lambda temporary: save(temporary, **arrays))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
