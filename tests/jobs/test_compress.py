"""Compression by commands: images come back, and what does not fit is one line."""

import json

import numpy as np
import pytest
from command_line import TINY, flags, run

FIELDS = TINY | {
    "training.steps": 2,
    "training.checkpoint_every": 2,
    "discrete_bound.steps": 5,
    "discrete_bound.t_min": 0.02,
    "discrete_bound.variance": "large",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compress") / "run"
    done = run(*flags("train", workdir, FIELDS))
    assert done.status == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_images_come_back_from_a_file_and_others_are_refused(workdir):
    file, images = workdir / "code", workdir / "images.npz"
    compress = flags("compress", workdir, FIELDS)
    done = run(*compress, "--source=test:0-4", f"--target={file}", "--lanes=2")
    assert done.status == 0, done.stderr
    assert f"5 images in {file.stat().st_size:,} bytes" in done.stdout
    decompress = [*flags("decompress", workdir, FIELDS), f"--source={file}"]
    done = run(*decompress, f"--target={images}")
    assert done.status == 0, done.stderr
    assert "5 of 5 images" in done.stdout
    assert (workdir / "images.png").exists()

    # What was decompressed is compressed to the same bytes.
    again = run(*compress, f"--source={images}", f"--target={workdir / 'again'}", "--lanes=2")
    assert again.status == 0, again.stderr
    assert (workdir / "again").read_bytes() == file.read_bytes()

    other = flags("decompress", workdir, FIELDS | {"discrete_bound.steps": 6})
    done = run(*other, f"--source={file}", f"--target={workdir / 'b.npz'}")
    assert done.status == 1
    assert "another model; what differs: config.discrete_bound.steps" in done.stderr
    np.savez(workdir / "gray.npz", samples=np.full((1, 8, 8, 1), 100, np.uint8))
    done = run(*compress, f"--source={workdir / 'gray.npz'}", f"--target={workdir / 'c'}")
    assert done.status == 1
    assert "has gray levels that the model lacks, which has 17" in done.stderr
    assert not (workdir / "c").exists()


@pytest.mark.slow
def test_all_bits_of_the_curve_but_the_last_are_those_of_the_bound(workdir):
    metrics = {"eval.metrics": "('discrete_bound', 'rate_distortion')", "eval.batch_size": 99}
    done = run(*flags("eval", workdir, FIELDS | metrics))
    assert done.status == 0, done.stderr
    assert "bits/dim to an error of 10 of 255" in done.stdout
    results = json.loads((workdir / "eval/2.json").read_text())
    bound, curve = results["discrete_bound"], results["rate_distortion"]
    assert curve["rate"][0] == pytest.approx(bound["L_T"], rel=1e-5)
    assert curve["rate"][-1] == pytest.approx(bound["mean"] - bound["L_0"], rel=1e-5)
    assert curve["rate"] == sorted(curve["rate"])
    assert 0 < curve["distortion"][-1] < curve["distortion"][0] < 255
    assert (workdir / "eval/2_rate_distortion.png").exists()
