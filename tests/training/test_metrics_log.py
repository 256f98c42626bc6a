"""The log of scalars: repaired after a kill, cut where a run resumes, equal in TensorBoard."""

import json

import numpy as np
import pytest
from fake_buckets import fake_buckets

from files.paths import as_path
from training.metrics_log import MetricsLog, last_step, read_log


def written(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "half",
    [b'{"step": 3, "lo', b"{", b"3", b'{"loss": 1}', b"[]", b"\xff\x00\n\x80", b"[" * 10**5, b""],
    ids=lambda text: repr(text[:9]),
)
def test_record_is_repaired_and_cut_at_the_restored_step(tmp_path, half):
    log = MetricsLog(tmp_path, step=0)
    for step in range(1, 6):
        log.write(step, {"loss": 1 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(half)
    log = MetricsLog(tmp_path, step=3)
    log.write(4, {"loss": 0.5})
    log.close()
    assert written(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1 / 2},
        {"step": 3, "loss": 1 / 3},
        {"step": 4, "loss": 0.5},
    ]


def test_record_and_tensorboard_hold_the_same(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    log.write(1, {"loss": 0.25, "grad_norm": 3.0})
    log.image(1, "samples", np.zeros((4, 5, 1), np.uint8))
    assert written(tmp_path) == [{"step": 1, "loss": 0.25, "grad_norm": 3.0}], "at once"
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(tag in content for tag in (b"loss", b"grad_norm", b"samples"))


def test_nested_numbers_are_kept_and_shown_by_path(tmp_path):
    values = {"loss": 1.0, "groups": [1.0, 2.0], "levels": {"test": {"-1.50": 0.25}}}
    log = MetricsLog(tmp_path, step=0)
    log.write(3, values)
    log.close()
    assert read_log(tmp_path) == [{"step": 3, **values}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"levels/test/-1.50" in events.read_bytes()


def test_one_of_several_hosts_writes(tmp_path):
    log = MetricsLog(tmp_path, step=0, leads=False)
    log.write(1, {"loss": 1.0})
    log.image(1, "samples", np.zeros((4, 5, 1), np.uint8))
    log.close()
    assert not list(tmp_path.iterdir())
    assert read_log(tmp_path) == []


def test_log_in_a_bucket_is_that_of_a_folder(tmp_path):
    """It is there before a checkpoint is, and a resumed run cuts it."""
    with fake_buckets(tmp_path) as root:
        run, folder = as_path("gs://bucket/run"), root / "bucket/run"
        log = MetricsLog(run, step=0)
        log.write(1, {"loss": 1.0})
        assert not folder.exists(), "at most once a minute"
        log.flush()
        assert written(folder) == [{"step": 1, "loss": 1.0}]
        log.write(2, {"loss": 0.5})
        log.close()
        assert [row["step"] for row in read_log(run)] == [1, 2]
        log = MetricsLog(run, step=1)
        log.write(2, {"loss": 0.25})
        log.close()
        assert [row["loss"] for row in read_log(run)] == [1.0, 0.25]
        assert last_step(run) == 2
        assert any((folder / "tensorboard").iterdir())
    assert read_log(tmp_path) == []
