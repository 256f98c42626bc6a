"""A power cut loses what is not yet on the disk: files are synced before anything depends on them.

`calls` records, in order, what was synced, renamed and deleted. The campaign on a real file system
is `tests/power_cuts.py`.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from files.writing import write_json
from training.checkpoints import Checkpoints


@pytest.fixture
def calls(monkeypatch):
    made = []

    def record(module, name, describe):
        function = getattr(module, name)

        def recorded(*args, **options):
            # A removal counts from its start, all others from their end.
            made.extend([(name, describe(args))] if name in ("rmtree", "unlink") else [])
            result = function(*args, **options)
            made.extend([] if name in ("rmtree", "unlink") else [(name, describe(args))])
            return result

        monkeypatch.setattr(module, name, recorded)

    record(os, "fsync", lambda args: os.readlink(f"/proc/self/fd/{args[0]}"))
    for name in ("rename", "replace"):
        record(os, name, lambda args: (str(args[0]), str(args[1])))
    record(os, "unlink", lambda args: str(args[0]))
    record(shutil, "rmtree", lambda args: str(args[0]))
    return made


def place(calls, wanted):
    """The place of the last call that fits, and an error if there is none."""
    places = [i for i, call in enumerate(calls) if wanted(*call)]
    assert places, calls
    return places[-1]


def test_file_is_on_the_disk_before_it_takes_its_name(tmp_path, calls):
    write_json(tmp_path / "new" / "a.json", {"a": 1})
    (renamed,) = (call for call in calls if call[0] == "replace")
    temporary, final = renamed[1]
    assert final == str(tmp_path / "new" / "a.json")
    moved = calls.index(renamed)
    assert place(calls, lambda name, what: (name, what) == ("fsync", temporary)) < moved
    assert place(calls, lambda name, what: (name, what) == ("fsync", str(tmp_path))) < moved
    assert calls[moved + 1] == ("fsync", str(tmp_path / "new"))


def test_checkpoint_is_on_the_disk_before_the_older_one_is_deleted(tmp_path, calls):
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    for step in (1, 2):
        checkpoints.save(step, {"w": np.arange(1000.0)}, {"a": step})
        checkpoints.wait()
    final = tmp_path / "run" / "2"
    visible = place(
        calls, lambda name, what: name in ("rename", "replace") and what[1] == str(final)
    )
    unfinished = Path(calls[visible][1][0])
    # Not Orbax's own marks beside the items, which loading does not need.
    written = [final / "SHA256SUMS", *final.glob("*/**/*")]
    assert len(written) > 5
    for path in [*written, final]:
        inside = str(unfinished / path.relative_to(final))
        synced = [i for i, call in enumerate(calls[:visible]) if call == ("fsync", inside)]
        assert synced, inside
    folder = ("fsync", str(tmp_path / "run"))
    durable = next(i for i, call in enumerate(calls) if call == folder and i > visible)
    deleted = place(calls, lambda name, what: name == "rmtree" and what.endswith("1.deleting"))
    assert durable < deleted
    assert not (tmp_path / "run" / "1").exists()
