"""Runs that are stopped, killed, starved of disk or diverge, against one that never was.

A run stopped at any moment and started again by the same command is the run that never stopped,
bit for bit: every leaf of its state and every line of its record but for the speed.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import (
    TINY,
    configuration,
    flags,
    run,
    run_fresh,
    samples_of,
    snapshot,
    start,
    write_images,
)
from PIL import Image

import run_lib
from errors import ConfigError
from experiment.build import build
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints

LAST = TINY["training.steps"]
EVERY = TINY["training.checkpoint_every"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run that never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    call = run(*flags("train", workdir))
    assert call.status == 0, call.stderr
    assert f"trained {LAST} steps" in call.stdout
    return workdir


@pytest.fixture(scope="module")
def sampled(finished, tmp_path_factory):
    """A copy of it, in which samples may be written."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("sampled") / "run")


def steps(workdir):
    return Checkpoints(workdir / "checkpoints").steps()


def state(workdir, step=None):
    """The checkpoint as arrays of this process; verified, as restoring always does."""
    experiment = build(configuration())
    like = experiment.trainer.abstract_state()
    restored = Checkpoints(workdir / "checkpoints").restore(like, step)
    assert restored is not None
    return restored.state


def lines(workdir):
    """How many lines the record has by now."""
    file = workdir / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def record(workdir):
    """The record without the one number that is no function of the configuration."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.pop("images_per_sec") > 0
    return rows


def assert_same_run(workdir, reference):
    ours, theirs = state(workdir), state(reference)
    assert int(ours.step) == LAST
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert record(workdir) == record(reference)


def assert_one_error(call, pattern):
    """Failure in one line that says why, below the progress bar."""
    assert call.status == 1, call
    assert "Traceback" not in call.stderr, call.stderr
    said = [line for line in call.stderr.splitlines() if not re.fullmatch(r"|\w+: .*%\|.*", line)]
    assert len(said) == 1, call.stderr
    assert re.fullmatch(f"error: .*{pattern}.*", said[0]), said


@pytest.mark.slow
def test_record_holds_every_step_and_the_state_is_that_of_the_last(finished):
    assert [row["step"] for row in record(finished)] == list(range(1, LAST + 1))
    assert steps(finished) == (10, 20, 30)
    assert int(state(finished).step) == LAST
    again = run(*flags("train", finished))
    assert again.status == 0
    assert f"is trained: step {LAST} of {LAST}" in again.stdout


@pytest.mark.slow
def test_run_killed_at_every_kind_of_moment_is_the_run_that_never_stopped(tmp_path, finished):
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    def is_saving():
        return any(checkpoints.glob("*.orbax-checkpoint-tmp*"))

    def start_and_kill(happened):
        running = start(*flags("train", workdir))
        running.until(happened)
        running.send(signal.SIGKILL)
        assert running.wait().status == -signal.SIGKILL

    start_and_kill(lambda: lines(workdir) >= 3)
    assert steps(workdir) == (), "killed before the first checkpoint"
    start_and_kill(is_saving)
    assert is_saving(), "killed while a checkpoint was written"
    start_and_kill(lambda: len(steps(workdir)) and lines(workdir) >= steps(workdir)[-1] + 3)
    assert EVERY <= steps(workdir)[-1] < LAST
    assert record(workdir)[-1]["step"] > steps(workdir)[-1], "killed between checkpoints"
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "gra')  # what a kill in the middle of a line leaves
    call = run(*flags("train", workdir))
    assert call.status == 0, call.stderr
    assert "continuing from the checkpoint at step" in call.stdout
    assert_same_run(workdir, finished)
    assert not is_saving(), "leftovers of the killed save are removed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_saves_and_the_same_command_continues(tmp_path, finished, number):
    running = start(*flags("train", tmp_path))
    running.until(lambda: lines(tmp_path) >= 4)
    running.send(number)
    call = running.wait()
    assert call.status == 128 + number, call
    assert "Traceback" not in call.stderr
    said = re.search(rf"stopped by {number.name} at step (\d+), saved", call.stdout)
    assert said, call.stdout
    stopped = int(said[1])
    assert 4 <= stopped < LAST
    assert steps(tmp_path)[-1] == stopped
    assert int(state(tmp_path).step) == stopped
    assert record(tmp_path) == record(finished)[:stopped]
    assert run(*flags("train", tmp_path)).status == 0
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_interrupted_before_the_first_step_leaves_cleanly(tmp_path):
    running = start(*flags("train", tmp_path))
    running.until(lambda: running.has_said("training:"))
    assert lines(tmp_path) == 0, "the first step is being compiled"
    running.send(signal.SIGINT)
    call = running.wait()
    assert call.status == 130, call
    assert "Traceback" not in call.stderr
    assert len(steps(tmp_path)) == 1


@pytest.mark.slow
def test_second_interrupt_does_not_wait_and_leaves_cleanly(tmp_path):
    running = start(*flags("train", tmp_path))
    running.until(lambda: lines(tmp_path) >= 2)
    running.send(signal.SIGINT)
    running.send(signal.SIGINT)
    call = running.wait()
    assert call.status == 130, call
    assert "Traceback" not in call.stderr, call.stderr
    kept = Checkpoints(tmp_path / "checkpoints")
    assert all(kept.config(step) for step in kept.steps())


def damage(checkpoint):
    file = max(checkpoint.rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_damaged_checkpoints_are_skipped_or_an_error(tmp_path, finished):
    workdir = shutil.copytree(finished, tmp_path / "run")
    damage(workdir / "checkpoints" / "30")
    call = run(*flags("train", workdir))
    assert call.status == 0, call.stderr
    assert re.search(r"checkpoint \S+/30 is skipped: \S+ fails its checksum", call.stderr)
    assert "continuing from the checkpoint at step 20" in call.stdout
    assert_same_run(workdir, finished)
    for step in steps(workdir):
        damage(workdir / "checkpoints" / str(step))
    before = snapshot(workdir)
    call = run(*flags("train", workdir))
    assert call.status == 1
    assert "Traceback" not in call.stderr
    pattern = r"error: no checkpoint in \S+ can be loaded \(10: .*20: .*30: .*\)\. Put back"
    assert re.match(pattern, call.stderr.splitlines()[-1])
    assert snapshot(workdir) == before


@pytest.mark.slow
def test_diverging_run_names_the_step_and_keeps_a_finite_checkpoint(tmp_path):
    fields = TINY | {
        "optim.lr": 1e30,
        "optim.warmup": 0,
        "optim.grad_clip": 0.0,
        "training.checkpoint_every": 1,
    }
    call = run(*flags("train", tmp_path, fields))
    pattern = (
        r"step (\d+): \S*(nan|inf).*; the last good checkpoint is step \d+\..*config\.optim\.lr"
    )
    assert_one_error(call, pattern)
    failed = int(re.search(r"error: step (\d+)", call.stderr)[1])
    assert steps(tmp_path)[-1] == failed - 1
    like = build(configuration(fields)).trainer.abstract_state()
    kept = Checkpoints(tmp_path / "checkpoints").restore(like).state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


@pytest.mark.slow
def test_full_disk_while_saving_is_one_line_and_the_run_continues_later(tmp_path, finished):
    workdir = tmp_path / "run"
    running = start(*flags("train", workdir))
    running.until(lambda: EVERY in steps(workdir))
    running.send(signal.SIGKILL)
    running.wait()
    kept = steps(workdir)[-1]
    largest = max(file.stat().st_size for file in workdir.rglob("d/*"))
    # Through pipes, which have no size. Threads of Orbax may add complaints; ours is one line.
    call = run_fresh(*flags("train", workdir), file_limit=largest // 2)
    assert call.status == 1, call
    # A thread may write at the same moment, into the same line.
    (said,) = re.findall(r"error: saving checkpoint \S+ failed: .*", call.stderr)
    assert f"Checkpoints on disk: {kept}. Free space" in said
    assert steps(workdir) == (kept,)
    assert int(state(workdir).step) == kept
    assert run(*flags("train", workdir)).status == 0
    assert_same_run(workdir, finished)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 1500])
def test_full_disk_while_recording_is_one_line(tmp_path, limit):
    fields = TINY | {"training.checkpoint_every": 1000}
    call = run(*flags("train", tmp_path, fields), file_limit=limit)
    assert_one_error(call, "[Ff]ile too large")


@pytest.mark.slow
def test_four_devices_train_and_sample_as_one(tmp_path, finished, sampled):
    """Only the order of float32 sums differs: 1e-5 relative in losses of the first steps."""
    workdir = tmp_path / "four"
    assert run(*flags("train", workdir), devices=4).status == 0
    for ours, theirs in zip(record(workdir)[:10], record(finished)[:10], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    # The same checkpoint, sampled: half a gray level of 17 may tip over, rarely.
    one, four = draw(sampled, 11), draw(sampled, 11, devices=4)
    assert np.abs(four.astype(int) - one).max() <= 16
    assert np.mean(four == one) > 0.99


def draw(workdir, count, *arguments, devices=1):
    call = run(*flags("sample", workdir), f"--num_samples={count}", *arguments, devices=devices)
    with np.load(samples_of(call) / "samples.npz") as file:
        assert file.files == ["samples", "arr_0"]
        np.testing.assert_array_equal(file["samples"], file["arr_0"])
        return file["samples"]


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
def test_inverse_problems_are_solved_and_tasks_are_for_samples_alone(sampled):
    task = {"task.name": "inpaint", "task.input": "test:0-1", "task.mask": "top"}
    fields = TINY | task | {"task.method": "projection"}
    call = run(*flags("sample", sampled, fields), "--num_samples=4", "--gif")
    assert call.status == 0, call.stderr
    assert re.search(r"4 samples of step 30, NFE 5, measurement error 0\.0", call.stdout)
    folder = samples_of(call)
    assert "-inpaint-" in folder.name
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["samples"].shape == (4, 8, 8, 1)
        assert arrays["measurement"].shape == (2, 8, 8, 1)
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == ((4 * 9 - 1) * 5, (2 * 9 - 1) * 5)
    assert (folder / "samples.gif").exists()
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
def test_fresh_interpreter_trains_the_same(tmp_path, finished):
    """Once as people start it, to know that a forked process is no other."""
    call = run_fresh(*flags("train", tmp_path))
    assert call.status == 0, call.stderr
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_class_conditional_run_trains_samples_and_is_evaluated(tmp_path):
    """Other classes, other samples; all classes in turn are sample k of class k mod 10."""
    # An initial scale of 0 would make the output 0 whatever the class.
    fields = TINY | {"model.num_classes": 10, "model.init_scale": 1.0, "training.steps": 2}
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
    call = run(*flags("train", tmp_path / "run", TINY | fields))
    assert call.status == 1
    assert re.search(message, call.stderr), call.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_classes_of_images_without_labels_are_refused(tmp_path):
    write_images(tmp_path / "images.npz", 40, 10)
    fields = TINY | {"model.num_classes": 2, "data.name": str(tmp_path / "images.npz")}
    call = run(*flags("train", tmp_path / "run", fields))
    assert call.status == 1
    assert "has no labels; set config.model.num_classes=0" in call.stderr


def test_an_upsampler_does_nothing_without_small_images(tmp_path):
    fields = {"model.name": "adm", "model.head_width": 8, "model.upsampling": 2}
    experiment = build(configuration(TINY | fields))
    for mode in (run_lib.sample, run_lib.evaluate, run_lib.moments):
        with pytest.raises(ConfigError, match=r"^config\.model\.upsampling=2 .*=upsample and"):
            mode(experiment, Workdir(tmp_path))
    watching = build(configuration(TINY | fields | {"training.sample_every": 5}))
    with pytest.raises(ConfigError, match=r"training has none of; .*training\.sample_every=0$"):
        run_lib.train(watching, Workdir(tmp_path))
