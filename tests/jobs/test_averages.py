"""Snapshots of averages in a run that is killed, and averages of any length made of them."""

import functools
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from command_line import TINY, configuration, flags, run, start

from errors import CheckpointError, ConfigError, WorkdirError
from experiment.build import build
from jobs.averages import parse_lengths, reconstruct
from jobs.restore import load_checkpoint, restore_average
from jobs.workdir import Workdir
from run_lib import reconstruct_averages
from training.checkpoints import Checkpoints

STEPS = 12
FIELDS = TINY | {
    "training.steps": STEPS,
    "training.checkpoint_every": 4,
    "training.keep_checkpoints": 0,
    "ema.snapshot_every": 2,
    "ema.more_rates": (0.5,),
    "eval.metrics": ("loss",),
    "eval.loss_repeats": 1,
    "eval.batch_size": 128,
}


@pytest.fixture(scope="module")
def experiment():
    return build(configuration(FIELDS))


@pytest.fixture(scope="module")
def reader():
    """The same without the fields of averages, which a run's own configuration has."""
    left_out = ("ema.snapshot_every", "ema.more_rates")
    return build(configuration({k: v for k, v in FIELDS.items() if k not in left_out}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("averages") / "run"
    call = run(*flags("train", path, FIELDS))
    assert call.status == 0, call.stderr
    return Workdir(path)


@pytest.fixture
def workdir(trained, tmp_path):
    return Workdir(shutil.copytree(trained.path, tmp_path / "run"))


def state_of(experiment, workdir, step=None):
    return Checkpoints(workdir.checkpoints).restore(experiment.trainer.abstract_state(), step).state


def snapshot(experiment, workdir, step):
    state = experiment.trainer.abstract_state()
    names = experiment.trainer.more_averages.powers
    template = {name: state.averages[name] for name in names}
    return Checkpoints(workdir.snapshots).restore(template, step).state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_run_killed_in_a_snapshot_ends_with_the_same_averages_and_snapshots(
    trained, experiment, tmp_path
):
    workdir = Workdir(tmp_path / "run")
    running = start(*flags("train", workdir.path, FIELDS))
    running.until(lambda: any(workdir.snapshots.glob("1[02].orbax*")))  # behind a checkpoint
    running.send(signal.SIGKILL)
    assert running.wait().status == -signal.SIGKILL
    assert not (workdir.snapshots / str(STEPS)).exists()
    call = run(*flags("train", workdir.path, FIELDS))
    assert "continuing from the checkpoint at step" in call.stdout
    assert Checkpoints(workdir.snapshots).steps() == (2, 4, 6, 8, 10, 12)
    assert_equal(*(state_of(experiment, each) for each in (workdir, trained)))
    for step in (4, 10, STEPS):
        assert_equal(*(snapshot(experiment, each, step) for each in (workdir, trained)))


@pytest.mark.slow
def test_averages_of_lengths_are_made_once_evaluated_and_chosen_by_name(
    workdir, experiment, reader, capsys
):
    reconstruct_averages(reader, workdir, length="0.05,0.08")
    rows = json.loads((workdir.eval / "ema_lengths.json").read_text())["averages"]
    assert [row["length"] for row in rows] == [0.05, 0.08]
    assert rows[0]["relative_error"] < 1e-6 < rows[1]["relative_error"] < 0.03
    loss = rows[1]["loss"]["value"]
    assert re.search(rf"^0\.08 +{loss:.4f}$", capsys.readouterr().out, re.M)
    assert rows[0]["loss"] != rows[1]["loss"]
    assert (workdir.eval / "ema_lengths.png").stat().st_size > 1000
    one = json.loads((workdir.eval / f"{STEPS}-length_0.08.json").read_text())
    assert (one["protocol"]["average"], one["loss"]["mean"]) == ("length_0.08", loss)

    stored = snapshot(experiment, workdir, STEPS)
    made = restore_average(reader, workdir, None, "length_0.05")
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(compare, made.params, stored["length_0.05"])
    made = restore_average(reader, workdir, None, "length_0.08")
    # Between the two stored ones, since parameters move little and in one direction.
    near, far = stored["length_0.05"], stored["length_0.1"]
    across = distance(near, far)
    assert 0 < max(distance(near, made.params), distance(made.params, far)) < across

    shutil.rmtree(workdir.snapshots / "2")
    assert reconstruct(reader, workdir, 0.08).error != rows[1]["relative_error"]
    loaded = load_checkpoint(reader, workdir, STEPS, "length_0.08")
    assert loaded.name == f"{STEPS}-length_0.08"
    assert_equal(loaded.denoiser.network.args[0], made.params)  # it was made already
    reconstruct(reader, workdir, 0.1, 8)
    assert restore_average(reader, workdir, None, "length_0.1").step == 8
    rate = restore_average(reader, workdir, 8, "rate_0.5")
    assert_equal(rate.params, state_of(experiment, workdir, 8).averages["rate_0.5"])


@pytest.mark.slow
def test_average_that_is_made_is_the_one_that_another_run_keeps(workdir, reader, tmp_path):
    fields = FIELDS | {"ema.lengths": (0.08,)}
    twin = Workdir(tmp_path / "twin")
    call = run(*flags("train", twin.path, fields))
    assert call.status == 0, call.stderr
    kept = state_of(build(configuration(fields)), twin).averages["length_0.08"]
    reconstruct(reader, workdir, 0.08)
    made = restore_average(reader, workdir, None, "length_0.08").params
    other = restore_average(reader, workdir, None, "").params
    assert distance(made, kept) < 0.05 * distance(other, kept)  # six snapshots


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.sum((np.asarray(x) - np.asarray(y)) ** 2)) for x, y in pairs) ** 0.5


@pytest.mark.slow
def test_what_cannot_be_made_is_refused_with_what_can(workdir, experiment):
    with pytest.raises(ConfigError, match=r"--ema=rate_0\.9 is no average .* it has: rate_0\.5\. "):
        load_checkpoint(experiment, workdir, None, "rate_0.9")
    with pytest.raises(ConfigError, match=r"cannot be made of 6 snapshots .* error would be 0"):
        reconstruct(experiment, workdir, 0.01)
    with pytest.raises(ConfigError, match=r"--checkpoint=99 has no snapshot .* are: 2, 4, "):
        reconstruct(experiment, workdir, 0.08, 99)
    for file in (workdir.snapshots / "4" / "record").rglob("*"):
        if file.is_file():
            file.write_bytes(b"x" + file.read_bytes())
    with pytest.raises(CheckpointError, match=r"snapshots/4 cannot .* Remove this snapshot; the"):
        reconstruct(experiment, workdir, 0.08)
    shutil.rmtree(workdir.snapshots / "4")
    assert reconstruct(experiment, workdir, 0.08).snapshots == 5


@pytest.mark.slow
def test_snapshots_of_another_run_or_of_none_are_refused(workdir, experiment):
    snapshots = Checkpoints(workdir.snapshots, keep=0)
    config = experiment.config | {"seed": 7}
    snapshots.save(STEPS + 1, snapshot(experiment, workdir, STEPS), config)
    snapshots.close()
    with pytest.raises(WorkdirError, match=r"13 is a snapshot of another run: config\.seed was 7"):
        reconstruct(experiment, workdir, 0.08)
    shutil.rmtree(workdir.snapshots)
    with pytest.raises(WorkdirError, match=r"no snapshots .*; train on: the first comes at step 2"):
        reconstruct(experiment, workdir, 0.08)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a number or several"),
        ("0.1,x", "or several"),
        ("0.3", r"lie in \[0\.001, 0\.28\]"),
    ],
)
def test_length_that_is_none_is_named(text, message):
    with pytest.raises(ConfigError, match=f"--length={text}.*{message}"):
        parse_lengths(text)


def test_lengths_are_sorted_and_each_is_made_once():
    assert parse_lengths("0.1,0.05,0.1") == [0.05, 0.1]
    with pytest.raises(ConfigError, match="nan must lie"):
        parse_lengths("nan")
