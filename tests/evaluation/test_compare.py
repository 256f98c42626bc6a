"""Two results side by side: what compares is compared, what does not is refused."""

import json
import math
import re

import numpy as np
import pytest
from command_line import run

from errors import ConfigError
from evaluation.compare import compare


def protocol(**changed):
    """A small one; `changed` replaces fields by dotted name with _ for the dot."""
    fields = {
        "sde": {"name": "vp"},
        "model": {"num_classes": 0},
        "images": {"train": "abc", "test": "def"},
        "likelihood": {"rtol": 1e-3},
        "sampling": {"name": "ddim", "steps": 10},
        "eval": {"dequantizations": 2, "samples": 100, "features": ["pixels"], "batch_size": 4},
        "extractors": {"pixels": "pixels"},
        "loss": {"weight": "sigma2"},
        "ema": {"rate": 0.9},
    }
    for name, value in changed.items():
        part, _, field = name.partition("_")
        fields[part] = fields[part] | {field: value}
    return fields


def write(folder, bits, distance, step=7, **changed):
    """An evaluation's files, with bits/dim (draws, images, probes); returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{step}.json"
    spread = {"mean": distance, "std": 0.1, "per_seed": [distance] * 4}
    results = {
        "step": step,
        "protocol": protocol(**changed),
        "bits_per_dim": {"mean": float(np.mean(bits)), "over_images": 0.5},
        "frechet": {
            "pixels": {"to_train": spread},
        },
        "samples": {"nfe": 10.0},
    }
    file.write_text(json.dumps(results))
    np.savez(file.with_suffix(".npz"), bits_per_dim=bits)
    return file


BITS = np.random.default_rng(0).normal(2, 0.2, (2, 50, 1))


def test_like_results_are_compared_image_by_image(tmp_path):
    """The images' own spread, which is large, leaves their difference."""
    shift = np.random.default_rng(1).normal(0.1, 0.01, (2, 50, 1))
    first = write(tmp_path / "a", BITS, 1.0)
    second = write(
        tmp_path / "b", BITS + shift, 1.5, sampling_steps=20, eval_batch_size=8, sde_name="ve"
    )
    table = compare(first, second)
    error = shift.mean(axis=(0, 2)).std(ddof=1) / math.sqrt(50)
    assert f"{shift.mean():+.4f} +- {error:.4f}" in table
    over_seeds = 0.1 / math.sqrt(2)
    assert f"+0.5000 +- {over_seeds:.4f}" in table
    assert re.search(r"sampling.steps +10 +20", table)
    assert re.search(r"sde.name +vp +ve", table)
    assert "batch_size" not in table


def test_run_folder_stands_for_its_last_result(tmp_path):
    first = write(tmp_path / "a", BITS, 1.0)
    write(tmp_path / "run" / "eval", BITS, 1.0, step=5)
    last = write(tmp_path / "run" / "eval", BITS, 1.0, step=30)
    assert str(last) in compare(first, tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"likelihood_rtol": 0.1}, r"likelihood\.rtol was 0\.001, is 0\.1"),
        ({"eval_samples": 50}, r"eval\.samples was 100, is 50"),
        ({"images_test": "else"}, r"images\.test was 'def', is 'else'"),
        ({"images_train": "else"}, r"images\.train was 'abc', is 'else'"),
        ({"model_num_classes": 10}, r"model\.num_classes was 0, is 10"),
        ({"extractors_pixels": "else"}, r"extractors\.pixels was 'pixels', is 'else'"),
    ],
)
def test_unlike_protocols_are_refused(tmp_path, changed, message):
    first, second = (
        write(tmp_path / "a", BITS, 1.0),
        write(tmp_path / "b", BITS, 1.0, **changed),
    )
    with pytest.raises(ConfigError, match=f"not measured alike: {message}. Evaluate one again"):
        compare(first, second)


def test_files_without_results_are_refused(tmp_path):
    good = write(tmp_path / "a", BITS, 1.0)
    bad = tmp_path / "bad.json"
    for text in ("{", "[]", "{}"):
        bad.write_text(text)
        with pytest.raises(ConfigError, match="holds no results of --mode=eval"):
            compare(good, bad)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no results yet; run --mode=eval there"):
        compare(good, tmp_path / "empty")


@pytest.mark.slow
def test_command_line_needs_no_configuration(tmp_path):
    files = [str(write(tmp_path / name, BITS, 1.0)) for name in "ab"]
    call = run("--mode=compare", *files)
    assert call.status == 0, call.stderr
    assert "bits_per_dim" in call.stdout
    alone = run("--mode=compare", files[0])
    assert alone.status == 1
    assert "--mode=compare takes two results, got 1" in alone.stderr
