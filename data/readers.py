"""Readers of stored images: digits, .npz files, folders, and prepared tensorflow-datasets."""

import io
import itertools
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from data import preparation
from data.preparation import DIGITS

# Split -> key of its images, key of its labels (which may be missing).
_NPZ_LAYOUTS = (
    {"train": ("train", "train_labels"), "test": ("test", "test_labels")},
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
    {"train": ("images", "labels")},
)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class Item(NamedTuple):
    """One image (h, w, c) uint8 with its label, and where it came from, for messages."""

    where: str
    image: np.ndarray
    label: int | None


class Split(NamedTuple):
    """`count` images, decoded one by one so that large originals never meet in memory."""

    count: int
    items: Iterable[Item]


def read(name: str, data_dir: str | os.PathLike[str] = "") -> dict[str, Split]:
    """The splits of a data set, "train" and perhaps "test", as `input_pipeline.load` names them.

    Never downloads. Raises FileNotFoundError for missing data, ValueError for an unknown name or a
    damaged file; damage inside a picture shows when its item is read.
    """
    if name == DIGITS:
        return _read_digits()
    path = preparation.as_path(name)
    if path is None:
        return _read_tfds(name, data_dir)
    return _read_npz(path) if path.suffix == ".npz" else _read_folder(path)


def _read_digits() -> dict[str, Split]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # levels 0..16, stored as floats
    items = map(Item, itertools.repeat(DIGITS), images, digits.target.tolist())
    return {"train": Split(len(images), items)}


def _read_npz(path: Path) -> dict[str, Split]:
    where = f"config.data.name={str(path)!r}"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no such file; give the path of an .npz")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{where} is not an .npz archive; write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{where} cannot be read, write it again: {error}") from error
    for layout in _NPZ_LAYOUTS:
        if all(images in arrays for images, _ in layout.values()):
            return {split: _npz_split(where, arrays, *keys) for split, keys in layout.items()}
    raise ValueError(
        f"{where} holds {sorted(arrays)}; expected train and test, train_images and test_images, "
        "or images"
    )


def _npz_split(where: str, arrays: dict[str, np.ndarray], key: str, labels_key: str) -> Split:
    """The images `key` of an .npz and their labels `labels_key`, checked."""
    images = arrays[key]
    if images.dtype != np.uint8:
        nan = images.dtype.kind == "f" and np.isnan(images).any()
        raise ValueError(
            f"{where}[{key!r}] is {images.dtype}{' with NaN' if nan else ''}; "
            "store levels 0..255 as uint8"
        )
    if images.ndim not in (3, 4) or not images.size:
        raise ValueError(f"{where}[{key!r}] is {images.shape}; expected images NHWC or NHW")
    labels = arrays.get(labels_key)
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"{where}[{labels_key!r}] is {labels.dtype} {labels.shape}; "
            f"expected {len(images)} integers"
        )
    places = (f"{where}[{key!r}][{row}]" for row in itertools.count())
    stacked = images if images.ndim == 4 else images[..., None]
    numbers = itertools.repeat(None) if labels is None else labels.tolist()
    return Split(len(images), map(Item, places, stacked, numbers))


def _read_folder(path: Path) -> dict[str, Split]:
    where = f"config.data.name={str(path)!r}"
    if not path.is_dir():
        raise FileNotFoundError(f"{where} is neither an .npz file nor a folder of images")
    both = {split: path / split for split in ("train", "test")}
    roots = both if all(root.is_dir() for root in both.values()) else {"train": path}
    files = {split: _image_files(root) for split, root in roots.items()}
    for split, found in files.items():
        if not found:
            raise ValueError(f"{where}: no images below {roots[split]} ({' '.join(_SUFFIXES)})")
    # The subfolder of an image is its class, where all images lie in one of several subfolders.
    classes = {
        file.relative_to(roots[split]).parts[0] if file.parent != roots[split] else None
        for split, found in files.items()
        for file in found
    }
    labels: dict[str, int] = {}
    if None not in classes and len(classes) > 1:
        labels = {label: number for number, label in enumerate(sorted(classes))}
    return {
        split: Split(len(found), _decode_files(roots[split], found, labels))
        for split, found in files.items()
    }


def _image_files(root: Path) -> list[Path]:
    """The images below `root` in sorted order, hidden files left out."""
    files = (file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in files if not file.name.startswith("."))


def _decode_files(root: Path, files: list[Path], labels: dict[str, int]) -> Iterator[Item]:
    for file in files:
        label = labels[file.relative_to(root).parts[0]] if labels else None
        yield Item(str(file), decode(file, str(file)), label)


def decode(source: Path | io.BytesIO, where: str) -> UInt8[np.ndarray, "h w c"]:
    """The upright picture in its own one or three channels; ValueError names a damaged file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            picture = ImageOps.exif_transpose(opened)
    # Pillow reports damage as any of these, depending on the format and on the place.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is not a readable image, remove it: {error}") from error
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"{where} has more than 8 bits a channel; convert it to 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise ValueError(f"{where} is transparent in places; flatten it onto a background")
    picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    return np.atleast_3d(np.asarray(picture))


def _read_tfds(name: str, data_dir: str | os.PathLike[str]) -> dict[str, Split]:
    builder = preparation.open_prepared(name, data_dir)
    from tensorflow_datasets import decode

    splits = builder.info.splits
    if "train" not in splits or "image" not in builder.info.features:
        raise ValueError(
            f"config.data.name={name!r} needs a split 'train' and a feature 'image', "
            f"has {list(splits)}"
        )
    stored = {"train": "train"}
    if held := next((split for split in ("test", "validation") if split in splits), None):
        stored["test"] = held
    # Pillow decodes the images here: tensorflow-datasets would warn that OpenCV is faster.
    encoded = {"image": decode.SkipDecoding()}
    sources = {s: builder.as_data_source(key, decoders=encoded) for s, key in stored.items()}
    return {
        split: Split(len(source), _decode_records(f"{name} {split}", source))
        for split, source in sources.items()
    }


def _decode_records(where: str, source: Sequence[dict[str, Any]]) -> Iterator[Item]:
    for row, record in enumerate(source):
        place, label = f"{where}[{row}]", record.get("label")
        number = int(label) if isinstance(label, int | np.integer) else None
        yield Item(place, decode(io.BytesIO(record["image"]), place), number)
