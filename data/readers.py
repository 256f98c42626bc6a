"""Readers of stored images, one row of `READERS` per kind of name.

A reader returns the splits of a data set, "train" and perhaps "test", as streams of single images:
uint8, height x width x channels, in their own sizes. `data.datasets` makes arrays of them. To add a
reader, write one function and give it a row.
"""

import difflib
import io
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from data import preparation

DIGITS = "digits"

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


@dataclass(frozen=True)
class Split:
    """`count` images, decoded one by one so that large originals never meet in memory."""

    count: int
    items: Iterable[Item]


Splits = dict[str, Split]
Directory = str | os.PathLike[str]


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


def _read_npz(name: str, data_dir: Directory) -> Splits:
    """Read the arrays of an .npz file, which have one of the names of `_NPZ_LAYOUTS`."""
    path = Path(name).expanduser()
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
    """Return the images `key` of an .npz and their labels `labels_key`, checked."""
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


def _is_folder(name: str) -> bool:
    """Return whether a name is a folder, or a path at which one is missing."""
    if Path(name).expanduser().is_dir():
        return True
    if not {"/", os.sep}.intersection(name):
        return False
    # A tensorflow-datasets name may carry a configuration: celeb_a_hq/256.
    return name.split("/")[0] not in preparation.registered_names()


def _read_folder(name: str, data_dir: Directory) -> Splits:
    """Read the images of a folder, with train/ and test/ or without; class folders are labels."""
    path = Path(name).expanduser()
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
    parts = [
        file.relative_to(roots[split]).parts for split, found in files.items() for file in found
    ]
    classes = sorted({first for first, *_ in parts})
    labels: dict[str, int] = {}
    if len(classes) > 1 and all(len(path) > 1 for path in parts):
        labels = {label: number for number, label in enumerate(classes)}
    return {
        split: Split(len(found), _decode_files(roots[split], found, labels))
        for split, found in files.items()
    }


def _image_files(root: Path) -> list[Path]:
    """Return the images below `root` in sorted order, without hidden files."""
    files = (file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in files if not file.name.startswith("."))


def _decode_files(root: Path, files: list[Path], labels: dict[str, int]) -> Iterator[Item]:
    for file in files:
        label = labels[file.relative_to(root).parts[0]] if labels else None
        yield Item(str(file), decode(file, str(file)), label)


def decode(source: Path | io.BytesIO, where: str) -> UInt8[np.ndarray, "h w c"]:
    """Return an image upright, in its own one or three channels.

    Args:
        source: the file, or its bytes.
        where: its name for messages.

    Raises:
        ValueError: for a damaged file, more than 8 bits per channel, or transparency.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            picture = ImageOps.exif_transpose(opened)
    # Pillow reports damage as any of these, depending on the format and on the place.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is not a readable image, remove it: {error}") from error
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"{where} has more than 8 bits per channel; convert it to 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise ValueError(f"{where} is transparent in places; flatten it onto a background")
    picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    return np.atleast_3d(np.asarray(picture))


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
    if held := next((split for split in ("test", "validation") if split in splits), None):
        stored["test"] = held
    # Pillow decodes the images, because tensorflow-datasets would warn that OpenCV is faster.
    encoded = {"image": SkipDecoding()}
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
    "the path of an .npz": Reader(accepts=lambda name: name.endswith(".npz"), read=_read_npz),
    "the path of a folder of images": Reader(accepts=_is_folder, read=_read_folder),
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
