"""Resuming with other settings: reported, recorded, or refused with a way out that works."""

import json
import re
import shutil

import numpy as np
import pytest
from command_line import TINY, flags, run, write_images
from stored_images import random_images, save_folder

SHORT = TINY | {"training.steps": 4, "training.checkpoint_every": 2, "training.log_every": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    call = run(*flags("train", workdir, SHORT))
    assert call.status == 0, call.stderr
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def error(call):
    """The one line of a refusal."""
    assert call.status == 1, call
    assert "Traceback" not in call.stderr
    return call.stderr[call.stderr.rfind("error: ") :].strip()


@pytest.mark.slow
def test_optimizer_and_length_may_change_and_the_run_says_so(workdir):
    other = {"optim.lr": 1e-5, "optim.warmup": 0, "training.batch_size": 8, "training.steps": 6}
    call = run(*flags("train", workdir, SHORT | other))
    assert call.status == 0, call.stderr
    changes = re.findall(r"^changed from step 4 on: config\.(\S+) was", call.stdout, re.MULTILINE)
    assert sorted(changes) == sorted(other)
    recorded = json.loads((workdir / "config.json").read_text())["changes"]
    assert [row["step"] for row in recorded] == [4] * 4
    again = run(*flags("train", workdir, SHORT | other))
    assert "is trained" in again.stdout
    assert "changed" not in again.stdout


@pytest.mark.slow
def test_other_model_is_refused_and_the_way_out_works(workdir, tmp_path):
    other = SHORT | {"times.t_min": 1e-3, "training.steps": 6}
    said = error(run(*flags("train", workdir, other)))
    assert "config.times.t_min was 1e-05, is 0.001" in said
    field = re.search(r"--config\.(training\.init_from)=(\S+) with a new --workdir", said)
    call = run(*flags("train", tmp_path / "new", other | {field[1]: field[2]}))
    assert call.status == 0, call.stderr
    assert f"starting with the parameters of {workdir} at step 4" in call.stdout
    call = run(*flags("train", tmp_path / "newer", other | {field[1]: f"{field[2]}:2"}))
    assert "at step 2" in call.stdout
    missing = error(run(*flags("train", tmp_path / "no", other | {field[1]: f"{field[2]}:3"})))
    assert "there is no such checkpoint. Checkpoints on disk: 2, 4" in missing


@pytest.mark.slow
def test_lost_checkpoints_are_not_a_silent_fresh_start(workdir):
    shutil.rmtree(workdir / "checkpoints")
    said = error(run(*flags("train", workdir, SHORT)))
    assert re.search(r"metrics\.jsonl reaches step 4, but \S+ holds no checkpoint", said)
    (workdir / "metrics.jsonl").unlink()
    assert run(*flags("train", workdir, SHORT)).status == 0


@pytest.mark.slow
def test_other_images_under_the_same_name_are_refused(tmp_path):
    file = write_images(tmp_path / "images.npz", 20, 5)
    fields = SHORT | {"data.name": str(file)}
    assert run(*flags("train", tmp_path / "run", fields)).status == 0
    with np.load(file) as images:
        np.savez(file, train=images["train"][::-1], test=images["test"])
    more = fields | {"training.steps": 6}
    assert "holds a run on other images" in error(run(*flags("train", tmp_path / "run", more)))


@pytest.mark.slow
def test_names_of_classes_are_kept_in_the_run(tmp_path):
    for split in ("train", "val"):
        names = [f"{label}/{k}.png" for label in (2, 10) for k in range(8)]
        save_folder(tmp_path / "images" / split, names, random_images(16, size=8, channels=1))
    fields = SHORT | {"data.name": str(tmp_path / "images"), "training.steps": 1}
    call = run(*flags("train", tmp_path / "run", fields))
    assert call.status == 0, call.stderr
    assert call.stdout.count("classes 0 2, 1 10") == 1
    assert json.loads((tmp_path / "run/classes.json").read_text()) == {"2": 0, "10": 1}
