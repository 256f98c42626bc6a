"""Whole runs in a bucket: the same numbers as in a folder, and one line where it cannot be used."""

import json
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from command_line import TINY, flags, run, write_images

SHORT = TINY | {
    "training.steps": 2,
    "training.checkpoint_every": 2,
    "sampling.steps": 2,
    "eval.metrics": "('loss',)",
    "eval.loss_repeats": 1,
}
LONG = SHORT | {"training.steps": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of buckets with a data set, and a run in each kind of place."""
    root = tmp_path_factory.mktemp("buckets")
    (root / "bucket").mkdir()
    data = {"data.name": str(write_images(root / "bucket/images.npz", 16, 4))}
    done = run(*flags("train", root / "local", LONG | data))
    assert done.status == 0, done.stderr
    data = {"data.name": "gs://bucket/images.npz"}
    for fields in (SHORT, LONG):
        done = run(*flags("train", "gs://bucket/run", fields | data), buckets=root)
        assert done.status == 0, done.stderr
    assert "continuing from the checkpoint at step 2" in done.stdout
    return root


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


@pytest.mark.slow
def test_resumed_run_in_a_bucket_is_that_of_a_folder(root):
    assert losses(root / "bucket/run") == losses(root / "local")
    assert not (root / "bucket/run/.lock").exists()
    assert sorted(path.name for path in (root / "bucket/run/checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.slow
def test_samples_and_results_are_written_to_the_bucket(root):
    fields = LONG | {"data.name": "gs://bucket/images.npz"}
    done = run(*flags("sample", "gs://bucket/run", fields), "--num_samples=3", buckets=root)
    assert done.status == 0, done.stderr
    place = re.search(r"NFE \d+: gs:/(\S+)$", done.stdout, re.MULTILINE)[1]
    assert np.load(f"{root}{place}/samples.npz")["samples"].shape == (3, 8, 8, 1)
    done = run(*flags("eval", "gs://bucket/run", fields), buckets=root)
    assert done.status == 0, done.stderr
    folder = root / "bucket/run/eval"
    assert sorted(path.name for path in folder.iterdir()) == ["4.json", "4.npz"]
    assert json.loads((folder / "4.json").read_text())["loss"]["mean"] > 0


@pytest.mark.slow
def test_bucket_that_cannot_be_used_is_one_line_and_nothing_is_lost(root, tmp_path):
    shutil.copytree(root / "local", tmp_path / "readonly/run")
    (tmp_path / "bucket").mkdir()
    before = sorted(tmp_path.rglob("*"))
    fields = SHORT | {"data.name": str(root / "bucket/images.npz")}
    for mode, address in (("train", "gs://forbidden/run"), ("sample", "gs://readonly/run")):
        done = run(*flags(mode, address, fields), buckets=tmp_path)
        assert done.status == 1
        said = f"error: {address}.*Forbidden.*roles storage.objectUser.*\n"
        assert re.fullmatch(said, done.stderr), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_bucket_without_its_package_is_one_line():
    if find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    done = run(*flags("train", "gs://bucket/run", SHORT))
    assert done.status == 1
    assert re.fullmatch(r"error: gs://bucket/run: .*pip install gcsfs\n", done.stderr), done.stderr
