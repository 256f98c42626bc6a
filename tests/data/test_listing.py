"""Lists of many files: kept, made again when a folder changes, and compact."""

import os

import numpy as np
import pytest
from PIL import Image
from stored_images import one_line, random_images, save_folder

from data import folders, listing
from data.datasets import load
from data.listing import Names
from errors import FileError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "set"
    names = [f"{split}/{k % 2}/{k}.png" for split in ("train", "test") for k in range(6)]
    save_folder(root, names, random_images(12))
    (root / "train/0/x.gif").write_bytes(b"")
    for path, _, _ in os.walk(root, topdown=False):
        os.utime(path, (1e9, 1e9))  # changed long ago
    return root


def read(root):
    return load(str(root), image_size=4, channels=3)


def test_a_list_is_kept_until_a_folder_changes(folder, monkeypatch):
    scans = []
    real = folders._Scan.read
    monkeypatch.setattr(folders._Scan, "read", lambda *args: scans.append(args) or real(*args))
    first = read(folder)
    assert len(scans) == 2
    again = read(folder)
    assert len(scans) == 2  # from the cache
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(again, split), getattr(first, split))
    assert (again.notes, again.class_names) == (first.notes, first.class_names)
    (folder / "train/1/1.png").rename(folder / "train/1/9.png")
    assert len(read(folder).train) == 6
    assert len(scans) == 4
    read(folder)
    assert len(scans) == 6  # its folder has changed just now, and may change again in this moment


@pytest.mark.parametrize("memory_gb", [0, 1])
@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("name", ["train/0/2.png", "test/1/3.png"])
def test_a_file_that_changes_in_its_place_costs_one_error(
    folder, tmp_path, name, same_size, memory_gb
):
    def images():
        data = load(str(folder), image_size=4, channels=3, memory_gb=memory_gb)
        return data.fingerprints, np.concatenate([data.train[:], data.test[:]])

    new = np.full((4, 4, 3), 7, np.uint8)
    if same_size:
        Image.fromarray(new + 1).save(folder / name)
    size = (folder / name).stat().st_size
    before, _ = images()
    (kept,) = (tmp_path / "cache/scoresde/listings").iterdir()
    time = (folder / name).parent.stat().st_mtime_ns
    Image.fromarray(new).save(folder / name)
    assert ((folder / name).stat().st_size == size) is same_size
    assert (folder / name).parent.stat().st_mtime_ns == time, "its folder does not tell"
    with pytest.raises(FileError, match=rf"{name}: .*rerun to list the files again") as error:
        images()
    assert one_line(error)
    after, found = images()
    assert after != before
    assert (found == 7).all(axis=(1, 2, 3)).sum() == 1
    assert kept.exists(), "the new list is kept"


def test_a_damaged_list_is_made_again(folder, tmp_path):
    first = read(folder)
    (file,) = (tmp_path / "cache/scoresde/listings").iterdir()
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK"):
        file.write_bytes(content)
        np.testing.assert_array_equal(read(folder).train, first.train)
        assert file.read_bytes() == whole


def test_a_home_that_may_not_be_written_is_no_error(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(read(folder).train) == 6


def test_names_are_packed():
    texts = ["a", "", "b/\u00e9.png", os.fsdecode(b"\xff.png")]
    names = Names.of(texts)
    assert list(names) == texts
    assert [names[k] for k in range(4)] == texts
    assert names[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        _ = names[4]
    assert list(Names.of([])) == []
