"""The images of an .npz file, by the names that people give to its arrays, or of an .npy file.

A small or packed array is read at once, and its checksum is compared. Of a large one that is not
packed, as numpy.save and numpy.savez write it, each image is read when it is wanted.
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from data.bytes import read_part, stamp_of
from data.fingerprints import fingerprint_of
from data.folders import HELD_OUT_NAMES
from data.stored import Directory, Item, Split, Splits
from errors import require_memory
from files.arrays import Array, Arrays, Header, array_place, open_arrays, read_array
from files.copies import local_input

# Key of images -> key of their labels, which may be missing.
TRAIN_KEYS = {
    "train": "train_labels",
    "train_images": "train_labels",
    "x_train": "y_train",
    "images": "labels",
}
# The same for images that are held out: of the first name that is there.
HELD_OUT_KEYS = {
    name: {name: f"{name}_labels", f"{name}_images": f"{name}_labels", f"x_{name}": f"y_{name}"}
    for name in HELD_OUT_NAMES
}
_NPY = ".npy"
_LABELS = np.iinfo(np.int32)
_AT_ONCE = 2**28  # bytes of an array up to which it is read at once


@dataclass(frozen=True, kw_only=True)
class ArrayItems:
    """The images of an array in memory or in a file.

    Args:
        where: the array's name for messages.
        shape: (n, h, w) or (n, h, w, c).
        images: the array; None for one in a file.
        path: the file.
        time: that of its last change in ns.
        first: position of the array's first number in it.
        numbers: the labels, where there are any.
    """

    where: str
    shape: tuple[int, ...]
    images: UInt8[np.ndarray, "..."] | None
    path: str
    time: int
    first: int
    numbers: Int32[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        if self.images is not None:
            image = self.images[index]
        else:
            size = math.prod(self.shape[1:])
            content = read_part(self.path, self.first + index * size, size, time=self.time)
            image = np.frombuffer(content, np.uint8).reshape(self.shape[1:])
        label = None if self.numbers is None else int(self.numbers[index])
        return Item(f"{self.where}[{index}]", image if image.ndim == 3 else image[..., None], label)


def read_npz(name: str, data_dir: Directory) -> Splits:
    """Return the images of an .npz, uint8 NHWC or NHW, and their labels.

    Raises:
        FileError: if it cannot be read.
        ValueError: if its arrays are no images or labels, or could be read in several ways.
    """
    path = Path(os.path.expanduser(name))
    where = f"config.data.name={str(path)!r}"
    with open_arrays(path, where) as arrays:
        train = only_key(where, arrays, TRAIN_KEYS)
        if train is None:
            raise ValueError(
                f"{where} holds {sorted(arrays)[:20]}; expected images, train and test, "
                "train_images and test_images, or x_train and x_test"
            )
        chosen = {"train": (train, TRAIN_KEYS[train])}
        for keys in HELD_OUT_KEYS.values():
            if (test := only_key(where, arrays, keys)) is not None:
                chosen["test"] = (test, keys[test])
                break
        splits = {split: _read_split(where, arrays, path, *keys) for split, keys in chosen.items()}
        used = {key for keys in chosen.values() for key in keys}
        if unused := sorted(set(arrays) - used):
            splits["train"].notes.append(f"{where}: not used: {', '.join(unused[:20])}")
    return splits


def local_arrays(name: str) -> Path:
    """Return the .npz or .npy of a user's path, on this machine, with the labels beside an .npy."""
    if name.endswith(_NPY):
        local_input(f"{name.removesuffix(_NPY)}_labels{_NPY}")
    return local_input(name)


def only_key(where: str, arrays: Arrays, keys: dict[str, str]) -> str | None:
    """Return the one key that is there, or None.

    Raises:
        ValueError: if there are several.
    """
    found = [key for key in keys if key in arrays]
    if len(found) > 1:
        raise ValueError(f"{where} holds {' and '.join(found)}; keep one of them")
    return found[0] if found else None


def read_npy(name: str, data_dir: Directory) -> Splits:
    """Return the images of an .npy, uint8 NHWC or NHW; NAME_labels.npy beside it has their labels.

    Raises:
        FileError: if it cannot be read.
        ValueError: if it holds no images, or the labels do not fit.
    """
    path = Path(os.path.expanduser(name))
    where = f"config.data.name={str(path)!r}"
    header, first = array_place(path, where)
    _check_images(where, header, "array")
    beside, labels = path.with_name(f"{path.stem}_labels.npy"), None
    if beside.exists():
        found = read_array(beside, f"{where}: {beside}")
        labels = checked_labels(f"{beside}", found, header)
    images = None
    if header.bytes <= _AT_ONCE or header.columns_first:
        images = read_array(path, where)
    return {"train": _split(where, header, images, labels, path, first)}


def _read_split(where: str, arrays: Arrays, path: Path, key: str, labels_key: str) -> Split:
    """Return the images `key` of an .npz and their labels `labels_key`, checked."""
    place, header = f"{where}[{key!r}]", arrays.header(key)
    _check_images(place, header, key)
    labels = None
    if labels_key in arrays:
        labels_place = f"{where}[{labels_key!r}]"
        _check_labels(labels_place, arrays.header(labels_key), header)
        labels = checked_labels(labels_place, arrays[labels_key], header)
    images, first = None, arrays.place(key)
    if header.bytes <= _AT_ONCE or header.columns_first or first is None:
        if header.bytes > _AT_ONCE:
            require_memory(place, header.shape[0], header.bytes)
        images = arrays[key]
    return _split(place, header, images, labels, path, first or 0)


def _split(
    place: str,
    header: Header,
    images: Array | None,
    labels: Int32[np.ndarray, " n"] | None,
    path: Path,
    first: int,
) -> Split:
    items = ArrayItems(
        where=place,
        shape=header.shape,
        images=images,
        path=str(path),
        time=stamp_of(str(path)).changed,
        first=first,
        numbers=labels,
    )
    return Split(
        items=items,
        labels=partial(_labels_of, items),
        fingerprint=partial(_fingerprint, path, f"{path.suffix} {first} {header.shape}"),
    )


def _labels_of(items: ArrayItems) -> Int32[np.ndarray, " n"] | None:
    return items.numbers


def _fingerprint(path: Path, part: str) -> str:
    sizes = np.array([path.stat().st_size], np.int64)
    return fingerprint_of([part], sizes, [str(path)])


def _check_images(place: str, header: Header, key: str) -> None:
    """Raise ValueError unless an array may be images."""
    shape, dtype, _ = header
    if dtype != np.uint8:
        raise ValueError(f"{place} is {dtype}; store levels 0..255 as uint8")
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"{place} is {shape}; expected images NHWC or NHW")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        raise ValueError(
            f"{place} is {shape}, which is NCHW; expected NHWC, so transpose it: "
            f"{key}.transpose(0, 2, 3, 1)"
        )


def _check_labels(place: str, found: Header, images: Header) -> None:
    if found.shape != images.shape[:1] or found.dtype.kind not in "iu":
        raise ValueError(
            f"{place} is {found.dtype} {found.shape}; expected {images.shape[0]} integers"
        )


def checked_labels(place: str, labels: Array, images: Header) -> Int32[np.ndarray, " n"]:
    """Return labels as int32; raise ValueError unless they are integers, one per image."""
    _check_labels(place, Header(labels.shape, labels.dtype), images)
    if labels.min() < _LABELS.min or labels.max() > _LABELS.max:
        raise ValueError(f"{place} holds {labels.min()}..{labels.max()}; number the classes from 0")
    return labels.astype(np.int32)
