"""Locks: one process at a time works in a folder; the error of a second one names the first.

The operating system frees a lock when its process ends, however it ends. Buckets have leases
instead (`leases.py`).
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from absl import logging

from errors import WorkdirError
from files.leases import leased
from files.paths import AnyPath, in_bucket
from files.writing import remove_abandoned


@contextmanager
def locked(
    path: AnyPath, *folders: AnyPath, leads: bool = True, waits: bool = False
) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that exists; delete it afterwards.

    What killed processes left half-written in that folder and in `folders` is deleted. Of several
    processes that work together, only the one that leads does all this. With `waits`, which is
    for folders of this machine, a process that holds the lock is waited for.

    Raises:
        WorkdirError: if another process holds it, without `waits`; the message says which.
    """
    if not leads:
        yield
        return
    if in_bucket(path):
        with leased(path, _holder()):
            yield
        return
    file = _acquire(path, waits=waits)
    try:
        for folder in (path.parent, *folders):
            remove_abandoned(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _acquire(path: AnyPath, *, waits: bool) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    print(_holder(), file=file, flush=True)
    return file


def _holder() -> str:
    """Return how other processes name this one."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join(sys.argv)[:200]
    return f"process {os.getpid()} on {socket.gethostname()}, since {started} ({command})"


def _is_current(file: IO[str], path: AnyPath) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
