"""Parquet files of images, as Hugging Face stores data sets, from a folder or by hf:NAME.

    data/train-00000-of-00002.parquet  data/test-00000-of-00001.parquet
    train/0000.parquet                 test/0000.parquet

A column holds image files, as bytes or as {bytes, path}; another may hold labels. Parquet is read
by groups of rows, so that single images in any order are slow: pack it by --mode=prepare.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from data.bytes import Stamp, changed, require_unchanged, stamp_of
from data.fingerprints import fingerprint_of
from data.folders import HELD_OUT_NAMES, TRAIN_NAMES
from data.stored import Directory, ImageFile, ImageFiles, Split, Splits
from errors import FileError
from files.hub import snapshot

_PLACES = ("*.parquet", "data/*.parquet", "*/train/*.parquet", "train/*.parquet")
_LABELS = ("label", "labels", "fine_label", "class", "target")


def is_parquet_folder(name: str) -> bool:
    """Return whether a name is a folder with parquet files where Hugging Face puts them."""
    folder = Path(os.path.expanduser(name))
    if not os.path.isdir(folder):
        return False
    return any(next(folder.glob(place), None) is not None for place in _PLACES)


def read_parquet(name: str, data_dir: Directory) -> Splits:
    """Return the images of a folder of parquet files.

    Raises:
        FileError: if a file is damaged.
        ValueError: if pyarrow is missing, or a file holds no images.
    """
    folder = Path(os.path.expanduser(name))
    where = f"config.data.name={str(folder)!r}"
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        found.setdefault(_split_of(file.relative_to(folder)), []).append(str(file))
    train = next((found[split] for split in (*TRAIN_NAMES, "") if split in found), None)
    if train is None:
        raise ValueError(
            f"{where}: no parquet file of training images, such as train-00000.parquet"
        )
    held = next((split for split in HELD_OUT_NAMES if split in found), None)
    files = {"train": train} | ({"test": found[held]} if held else {})
    return {split: _read_split(where, paths) for split, paths in files.items()}


def _split_of(path: Path) -> str:
    """Return the split that a file's name or folder states, or ""."""
    names = [
        path.stem.split("-")[0].split(".")[0].lower(),
        *(p.lower() for p in path.parts[-2::-1]),
    ]
    return next((name for name in names if name in (*TRAIN_NAMES, *HELD_OUT_NAMES)), "")


def read_hub(name: str, data_dir: Directory) -> Splits:
    """Return the images of a data set of the Hugging Face hub that was downloaded before.

    Raises:
        FileNotFoundError: if it was not.
        ValueError: if huggingface_hub is missing.
    """
    return read_parquet(_snapshot(name, downloads=False), data_dir)


def prepare_hub(name: str, data_dir: Directory) -> str:
    """Download the parquet files of a data set, and return one line that says where they are.

    Raises:
        ConnectionError: if it cannot be downloaded.
        ValueError: if huggingface_hub is missing.
    """
    return f"{name} is in {_snapshot(name, downloads=True)}"


def _snapshot(name: str, *, downloads: bool) -> str:
    try:
        return snapshot(
            name,
            f"config.data.name={name!r}",
            kind="dataset",
            patterns=("*.parquet", "**/*.parquet"),
            packages="huggingface_hub pyarrow",
            local="a local folder of its parquet files",
            downloads=downloads,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; run --mode=prepare") from error


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{where} needs pyarrow: pip install pyarrow") from error
    except FileError:
        raise
    except (ValueError, OSError, KeyError) as error:  # pyarrow's own are among these
        reason = " ".join(str(error).split())[:120]
        raise FileError(f"{where}: it is missing, damaged or incomplete ({reason})") from error


@dataclass
class _Kept:
    """The group of rows that was read last."""

    lock: Any = field(default_factory=threading.Lock)
    group: int = -1
    images: list = field(default_factory=list)
    labels: list = field(default_factory=list)


class ParquetItems(ImageFiles):
    """The images of parquet files, by groups of rows, of which the last one is kept.

    Args:
        paths: the files.
        stamps: of the files, when they were listed.
        column: that of the images.
        label: that of the labels; None for none.
        starts: the first row of each group, and the number of all rows.
        groups: (file, group within it) of each group.
    """

    def __init__(
        self,
        paths: Sequence[str],
        stamps: Sequence[Stamp],
        column: str,
        label: str | None,
        starts: np.ndarray,
        groups: Sequence[tuple[int, int]],
    ) -> None:
        self.paths, self.stamps = tuple(paths), tuple(stamps)
        self.column, self.label = column, label
        self._starts, self._groups = starts, groups

    @cached_property
    def _source(self) -> "_Kept":
        return _Kept()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def file(self, index: int) -> ImageFile:
        """Return the file of an image."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        where = f"{self.paths[self._groups[group][0]]}[{index}]"
        with self._source.lock:
            if self._source.group != group:
                self._source.images, self._source.labels = self._read(group, where)
                self._source.group = group
            images, labels = self._source.images, self._source.labels
        row = index - int(self._starts[group])
        content, label = images[row], labels[row]
        if isinstance(content, dict):
            content = content.get("bytes")
        if not isinstance(content, bytes):
            raise FileError(f"{where}: its column {self.column!r} holds no bytes of an image file")
        return ImageFile(content, int(label) if isinstance(label, int) else None, where)

    def _read(self, group: int, where: str) -> tuple[list, list]:
        file, inside = self._groups[group]
        columns = [self.column] + ([self.label] if self.label else [])
        require_unchanged(self.paths[file], self.stamps[file])
        with _one_line(where):
            from pyarrow.parquet import ParquetFile

            with ParquetFile(self.paths[file]) as opened:
                table = opened.read_row_group(inside, columns=columns)
        if len(table) != self._starts[group + 1] - self._starts[group]:  # of another index
            raise changed(self.paths[file])
        images = table[self.column].to_pylist()
        return images, table[self.label].to_pylist() if self.label else [None] * len(images)

    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """Return the labels, from their column alone."""
        if self.label is None:
            return None
        found = []
        with _one_line(self.paths[0]):
            from pyarrow.parquet import read_table

            for path, stamp in zip(self.paths, self.stamps, strict=True):
                require_unchanged(path, stamp)
                found += read_table(path, columns=[self.label])[self.label].to_pylist()
        return None if None in found else np.array(found, np.int32)


def _read_split(where: str, paths: list[str]) -> Split:
    starts, groups, schema = [0], [], None
    with _one_line(where):
        stamps = [stamp_of(path) for path in paths]
        from pyarrow.parquet import ParquetFile

        for number, path in enumerate(paths):
            with ParquetFile(path) as opened:
                schema = schema or opened.schema_arrow
                for group in range(opened.num_row_groups):
                    starts.append(starts[-1] + opened.metadata.row_group(group).num_rows)
                    groups.append((number, group))
    types = {field.name: str(field.type) for field in schema or ()}
    images = [name for name, kind in types.items() if "binary" in kind]
    if not images:
        raise ValueError(f"{where}: {paths[0]} has the columns {types}; none holds image files")
    column = next((name for name in ("image", "img") if name in images), images[0])
    label = next((name for name in _LABELS if types.get(name, "").startswith("int")), None)
    items = ParquetItems(paths, stamps, column, label, np.array(starts), groups)
    sizes = np.array([stamp.size for stamp in stamps], np.int64)
    names = [os.path.basename(path) for path in paths]
    return Split(
        items=items,
        labels=items.labels,
        fingerprint=partial(fingerprint_of, names, sizes, paths),
        class_names=_class_names(schema.metadata if schema else None, label),
        in_order=True,
    )


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    """Return the names of classes that Hugging Face writes into a file's metadata."""
    try:
        info = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = info[label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(map(str, names)) or None
