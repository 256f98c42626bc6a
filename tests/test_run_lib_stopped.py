"""Runs that are stopped, killed, starved of disk or diverge, against one that never was.

A run stopped at any moment and started again by the same command is the run that never stopped,
bit for bit: every leaf of its state and every line of its record but for the speed.
"""

import re
import shutil
import signal

import jax
import numpy as np
import pytest
from command_line import (
    TINY,
    assert_one_error,
    configuration,
    draw,
    flags,
    record,
    run,
    run_fresh,
    snapshot,
    start,
)

from experiment.build import build
from training.checkpoints import Checkpoints

LAST = TINY["training.steps"]
EVERY = TINY["training.checkpoint_every"]


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


def assert_same_run(workdir, reference):
    ours, theirs = state(workdir), state(reference)
    assert int(ours.step) == LAST
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert record(workdir) == record(reference)


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


@pytest.mark.slow
def test_fresh_interpreter_trains_the_same(tmp_path, finished):
    """Once as people start it, to know that a forked process is no other."""
    call = run_fresh(*flags("train", tmp_path))
    assert call.status == 0, call.stderr
    assert_same_run(tmp_path, finished)
