"""Checkpoints: what was saved comes back bit for bit, or an error says why not.

Files are really damaged; full disks and killed processes are in test_checkpoint_processes.py.
"""

import logging as std_logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from errors import BucketError, CheckpointError
from training.checkpoints import Checkpoints

CONFIG = {"optim": {"lr": 2e-4, "warmup": 0}, "name": "vp", "widths": [1, 2], "ema": None}


class State(NamedTuple):
    """The kinds of leaves and containers a training state has."""

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: optax.OptState


def make_state(seed=0, width=64):
    rng = np.random.default_rng(seed)
    params = {
        "Dense_0": {
            "kernel": jnp.asarray(rng.normal(size=(64, width)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=(width,)), jnp.bfloat16),
        }
    }
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params)
    return State(jnp.asarray(seed, jnp.int32), params, jax.tree.map(jnp.copy, params), opt_state)


def template(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(y, jax.Array)
        assert x.dtype == y.dtype
        assert x.sharding == y.sharding
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_all(directory, steps, **options):
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, make_state(step), CONFIG | {"at": step})
    checkpoints.close()
    return checkpoints


class Part(NamedTuple):
    params: dict
    ema_params: dict


def test_part_of_a_checkpoint_is_read_whatever_else_it_holds(tmp_path):
    checkpoints, state = save_all(tmp_path, [3]), make_state(3)
    part = Part(state.params, state.ema_params)
    restored = checkpoints.restore(template(part), partial=True)
    assert restored.step == 3
    assert_same(restored.state, part)
    with pytest.raises(CheckpointError, match=r"\.opt_state\S* is only in the checkpoint"):
        checkpoints.restore(template(part))
    wide = make_state(3, width=32)
    with pytest.raises(CheckpointError, match=r"kernel'\] is float32\[64,64\] in the checkpoint"):
        checkpoints.restore(template(Part(wide.params, wide.ema_params)), partial=True)
    more = {"opt_state": state.params}
    with pytest.raises(CheckpointError, match=r"\['opt_state'\]\S* is not in the checkpoint"):
        checkpoints.restore(template(more), partial=True)


def files_of(checkpoint):
    """Every file that matters: Orbax's log of times is informative only."""
    names = ("_CHECKPOINT_METADATA", "commit_success.txt")
    return sorted(
        file
        for file in checkpoint.rglob("*")
        if file.is_file() and not (file.parent == checkpoint and file.name in names)
    )


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


DAMAGE = {"flip": flip_a_bit, "truncate": truncate, "empty": empty, "delete": Path.unlink}


def damage_data(checkpoint):
    """Flips one bit in the middle of the array data, which Orbax does not notice."""
    flip_a_bit(max(files_of(checkpoint), key=lambda file: file.stat().st_size))


@pytest.mark.slow
def test_round_trip_is_exact(tmp_path):
    save_all(tmp_path / "run", [7])
    restored = Checkpoints(tmp_path / "run").restore(template(make_state()))
    assert restored.step == 7
    assert restored.config == CONFIG | {"at": 7}
    assert_same(make_state(7), restored.state)


def test_concrete_and_shardless_templates(tmp_path):
    checkpoints = save_all(tmp_path, [7])
    assert_same(make_state(7), checkpoints.restore(make_state()).state)
    assert_same(make_state(7), checkpoints.restore(jax.eval_shape(make_state)).state)


def test_opening_and_reading_touch_nothing(tmp_path):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run)
    assert checkpoints.steps() == ()
    assert checkpoints.restore(make_state()) is None
    checkpoints.close()
    assert not run.exists()
    leftover = run / "9.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    assert checkpoints.restore(make_state()) is None
    assert leftover.exists()
    save_all(run, [1])
    assert os.listdir(run) == ["1"]


def test_file_with_a_number_as_its_name_is_no_checkpoint(tmp_path):
    (tmp_path / "7").write_bytes(b"")
    assert Checkpoints(tmp_path).steps() == ()
    (tmp_path / "8").mkdir()
    assert Checkpoints(tmp_path).steps() == (8,)


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "left"), [(1, (4,)), (3, (2, 3, 4)), (0, (1, 2, 3, 4))])
def test_keep(tmp_path, keep, left):
    assert save_all(tmp_path, [1, 2, 3, 4], keep=keep).steps() == left


def test_later_checkpoints_survive_a_restart_from_an_earlier_one(tmp_path):
    save_all(tmp_path, [1, 2, 9], keep=0)
    assert save_all(tmp_path, [3], keep=1).steps() == (3, 9)


def test_saving_a_saved_step_changes_nothing(tmp_path):
    checkpoints = save_all(tmp_path, [1])
    checkpoints.save(1, make_state(2), {})
    checkpoints.close()
    assert_same(make_state(1), checkpoints.restore(make_state()).state)
    assert checkpoints.config(1) == CONFIG | {"at": 1}


def test_state_may_be_donated_during_the_save_and_after_restore(tmp_path):
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = make_state(1)
    checkpoints.save(1, state, {})
    for _ in range(20):
        state = advance(state)
    checkpoints.wait()
    like = make_state()
    first, second = checkpoints.restore(like).state, checkpoints.restore(like).state
    buffers = [
        leaf.addressable_data(0).unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((like, first, second))
    ]
    assert len(set(buffers)) == len(buffers)
    advance(first)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert_same(make_state(1), second)
    assert_same(make_state(0), like)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_found(tmp_path, kind):
    save_all(tmp_path, [1])
    files = files_of(tmp_path / "1")
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        DAMAGE[kind](file)
        with pytest.raises(CheckpointError, match=f"{tmp_path}/1 cannot be loaded"):
            Checkpoints(tmp_path).restore(make_state(), step=1)
        file.write_bytes(content)
    assert_same(make_state(1), Checkpoints(tmp_path).restore(make_state(), step=1).state)


def test_damaged_checkpoints_are_skipped_and_named(tmp_path, caplog):
    save_all(tmp_path, [1, 2, 3])
    damage_data(tmp_path / "3")
    (tmp_path / "2" / "record" / "metadata").unlink()
    with caplog.at_level(std_logging.WARNING):
        restored = Checkpoints(tmp_path).restore(make_state())
    assert_same(make_state(1), restored.state)
    assert f"{tmp_path}/3 is skipped: state/" in caplog.text
    assert f"{tmp_path}/2 is skipped: record/metadata is missing" in caplog.text


def test_no_silent_fresh_start(tmp_path):
    save_all(tmp_path, [1, 2])
    damage_data(tmp_path / "1")
    damage_data(tmp_path / "2")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*1: state/.*2: state/") as error:
        Checkpoints(tmp_path).restore(make_state())
    assert "\n" not in str(error.value)


def test_damaged_checkpoints_are_set_aside_by_the_next_save(tmp_path):
    save_all(tmp_path, [1, 2, 3])
    damage_data(tmp_path / "3")
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.restore(make_state()).step == 2
    assert checkpoints.steps() == (1, 2, 3)
    checkpoints.save(3, make_state(3), CONFIG)
    checkpoints.close()
    assert sorted(os.listdir(tmp_path)) == ["3", "3.corrupt"]
    assert_same(make_state(3), Checkpoints(tmp_path).restore(make_state()).state)


def test_checkpoint_deleted_by_the_trainer_while_it_is_read(tmp_path, monkeypatch):
    save_all(tmp_path, [1, 2])
    load = Checkpoints._load

    def load_too_late(self, step, like, partial):
        if step == 2:
            shutil.rmtree(tmp_path / "2")
            (tmp_path / "1").rename(tmp_path / "3")
        return load(self, step, like, partial)

    monkeypatch.setattr(Checkpoints, "_load", load_too_late)
    assert Checkpoints(tmp_path).restore(make_state()).step == 3


def test_config_of_a_damaged_record(tmp_path):
    checkpoints = save_all(tmp_path, [1])
    flip_a_bit(tmp_path / "1" / "record" / "metadata")
    with pytest.raises(CheckpointError, match="record/metadata fails its checksum"):
        checkpoints.config(1)


def replace_bias(state, leaf):
    return state._replace(params={"Dense_0": state.params["Dense_0"] | {"bias": leaf}})


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (lambda: make_state(width=65), r"kernel'\] is float32\[64,64\] in .*float32\[64,65\] here"),
        (
            lambda: replace_bias(make_state(), jnp.zeros(64, jnp.float32)),
            r"\.params\['Dense_0'\]\['bias'\] is bfloat16\[64\] in the checkpoint, float32\[64\]",
        ),
        (
            lambda: make_state()._replace(ema_params={}),
            r"\.ema_params\['Dense_0'\]\['bias'\] is only in the checkpoint",
        ),
        (
            lambda: make_state()._replace(step={"a": jnp.zeros(())}),
            r"\.step\['a'\] is not in the checkpoint",
        ),
    ],
    ids=["shape", "dtype", "missing", "extra"],
)
@pytest.mark.parametrize("step", [None, 2])
def test_misfit_names_the_parameter(tmp_path, like, message, step):
    checkpoints = save_all(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match=f"{tmp_path}/2 does not fit this model: .*{message}"):
        checkpoints.restore(like(), step)


class Extended(NamedTuple):
    """A state with a field that older ones do not have."""

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: optax.OptState
    more: dict


def test_empty_field_leaves_no_trace_so_that_younger_states_load_older_files(tmp_path):
    older, younger = make_state(1), Extended(*make_state(1), more={})
    for number, saved, like in ((1, older, younger), (2, younger, older)):
        checkpoints = Checkpoints(tmp_path / str(number))
        checkpoints.save(1, saved, CONFIG)
        checkpoints.close()
        restored = checkpoints.restore(template(like), 1)
        assert_same(restored.state, like)
        assert type(restored.state) is type(like)


def test_later_checkpoints_are_removed_where_a_run_starts_anew(tmp_path):
    checkpoints = save_all(tmp_path, [1, 2, 3], keep=0)
    checkpoints.remove_after(1)
    assert sorted(os.listdir(tmp_path)) == ["1"]
    Checkpoints(tmp_path / "none").remove_after(0)


def test_missing_step_lists_what_there_is(tmp_path):
    checkpoints = save_all(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match=r"/5 cannot be loaded.* on disk: 1, 2"):
        checkpoints.restore(make_state(), step=5)
    with pytest.raises(CheckpointError, match=r"/5 cannot be loaded.* on disk: 1, 2"):
        checkpoints.config(5)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="keep=-1"):
        Checkpoints(tmp_path, keep=-1)
    with pytest.raises(BucketError, match=r"s3://bucket/run: .* gs://BUCKET/PATH"):
        Checkpoints("s3://bucket/run")
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(tmp_path).save(1, make_state(), {"sde": object()})
    assert os.listdir(tmp_path) == []
