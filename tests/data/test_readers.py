"""Readers: .npz files, folders, names; what is damaged, missing or of another kind is named."""

import os
import subprocess
import sys

import numpy as np
import pytest
from fake_buckets import fake_buckets
from stored_images import one_line, random_images, save_folder

from data import readers
from data.datasets import load
from data.readers import prepare
from errors import FileError


@pytest.mark.slow
def test_digits_do_not_import_tensorflow_datasets():
    code = (
        "import sys; from data.datasets import load; load('digits', image_size=8, channels=1);"
        "print([m for m in ('tensorflow_datasets', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_npz_with_train_and_test(tmp_path):
    train, test = random_images(5), random_images(3, seed=1)
    for keys in (("train", "test"), ("train_images", "test_images")):
        path = tmp_path / f"{keys[0]}.npz"
        np.savez(path, **dict(zip(keys, (train, test), strict=True)), train_labels=np.arange(5))
        data = load(str(path), image_size=4, channels=3)
        np.testing.assert_array_equal(data.train, train)
        np.testing.assert_array_equal(data.test, test)
        np.testing.assert_array_equal(data.train_labels, range(5))
        assert data.test_labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.full((3, 4, 4, 3), np.nan)}, "float64; store levels 0..255 as uint8"),
        ({"images": np.zeros((3, 4, 4, 3), np.float32)}, "float32; store levels 0..255 as uint8"),
        ({"images": np.zeros((3, 4), np.uint8)}, "NHWC or NHW"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "NHWC or NHW"),
        ({"images": np.zeros((1, 4, 4, 3), np.uint8)}, "has 1 image"),
        ({"other": random_images(3)}, "expected images, train and test"),
        ({"test": random_images(3)}, "expected images, train and test"),
        ({"train": random_images(3), "images": random_images(3)}, "train and images; keep one"),
        (
            {"images": random_images(3), "test": random_images(3), "x_test": random_images(3)},
            "test and x_test; keep one",
        ),
        (
            {"images": np.zeros((3, 3, 8, 8), np.uint8)},
            r"NCHW; .* images\.transpose\(0, 2, 3, 1\)",
        ),
        ({"images": random_images(3), "labels": np.array([0, 1, 2**40])}, "from 0"),
        ({"images": random_images(3), "labels": np.zeros(2, int)}, "expected 3 integers"),
        ({"images": random_images(3, channels=1)}, r"config\.data\.channels=3.* has 1;"),
        ({"images": random_images(3, size=6)}, r"image_size=4.* 6x6 .* config\.data\.image_size=6"),
        ({"images": np.array([None, {}])}, "holds objects"),
    ],
)
def test_unfit_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load(str(tmp_path / "bad.npz"), image_size=4, channels=3)
    assert "bad.npz" in str(error.value)
    assert one_line(error)


def test_damaged_and_missing_files_are_named(tmp_path):
    np.savez_compressed(tmp_path / "cut.npz", images=random_images(50))
    whole = (tmp_path / "cut.npz").read_bytes()
    for damaged in (b"not a zip", whole[:200] + bytes(200) + whole[400:]):
        (tmp_path / "cut.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut\.npz"):
            load(str(tmp_path / "cut.npz"), image_size=4, channels=3)
    for missing in ("no.npz", "no/folder"):
        with pytest.raises((FileNotFoundError, FileError), match=missing):
            load(str(tmp_path / missing), image_size=4, channels=3)


def test_what_is_no_file_or_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("text")
    cases = {"pipe.npz": "a pipe", "folder.npz": "a folder", "file": "a file, but neither an .npz"}
    for name, message in cases.items():
        with pytest.raises((FileNotFoundError, FileError), match=message) as error:
            load(str(tmp_path / name), image_size=4, channels=3)
        assert one_line(error)
    with pytest.raises(FileNotFoundError, match="neither"):
        load("~nobody-here/images", image_size=4, channels=3)


@pytest.mark.parametrize(
    ("keys", "unused"),
    [
        ({"images": "train", "labels": "train_labels", "test": "test"}, None),
        ({"x_train": "train", "y_train": "train_labels", "x_test": "test"}, None),
        ({"train": "train", "train_labels": "train_labels", "val": "test"}, None),
        (
            {
                "train_images": "train",
                "train_labels": "train_labels",
                "test_images": "test",
                "val_images": "train",
            },
            "not used: val_images",
        ),
    ],
)
def test_npz_with_other_names(tmp_path, keys, unused):
    arrays = {"train": random_images(5), "test": random_images(3, seed=1)}
    arrays["train_labels"] = np.arange(5)
    np.savez(tmp_path / "x.npz", **{key: arrays[which] for key, which in keys.items()})
    data = load(str(tmp_path / "x.npz"), image_size=4, channels=3)
    np.testing.assert_array_equal(data.train, arrays["train"])
    np.testing.assert_array_equal(data.test, arrays["test"])
    np.testing.assert_array_equal(data.train_labels, range(5))
    assert [unused in note for note in data.notes] == ([True] if unused else [])


def test_npz_with_train_alone_holds_out_a_tenth(tmp_path):
    np.savez(tmp_path / "x.npz", train=random_images(20))
    data = load(str(tmp_path / "x.npz"), image_size=4, channels=3)
    assert (len(data.train), len(data.test)) == (18, 2)


def test_names_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"'cifra10' is unknown.*cifar10") as error:
        load("cifra10", image_size=32, channels=3, data_dir=tmp_path)
    assert one_line(error)
    with pytest.raises(ValueError, match=r"did you mean 'digits'"):
        prepare("digit", data_dir=tmp_path)
    with pytest.raises(ValueError, match="cifar10/nonsense"):
        load("cifar10/nonsense", image_size=32, channels=3, data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"celeb_a_hq/64/2"):  # a name, not a path
        load("celeb_a_hq/64", image_size=64, channels=3, data_dir=tmp_path)


def test_what_needs_no_preparation_and_what_needs_tensorflow(tmp_path, monkeypatch):
    for name in ("digits", str(tmp_path), "some/where.npz"):
        assert prepare(name) == f"config.data.name={name!r} needs no preparation"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install tensorflow-cpu"):
        prepare("svhn_cropped", data_dir=tmp_path)


def test_a_reader_is_one_row(monkeypatch):
    """Reading, gray levels, held-out images, preparation and the hint follow from it."""

    def read(name, data_dir):
        images = np.arange(40, dtype=np.uint8)[:, None, None, None] % 3
        return {"train": readers.Split([readers.Item(name, image, 7) for image in images])}

    row = readers.Reader(
        accepts=lambda name: name == "stripes", read=read, gray_levels=3, test_count=5
    )
    monkeypatch.setattr(readers, "READERS", {"stripes": row} | readers.READERS)
    data = load("stripes", image_size=1, channels=1)
    assert (len(data.train), len(data.test), data.quantizer.gray_levels) == (35, 5, 3)
    assert set(data.train_labels) == {7}
    assert prepare("stripes") == "config.data.name='stripes' needs no preparation"
    with pytest.raises(
        ValueError, match=r"did you mean 'stripes'.* Choose stripes, digits, .*a path"
    ):
        load("stripe", image_size=1, channels=1)


def test_files_and_folders_in_a_bucket_are_read_from_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = random_images(6, size=8, channels=1)
    (tmp_path / "bucket").mkdir()
    np.savez(tmp_path / "bucket/a.npz", train=images[:4], test=images[4:])
    names = [f"train/{k}.png" for k in range(4)] + [f"test/{k}.png" for k in range(2)]
    save_folder(tmp_path / "bucket/png", names, images)
    with fake_buckets(tmp_path):
        for name in ("gs://bucket/a.npz", "gs://bucket/png"):
            data = load(name, image_size=8, channels=1)
            assert np.array_equal(data.train, images[:4])
            assert np.array_equal(data.test, images[4:])
        with pytest.raises(ValueError, match=r"name='gs://bucket/b\.npz': there is no such file"):
            load("gs://bucket/b.npz", image_size=8, channels=1)
