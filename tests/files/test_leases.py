"""Locks in buckets: one holder at a time; one that is gone is replaced, one that lives is named."""

import json
import os
import signal
import threading
import time

import pytest
from fake_buckets import fake_buckets

from errors import WorkdirError
from files import leases
from files.locks import locked
from files.paths import as_path


@pytest.fixture
def lock(tmp_path, monkeypatch):
    for name, seconds in (("RENEWS", 0.02), ("GONE", 0.4), ("_LOOKS", 0.02)):
        monkeypatch.setattr(leases, name, seconds)
    with fake_buckets(tmp_path):
        yield as_path("gs://bucket/run/.lock")


def lease(**fields):
    return json.dumps({"holder": "process 1 on far", "host": "far", "process": 1} | fields)


def test_second_process_is_refused_with_the_name_of_the_first(lock, capsys):
    with locked(lock):
        with (
            pytest.raises(
                WorkdirError, match=rf"^gs://bucket/run is in use by process {os.getpid()}"
            ),
            locked(lock),
        ):
            pass
        assert lock.exists(), "it is not that of the second"
    assert not lock.exists()
    assert "is or was in use by process" in capsys.readouterr().out
    with locked(lock):
        pass


@pytest.mark.slow
def test_lease_that_is_not_renewed_is_taken_over(lock):
    lock.write_text(lease(token="a"))
    start = time.monotonic()
    with locked(lock):
        assert time.monotonic() - start >= leases.GONE
        assert json.loads(lock.read_text())["process"] == os.getpid()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", lease(host=os.uname().nodename, process=2**22 + 1)]
)
def test_damaged_leases_and_those_of_ended_processes_here_are_taken_at_once(lock, content):
    lock.write_text(content)
    start = time.monotonic()
    with locked(lock):
        assert time.monotonic() - start < leases.GONE


def test_process_whose_lease_was_taken_over_is_stopped(lock):
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with locked(lock):
            lock.write_text(lease(token="other"))
            deadline = time.monotonic() + 10
            while not stopped.is_set() and time.monotonic() < deadline:
                time.sleep(0.01)
        assert stopped.is_set()
        assert "other" in lock.read_text(), "the lease of another stays"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_of_two_that_write_at_once_the_later_has_it(lock, monkeypatch):
    original = leases._Lease._write

    def overtaken(self):
        original(self)
        lock.write_text(lease(token="later"))

    monkeypatch.setattr(leases._Lease, "_write", overtaken)
    with pytest.raises(WorkdirError, match="in use by process 1 on far"), locked(lock):
        pass
    assert "later" in lock.read_text()


def test_processes_that_do_not_lead_take_no_lease(lock):
    with locked(lock, leads=False):
        assert not lock.exists()
