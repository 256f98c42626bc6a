"""Preparation without TensorFlow from small true archives; damage, kills, missing networks."""

import gzip
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
from fake_buckets import fake_buckets
from PIL import Image
from stored_images import (
    CLASSES,
    assert_same_images,
    assert_streamed_is,
    cifar_archive,
    expect_archives,
    mnist_archives,
    one_line,
)

from data.datasets import load
from data.readers import prepare

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def test_cifar10_is_prepared_from_its_archive_and_read_back(tmp_path, monkeypatch, caplog):
    manual = tmp_path / "downloads/manual"
    splits = cifar_archive(manual / "cifar-10-binary.tar.gz")
    expect_archives(monkeypatch, "cifar10", manual)
    directory = tmp_path / "cifar10/3.0.2"
    message = f"cifar10 is prepared in {directory}"
    assert prepare("cifar10", data_dir=tmp_path) == message
    data = load("cifar10", image_size=32, channels=3, data_dir=tmp_path)
    assert_same_images(data, splits)
    streamed = load("cifar10", image_size=32, channels=3, data_dir=tmp_path, memory_gb=0)
    assert_streamed_is(data, streamed)
    again = pickle.loads(pickle.dumps(streamed.train))  # as a worker process gets it
    np.testing.assert_array_equal(again[3], data.train[3])
    assert "OpenCV" not in caplog.text
    names = (directory / "label.labels.txt").read_text().split()
    assert names == CLASSES.split()
    assert "tensorflow" not in sys.modules
    (manual / "cifar-10-binary.tar.gz").unlink()
    assert prepare("cifar10", data_dir=tmp_path) == message  # prepared once


def test_prepared_set_is_read_from_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, address = tmp_path / "bucket/data", "gs://bucket/data"
    splits = mnist_archives(folder / "downloads/manual")
    expect_archives(monkeypatch, "mnist", folder / "downloads/manual")
    prepare("mnist", data_dir=folder)
    with fake_buckets(tmp_path):
        assert_same_images(load("mnist", image_size=28, channels=1, data_dir=address), splits)
        copies = [path.name for path in (tmp_path / "cache/scoresde/buckets").glob("*/*")]
        assert copies == ["mnist"], "nothing else in that folder is copied"
        with pytest.raises(ValueError, match=r"gs://bucket/data.*cp --recursive FOLDER/cifar10"):
            prepare("cifar10", data_dir=address)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_prepared_from_its_archives_and_read_back(name, tmp_path, monkeypatch):
    # Both sets share archive names: one subfolder each.
    folder = tmp_path / "data/downloads/manual" / name
    splits = mnist_archives(folder)
    expect_archives(monkeypatch, name, folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    prepare(name)
    assert_same_images(load(name, image_size=28, channels=1), splits)
    padded = load(name, image_size=32, channels=1, resize="pad")
    np.testing.assert_array_equal(
        padded.test[:, 2:30, 2:30], load(name, image_size=28, channels=1).test
    )


def test_an_interrupted_preparation_is_redone(tmp_path, monkeypatch):
    manual = tmp_path / "downloads/manual"
    splits = mnist_archives(manual)
    expect_archives(monkeypatch, "mnist", manual)
    real, calls = Image.fromarray, []

    def interrupt(array):
        calls.append(array)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(array)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "fromarray", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare("mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load("mnist", image_size=28, channels=1, data_dir=tmp_path)
    (tmp_path / "mnist/3.0.1").mkdir()  # a broken-off copy
    prepare("mnist", data_dir=tmp_path)
    assert_same_images(load("mnist", image_size=28, channels=1, data_dir=tmp_path), splits)


@pytest.mark.slow
def test_a_killed_preparation_is_redone_and_its_leftovers_deleted(tmp_path):
    manual = tmp_path / "downloads/manual"
    splits = mnist_archives(manual)
    code = (
        "import os, sys, pytest; from PIL import Image; from pathlib import Path;"
        "import stored_images; from data.readers import prepare;"
        "patch = pytest.MonkeyPatch(); root = Path(sys.argv[1]);"
        "stored_images.expect_archives(patch, 'mnist', root / 'downloads/manual');"
        "len(sys.argv) == 2 or patch.setattr(Image, 'fromarray', lambda x: os.kill(0, 9));"
        "print(prepare('mnist', data_dir=root))"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, tmp_path, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        return subprocess.run(command, capture_output=True, env=environment, process_group=0)

    assert run("kill").returncode == -signal.SIGKILL
    kept = [
        tmp_path / "mnist/incomplete.ABCDEF_3.0.0",
        tmp_path / "cifar10/incomplete.ABCDEF_3.0.2",
    ]
    for other in kept:
        other.mkdir(parents=True)
    assert len(list((tmp_path / "mnist").glob("incomplete.*_3.0.1"))) == 1
    assert b"mnist is prepared in" in run().stdout
    assert_same_images(load("mnist", image_size=28, channels=1, data_dir=tmp_path), splits)
    assert sorted(tmp_path.rglob("*incomplete*")) == sorted(kept)  # other sets' and versions'


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("checksum", (ValueError, r"'mnist': Artifact .*wrong checksum; run .*prepare")),
        (
            "download",
            (ConnectionError, r"'mnist': the download failed \(HTTP 503\); run .*prepare"),
        ),
        ("broken", (ConnectionError, r"failed \(ChunkedEncodingError\); .*downloads/manual")),
    ],
)
def test_errors_of_fetching_are_one_line(raised, expected, tmp_path, monkeypatch):
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    manual = tmp_path / "downloads/manual"
    mnist_archives(manual)
    expect_archives(monkeypatch, "mnist", manual)
    errors = {
        "checksum": NonMatchingChecksumError("Artifact URL has wrong checksum:\n* Expected: A"),
        "download": tfds.download.DownloadError("HTTP 503"),
        "broken": requests.exceptions.ChunkedEncodingError(),
    }

    def fail(*args, **kwargs):
        raise errors[raised]

    monkeypatch.setattr(tfds.download.DownloadManager, "download", fail)
    kind, message = expected
    with pytest.raises(kind, match=message) as error:
        prepare("mnist", data_dir=tmp_path)
    assert one_line(error)


def test_a_missing_set_fails_at_once_and_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", image_size=32, channels=3, data_dir=tmp_path)
    expected = ("config.data.name='cifar10'", "cifar10/3.0.2", "--mode=prepare", "config.data.dir")
    for part in (*expected, "cifar-10-binary.tar.gz", str(tmp_path / "downloads/manual")):
        assert part in str(error.value)
    assert one_line(error)
    assert not list(tmp_path.rglob("*.tar.gz"))


def test_an_unreachable_archive_is_one_error(tmp_path):
    with pytest.raises(ConnectionError) as error:
        prepare("cifar10", data_dir=tmp_path)
    for part in (CIFAR_URL, "cifar-10-binary.tar.gz", str(tmp_path / "downloads/manual")):
        assert part in str(error.value)
    assert one_line(error)


def test_damaged_archives_are_named(tmp_path, monkeypatch):
    manual = tmp_path / "downloads/manual"
    cifar_archive(manual / "cifar-10-binary.tar.gz")
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz .*sha256") as error:
        prepare("cifar10", data_dir=tmp_path)
    assert one_line(error)
    whole = (manual / "cifar-10-binary.tar.gz").read_bytes()
    (manual / "cifar-10-binary.tar.gz").write_bytes(whole[: len(whole) // 2])
    expect_archives(monkeypatch, "cifar10", manual)
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz is damaged"):
        prepare("cifar10", data_dir=tmp_path)
    mnist_archives(manual)
    (manual / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09"))
    expect_archives(monkeypatch, "mnist", manual)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        prepare("mnist", data_dir=tmp_path)


def test_records_of_another_format_are_refused(tmp_path, monkeypatch):
    mnist_archives(tmp_path / "downloads/manual")
    expect_archives(monkeypatch, "mnist", tmp_path / "downloads/manual")
    prepare("mnist", data_dir=tmp_path)
    info = tmp_path / "mnist/3.0.1/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for verb in (prepare, lambda *a, **k: load(*a, image_size=28, channels=1, **k)):
        with pytest.raises(ValueError, match="tfrecord"):
            verb("mnist", data_dir=tmp_path)


def test_what_is_no_prepared_set_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"config\.data\.dir='.*file' is not a folder"):
        load("mnist", image_size=28, channels=1, data_dir=tmp_path / "file")
    info = tmp_path / "mnist/3.0.1/dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text("{")
    with pytest.raises(ValueError, match=r"config\.data\.name='mnist': ") as error:
        load("mnist", image_size=28, channels=1, data_dir=tmp_path)
    assert one_line(error)
    info.unlink()
    os.mkfifo(info)
    with pytest.raises(ValueError, match="it is a pipe instead of a file"):
        load("mnist", image_size=28, channels=1, data_dir=tmp_path)
