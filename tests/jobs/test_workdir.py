"""The folder of a run, and its files: whole or not at all, repaired, and read back as written."""

import json

import numpy as np
import pytest

from errors import WorkdirError
from jobs.workdir import Workdir, differences
from training.checkpoints import Checkpoints

CONFIG = {
    "seed": 1,
    "optim": {"name": "adam", "lr": 0.5},
    "model": {"features": 8, "num_timesteps": (1, 2), "snr": None},
    "data": {"dequantization": "uniform", "dir": "", "name": "digits"},
    "sampling": {"steps": 10},
    "training": {"steps": 10, "log_every": 1, "batch_size": 4},
}


def changed(path, value, config=CONFIG):
    """A configuration with another value at one dotted path."""
    config = json.loads(json.dumps(config))
    *parents, name = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[name] = value
    return config


@pytest.fixture
def workdir(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.save_config(CONFIG)
    return workdir


def test_configuration_agrees_with_itself_through_json(workdir):
    saved = json.loads(workdir.config.read_text())
    assert differences(saved, CONFIG) == []
    workdir.check(CONFIG, training=True)
    workdir.check(CONFIG, training=False)


def test_differences_name_the_field_and_both_values():
    assert differences(changed("seed", 1), changed("optim.lr", 0.25)) == [
        ("optim.lr", "config.optim.lr was 0.5, is 0.25")
    ]


def test_field_that_is_newer_than_the_run_is_no_difference_but_a_lost_one_is():
    old = json.loads(json.dumps(CONFIG))
    del old["model"]["snr"]
    assert differences(old, CONFIG) == []
    ((name, phrase),) = differences(json.loads(json.dumps(CONFIG)), old)
    assert name == "model.snr"
    assert phrase.endswith("is 'absent'")


# field, other value, whether training may continue with it, whether a reader may have it.
RULES = [
    ("seed", 2, False, True),
    ("optim.lr", 0.25, True, True),
    ("optim.name", "lion", False, True),
    ("model.features", 16, False, False),
    ("model.num_timesteps", (1, 2, 3), False, False),
    ("data.name", "mnist", False, False),
    ("data.dir", "/data", True, True),
    ("data.dequantization", "variational", False, True),
    ("sampling.steps", 20, True, True),
    ("training.log_every", 5, True, True),
    ("training.batch_size", 8, True, True),
    ("training.steps", 20, True, True),
]


@pytest.mark.parametrize(("field", "value", "train", "read"), RULES)
def test_which_fields_a_run_may_change(workdir, field, value, train, read):
    for training, allowed in ((True, train), (False, read)):
        if allowed:
            workdir.check(changed(field, value), training=training)
        else:
            with pytest.raises(WorkdirError, match=rf"config\.{field} was .*, is .*--workdir"):
                workdir.check(changed(field, value), training=training)


CLASSIFIER = CONFIG | {"classifier": {"features": 8, "steps": 10}}
CLASSIFIER_RULES = [
    ("classifier.features", 16, False, False),
    ("classifier.steps", 20, False, True),
    ("data.name", "mnist", False, False),
    ("model.features", 16, True, True),
    ("optim.lr", 0.25, True, True),
]
DEQUANTIZER = CONFIG | {"dequantizer": {"features": 8, "steps": 10}}
DEQUANTIZER_RULES = [
    ("dequantizer.features", 16, False, False),
    ("dequantizer.steps", 20, False, True),
    ("data.name", "mnist", False, False),
    ("data.dequantization", "variational", True, True),
    ("model.features", 16, False, False),
    ("optim.lr", 0.25, True, True),
]


VARIANCE_HEAD = CONFIG | {"variance_head": {"target": "residual", "steps": 10}}
VARIANCE_HEAD_RULES = [
    ("variance_head.target", "squared_noise", False, False),
    ("variance_head.steps", 20, False, True),
    ("model.features", 16, False, False),
    ("optim.lr", 0.25, True, True),
]

PART_RULES = [
    *(("classifier", CLASSIFIER, *rule) for rule in CLASSIFIER_RULES),
    *(("dequantizer", DEQUANTIZER, *rule) for rule in DEQUANTIZER_RULES),
    *(("variance_head", VARIANCE_HEAD, *rule) for rule in VARIANCE_HEAD_RULES),
]


@pytest.mark.parametrize(("part", "config", "field", "value", "train", "read"), PART_RULES)
def test_which_fields_a_part_of_a_run_may_change(workdir, part, config, field, value, train, read):
    heads = part == "variance_head"
    folder = workdir.variance_head("10") if heads else getattr(workdir, part)
    assert folder.path == workdir.path / (f"{part}/10" if heads else part)
    folder.save_config(config)
    for training, allowed in ((True, train), (False, read)):
        if allowed:
            folder.check(changed(field, value, config), training=training)
        else:
            with pytest.raises(WorkdirError, match=rf"config\.{field} was .*, is .*--workdir"):
                folder.check(changed(field, value, config), training=training)


def test_saved_configuration_is_read_back(workdir, tmp_path):
    assert differences(workdir.read_config(), CONFIG) == []
    with pytest.raises(
        WorkdirError, match=r"no run in .*; train or import it first, by --mode=train"
    ):
        Workdir(tmp_path / "none").read_config()
    for text in ("{", "[]"):
        workdir.config.write_text(text)
        with pytest.raises(WorkdirError, match=r"config\.json is damaged .*another --workdir"):
            workdir.read_config()


def test_changes_that_the_result_depends_on_are_reported_and_recorded(workdir):
    other = changed("optim.lr", 0.25, changed("sampling.steps", 20))
    other["optim"]["new"], other["optim"]["unused"] = 3, None
    changes = workdir.check(other, training=True)
    assert changes == ["config.optim.lr was 0.5, is 0.25", "config.optim.new is new, 3"]
    workdir.save_config(other, changes=changes, step=7)
    recorded = json.loads(workdir.config.read_text())["changes"]
    assert recorded == [{"step": 7, "change": change} for change in changes]
    assert workdir.read_config() == json.loads(json.dumps(other))
    assert workdir.check(other, training=True) == []
    workdir.save_config(other)
    assert json.loads(workdir.config.read_text())["changes"] == recorded


def test_refusal_names_a_way_out(workdir):
    with pytest.raises(WorkdirError, match=rf"init_from={workdir.path} with a new --workdir"):
        workdir.check(changed("model.features", 16), training=True)


def test_networks_that_differ_are_named_by_their_fields(workdir):
    other = changed("model.features", 16, changed("optim.lr", 1.0))
    assert workdir.network_differences(other) == ["config.model.features was 8, is 16"]


def test_run_on_other_images_is_refused(workdir):
    workdir.check_images("a")
    workdir.save_config(CONFIG, images="a")
    workdir.check_images("a")
    with pytest.raises(WorkdirError, match=r"other images: .* fingerprint b, the run has seen a"):
        workdir.check_images("b")


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b"\xff", b"[" * 10**5], ids=repr)
def test_lost_configuration_comes_from_a_checkpoint(workdir, capsys, damage):
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(3, {"w": np.zeros(2)}, CONFIG | {"images": "a"})
    checkpoints.close()
    if damage is None:
        workdir.config.unlink()
    else:
        workdir.config.write_bytes(damage)
    assert workdir.read_config() == json.loads(json.dumps(CONFIG))
    assert "using the configuration in the checkpoint of step 3" in capsys.readouterr().out
    with pytest.raises(WorkdirError, match=r"config\.model\.features was 8, is 16"):
        workdir.check(changed("model.features", 16), training=True)
    with pytest.raises(WorkdirError, match="on other images"):
        workdir.check_images("b")
    workdir.save_config(CONFIG)
    assert json.loads(workdir.config.read_bytes())["images"] == "a"


def test_config_is_written_only_where_it_changed(workdir):
    before = workdir.config.stat().st_mtime_ns, workdir.config.stat().st_ino
    workdir.save_config(CONFIG)
    assert (workdir.config.stat().st_mtime_ns, workdir.config.stat().st_ino) == before
    workdir.save_config(changed("sampling.steps", 20))
    assert json.loads(workdir.config.read_text())["sampling"] == {"steps": 20}


def test_nothing_is_touched_before_something_is_written(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.check(CONFIG, training=True)
    assert not workdir.path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="is a file; give a folder"):
        Workdir(tmp_path / "file")
