"""Locks: one process at a time, freed however it ends, and the second knows who holds it."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from command_line import ROOT

from errors import WorkdirError
from files.locks import locked
from files.writing import write_file

HOLD = """
    import sys, time
    from pathlib import Path
    from files.locks import locked
    from files.writing import write_file

    def write_half(temporary):
        temporary.write_text("half")
        print("held", flush=True)
        time.sleep(60)

    folder = Path(sys.argv[1])
    with locked(folder / ".lock"):
        write_file(folder / "a.json", write_half)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_process_is_refused_and_disturbs_nothing(tmp_path, holder):
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(WorkdirError, match=f"process {holder.pid} on .*Wait until it ends"):  # noqa: SIM117
        with locked(tmp_path / ".lock"):
            pytest.fail("both hold it")
    write_file(tmp_path / "a.json", lambda temporary: temporary.write_text("whole"))
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "a.json"])


def test_lock_of_a_killed_process_is_free_and_what_it_left_is_deleted(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(os.listdir(tmp_path)) == 2
    with locked(tmp_path / ".lock"):
        assert os.listdir(tmp_path) == [".lock"]
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert os.listdir(tmp_path) == []


def test_unfinished_files_of_running_processes_stay(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        with locked(tmp_path / ".lock"):
            assert temporary.exists()

    write_file(tmp_path / "a.json", write)
    assert (tmp_path / "a.json").read_text() == "half"
