"""Array_record files of images, which give any image as fast as the next one.

A record is an image file, such as the bytes of a PNG or JPEG, or a `tf.train.Example` with the
features `image` (or `image/encoded`) and perhaps `label` (or `image/class/label`).

`data.packing` makes a folder of such files with `images.json`, which names them and holds what is
the same for all images, and with the labels as .npy.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from data.fingerprints import fingerprint_of
from data.kept_labels import kept_labels
from data.stored import Directory, ImageFile, ImageFiles, Split, Splits
from errors import FileError
from files.arrays import read_array

INDEX, FORMAT = "images.json", 1
_SHARD = re.compile(r".+\.array_?record[-of\d*?]*")  # such as x.array_record-00000-of-00002
_IMAGES, _LABELS = ("image", "image/encoded"), ("label", "image/class/label")


def is_record_name(name: str) -> bool:
    """Return whether a name is that of array_record files; * and ? stand for several."""
    return _SHARD.fullmatch(name) is not None


class RecordItems(ImageFiles):
    """The images of array_record files, in the order of the files.

    Args:
        paths: the files.
        labels: of the images, where they are known.

    Raises:
        FileError: if a file is missing or damaged.
    """

    def __init__(self, paths: Sequence[str], labels: Int32[np.ndarray, " n"] | None = None) -> None:
        self.paths, self.numbers = tuple(paths), labels
        self._count = self._checked(self.paths[0], lambda: len(self._source))

    @cached_property
    def _source(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(list(self.paths))

    def __len__(self) -> int:
        return self._count

    def file(self, index: int) -> ImageFile:
        """Return the image file in a record."""
        where = f"{self.paths[0]}[{index}]"
        content = self._checked(where, lambda: self._source[index])
        label = None if self.numbers is None else int(self.numbers[index])
        if content[:1] == b"\n":  # the first field of an Example; no image begins so
            content, own = _example(content, where)
            label = own if label is None else label
        return ImageFile(content, label, where)

    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """Return the labels, from all records unless they are known; None if one has none."""
        if self.numbers is not None:
            return self.numbers
        if self.file(0).label is None:
            return None
        return kept_labels(self.paths, self._labels_of_records)

    def _labels_of_records(self) -> Int32[np.ndarray, " n"] | None:
        labels = [self.file(row).label for row in range(len(self))]
        return None if None in labels else np.array(labels, np.int32)

    @staticmethod
    def _checked(where: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise FileError(f"{where}: it is missing, damaged or incomplete ({reason})") from error


class _Example(NamedTuple):
    content: bytes
    label: int | None


def _example(record: bytes, where: str) -> _Example:
    """Return the image file and the label in a tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_generated_pb2

    protos: Any = tf_example_generated_pb2  # whose classes are made at run time
    try:
        features = protos.Example.FromString(record).features.feature
    except Exception as error:  # of protobuf, whose errors differ by version
        raise FileError(f"{where}: it is neither an image file nor an Example") from error
    image = next((features[k].bytes_list.value for k in _IMAGES if k in features), None)
    if not image:
        found = ", ".join(sorted(features)[:20])
        raise FileError(f"{where}: it has the features {found}; expected {' or '.join(_IMAGES)}")
    label = next((features[k].int64_list.value for k in _LABELS if k in features), None)
    return _Example(bytes(image[0]), int(label[0]) if label else None)


def read_records(name: str, data_dir: Directory) -> Splits:
    """Return the images of array_record files as one split.

    Raises:
        FileError: if one is missing or damaged.
    """
    paths = sorted(glob.glob(os.path.expanduser(name)))
    if not paths:
        raise FileError(f"config.data.name={name!r}: there is no such file. Check the path")
    items = RecordItems(paths)
    return {"train": Split(items, labels=items.labels, fingerprint=partial(_fingerprint, paths))}


def _fingerprint(paths: Sequence[str]) -> str:
    sizes = np.array([os.path.getsize(path) for path in paths], np.int64)
    return fingerprint_of([os.path.basename(path) for path in paths], sizes, paths)


def is_packed(name: str) -> bool:
    """Return whether a name is a folder that `data.packing` has made."""
    return os.path.isfile(os.path.join(os.path.expanduser(name), INDEX))


def read_packed(name: str, data_dir: Directory) -> Splits:
    """Return the images of a folder that `data.packing` has made.

    Raises:
        FileError: if it is damaged.
    """
    folder = Path(os.path.expanduser(name))
    where = f"config.data.name={str(folder)!r}"
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']}, not {FORMAT}")
        names = index["class_names"]
        splits = {}
        for split, about in index["splits"].items():
            paths = [str(folder / shard) for shard in about["shards"]]
            labels = None
            if about["labels"]:
                labels = read_array(folder / about["labels"], where).astype(np.int32)
            items = RecordItems(paths, labels)
            if len(items) != about["count"] or (labels is not None and len(labels) != len(items)):
                raise ValueError(f"{split} has {len(items)} images instead of {about['count']}")
            splits[split] = Split(
                items=items,
                labels=partial(_known, labels),
                fingerprint=partial(_text, f"{index['fingerprint']} {split}"),
                class_names=tuple(names) if names else None,
            )
        return splits
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{where}: {INDEX} is damaged or does not fit its files ({error}); prepare it again"
        ) from error


def _known(labels: Int32[np.ndarray, " n"] | None) -> Int32[np.ndarray, " n"] | None:
    return labels


def _text(text: str) -> str:
    return text
