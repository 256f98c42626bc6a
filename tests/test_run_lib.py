"""Runs that sample, solve tasks and are evaluated, and what they report when they cannot.

Runs that are stopped are in test_run_lib_stopped.py.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    TINY,
    UNET,
    assert_one_error,
    configuration,
    draw,
    flags,
    run,
    samples_of,
    snapshot,
    write_images,
)
from PIL import Image

import run_lib
from errors import ConfigError
from experiment.build import build
from jobs.workdir import Workdir

LAST = TINY["training.steps"]


@pytest.mark.slow
def test_samples_are_those_of_their_number_and_files_say_so(sampled):
    few = draw(sampled, 3)
    assert few.dtype == np.uint8
    assert few.shape == (3, 8, 8, 1)
    assert len(np.unique(few)) > 4
    call = run(*flags("sample", sampled), "--num_samples=11", "--gif", "--png")
    folder = samples_of(call)
    with np.load(folder / "samples.npz") as file:  # batches of 4, 4 and 3
        many = file["samples"]
    assert many.shape == (11, 8, 8, 1)
    np.testing.assert_array_equal(many[:3], few)
    for number, name in enumerate(sorted(os.listdir(folder / "png"))):
        assert name == f"{number:06}.png"
        with Image.open(folder / "png" / name) as single:
            np.testing.assert_array_equal(np.asarray(single), many[number, ..., 0])
    assert number == 10
    picture = Image.open(folder / "samples.png")
    scale = 40 // 8
    assert picture.size == (scale * (4 * 9 - 1), scale * (3 * 9 - 1))  # 4 columns, 3 rows
    np.testing.assert_array_equal(np.asarray(picture)[::scale, ::scale][:8, :8], many[0, ..., 0])
    with Image.open(folder / "samples.gif") as animation:
        assert animation.n_frames > 1
        assert animation.size == picture.size
        animation.seek(animation.n_frames - 1)
        last = np.asarray(animation.convert("L"))[::scale, ::scale][:8, :8]
        assert np.abs(last.astype(int) - many[0, ..., 0]).max() <= 2  # a palette of 256 colors


@pytest.mark.slow
def test_samples_of_an_earlier_checkpoint_and_of_another_sampler(sampled):
    earlier = samples_of(run(*flags("sample", sampled), "--checkpoint=10", "--num_samples=3"))
    with np.load(earlier / "samples.npz") as file:
        assert len(file["samples"]) == 3
    fixed = {name: value for name, value in TINY.items() if name != "sampling.steps"}
    ode = fixed | {"sampling.name": "ode", "sampling.rtol": 1e-2, "sampling.atol": 1e-2}
    other = samples_of(run(*flags("sample", sampled, ode), "--num_samples=3"))
    assert (earlier.name[:6], other.name[:7]) == ("10-pc-", "30-ode-")
    seeds = [
        samples_of(
            run(*flags("sample", sampled, TINY | {"sampling.seed": seed}), "--num_samples=3")
        )
        for seed in (0, 1)
    ]
    assert len({earlier, other, *seeds}) == 4, "no samples take the place of others"
    for folder, seed in zip(seeds, (0, 1), strict=True):
        protocol = json.loads((folder / "protocol.json").read_text())
        assert protocol["sampling"]["seed"] == seed
        assert protocol["num_samples"] == 3
        assert protocol["step"] == LAST


@pytest.mark.slow
def test_sampler_that_needs_moments_says_so_and_uses_them(sampled):
    analytic = TINY | {"sampling.name": "analytic"}
    call = run(*flags("sample", sampled, analytic), "--num_samples=3")
    assert_one_error(
        call,
        r"config\.sampling\.name=analytic: .*moments/30\.npz: there are no moments; run --mode",
    )
    measure = TINY | {"analytic_dpm.num_images": 20, "analytic_dpm.num_times": 5}
    call = run(*flags("moments", sampled, measure))
    assert call.status == 0, call.stderr
    assert "moments of step 30 at 5 times" in call.stdout
    call = run(*flags("sample", sampled, analytic), "--num_samples=3")
    assert call.status == 0, call.stderr


@pytest.mark.slow
def test_a_variance_head_serves_the_checkpoint_for_which_it_was_trained(sampled):
    """Others are refused until they have one of their own."""
    training = {f"variance_head.{name}": 2 for name in ("steps", "batch_size", "warmup")}
    diagonal = TINY | training | {"sampling.name": "analytic", "sampling.variance": "diagonal"}
    call = run(*flags("train_variance", sampled, diagonal), "--checkpoint=20")
    assert call.status == 0, call.stderr
    sample = [*flags("sample", sampled, diagonal), "--num_samples=3"]
    evaluate = TINY | training | {"discrete_bound.variance": "diagonal"}
    evaluate |= {"eval.metrics": "('discrete_bound',)", "eval.checkpoints": (20, 30)}
    for refused in (sample, flags("eval", sampled, evaluate)):
        assert_one_error(
            run(*refused),
            r"variance=diagonal: there is no variance head of checkpoint 30 in .*variance_head; "
            r"run --mode=train_variance --checkpoint=30 first, or choose analytic, or take one "
            r"that has a head: --checkpoint=20",
        )
    for more in (
        [*sample, "--checkpoint=20"],
        flags("train_variance", sampled, diagonal),  # the latest
        sample,
    ):
        call = run(*more)
        assert call.status == 0, call.stderr


@pytest.mark.slow
def test_inverse_problems_are_solved_and_tasks_are_for_samples_alone(sampled):
    task = {"task.name": "inpaint", "task.input": "test:0-1", "task.mask": "top"}
    fields = TINY | task | {"task.method": "projection"}
    call = run(*flags("sample", sampled, fields), "--num_samples=4", "--gif=x0")
    assert call.status == 0, call.stderr
    assert re.search(r"4 samples of step 30, NFE 5, measurement error 0\.0", call.stdout)
    folder = samples_of(call)
    assert "-inpaint-" in folder.name
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["samples"].shape == (4, 8, 8, 1)
        assert arrays["measurement"].shape == (2, 8, 8, 1)
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == ((4 * 9 - 1) * 5, (2 * 9 - 1) * 5)
    with Image.open(folder / "samples.gif") as animation:
        # Two rows of two samples, and the predicted x0 of each beside them.
        assert animation.width == 2 * animation.height
        assert animation.n_frames > 1
    few = run(*flags("sample", sampled, fields), "--num_samples=1")
    assert_one_error(few, "--num_samples=1 is too small .* give at least 2")
    assert_one_error(
        run(*flags("eval", sampled, fields)),
        r"config\.task\.name='inpaint' is for --mode=sample; evaluate with config\.task",
    )
    fields |= {"training.sample_every": 1}
    assert_one_error(
        run(*flags("train", sampled, fields)), r"config\.task\.name is for --mode=sample; train"
    )
    energy = run(*flags("sample", sampled, TINY | {"denoiser.energy": True}))
    assert_one_error(energy, "config.denoiser.energy was False, is True")


@pytest.mark.slow
def test_sampling_needs_no_data(tmp_path):
    """A checkpoint may be used where its training data never were; only evaluation needs them."""
    data = write_images(tmp_path / "data.npz", 32, 4)
    fields = TINY | {"data.name": str(data)}
    assert run(*flags("train", tmp_path / "run", fields)).status == 0
    data.unlink()
    before = snapshot(tmp_path / "run")
    call = run(*flags("eval", tmp_path / "run", fields))
    assert_one_error(call, "data.npz.*there is no such file")
    assert snapshot(tmp_path / "run") == before
    assert run(*flags("sample", tmp_path / "run", fields), "--num_samples=1").status == 0


@pytest.mark.slow
def test_training_shows_samples_on_the_way(tmp_path):
    fields = TINY | {"training.sample_every": LAST // 2, "training.sample_count": 3}
    assert run(*flags("train", tmp_path, fields)).status == 0
    shown = sorted(file.name for file in (tmp_path / "samples").iterdir())
    assert shown == ["step_15.png", "step_30.png"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_network_that_returns_nan_is_one_line(tmp_path, mode):
    """Parameters of 1e30 are finite; what is drawn with them is not."""
    fields = TINY | {
        "optim.lr": 1e30,
        "optim.warmup": 0,
        "optim.grad_clip": 0.0,
        "training.steps": 1,
        "training.sample_every": int(mode == "train"),
        "training.sample_count": 3,
    }
    call = run(*flags("train", tmp_path, fields))
    if mode == "sample":
        assert call.status == 0, call.stderr
        call = run(*flags("sample", tmp_path, fields), "--num_samples=3")
    assert_one_error(call, "NaN")


def test_in_process_errors_touch_nothing(tmp_path):
    """The functions raise what main.py prints."""
    workdir, experiment = Workdir(tmp_path / "run"), build(configuration())
    without_data = build(configuration(TINY | {"data.name": "nowhere.npz"}))
    with pytest.raises(ConfigError, match="--num_samples=0 must be at least 1"):
        run_lib.sample(experiment, workdir, num_samples=0)
    with pytest.raises(ConfigError, match=r"config\.data\.name='nowhere\.npz'.*no such file"):
        run_lib.train(without_data, workdir)
    assert not Path(tmp_path, "run").exists()


@pytest.mark.slow
def test_class_conditional_run_trains_samples_and_is_evaluated(tmp_path):
    """Other classes, other samples; all classes in turn are sample k of class k mod 10."""
    # An initial scale of 0 would make the output 0 whatever the class.
    fields = UNET | {"model.num_classes": 10, "model.init_scale": 1.0, "training.steps": 2}
    fields |= {"eval.metrics": ("loss",), "eval.batch_size": 12}
    workdir = tmp_path / "run"
    assert run(*flags("train", workdir, fields)).status == 0

    def drawn(**choice):
        call = run(*flags("sample", workdir, fields | choice), "--num_samples=12")
        with np.load(samples_of(call) / "samples.npz") as file:
            return file["samples"]

    turns, threes, none = (drawn(**{"sampling.label": label}) for label in (-1, 3, 10))
    np.testing.assert_array_equal(turns[3], threes[3])
    assert np.any(turns != threes)
    assert np.any(threes != none)
    call = run(*flags("eval", workdir, fields | {"eval.loss_repeats": 1}))
    assert call.status == 0, call.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model.num_classes": 10, "sampling.label": 11},
            r"label=11 is not a class.*num_classes=10; valid: 0\.\.9 .* or 10",
        ),
        ({"sampling.label": 3}, r"label=3 is not a class.*num_classes=0; valid: -1"),
        ({"model.num_classes": 4}, r"num_classes=4, but the labels .* are 0\.\.9; set it to 10"),
        ({"training.label_dropout": 2.0}, r"label_dropout=2\.0 must lie in \[0, 1\)"),
    ],
)
def test_unknown_classes_are_reported_before_anything_runs(tmp_path, fields, message):
    for mode in ("train", "check"):
        call = run(*flags(mode, tmp_path / "run", TINY | fields))
        assert call.status == 1
        assert re.search(message, call.stderr), call.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_classes_of_images_without_labels_are_refused(tmp_path):
    write_images(tmp_path / "images.npz", 40, 10)
    fields = TINY | {"model.num_classes": 2, "data.name": str(tmp_path / "images.npz")}
    for mode in ("train", "check"):
        call = run(*flags(mode, tmp_path / "run", fields))
        assert call.status == 1
        assert "has no labels; set config.model.num_classes=0" in call.stderr


@pytest.mark.slow
def test_an_upsampler_does_nothing_without_small_images(tmp_path):
    fields = {"model.name": "adm", "model.head_width": 8, "model.upsampling": 2}
    experiment = build(configuration(UNET | fields))
    for mode in (run_lib.sample, run_lib.evaluate, run_lib.moments):
        with pytest.raises(ConfigError, match=r"^config\.model\.upsampling=2 .*=upsample and"):
            mode(experiment, Workdir(tmp_path))
    watching = build(configuration(UNET | fields | {"training.sample_every": 5}))
    with pytest.raises(ConfigError, match=r"training has none of; .*training\.sample_every=0$"):
        run_lib.train(watching, Workdir(tmp_path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"diagnostics.metrics": ("loss", "fid")},
            r"metrics=.*'fid' is unknown; choose some of: l",
        ),
        (
            {"diagnostics.features": "fid"},
            r"config\.diagnostics\.features='fid' is unknown; choose",
        ),
        ({"logging.wandb": "p"}, r"config\.logging\.wandb='p' needs .*pip install wandb"),
    ],
)
def test_a_check_finds_what_training_would_refuse_to_measure(tmp_path, monkeypatch, fields, said):
    monkeypatch.setitem(sys.modules, "wandb", None)
    experiment = build(configuration(TINY | {"diagnostics.every": 1} | fields))
    with pytest.raises(ConfigError, match=said):
        run_lib.check(experiment, Workdir(tmp_path))
