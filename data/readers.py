"""Readers of stored images, one row of `READERS` per kind of name.

A reader returns the splits of a data set, "train" and perhaps "test", as streams of single images:
uint8, height x width x channels, in their own sizes. `data.datasets` makes arrays of them. To add a
reader, write one function and give it a row.
"""

import difflib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data import preparation
from data.folders import HELD_OUT_NAMES, read_folder
from data.npz import read_npz
from data.stored import Directory, Item, Split, Splits, decode
from files.buckets import local_input
from files.paths import in_bucket

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The treatment of one kind of `config.data.name`.

    Args:
        accepts: whether a name is of this kind.
        read: the splits of the data set, from its name and `config.data.dir`. Never downloads.
        gray_levels: number of levels in stored images.
        test_count: images to hold out where there is no test split; None for a tenth.
        prepare: prepares the data set from (name, data_dir, manual_dir) and returns one line that
            says where it is; None where nothing has to be done.
    """

    accepts: Callable[[str], bool]
    read: Callable[[str, Directory], Splits]
    gray_levels: int = 256
    test_count: int | None = None
    prepare: Callable[[str, Directory, Directory], str] | None = None


def _read_digits(name: str, data_dir: Directory) -> Splits:
    """Read scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # levels 0..16, stored as floats
    items = map(Item, itertools.repeat(name), images, digits.target.tolist())
    return {"train": Split(len(images), items)}


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
    from tensorflow_datasets.core.decode import SkipDecoding

    splits = builder.info.splits
    if "train" not in splits or "image" not in builder.info.features:
        raise ValueError(
            f"config.data.name={name!r} needs a split 'train' and a feature 'image', "
            f"has {list(splits)}"
        )
    stored = {"train": "train"}
    if held := next((split for split in HELD_OUT_NAMES if split in splits), None):
        stored["test"] = held
    # Pillow decodes the images, because tensorflow-datasets would warn that OpenCV is faster.
    encoded = {"image": SkipDecoding()}
    sources = {s: builder.as_data_source(key, decoders=encoded) for s, key in stored.items()}
    features = builder.info.features
    names = getattr(features["label"], "names", None) if "label" in features else None
    classes = tuple(names) if names else None
    return {
        split: Split(len(source), _decode_records(f"{name} {split}", source), class_names=classes)
        for split, source in sources.items()
    }


def _decode_records(where: str, source: Sequence[dict[str, Any]]) -> Iterator[Item]:
    for row, record in enumerate(source):
        place, label = f"{where}[{row}]", record.get("label")
        number = int(label) if isinstance(label, int | np.integer) else None
        yield Item(place, decode(io.BytesIO(record["image"]), place).image, number)


def _read_copy(name: str, data_dir: Directory) -> Splits:
    """Read what lies in a bucket from a copy in the user's cache."""
    copy = str(local_input(name))
    if not os.path.exists(copy):
        raise ValueError(f"config.data.name={name!r}: there is no such file or folder")
    return reader_of(copy).read(copy, data_dir)


def _prepare_tfds(name: str, data_dir: Directory, manual_dir: Directory) -> str:
    _check_registered(name)
    return preparation.prepare(name, data_dir, manual_dir)


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
    "a path in a bucket, gs://BUCKET/PATH": Reader(accepts=in_bucket, read=_read_copy),
    "the path of an .npz": Reader(accepts=lambda name: name.endswith(".npz"), read=read_npz),
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


def prepare(name: str, *, data_dir: Directory = "", manual_dir: Directory = "") -> str:
    """Make a data set ready to be read, and return one line that says where it is.

    Args:
        name: as for `data.datasets.load`.
        data_dir: where to prepare it.
        manual_dir: a folder with archives that are used instead of the network.

    Raises:
        As `data.preparation.prepare`.
    """
    reader = reader_of(name)
    if reader.prepare is None:
        return f"config.data.name={name!r} needs no preparation"
    return reader.prepare(name, data_dir, manual_dir)
