"""Data sets in memory: one size, one split, and images that are the stored ones."""

import re

import numpy as np
import pytest
from stored_images import random_images, save_folder

from data import datasets
from data.datasets import ImageData, load
from data.scaling import Quantizer


def test_digits_are_the_whole_set_split_once():
    from sklearn.datasets import load_digits

    data = load("digits", image_size=8, channels=1)
    assert data.train.shape == (datasets.train_count("digits"), 8, 8, 1)
    assert data.test.shape == (297, 8, 8, 1)
    assert data.quantizer.gray_levels == 17
    source = load_digits()

    def rows(images, labels):
        return sorted(map(bytes, np.column_stack([images.reshape(len(images), -1), labels])))

    ours = np.concatenate([data.train, data.test])
    labels = np.concatenate([data.train_labels, data.test_labels])
    stored = source.images.astype(np.uint8)
    assert rows(ours, labels.astype(np.uint8)) == rows(stored, source.target.astype(np.uint8))
    np.testing.assert_array_equal(load("digits", image_size=8, channels=1).test, data.test)
    other = load("digits", image_size=8, channels=1, split_seed=1)
    assert not np.array_equal(other.test, data.test)
    with pytest.raises(ValueError, match=r"config\.data\.resize='crop'"):
        load("digits", image_size=16, channels=1, resize="crop")


def test_npz_with_one_set_holds_out_a_tenth(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(40))
    data = load(str(tmp_path / "set.npz"), image_size=4, channels=1)
    assert len(data.test) == 4
    np.testing.assert_array_equal(data.train[:, 0, 0, 0], data.train_labels)
    np.testing.assert_array_equal(data.test[:, 0, 0, 0], data.test_labels)
    assert sorted([*data.train_labels, *data.test_labels]) == list(range(40))


def test_flat_folder_holds_out_a_tenth_without_labels(tmp_path):
    images = random_images(20, channels=1)
    save_folder(tmp_path, [f"{k:02}.png" for k in range(20)], images)
    data = load(str(tmp_path), image_size=4, channels=1)
    assert (len(data.train), len(data.test), data.train_labels) == (18, 2, None)
    found = {bytes(x) for x in np.concatenate([data.train, data.test])}
    assert found == {bytes(x) for x in images}


def test_resizing_is_a_choice(tmp_path):
    images = random_images(4, size=5)
    np.savez(tmp_path / "x.npz", train=images, test=images)
    padded = load(str(tmp_path / "x.npz"), image_size=8, channels=3, resize="pad").train
    np.testing.assert_array_equal(padded[:, 1:6, 1:6], images)
    assert padded.sum(dtype=int) == images.sum(dtype=int)
    for remedy in ("image_size=5", "pad"):
        with pytest.raises(ValueError, match=remedy):
            load(str(tmp_path / "x.npz"), image_size=8, channels=3)
    with pytest.raises(ValueError, match="'crop'"):
        load(str(tmp_path / "x.npz"), image_size=4, channels=3, resize="pad")
    with pytest.raises(ValueError, match=r"config\.data\.image_size=0"):
        load(str(tmp_path / "x.npz"), image_size=0, channels=3)
    with pytest.raises(ValueError, match=r"config\.data\.image_size=1000000 needs .* GB of memory"):
        load(str(tmp_path / "x.npz"), image_size=10**6, channels=3, resize="crop")
    with pytest.raises(ValueError, match="crop, none, pad"):
        load(str(tmp_path / "x.npz"), image_size=4, channels=3, resize="stretch")

    # A wide picture of one color: the crop keeps the middle and the channels apart.
    wide = np.zeros((4, 6, 10, 3), np.uint8)
    wide[:, :, 2:8] = (10, 100, 200)
    np.savez(tmp_path / "x.npz", train=wide, test=wide)
    cropped = load(str(tmp_path / "x.npz"), image_size=3, channels=3, resize="crop").train
    np.testing.assert_array_equal(cropped, np.broadcast_to([10, 100, 200], cropped.shape))


def test_training_counts_are_known_without_loading():
    assert datasets.train_count("cifar10") == 50_000
    assert datasets.train_count("some/folder") is None


def test_splits_that_do_not_fit_are_refused():
    train = random_images(3)
    with pytest.raises(ValueError, match="alike"):
        ImageData(name="x", train=train, test=random_images(0))
    with pytest.raises(ValueError, match=r"levels should be 0\.\.8"):
        ImageData(name="x", train=train, test=random_images(2), quantizer=Quantizer(gray_levels=9))


def test_fingerprint_changes_with_every_image_label_and_order():
    train, labels = random_images(6), np.arange(6, dtype=np.int32)

    def fingerprint(images, numbers):
        return ImageData(name="x", train=images, test=images[:1], train_labels=numbers).fingerprint

    first = fingerprint(train, labels)
    assert first == fingerprint(train[::-1][::-1], labels.copy())
    assert len(first) == 16
    assert int(first, 16) >= 0
    one_level = train.copy()
    one_level[3, 2, 1, 0] ^= 1
    others = [
        fingerprint(one_level, labels),
        fingerprint(train, labels[::-1]),
        fingerprint(train, None),
        fingerprint(train[::-1], labels),
        fingerprint(train.reshape(6, 2, 8, 3), labels),
        fingerprint(train[:5], labels[:5]),
    ]
    assert len({first, *others}) == 7


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((0, 1), "hold 2 of the gray levels 0..255, from 0 to 1; .* multiply them by 255"),
        ((0, 255), "hold 2 of the gray levels 0..255, from 0 to 255; the model and bits/dim count"),
        (range(17), "hold 17 of the gray levels 0..255, from 0 to 16; .* multiply them by 15"),
        (range(0, 256, 15), None),
    ],
)
def test_images_of_few_levels_are_reported(tmp_path, levels, message):
    images = np.resize(np.array(levels, np.uint8), (20, 4, 4, 1))
    np.savez(tmp_path / "x.npz", images=images)
    notes = load(str(tmp_path / "x.npz"), image_size=4, channels=1).notes
    assert len(notes) == (message is not None)
    assert all(re.search(message, note) for note in notes)
    assert not any("\n" in note for note in notes)
    assert load("digits", image_size=8, channels=1).notes == ()


def test_remedies_for_the_size_of_digits_work():
    """Cropping would blur their levels, so it is never advised."""
    with pytest.raises(ValueError, match=r"8x8 pixels; set config\.data\.image_size=8$"):
        load("digits", image_size=4, channels=1)
    with pytest.raises(ValueError, match=r"image_size=8, or choose config.data.resize='pad'"):
        load("digits", image_size=16, channels=1)
    assert load("digits", image_size=16, channels=1, resize="pad").train.shape[1:] == (16, 16, 1)


@pytest.mark.parametrize(
    ("variables", "processes"),
    [
        ({}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x12),2"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, 8),
    ],
)
def test_processes_of_a_machine_share_its_budget(monkeypatch, variables, processes):
    monkeypatch.setattr(datasets, "memory_bytes", lambda: 2**30)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    reader, splits, fit = datasets.open_splits("digits", image_size=8, channels=1)
    assert datasets.size_of(reader, splits, fit, None).budget == 2**28 // processes
    assert datasets.size_of(reader, splits, fit, 1.0).budget == 10**9
