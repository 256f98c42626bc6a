"""The images of an .npz file, by the names that people give to its arrays."""

import itertools
import os
from pathlib import Path

import numpy as np

from data.folders import HELD_OUT_NAMES
from data.stored import Directory, Item, Split, Splits
from files.arrays import Arrays, open_arrays

# Key of images -> key of their labels, which may be missing.
_TRAIN = {
    "train": "train_labels",
    "train_images": "train_labels",
    "x_train": "y_train",
    "images": "labels",
}
# The same for images that are held out: of the first name that is there.
_HELD_OUT = {
    name: {name: f"{name}_labels", f"{name}_images": f"{name}_labels", f"x_{name}": f"y_{name}"}
    for name in HELD_OUT_NAMES
}
_LABELS = np.iinfo(np.int32)


def read_npz(name: str, data_dir: Directory) -> Splits:
    """Return the images of an .npz, uint8 NHWC or NHW, and their labels.

    Raises:
        FileError: if it cannot be read.
        ValueError: if its arrays are no images or labels, or could be read in several ways.
    """
    path = Path(os.path.expanduser(name))
    where = f"config.data.name={str(path)!r}"
    with open_arrays(path, where) as arrays:
        train = _only(where, arrays, _TRAIN)
        if train is None:
            raise ValueError(
                f"{where} holds {sorted(arrays)[:20]}; expected images, train and test, "
                "train_images and test_images, or x_train and x_test"
            )
        chosen = {"train": (train, _TRAIN[train])}
        for keys in _HELD_OUT.values():
            if (test := _only(where, arrays, keys)) is not None:
                chosen["test"] = (test, keys[test])
                break
        splits = {split: _read_split(where, arrays, *keys) for split, keys in chosen.items()}
        used = {key for keys in chosen.values() for key in keys}
        if unused := sorted(set(arrays) - used):
            splits["train"].notes.append(f"{where}: not used: {', '.join(unused[:20])}")
    return splits


def _only(where: str, arrays: Arrays, keys: dict[str, str]) -> str | None:
    """Return the one key that is there, or None.

    Raises:
        ValueError: if there are several.
    """
    found = [key for key in keys if key in arrays]
    if len(found) > 1:
        raise ValueError(f"{where} holds {' and '.join(found)}; keep one of them")
    return found[0] if found else None


def _read_split(where: str, arrays: Arrays, key: str, labels_key: str) -> Split:
    """Return the images `key` of an .npz and their labels `labels_key`, checked."""
    place, (shape, dtype, _) = f"{where}[{key!r}]", arrays.header(key)
    if dtype != np.uint8:
        raise ValueError(f"{place} is {dtype}; store levels 0..255 as uint8")
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"{place} is {shape}; expected images NHWC or NHW")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        raise ValueError(
            f"{place} is {shape}, which is NCHW; expected NHWC, so transpose it: "
            f"{key}.transpose(0, 2, 3, 1)"
        )
    labels = None
    if labels_key in arrays:
        found = arrays.header(labels_key)
        if found.shape != shape[:1] or found.dtype.kind not in "iu":
            raise ValueError(
                f"{where}[{labels_key!r}] is {found.dtype} {found.shape}; "
                f"expected {shape[0]} integers"
            )
        labels = arrays[labels_key]
        if labels.min() < _LABELS.min or labels.max() > _LABELS.max:
            raise ValueError(
                f"{where}[{labels_key!r}] holds {labels.min()}..{labels.max()}; number the "
                "classes from 0"
            )
    images = arrays[key]
    places = (f"{place}[{row}]" for row in itertools.count())
    stacked = images if images.ndim == 4 else images[..., None]
    numbers = itertools.repeat(None) if labels is None else labels.tolist()
    return Split(len(images), map(Item, places, stacked, numbers))
