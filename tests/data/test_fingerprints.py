"""Fingerprints differ for other images, and for nothing else."""

import hashlib

import numpy as np

from data import fingerprints
from data.fingerprints import fingerprint_of, pixel_fingerprint, training_fingerprint
from numerics.arrays import digest


def test_fingerprint_is_that_of_shape_and_bytes(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 2, 3), dtype=np.uint8)
    whole = hashlib.sha256(b"(10, 4, 2, 3)" + images.tobytes()).hexdigest()
    assert pixel_fingerprint(images) == whole
    monkeypatch.setattr(fingerprints, "_ROWS", 3)
    assert pixel_fingerprint(images) == whole
    assert pixel_fingerprint(np.asfortranarray(images)) == whole
    changed = images.copy()
    changed[9, 3, 1, 2] ^= 1
    others = (changed, images[:9], images[::-1], images.reshape(10, 2, 4, 3))
    assert len({whole, *map(pixel_fingerprint, others)}) == 5


def test_fingerprint_of_training_is_that_of_the_arrays(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 2, 3), dtype=np.uint8)
    labels = np.arange(10, dtype=np.int32)
    monkeypatch.setattr(fingerprints, "_ROWS", 3)
    assert training_fingerprint(images, labels) == digest((images, labels))
    assert training_fingerprint(images, None) == digest((images, None))


def test_fingerprint_of_files_is_that_of_names_sizes_and_bytes(tmp_path, monkeypatch):
    contents = [b"abc", b"", b"defghij" * 9]

    def found(contents, names=("a", "b", "c"), folder="x"):
        paths = [tmp_path / folder / name for name in "123"]
        for path, content in zip(paths, contents, strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        sizes = np.array([len(content) for content in contents])
        return fingerprint_of(names, sizes, [str(path) for path in paths])

    for places in (0, 7):  # all bytes, or some of them
        if places:
            monkeypatch.setattr(fingerprints, "_ALL", 10)
            monkeypatch.setattr(fingerprints, "_PLACES", places)
        first = found(contents)
        assert first == found(contents, folder="elsewhere")
        others = [
            found(contents, names=("a", "b", "d")),
            found([b"abd", *contents[1:]]),
            found([*contents[:2], contents[2][:-1]]),
            found([b"", *contents[::2]]),
        ]
        assert len({first, *others}) == 5
