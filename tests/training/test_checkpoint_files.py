"""Checkpoints in a bucket: the promises that they keep on a file system."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from fake_buckets import fake_buckets

from errors import BucketError, CheckpointError
from files.paths import as_path
from training import checkpoint_files
from training.checkpoints import Checkpoints

ADDRESS = "gs://bucket/run/checkpoints"
MARK = "commit_success.txt"  # by which Orbax says that a checkpoint is finished


class State(NamedTuple):
    params: dict


def state(seed):
    return State({"a": jnp.full((2, 3), seed, jnp.float32), "b": jnp.arange(seed + 1)})


def save(*steps, keep=3):
    checkpoints = Checkpoints(ADDRESS, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), {"at": step})
    checkpoints.close()
    return checkpoints


@pytest.fixture
def folder(tmp_path):
    with fake_buckets(tmp_path):
        yield tmp_path / "bucket/run/checkpoints"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_saved_is_restored_and_older_ones_are_deleted(folder):
    checkpoints = save(1, 2, 3, keep=2)
    assert checkpoints.steps() == (2, 3)
    assert names(folder) == ["2", "3"]
    found = Checkpoints(ADDRESS).restore(state(3))
    assert (found.step, found.config) == (3, {"at": 3})
    for name, array in state(3).params.items():
        assert np.array_equal(found.state.params[name], array)
    with pytest.raises(CheckpointError, match=f"{ADDRESS}/3 does not fit"):
        checkpoints.restore(state(4))
    assert checkpoints.config(2) == {"at": 2}


@pytest.mark.slow
def test_damaged_and_unfinished_checkpoints_are_passed_over_and_replaced(folder):
    save(1, 2, 3)
    (folder / "3" / MARK).unlink()  # as a save, or a deletion, that was killed
    array = max((folder / "2/state").rglob("d/*"), key=lambda file: file.stat().st_size)
    array.write_bytes(array.read_bytes()[:-1] + b"\0")
    checkpoints = Checkpoints(ADDRESS)
    assert checkpoints.steps() == (1, 2)
    assert checkpoints.restore(state(1)).step == 1
    with pytest.raises(CheckpointError, match=r"2 cannot be loaded: state/\S+ fails its checksum"):
        checkpoints.restore(state(2), step=2)
    checkpoints.save(2, state(2), {"at": 2})
    checkpoints.close()
    assert names(folder) == ["1", "2", "2.corrupt"], "the unfinished one is removed"
    assert Checkpoints(ADDRESS).restore(state(2)).step == 2
    for file in ("state/_METADATA", "SHA256SUMS"):
        (folder / "2" / file).unlink()
        with pytest.raises(CheckpointError, match=f"{file} is missing"):
            checkpoints.restore(state(2), step=2)


def test_deletion_begins_with_the_mark(folder, monkeypatch):
    for name in ("a", MARK, "z"):
        (as_path(ADDRESS) / "7" / name).write_text(name)
    assert checkpoint_files.finished_steps(as_path(ADDRESS)) == (7,)

    def stop(path):
        raise BucketError("the network is gone")

    monkeypatch.setattr("files.buckets.names_below", stop)
    checkpoint_files.delete(as_path(ADDRESS), 7)  # a warning: no reason to stop a run
    assert checkpoint_files.finished_steps(as_path(ADDRESS)) == ()
    assert names(folder / "7") == ["a", "z"]
    monkeypatch.undo()


def test_failing_network_is_no_damage(folder, monkeypatch):
    path = as_path(ADDRESS) / "7"
    (path / "SHA256SUMS").write_text("")

    def fail(self, *more, **named):
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(type(path), "read_text", fail)
    with pytest.raises(BucketError, match="the network is gone"):
        checkpoint_files.verify(path)
