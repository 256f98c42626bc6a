"""Copies of objects: made again when those change, by one process at a time."""

import os
import socket
import threading

import pytest

from files import copies
from files.buckets import names_below
from files.copies import local_copy, local_input, local_matches
from files.locks import locked
from files.paths import as_path
from files.writing import write_json


def test_only_changed_objects_are_copied_again(root, run, monkeypatch):
    for name in ("a", "b/c", "gone"):
        write_json(run / name, name)
    copied, original = [], copies.download
    monkeypatch.setattr(
        copies,
        "download",
        lambda path, target: (copied.append(path.name), original(path, target)),
    )
    folder = local_copy(run)
    assert names_below(folder) == ["a", "b/c", "gone"]
    assert (folder / "b/c").read_text() == '"b/c"\n'
    copied.clear()
    (root / "run/gone").unlink()
    write_json(run / "a", "new")
    os.utime(root / "run/a", (1, 1))
    assert local_copy(run) == folder
    assert copied == ["a"]
    assert names_below(folder) == ["a", "b/c"]
    assert (folder / "a").read_text() == '"new"\n'


def test_copy_that_is_cut_short_is_no_file(run, monkeypatch):
    write_json(run / "a", 1)

    def fail(path, target):
        target.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(copies, "download", fail)
        with pytest.raises(OSError, match=r"gs://bucket/run/a .*No space.*XDG_CACHE_HOME"):
            local_copy(run / "a")
    assert local_input("gs://bucket/run/a").read_text() == "1\n"


def test_files_that_another_process_is_copying_stay_and_those_of_a_killed_one_go(root, run):
    for name in ("a", "b/c", "gone"):
        write_json(run / name, name)
    folder, host = local_copy(run), socket.gethostname()
    running, killed = (folder / f"b/.c.{host}-{each}.partial" for each in (os.getppid(), 2**22 + 1))
    for file in (running, killed):
        file.write_text("half")
    write_json(run / "b/c", "new")
    os.utime(root / "run/b/c", (1, 1))
    (root / "run/gone").unlink()
    local_copy(run)
    assert names_below(folder) == ["a", f"b/{running.name}", "b/c"]


def test_process_waits_for_one_that_copies_and_copies_nothing_again(root, run, monkeypatch):
    write_json(run / "a", 1)
    place, copied = copies._place_of(run), []
    place.parent.mkdir(parents=True)
    monkeypatch.setattr(copies, "download", lambda path, target: copied.append(path.name))
    waiting = threading.Thread(target=local_copy, args=(run,))
    with locked(place.with_name(".run.lock")):
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        place.mkdir()
        (place / "a").write_bytes((root / "run/a").read_bytes())
        found = (root / "run/a").stat()
        os.utime(place / "a", (int(found.st_mtime),) * 2)
    waiting.join(10.0)
    assert not waiting.is_alive()
    assert copied == []
    assert os.listdir(place.parent) == ["run"], "no lock is left"


def test_pattern_stands_for_the_objects_that_match_now(root, run):
    for name in ("x-0", "x-1", "y"):
        write_json(run / name, name)
    pattern = local_matches(run / "x-*")
    assert sorted(os.listdir(pattern.parent)) == ["x-0", "x-1"]
    (root / "run/x-0").unlink()
    assert local_matches(run / "x-?").parent == pattern.parent
    assert os.listdir(pattern.parent) == ["x-1"]
    assert local_copy(run / "y").parent == pattern.parent, "neighbors stay neighbors"
    assert local_matches(as_path("gs://bucket/none/x-*")).name == "x-*"
