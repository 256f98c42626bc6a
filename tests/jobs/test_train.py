"""The training loop with a network of two numbers: calls, prefetch, signals, profile, origin.

Runs that are killed are in tests/test_run_lib_stopped.py, real networks in tests/test_run_lib.py.
"""

import dataclasses
import functools
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from jax.tree_util import Partial

from data.batches import TrainingBatches
from denoising import Denoiser
from errors import CheckpointError, ConfigError, TrainingError
from experiment.build import build
from jobs.profile import ProfiledSteps
from jobs.train import check_start, train
from jobs.training_job import model_job
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints

FIELDS = TINY | {
    "training.steps": 12,
    "training.log_every": 4,
    "training.checkpoint_every": 6,
}


def scaled(params, x, t):
    return params["scale"] * x + params["bias"][None]


def job(**changes):
    """The job of a configuration, with a smaller network; name__field=value sets a field."""
    fields = FIELDS | {name.replace("__", "."): value for name, value in changes.items()}
    experiment = build(configuration(fields))
    found = model_job(experiment)
    trainer = dataclasses.replace(
        found.trainer,
        init=lambda key: {"scale": jnp.ones(()), "bias": jnp.full((8, 8, 1), 0.5)},
        denoiser=lambda params, dropout=None: Denoiser(
            sde=experiment.model.sde, network=Partial(scaled, params)
        ),
    )
    return dataclasses.replace(found, trainer=trainer)


def state_of(job, folder, step=None):
    restored = Checkpoints(folder / "checkpoints").restore(job.trainer.abstract_state(), step)
    return restored.state


def record(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_sec"} for row in rows]


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.slow
def test_stopped_run_with_several_steps_per_call_is_the_run_that_never_stopped(tmp_path):
    """A run of 7 steps is a run that was stopped: nothing here depends on the length."""
    common = {"optim__name": "muon", "training__accumulate": 2, "optim__warmup": 3}
    grouped = {"training__steps_per_call": 3, **common}
    single = job(**common, training__prefetch=0)
    for found, folder in (
        (single, "single"),
        (job(**grouped), "through"),
        (job(**grouped, training__steps=7), "stopped"),
    ):
        assert train(found, Workdir(tmp_path / folder))
    assert int(state_of(single, tmp_path / "stopped").step) == 7
    assert train(job(**grouped), Workdir(tmp_path / "stopped"))
    alone, through, stopped = (
        state_of(single, tmp_path / folder) for folder in ("single", "through", "stopped")
    )
    jax.tree.map(np.testing.assert_array_equal, stopped, through)
    rows = record(tmp_path / "stopped")
    assert [row for row in rows if row["step"] != 7] == record(tmp_path / "through")
    # XLA may round the steps of one call in another way.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, through, alone)
    rows = record(tmp_path / "single")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert {"loss", "grad_norm", "lr", "update_ratio", "step"} == rows[0].keys()
    assert rows[0]["lr"] == pytest.approx(configuration().optim.lr)
    assert not prefetching()


@pytest.mark.slow
def test_calls_end_where_something_is_due(tmp_path, monkeypatch):
    groups = []
    found = job(training__steps_per_call=3)
    several = found.trainer.compiled_steps()

    def spy(trainer):
        def call(key, state, batches):
            groups.append((int(state.step) + 1, len(batches)))
            return several(key, state, batches)

        return call

    monkeypatch.setattr(type(found.trainer), "compiled_steps", spy)
    train(found, Workdir(tmp_path))
    # Logs at 4, 8 and 12, checkpoints at 6 and 12; all other steps are single.
    assert groups == [(1, 3), (9, 3)]
    assert Checkpoints(tmp_path / "checkpoints").steps() == (6, 12)


@pytest.mark.slow
def test_error_of_the_data_reaches_the_user(tmp_path, monkeypatch):
    read = TrainingBatches.at

    def at(self, step, rows=slice(None)):
        if step == 5:
            raise OSError("cannot read image 5")
        return read(self, step, rows)

    monkeypatch.setattr(TrainingBatches, "at", at)
    with pytest.raises(OSError, match="cannot read image 5"):
        train(job(), Workdir(tmp_path))
    assert not prefetching()
    assert [row["step"] for row in record(tmp_path)] == [4]


@pytest.mark.parametrize("per_call", [1, 3])
@pytest.mark.slow
def test_signal_while_batches_are_made_saves_and_stops(tmp_path, monkeypatch, per_call):
    read = TrainingBatches.at

    def at(self, step, rows=slice(None)):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, step, rows)

    monkeypatch.setattr(TrainingBatches, "at", at)
    with pytest.raises(SystemExit) as stopped:
        train(job(training__steps_per_call=per_call), Workdir(tmp_path))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not prefetching()
    (saved,) = Checkpoints(tmp_path / "checkpoints").steps()
    assert 2 <= saved <= 6


@pytest.mark.slow
def test_every_step_of_a_call_is_checked(tmp_path):
    diverging = job(
        training__steps_per_call=4, optim__name="sgd", optim__lr=1e30, optim__warmup=0,
        optim__grad_clip=0.0,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"step [23]: .*(nan|inf).*Lower config\.optim\.lr"):
        train(diverging, Workdir(tmp_path))


@pytest.mark.slow
def test_start_from_a_run_with_another_optimizer_is_recorded(tmp_path, capsys):
    """The parameters and their average are those of the other run; the optimizer is new."""
    old = job(optim__name="adam", training__steps=6)
    train(old, Workdir(tmp_path / "old"))
    fields = {"optim__name": "lion", "optim__lr": 1e-30, "training__steps": 1}
    new = job(**fields, training__init_from=str(tmp_path / "old"))
    train(new, Workdir(tmp_path / "new"))
    found, expected = state_of(new, tmp_path / "new"), state_of(old, tmp_path / "old")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    saved = json.loads((tmp_path / "new/config.json").read_text())
    origin = f"started with the parameters of {tmp_path / 'old'} at step 6"
    assert saved["changes"] == [{"step": 0, "change": origin}]
    assert saved["training"]["init_from"] == str(tmp_path / "old")
    missing = job(**fields, training__init_from=f"{tmp_path / 'old'}:5")
    for refuses in (train, lambda job, workdir: check_start(job.options, workdir)):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            refuses(missing, Workdir(tmp_path / "missing"))
    check_start(new.options, Workdir(tmp_path / "missing"))
    check_start(missing.options, Workdir(tmp_path / "new"))  # it continues, and starts nowhere


@pytest.mark.slow
def test_trace_of_some_steps_is_written(tmp_path, capsys):
    train(job(training__steps_per_call=3), Workdir(tmp_path), ProfiledSteps.parse("10:11"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "the trace is in" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--profile=9:13 .*steps that are left: 13:20"):
        train(job(training__steps=20), Workdir(tmp_path), ProfiledSteps.parse("9:13"))


@pytest.mark.parametrize("text", ["", "5", "a:b", "0:3", "4:3", "-1:3", "1:2:3", "1.5:2"])
def test_trace_of_no_steps_is_refused(text):
    with pytest.raises(ConfigError, match=r"--profile=.* must be FIRST:LAST, .* such as 10:15"):
        ProfiledSteps.parse(text)


@pytest.mark.slow
def test_warmup_longer_than_training_is_reported(tmp_path, caplog):
    train(job(optim__warmup=99), Workdir(tmp_path))
    assert "warm-up of 99 steps is longer than the training of 12" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training.accumulate": 3}, r"^config\.training\.accumulate=3 does not divide the 4 "),
        ({"training.accumulate": 0}, r"^config\.training\.accumulate=0 must be at least 1"),
        ({"training.steps_per_call": 5}, r"^config\.training\.steps_per_call=5 .*log_every=4"),
        (
            {"training.steps_per_call": 3, "diagnostics.every": 2},
            r"^config\.training\.steps_per_call=3 is more than config\.diagnostics\.every=2, .*; "
            r"lower config\.training\.steps_per_call, raise config\.diagnostics\.every, or set it",
        ),
        (
            {"training.steps_per_call": 3, "ema.snapshot_every": 2},
            r"^config\.training\.steps_per_call=3 is more than config\.ema\.snapshot_every=2, ",
        ),
        ({"training.prefetch": -1}, r"^config\.training\.prefetch=-1 must lie in \[0, 1000\]"),
        (
            {"optim.momentum": 0.5},
            r"^config\.optim\.momentum=0\.5 is not used with name='adam', schedule='constant'; the "
            "fields used are: beta1, beta2, eps",
        ),
        ({"optim.warmup": 3, "optim.warmup_images": 9.0}, r"^config\.optim\.warmup_images=9 and"),
        (
            {"optim.name": "schedule_free_adamw", "optim.schedule": "cosine"},
            r"^config\.optim\.schedule must be 'constant'",
        ),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else "",
)
def test_settings_that_cannot_be_are_refused_before_anything_compiles(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(FIELDS | fields), overrides=frozenset(fields))


def test_warmup_of_the_command_line_takes_the_place_of_the_file():
    fields = {"optim.warmup_images": 160.0}
    experiment = build(configuration(FIELDS | fields), overrides=frozenset(fields))
    assert experiment.config["optim"]["warmup"] is None
    assert experiment.trainer.optimizer.warmup_steps == 10
