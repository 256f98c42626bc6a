"""Readers of stored images, one row of `READERS` per kind of name.

A reader returns the splits of a data set, "train" and perhaps "test", as sequences of single images
that are read when they are indexed: uint8, height x width x channels, in their own sizes. To add a
reader, write one function and give it a row.
"""

import difflib
import glob
import importlib.util
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from data import preparation
from data.fingerprints import fingerprint_of
from data.folders import HELD_OUT_NAMES, read_folder
from data.kept_labels import kept_labels
from data.npz import local_arrays, read_npy, read_npz
from data.parquet import is_parquet_folder, prepare_hub, read_hub, read_parquet
from data.records import is_packed, is_record_name, read_packed, read_records
from data.stored import Directory, ImageFile, ImageFiles, Item, Split, Splits
from data.zips import read_zip
from errors import FileError
from files.copies import local_matches
from files.hub import HUB
from files.paths import as_path, in_bucket

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The treatment of one kind of `config.data.name`.

    Args:
        accepts: whether a name is of this kind.
        read: the splits of the data set, from its name and `config.data.dir`. Never downloads.
        gray_levels: number of levels in stored images.
        test_count: images to hold out where there is no test split; None for a tenth.
        prepare: prepares the data set from (name, data_dir) and returns one line that says where
            it is; None where nothing has to be done.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str, Directory], Splits]
    gray_levels: int = 256
    test_count: int | None = None
    prepare: Callable[[str, Directory], str] | None = None


def _read_digits(name: str, data_dir: Directory) -> Splits:
    """Read scikit-learn's handwritten digits: rows of 64 levels from 0 to 16, and the class."""
    # Without importing scikit-learn, which takes half a second.
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the digits are part of scikit-learn: pip install scikit-learn")
    folder = Path(package.submodule_search_locations[0], "datasets", "data")
    table = np.loadtxt(folder / "digits.csv.gz", np.uint8, delimiter=",")
    images = table[:, :-1].reshape(-1, 8, 8, 1)
    return {"train": Split(list(map(Item, itertools.repeat(name), images, table[:, -1].tolist())))}


def _read_some_digits(name: str, data_dir: Directory) -> Splits:
    """Read the digits of the classes in a name such as digits:38."""
    _, _, classes = name.partition(":")
    if not re.fullmatch(r"\d+", classes, re.ASCII):
        raise ValueError(f"config.data.name={name!r}: give classes after the colon, as digits:38")
    found = _read_digits(name, data_dir)["train"]
    return {"train": Split([item for item in found.items if str(item.label) in classes])}


def _is_folder(name: str) -> bool:
    """Return whether a name is a folder, or a path at which one is missing."""
    path = os.path.expanduser(name)  # returns the path for an unknown user, unlike pathlib
    if os.path.isdir(path):
        return True
    if not {"/", os.sep}.intersection(name) and not os.path.exists(path):
        return False
    # A tensorflow-datasets name may carry a configuration: celeb_a_hq/256.
    return name.split("/")[0] not in preparation.registered_names()


def _read_tfds(name: str, data_dir: Directory) -> Splits:
    """Read a prepared data set of tensorflow-datasets, without TensorFlow."""
    _check_registered(name)
    builder = preparation.open_prepared(name, data_dir)
    splits = builder.info.splits
    if "train" not in splits or "image" not in builder.info.features:
        raise ValueError(
            f"config.data.name={name!r} needs a split 'train' and a feature 'image', "
            f"has {list(splits)}"
        )
    stored = {"train": "train"}
    if held := next((split for split in HELD_OUT_NAMES if split in splits), None):
        stored["test"] = held
    features = builder.info.features
    names = getattr(features["label"], "names", None) if "label" in features else None
    found = {}
    for split, key in stored.items():
        items = TfdsItems(name, data_dir, key, where=f"{name} {split}")
        found[split] = Split(
            items=items,
            labels=items.labels if "label" in features else _no_labels,
            fingerprint=items.fingerprint,
            class_names=tuple(names) if names else None,
        )
    return found


class TfdsItems(ImageFiles):
    """The images of a split that tensorflow-datasets has prepared, read without TensorFlow."""

    def __init__(self, name: str, data_dir: Directory, key: str, *, where: str) -> None:
        self._name, self._data_dir, self._key, self._where = name, data_dir, key, where
        self._count = len(self._source)

    @cached_property
    def _source(self) -> Any:
        from tensorflow_datasets.core.decode import SkipDecoding

        builder = preparation.open_prepared(self._name, self._data_dir)
        # Pillow decodes the images, because tensorflow-datasets would warn that OpenCV is faster.
        return builder.as_data_source(self._key, decoders={"image": SkipDecoding()})

    def __len__(self) -> int:
        return self._count

    def file(self, index: int) -> ImageFile:
        """Return the file of an image."""
        record = self._record(index)
        return ImageFile(record["image"], _label(record), f"{self._where}[{index}]")

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self._source[index]
        except RuntimeError as error:  # of array_record, where a file is damaged
            reason = " ".join(str(error).split())[:120]
            raise FileError(f"{self._where}[{index}]: it is damaged ({reason})") from error

    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """Return the labels, from all records unless they are kept; None if one has none."""
        return kept_labels(self._paths(), self._labels_of_records)

    def _labels_of_records(self) -> Int32[np.ndarray, " n"] | None:
        labels = [_label(self._record(index)) for index in range(len(self))]
        return None if None in labels else np.array(labels, np.int32)

    def fingerprint(self) -> str:
        """Return text that differs for other records."""
        paths = self._paths()
        sizes = np.array([os.path.getsize(path) for path in paths], np.int64)
        return fingerprint_of([os.path.basename(path) for path in paths], sizes, paths)

    def _paths(self) -> list[str]:
        return preparation.record_files(self._name, self._data_dir, self._key)


def _label(record: dict[str, Any]) -> int | None:
    label = record.get("label")
    return int(label) if isinstance(label, int | np.integer) else None


def _no_labels() -> None:
    return None


def _read_copy(name: str, data_dir: Directory) -> Splits:
    """Read what lies in a bucket from a copy in the user's cache."""
    patterned = is_record_name(name)
    copy = str(local_matches(as_path(name)) if patterned else local_arrays(name))
    if not (glob.glob(copy) if patterned else os.path.exists(copy)):
        raise ValueError(f"config.data.name={name!r}: there is no such file or folder")
    return reader_of(copy).read(copy, data_dir)


def _prepare_tfds(name: str, data_dir: Directory) -> str:
    _check_registered(name)
    return preparation.prepare(name, data_dir)


def _check_registered(name: str) -> None:
    """Raise ValueError, with near matches, unless tensorflow-datasets knows the name."""
    known = preparation.registered_names()
    base = name.split("/")[0].split(":")[0]
    if base in known:
        return
    near = difflib.get_close_matches(base, [*READERS, *known], n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    missing = "" if known else " (not installed: pip install tensorflow-datasets array-record)"
    *kinds, last = READERS
    raise ValueError(
        f"config.data.name={name!r} is unknown: {hint}Choose {', '.join(kinds)}, or {last}{missing}"
    )


# By what a name may be. The first that accepts a name reads it.
READERS: dict[str, Reader] = {
    DIGITS: Reader(
        accepts=lambda name: name == DIGITS, read=_read_digits, gray_levels=17, test_count=297
    ),
    "digits:CLASSES": Reader(
        accepts=lambda name: name.startswith(f"{DIGITS}:"), read=_read_some_digits, gray_levels=17
    ),
    "a path in a bucket, gs://BUCKET/PATH": Reader(accepts=in_bucket, read=_read_copy),
    "the path of an .npz": Reader(accepts=lambda name: name.endswith(".npz"), read=read_npz),
    "an .npy": Reader(accepts=lambda name: name.endswith(".npy"), read=read_npy),
    "a .zip of StyleGAN's or EDM's tools": Reader(
        accepts=lambda name: name.lower().endswith(".zip"), read=read_zip
    ),
    "array_record files": Reader(accepts=is_record_name, read=read_records),
    "a folder made by --mode=prepare": Reader(accepts=is_packed, read=read_packed),
    "a folder of parquet files": Reader(accepts=is_parquet_folder, read=read_parquet),
    "hf:NAME": Reader(
        accepts=lambda name: name.startswith(HUB), read=read_hub, prepare=prepare_hub
    ),
    "the path of a folder of images": Reader(accepts=_is_folder, read=read_folder),
    "a name of tensorflow-datasets": Reader(
        accepts=lambda name: True, read=_read_tfds, prepare=_prepare_tfds
    ),
}


def reader_of(name: str) -> Reader:
    """Return the row of `READERS` for a value of `config.data.name`."""
    return next(reader for reader in READERS.values() if reader.accepts(name))


def gray_levels(name: str) -> int:
    """Return the number of gray levels in a data set's images, known without reading them."""
    # Only rows with fewer than 256 are tried: the others may import tensorflow-datasets.
    few = (reader for reader in READERS.values() if reader.gray_levels < 256)
    return next((reader.gray_levels for reader in few if reader.accepts(name)), 256)


def prepare(name: str, *, data_dir: Directory = "") -> str:
    """Make a data set ready to be read, and return one line that says where it is.

    Args:
        name: as for `data.datasets.load`.
        data_dir: where to prepare it.

    Raises:
        As `data.preparation.prepare`.
    """
    reader = reader_of(name)
    if reader.prepare is None:
        return f"config.data.name={name!r} needs no preparation"
    return reader.prepare(name, data_dir)
