"""Images that are read when they are indexed: the numbers are those of images in memory."""

import os

import numpy as np
import pytest
from PIL import Image
from stored_images import assert_streamed_is, one_line, random_images, save_folder

from data.batches import TrainingBatches
from data.datasets import load
from data.streamed import Converted, thread_count
from errors import FileError

COUNT, SIZE = 60, 4


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, of a larger size, one of them gray."""
    images = list(random_images(COUNT, size=6))
    images[7] = images[7][..., :1]
    save_folder(tmp_path / "set", [f"{k % 2}/{k:02}.png" for k in range(COUNT)], images)
    return tmp_path / "set"


def loaded(path, *, memory_gb, **changes):
    options = {"image_size": SIZE, "channels": 3, "resize": "crop"} | changes
    return load(str(path), memory_gb=memory_gb, **options)


def batches(data, **changes):
    settings = {"batch_size": 8, "seed": 3, "random_flip": True, "dequantization": "uniform"}
    labels = data.train_labels
    return TrainingBatches(images=data.train, labels=labels, **settings | changes)


def test_a_streamed_folder_has_the_images_labels_and_fingerprints_of_one_in_memory(folder):
    held, streamed = loaded(folder, memory_gb=1), loaded(folder, memory_gb=0)
    assert_streamed_is(held, streamed)
    assert any("repeated to three channels: 1 of 60" in note for note in streamed.notes)
    assert streamed.notes == held.notes
    for key in (3, -1, np.int64(5), slice(2, 50, 3), np.array([9, 1, 1]), slice(0, 0)):
        np.testing.assert_array_equal(streamed.train[key], held.train[key])
    np.testing.assert_array_equal(list(streamed.test), held.test)
    with pytest.raises(IndexError):
        _ = streamed.train[len(streamed.train)]


def test_streamed_batches_are_those_of_images_in_memory_bit_for_bit(folder):
    held = batches(loaded(folder, memory_gb=1), batch_size=20)
    streamed = batches(loaded(folder, memory_gb=0), batch_size=20)
    # In turn, from the start again, at steps of their own, and some hosts' rows.
    for step, rows in [
        *((step, slice(None)) for step in (0, 1, 2, 3, 4, 0, 1, 9, 10, 11)),
        *((step, slice(5, 20)) for step in (11, 12, 13, 14)),
        (15, slice(3, 3)),
        (16, slice(3, 4)),
    ]:
        np.testing.assert_array_equal(streamed.at(step, rows), held.at(step, rows))
        np.testing.assert_array_equal(streamed.labels_at(step, rows), held.labels_at(step, rows))
    streamed.close()
    np.testing.assert_array_equal(streamed.at(17), held.at(17))
    streamed.close()


@pytest.mark.slow
def test_batches_that_processes_read_are_the_same_and_their_errors_too(folder):
    held = batches(loaded(folder, memory_gb=1), batch_size=20)
    streamed = batches(loaded(folder, memory_gb=0), batch_size=20, workers=1)
    for step in range(4):
        np.testing.assert_array_equal(streamed.at(step), held.at(step))
    (folder / "0/00.png").unlink()
    with pytest.raises(FileError, match=r"00\.png: the file is gone since it was listed") as error:
        list(map(streamed.at, range(4, 20)))
    assert one_line(error)
    streamed.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "the file is gone since it was listed; put it back"),
        (lambda file: file.write_bytes(b"x"), "the file has changed since it was listed; put it"),
        (
            lambda file: file.write_bytes(bytes(file.stat().st_size)),
            "the file has changed since it",
        ),
    ],
)
def test_a_file_that_changes_or_vanishes_is_named(folder, damage, message):
    stream = batches(loaded(folder, memory_gb=0), batch_size=54)
    damage(folder / "1/15.png")
    with pytest.raises(FileError, match=rf"15\.png:? {message}") as error:
        list(map(stream.at, range(3)))
    assert one_line(error)
    stream.close()


def test_the_first_images_are_looked_at_before_training(folder):
    with pytest.raises(
        ValueError, match=r"image_size=4.* 6x6 .*choose config\.data\.resize='crop'"
    ):
        loaded(folder, memory_gb=0, resize="none")
    with pytest.raises(ValueError, match=r"channels=1, but .* has 3"):
        loaded(folder, memory_gb=0, channels=1)
    for file in folder.glob("*/*.png"):
        Image.fromarray(random_images(1, channels=1)[0, ..., 0]).save(file)
    with pytest.raises(ValueError, match=r"channels=3, but .* has 1"):
        loaded(folder, memory_gb=0)


def test_a_budget_decides_what_is_held_in_memory(folder):
    size = COUNT * SIZE * SIZE * 3 / 1e9
    assert isinstance(loaded(folder, memory_gb=size).train, np.ndarray)
    assert not isinstance(loaded(folder, memory_gb=size * 0.99).train, np.ndarray)
    assert isinstance(loaded(folder, memory_gb=None).train, np.ndarray)


def test_converted_images_are_read_slice_by_slice(folder):
    data = loaded(folder, memory_gb=0)
    rows = np.array([5, 2, 9])
    shown = Converted(data.train, rows, lambda stored: stored / 2)
    assert len(shown) == 3
    np.testing.assert_array_equal(shown[1:3], data.train[np.array([2, 9])] / 2)


def test_images_are_read_where_the_system_has_no_affinity(folder, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert thread_count() == 3
    assert_streamed_is(loaded(folder, memory_gb=1), loaded(folder, memory_gb=0))
