"""Folders that --mode=prepare --target makes: the same images, resumable, and damage listed."""

import json

import numpy as np
import pytest
from command_line import TINY, assert_one_error, flags, run, run_fresh
from PIL import Image
from stored_images import random_images, save_folder

from data import packing
from data.datasets import load, open_splits
from data.packing import pack
from errors import ConfigError

OPTIONS = {"image_size": 4, "channels": 3, "resize": "crop"}


def packed(path, target, **options):
    _, splits, fit = open_splits(str(path), **OPTIONS)
    return pack(str(path), splits, fit, target, **options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes, two splits, images of the size and larger ones; files of 5 images."""
    monkeypatch.setattr(packing, "_SHARD", 5)
    images = [*random_images(8), *random_images(5, size=6), *random_images(1, channels=1)]
    root = tmp_path / "set"
    save_folder(root / "train", [f"{'ab'[k % 2]}/{k:02}.png" for k in range(14)], images)
    save_folder(root / "val", ["a/0.png", "b/1.png"], random_images(2, seed=1))
    return root


def test_the_images_labels_and_classes_are_the_same(folder, tmp_path):
    target = tmp_path / "packed"
    line = packed(folder, target)
    assert line == f"prepared in {target}; give it as --config.data.name={target}"
    source = load(str(folder), **OPTIONS)
    for memory_gb in (0, 1):
        data = load(str(target), image_size=4, channels=3, memory_gb=memory_gb)
        for split in ("train", "test"):
            np.testing.assert_array_equal(getattr(data, split)[:], getattr(source, split))
            labels = getattr(data, f"{split}_labels")
            np.testing.assert_array_equal(labels, getattr(source, f"{split}_labels"))
        assert data.class_names == ("a", "b")
        assert data.fingerprint == source.fingerprint
    assert sorted(file.suffix for file in target.iterdir()) == [".array_record"] * 4 + [
        ".json",
        *[".npy"] * 2,
    ]
    assert packed(folder, target) == line  # at once


def test_a_preparation_that_was_stopped_continues(folder, tmp_path, monkeypatch):
    target, real, calls = tmp_path / "packed", packing._image_file, []

    def stop(item, fit):
        calls.append(item.where)
        if item.where.endswith("12.png"):
            raise OSError(28, "No space left on device")
        return real(item, fit)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_image_file", stop)
        with pytest.raises(OSError, match="No space left") as error:
            packed(folder, target)
    assert str(target / "train-") in str(error.value)
    assert not list(target.glob("*.partial*"))
    _, splits, fit = open_splits(str(folder), **OPTIONS | {"image_size": 3})
    with pytest.raises(ConfigError, match="holds other images or settings"):
        pack(str(folder), splits, fit, target)
    (target / "train-00000.array_record").touch()
    before = (target / "train-00000.array_record").stat().st_mtime_ns
    packed(folder, target)
    assert (target / "train-00000.array_record").stat().st_mtime_ns == before
    data, source = load(str(target), image_size=4, channels=3), load(str(folder), **OPTIONS)
    np.testing.assert_array_equal(data.train, source.train)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path):
    source, target = tmp_path / "set", tmp_path / "packed"
    save_folder(source, [f"{k:02}.png" for k in range(30)], random_images(30, size=32))
    fields = {"data.name": source, "data.image_size": 32, "data.channels": 3}
    command = [*flags("prepare", tmp_path / "run", TINY | fields), f"--target={target}"]
    limit = 40_000  # bytes: less than half of the images
    assert sum(file.stat().st_size for file in source.iterdir()) > 2 * limit
    call = run_fresh(*command, file_limit=limit)
    shard = target / "train-00000.array_record"
    assert_one_error(call, rf"File too large: '{shard}'\. Fix this and rerun")
    assert [file.name for file in target.iterdir()] == ["unfinished.json"]
    call = run(*command)
    assert call.status == 0, call.stderr
    assert call.stdout.startswith(f"prepared in {target}; ")
    held = load(str(source), image_size=32, channels=3)
    data = load(str(target), image_size=32, channels=3)
    np.testing.assert_array_equal(data.train, held.train)
    np.testing.assert_array_equal(data.test, held.test)


def test_damaged_images_are_listed_all_at_once_and_skipped_if_asked(folder, tmp_path, capsys):
    for name in ("train/a/02.png", "train/a/04.png", "val/b/1.png"):
        (folder / name).write_bytes(b"damaged")
    target = tmp_path / "packed"
    with pytest.raises(
        ConfigError, match=r"3 images cannot be read, listed in .*damaged\.txt"
    ) as e:
        packed(folder, target)
    assert "--skip_damaged" in str(e.value)
    listed = (target / "damaged.txt").read_text()
    assert [name in listed for name in ("02.png", "04.png", "1.png")] == [True] * 3
    assert capsys.readouterr().out.strip() == listed.strip()
    with pytest.raises(ValueError, match="no images below"):
        load(str(target), image_size=4, channels=3)  # not finished
    packed(folder, target, skip_damaged=True)
    data = load(str(target), image_size=4, channels=3)
    assert (len(data.train), len(data.test)) == (12, 1)
    np.testing.assert_array_equal(data.train_labels, [0] * 5 + [1] * 7)


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    for target in (tmp_path / "other", tmp_path / "other/mine.txt"):
        with pytest.raises(ConfigError, match="give a new folder"):
            packed(folder, target)
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_an_index_that_does_not_fit_its_files_is_one_line(folder, tmp_path):
    target = tmp_path / "packed"
    packed(folder, target)
    index = json.loads((target / "images.json").read_text())
    index["splits"]["train"]["count"] += 1
    (target / "images.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"train has 14 images instead of 15\); prepare it again"):
        load(str(target), image_size=4, channels=3)


def test_files_of_the_right_size_are_kept_as_they_are(tmp_path):
    image = random_images(1, size=16)[0]
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / name, quality=50)
    _, splits, fit = open_splits(str(tmp_path / "set"), image_size=16, channels=3)
    pack("set", splits, fit, tmp_path / "packed")
    _, found, _ = open_splits(str(tmp_path / "packed"), image_size=16, channels=3)
    assert found["train"].items[1].encoded == (tmp_path / "set/b.jpg").read_bytes()
