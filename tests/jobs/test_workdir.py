"""The folder of a run: its configuration, and which fields may change."""

import json

import pytest

from errors import WorkdirError
from jobs.workdir import Workdir, differences

CONFIG = {
    "seed": 1,
    "optim": {"decay": "constant", "lr": 0.5},
    "model": {"features": 8, "levels": (1, 2), "snr": None},
    "data": {"dir": "", "name": "digits"},
    "sampling": {"steps": 10},
    "training": {"steps": 10, "log_every": 1, "batch_size": 4},
}


def changed(path, value):
    """CONFIG with another value at one dotted path."""
    config = json.loads(json.dumps(CONFIG))
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


# --- configurations ---------------------------------------------------------------------------


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


def test_newer_field_that_says_other_than_its_default_is_a_difference():
    saved = json.loads(json.dumps(CONFIG))
    new = CONFIG | {"sampling": {"steps": 10, "guidance": "classifier"}}
    assert [name for name, _ in differences(saved, new)] == ["sampling.guidance"]
    new = CONFIG | {"sampling": {"steps": 10, "guidance": "none"}}
    assert differences(saved, new) == []
    # A protocol of parts of a configuration knows nothing of the others.
    assert differences({"seed": 1}, {"seed": 1} | new) == []


# field, other value, whether training may go on with it, whether a reader may have it.
RULES = [
    ("seed", 2, False, True),
    ("optim.lr", 0.25, False, True),
    ("model.features", 16, False, False),
    ("model.num_timesteps", (1, 2, 3), False, False),
    ("data.name", "mnist", False, False),
    ("data.dir", "/data", True, True),
    ("sampling.steps", 20, True, True),
    ("training.log_every", 5, True, True),
    ("training.batch_size", 8, False, True),
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


def test_schedule_that_ends_with_training_fixes_its_length(workdir):
    workdir.save_config(changed("optim.decay", "cosine"))
    longer = changed("optim.decay", "cosine")
    longer["training"]["steps"] = 20
    with pytest.raises(WorkdirError, match=r"config\.training\.steps was 10, is 20"):
        workdir.check(longer, training=True)


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
