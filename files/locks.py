"""Locks: one process at a time works in a folder; the error of a second one names the first.

The operating system frees a lock when its process ends, however it ends.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from absl import logging

from errors import WorkdirError
from files.writing import remove_abandoned


@contextmanager
def locked(path: Path, *folders: Path, leads: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that exists; delete it afterwards.

    What killed processes left half-written in that folder and in `folders` is deleted. Of several
    processes that work together, only the one that leads does all this.

    Raises:
        WorkdirError: if another process holds it; the message says which.
    """
    if not leads:
        yield
        return
    file = _acquire(path)
    try:
        for folder in (path.parent, *folders):
            remove_abandoned(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _acquire(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise WorkdirError(
                f"{path.parent} is in use by {holder}. Wait until it ends, or stop it"
            ) from error
        except OSError as error:
            logging.warning("%s cannot be locked, so nothing else may write there: %s", path, error)
            return file
        if _is_current(file, path):
            break
        file.close()  # its last holder deleted it meanwhile
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join(sys.argv)[:200]
    print(
        f"process {os.getpid()} on {socket.gethostname()}, since {started} ({command})",
        file=file,
        flush=True,
    )
    return file


def _is_current(file: IO[str], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
