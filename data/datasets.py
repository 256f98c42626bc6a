"""Data sets by name: every image at one size, as stored gray levels, in memory or streamed.

`load` finds a data set, fits each image to the configured size, and holds out test images where a
data set has none. A set that fits a budget is read into memory; of a larger one, images are read
when they are wanted. What leaves this module is uint8; `data.scaling` has the maps to the network's
range, and `data.batches` the batches.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from data.batches import Stored
from data.fingerprints import pixel_fingerprint, training_fingerprint
from data.fitting import RESIZES, Fit
from data.held_out import held_out_count, hold_out
from data.readers import DIGITS, Reader, gray_levels, reader_of
from data.scaling import Quantizer
from data.stored import Item, Split
from data.streamed import StreamedImages
from errors import memory_bytes, require_choice, require_in, require_memory

_TRAIN_COUNTS = {
    DIGITS: 1500,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "svhn_cropped": 73_257,
    "celeb_a": 162_770,
}
_FEW_LEVELS, _DARK = 2, 32  # images with so few levels, or none as bright, are reported
_SHARE = 0.25  # of the memory, the budget of a data set by default
_LOOKED_AT = 64  # images of a streamed split that are read at the start, spread evenly
_BY_PIXELS = 2**30  # bytes of a split in memory up to which its pixels are its fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set: stored levels, labels where there are any, and their quantizer.

    Attributes:
        train, test: the images, in memory or streamed.
        sources: text by split that differs for other images, for splits too large to compare by
            their pixels.
        class_names: the name of label 0, 1, ...; None where labels have no names.
        notes: lines for the user on what was not read, or looks unusual.

    Raises:
        ValueError: for an empty split, splits of different image shapes, labels of another length,
            or levels that the quantizer does not have.
    """

    name: str
    train: UInt8[Stored, "n h w c"]
    test: UInt8[Stored, "m h w c"]
    train_labels: Int32[np.ndarray, " n"] | None = None
    test_labels: Int32[np.ndarray, " m"] | None = None
    quantizer: Quantizer = Quantizer()
    sources: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        splits = {"train": (self.train, self.train_labels), "test": (self.test, self.test_labels)}
        for split, (images, labels) in splits.items():
            where = f"config.data.name={self.name!r}: {split} split"
            if images.ndim != 4 or images.shape[1:] != self.train.shape[1:] or not images.size:
                raise ValueError(f"{where} needs images (n, h, w, c) alike, got {images.shape}")
            if labels is not None and labels.shape != (len(images),):
                raise ValueError(f"{where} has {len(images)} images but labels {labels.shape}")
            if isinstance(images, np.ndarray) and images.max() >= self.quantizer.gray_levels:
                top = self.quantizer.gray_levels - 1
                raise ValueError(f"{where} holds {images.max()}; its levels should be 0..{top}")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the training images, their order and labels."""
        if "train" not in self.sources:
            return training_fingerprint(self.train, self.train_labels)
        labels = b"" if self.train_labels is None else self.train_labels.tobytes()
        return hashlib.sha256(self.sources["train"].encode() + labels).hexdigest()[:16]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """64 hexadecimal digits that identify the images of each split and their order."""
        return {
            split: hashlib.sha256(self.sources[split].encode()).hexdigest()
            if split in self.sources
            else pixel_fingerprint(images)
            for split, images in (("train", self.train), ("test", self.test))
        }


class _Loaded(NamedTuple):
    """The images of a split, fitted, with their labels; and text that differs for others."""

    images: Stored
    labels: np.ndarray | None
    source: str | None


class Size(NamedTuple):
    """The size of a data set in memory.

    Attributes:
        counts: images by split, after some are held out where there is no test split.
        bytes: of all images, fitted.
        budget: bytes up to which images are held in memory.
    """

    counts: dict[str, int]
    bytes: int
    budget: int

    @property
    def held(self) -> bool:
        """Whether the images are held in memory."""
        return self.bytes <= self.budget


def load(
    name: str,
    *,
    image_size: int,
    channels: int,
    data_dir: str | os.PathLike[str] = "",
    resize: str = "none",
    split_seed: int = 0,
    memory_gb: float | None = None,
) -> ImageData:
    """Return a data set as uint8 (n, image_size, image_size, channels).

    Never downloads. A set without a test split has a seeded tenth held out, digits 297 images. The
    images are the same in memory and streamed.

    Args:
        name: one of the kinds in `data.readers.READERS`: "digits" (scikit-learn's, 8x8, 17
            levels), a file, a folder, hf:NAME or a tensorflow-datasets name.
        image_size: height and width in pixels.
        channels: 1 (gray) or 3 (color).
        data_dir: "" for TFDS_DATA_DIR, else ~/tensorflow_datasets.
        resize: what to do with images of another size, a key of `RESIZES`.
        split_seed: decides which images are held out.
        memory_gb: 10^9 bytes of images up to which they are held in memory; None for a quarter of
            the memory of the machine or container, divided by the processes that a cluster starts
            on a machine.

    Raises:
        FileNotFoundError: for missing data.
        ValueError: for an unknown name, a size, channel count or dtype that does not fit, an empty
            set or a damaged file.
    """
    reader, splits, fit = open_splits(
        name, image_size=image_size, channels=channels, data_dir=data_dir, resize=resize
    )
    size = size_of(reader, splits, fit, memory_gb)
    loaded, notes, class_names = {}, [], None
    for split, source in splits.items():
        read = _collect if size.held else _stream
        found = read(source, fit, split, all_gray=split == "test")
        loaded[split] = _Loaded(*found, _source_of(source, fit))
        notes += source.notes
        class_names = class_names or source.class_names
    if "test" not in loaded:
        loaded = _hold_out(name, reader, loaded["train"], split_seed)
    train, test = loaded["train"], loaded["test"]
    if reader.gray_levels == 256 and (note := _note_on_levels(train.images)):
        notes.append(f"config.data.name={name!r}: {note}")
    return ImageData(
        name=name,
        train=train.images,
        test=test.images,
        train_labels=train.labels,
        test_labels=test.labels,
        quantizer=quantizer(name),
        sources={split: each.source for split, each in loaded.items() if each.source},
        class_names=class_names,
        notes=tuple(notes),
    )


def open_splits(
    name: str,
    *,
    image_size: int,
    channels: int,
    data_dir: str | os.PathLike[str] = "",
    resize: str = "none",
) -> tuple[Reader, dict[str, Split], Fit]:
    """Return the reader of a data set, its splits before any image is read, and how images fit.

    The arguments are those of `load`.

    Raises:
        As `load`.
    """
    require_choice("config.data.resize", resize, RESIZES)
    require_in("config.data.image_size", image_size, "[1, inf)")
    require_in("config.data.channels", channels, "[1, inf)")
    reader = reader_of(name)
    exact = tuple(key for key, rule in RESIZES.items() if not rule.interpolates)
    choices = tuple(RESIZES) if reader.gray_levels == 256 else exact
    if resize not in choices:
        raise ValueError(
            f"config.data.resize={resize!r} would blur the {reader.gray_levels} gray levels of "
            f"{name!r}; choose 'pad'"
        )
    fit = Fit(image_size, channels, resize, choices)
    require_memory("config.data.image_size", image_size, math.prod(fit.shape))
    splits = reader.read(name, data_dir)
    for split, source in splits.items():
        if not source.count:
            raise ValueError(f"config.data.name={name!r}: the {split} split holds no images")
    return reader, splits, fit


def size_of(reader: Reader, splits: Mapping[str, Split], fit: Fit, memory_gb: float | None) -> Size:
    """Return the size of the images in memory, and the budget; `memory_gb` as in `load`."""
    counts = {split: source.count for split, source in splits.items()}
    if "test" not in counts:
        held = _held_out_count(reader, counts["train"])
        counts = {"train": counts["train"] - held, "test": held}
    own = _SHARE * memory_bytes() / _processes_here()
    budget = own if memory_gb is None else memory_gb * 1e9
    return Size(counts, sum(counts.values()) * math.prod(fit.shape), int(budget))


def _processes_here() -> int:
    """Return how many processes of this job share the memory; 1 where no cluster says so."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 4(x2),3
    local = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    counts = re.sub(r"\(x\d+\)", "", f"{tasks},{local}")
    return max([1, *map(int, re.findall(r"\d+", counts))])


def quantizer(name: str) -> Quantizer:
    """Return the quantizer of a data set, known without reading it."""
    return Quantizer(gray_levels=gray_levels(name))


def train_count(name: str) -> int | None:
    """Return the number of training images if it is known without loading them, for planning."""
    return _TRAIN_COUNTS.get(name if name.startswith(DIGITS) else name.split(":")[0])


def _source_of(source: Split, fit: Fit) -> str | None:
    """Return text that differs for other images; None where their pixels are compared."""
    if source.fingerprint is None or source.count * math.prod(fit.shape) <= _BY_PIXELS:
        return None
    return f"{source.fingerprint()} {fit.shape} {fit.resize}"


def _collect(
    source: Split, fit: Fit, split: str, *, all_gray: bool
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"] | None]:
    """Return the images and labels of a split; no labels unless every image has one.

    Gray images among colored ones are repeated to three channels, and a note says how many. That
    all are gray is an error unless `all_gray`.
    """
    images = np.empty((source.count, *fit.shape), np.uint8)
    labels, seen = [], _Seen(fit)
    for row in range(source.count):
        item = source.items[row]
        images[row] = fit(item)
        seen.add(item)
        if item.label is not None:
            labels.append(item.label)
    source.notes.extend(seen.notes(split, all_gray=all_gray))
    return images, np.array(labels, np.int32) if len(labels) == source.count else None


def _stream(
    source: Split, fit: Fit, split: str, *, all_gray: bool
) -> tuple[StreamedImages, Int32[np.ndarray, " n"] | None]:
    """Return the images of a split, not read but for a few, and the labels, as `_collect`."""
    images = StreamedImages(source.items, fit)
    seen = _Seen(fit)
    for row in _spread(source.count):
        item = images.item(row)
        fit(item)
        seen.add(item)
    source.notes.extend(seen.notes(split, all_gray=all_gray))
    if source.in_order:
        source.notes.append(
            f"{split}: images in other than their stored order are slow to read from this kind of "
            "file; --mode=prepare --target=FOLDER makes one that is fast"
        )
    if source.labels is not None:
        return images, source.labels()
    labels = [images.item(row).label for row in range(source.count)]
    return images, None if None in labels else np.array(labels, np.int32)


def _spread(count: int) -> list[int]:
    """Return a few rows, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int)).tolist()


class _Seen:
    """Counts what is unusual in the images of a split."""

    def __init__(self, fit: Fit) -> None:
        self._fit = fit
        self._count = self._gray = self._pages = 0
        self._first_gray: Item | None = None

    def add(self, item: Item) -> None:
        """Look at an image."""
        self._count += 1
        self._pages += item.more_pages
        if self._fit.repeats(item):
            self._gray += 1
            self._first_gray = self._first_gray or item._replace(image=item.image[:1, :1])

    def notes(self, split: str, *, all_gray: bool) -> list[str]:
        """Return a line for each kind of unusual image.

        Raises:
            ValueError: if all images are gray where colored ones are wanted, unless `all_gray`.
        """
        notes = []
        if self._first_gray is not None:
            if self._gray == self._count and not all_gray:
                self._fit.require_channels(self._first_gray)
            notes.append(
                f"gray images among colored ones, repeated to three channels: {self._gray} of "
                f"{self._count}, the first is {self._first_gray.where}"
            )
        if self._pages:
            notes.append(
                f"{split}: files with several pages: {self._pages}; only the first is read"
            )
        return notes


def _note_on_levels(images: UInt8[Stored, "n h w c"]) -> str | None:
    """Return a line if the images use few of 256 gray levels: they may be meant otherwise."""
    if not isinstance(images, np.ndarray):
        images = images[np.array(_spread(len(images)))]
    seen = np.zeros(256, bool)
    for image in images:
        seen[image] = True
        if np.count_nonzero(seen) > _FEW_LEVELS and seen[_DARK:].any():
            return None
    levels = np.flatnonzero(seen)
    highest = int(levels[-1])
    dark = f"; they look black: multiply them by {255 // highest}" if 0 < highest < 128 else ""
    return (
        f"the training images hold {len(levels)} of the gray levels 0..255, from {levels[0]} to "
        f"{highest}; the model and bits/dim count 256 levels{dark}"
    )


def _held_out_count(reader: Reader, count: int) -> int:
    """Return how many of `count` images are held out where there is no test split."""
    return reader.test_count or held_out_count(count)


def _hold_out(name: str, reader: Reader, loaded: _Loaded, split_seed: int) -> dict[str, _Loaded]:
    """Split one set into train and test by a seeded draw, each in the original order."""
    images, labels, source = loaded
    held = _held_out_count(reader, len(images))
    chosen = hold_out(name, "image", len(images), held, split_seed)
    return {
        split: _Loaded(
            images[rows] if isinstance(images, np.ndarray) else images.subset(rows),
            None if labels is None else labels[rows],
            source and f"{source} {split} {held} {split_seed}",
        )
        for split, rows in chosen.items()
    }
