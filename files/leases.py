"""Leases: locks in buckets, where no operating system frees the lock of a process that ends.

A lease is an object that names its holder, who renews it all the time. Whoever finds one watches
it. If it is renewed, the folder is in use. If it is not, its holder is gone, and it is taken over.
No clocks are compared. Of two processes that write a lease at once, the later write stays, and
each reads it after a pause: so one of them has it, if a write takes less than the pause. If it
takes longer, the earlier one sees at its next renewal that it has lost the lease, and stops.
"""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from absl import logging

from errors import BucketError, WorkdirError
from files.buckets import write_object
from files.paths import AnyPath, bucket_errors
from files.writing import is_running

# Seconds: between renewals, without one until a holder counts as gone, and for a write to end.
RENEWS, GONE, PAUSE = 15.0, 60.0, 2.0
_LOOKS = 1.0  # seconds between looks at another's lease


@contextmanager
def leased(path: AnyPath, holder: str) -> Iterator[None]:
    """Hold the lease `path`, an object in a bucket; delete it afterwards.

    If another process takes it over, because this one could not renew it in time, this process is
    sent SIGTERM: it saves and stops.

    Args:
        path: the object.
        holder: how others name this process.

    Raises:
        WorkdirError: if another process holds it; the message says which.
        BucketError: if the bucket cannot be written.
    """
    lease = _Lease(path, holder)
    lease.acquire()
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        lease.release()


class _Lease:
    """One process's lease."""

    def __init__(self, path: AnyPath, holder: str) -> None:
        self._path = path
        self._content: dict[str, Any] = {
            "holder": holder,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "token": secrets.token_hex(8),
            "renewals": 0,
        }

    def acquire(self) -> None:
        found = self._read()
        if found and not _has_ended(found):
            self._watch(found)
        self._write()
        time.sleep(PAUSE)
        if not self._is_ours(found := self._read()):
            raise self._in_use(found)

    def keep(self, ended: threading.Event) -> None:
        """Renew the lease until `ended`, or until another process has it."""
        while not ended.wait(RENEWS):
            try:
                if self._is_ours(found := self._read()):
                    self._content["renewals"] += 1
                    self._write()
                    continue
            except BucketError as error:  # it may pass
                logging.warning("the lease of %s is not renewed: %s", self._path.parent, error)
                continue
            holder = found.get("holder", "nobody, since the lease was deleted")
            logging.error("%s is now in use by %s; stopping", self._path.parent, holder)
            os.kill(os.getpid(), signal.SIGTERM)
            return

    def release(self) -> None:
        with suppress(BucketError, OSError):
            if self._is_ours(self._read()):
                with bucket_errors(self._path):
                    self._path.unlink(missing_ok=True)

    def _watch(self, found: dict[str, Any]) -> None:
        """Return if the lease that was found is given up; raise WorkdirError if it is renewed."""
        print(
            f"{self._path.parent} is or was in use by {found.get('holder')}; looking for "
            f"{GONE:.0f} seconds whether that still runs",
            flush=True,
        )
        deadline = time.monotonic() + GONE
        while time.monotonic() < deadline:
            time.sleep(_LOOKS)
            now = self._read()
            if not now:
                return
            if now != found:
                raise self._in_use(now)

    def _in_use(self, found: dict[str, Any]) -> WorkdirError:
        return WorkdirError(
            f"{self._path.parent} is in use by {found.get('holder', 'another process')}. Wait "
            "until it ends, or stop it"
        )

    def _is_ours(self, found: dict[str, Any]) -> bool:
        return found.get("token") == self._content["token"]

    def _read(self) -> dict[str, Any]:
        """Return the lease; {} if there is none, or other content."""
        try:
            with bucket_errors(self._path):
                text = self._path.read_text()
            found = json.loads(text)
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        write_object(self._path, json.dumps(self._content).encode())


def _has_ended(found: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that does not run any more."""
    process = found.get("process")
    here = found.get("host") == socket.gethostname()
    return here and isinstance(process, int) and not is_running(process)
