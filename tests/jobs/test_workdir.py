"""The folder of a run, and its files: whole or not at all, repaired, and read back as written."""

import json

import numpy as np
import pytest
from PIL import Image

from errors import WorkdirError
from files.pictures import image_grid, write_gif, write_png
from files.text import table
from files.writing import write_file, write_json
from jobs.workdir import Workdir, differences
from training.metrics_log import MetricsLog

CONFIG = {
    "seed": 1,
    "optim": {"decay": "constant", "lr": 0.5},
    "model": {"features": 8, "num_timesteps": (1, 2), "snr": None},
    "data": {"dir": "", "name": "digits"},
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


CLASSIFIER = CONFIG | {"classifier": {"features": 8, "steps": 10}}
CLASSIFIER_RULES = [
    ("classifier.features", 16, False, False),
    ("classifier.steps", 20, False, True),
    ("data.name", "mnist", False, False),
    ("model.features", 16, True, True),
    ("optim.lr", 0.25, True, True),
]


@pytest.mark.parametrize(("field", "value", "train", "read"), CLASSIFIER_RULES)
def test_which_fields_the_classifier_of_a_run_may_change(workdir, field, value, train, read):
    folder = workdir.classifier
    assert folder.path == workdir.path / "classifier"
    folder.save_config(CLASSIFIER)
    for training, allowed in ((True, train), (False, read)):
        if allowed:
            folder.check(changed(field, value, CLASSIFIER), training=training)
        else:
            with pytest.raises(WorkdirError, match=rf"config\.{field} was .*, is .*--workdir"):
                folder.check(changed(field, value, CLASSIFIER), training=training)


def test_saved_configuration_is_read_back(workdir, tmp_path):
    assert differences(workdir.read_config(), CONFIG) == []
    with pytest.raises(WorkdirError, match=r"no run in .*; run --mode=train or --mode=import"):
        Workdir(tmp_path / "none").read_config()
    for text in ("{", "[]"):
        workdir.config.write_text(text)
        with pytest.raises(WorkdirError, match=r"config\.json is damaged .*another --workdir"):
            workdir.read_config()


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


def test_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"old": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_file(tmp_path / "deep" / "a.json", fail)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"old": 1}


def written(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "half", ['{"step": 3, "lo', "{", "3", '{"loss": 1}', "[]", ""], ids=lambda text: text or "none"
)
def test_record_is_repaired_and_cut_at_the_restored_step(tmp_path, half):
    log = MetricsLog(tmp_path, step=0)
    for step in range(1, 6):
        log.write(step, {"loss": 1 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    log = MetricsLog(tmp_path, step=3)
    log.write(4, {"loss": 0.5})
    log.close()
    assert written(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1 / 2},
        {"step": 3, "loss": 1 / 3},
        {"step": 4, "loss": 0.5},
    ]


def test_record_and_tensorboard_hold_the_same(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    log.write(1, {"loss": 0.25, "grad_norm": 3.0})
    log.image(1, "samples", np.zeros((4, 5, 1), np.uint8))
    assert written(tmp_path) == [{"step": 1, "loss": 0.25, "grad_norm": 3.0}], "at once"
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert all(tag in content for tag in (b"loss", b"grad_norm", b"samples"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3)])
def test_grid_holds_every_image_in_reading_order(count, rows, columns, channels):
    images = np.random.default_rng(0).integers(0, 256, (count, 50, 40, channels), np.uint8)
    grid = image_grid(images)
    assert grid.shape == (rows * 51 - 1, columns * 41 - 1, channels)
    for number, image in enumerate(images):
        top, left = 51 * (number // columns), 41 * (number % columns)
        np.testing.assert_array_equal(grid[top : top + 50, left : left + 40], image)


def test_tiny_images_are_enlarged():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    grid = image_grid(image)
    assert grid.shape == (40, 40, 1)
    np.testing.assert_array_equal(grid[::5, ::5], image[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_reads_back_and_gif_keeps_its_frames(tmp_path, channels):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 7, channels), np.uint8)
    write_png(tmp_path / "a.png", frames[0])
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a.png")).reshape(frames[0].shape), frames[0]
    )
    write_gif(tmp_path / "a.gif", list(frames))
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        assert animation.size == (7, 6)
        durations = []
        for frame in range(3):
            animation.seek(frame)
            durations.append(animation.info["duration"])
        assert durations == [60, 60, 2000]  # GIF counts in hundredths of a second
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "a.png"]


def test_table_aligns_its_columns():
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"
