"""Data sets in memory: every image at one size, as stored gray levels.

`load` reads a data set by name, fits each image to the configured size, and holds out test images
where a data set has none. What leaves this module is uint8; `data.scaling` has the maps to the
network's range, and `data.batches` the batches.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from data.batches import HOLD_OUT
from data.readers import DIGITS, Reader, gray_levels, reader_of
from data.scaling import Quantizer
from data.stored import Item, Split
from errors import require_choice, require_in, require_memory
from numerics.arrays import digest

_TRAIN_COUNTS = {
    DIGITS: 1500,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "svhn_cropped": 73_257,
    "celeb_a": 162_770,
}
_HELD_OUT_FRACTION = 0.1
_FEW_LEVELS, _DARK = 2, 32  # images with so few levels, or none as bright, are reported


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set in memory: stored levels, labels where there are any, and their quantizer.

    Attributes:
        class_names: the name of label 0, 1, ...; None where labels have no names.
        notes: lines for the user on what was not read, or looks unusual.

    Raises:
        ValueError: for an empty split, splits of different image shapes, labels of another length,
            or levels that the quantizer does not have.
    """

    name: str
    train: UInt8[np.ndarray, "n h w c"]
    test: UInt8[np.ndarray, "m h w c"]
    train_labels: Int32[np.ndarray, " n"] | None = None
    test_labels: Int32[np.ndarray, " m"] | None = None
    quantizer: Quantizer = Quantizer()
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
            if images.max() >= self.quantizer.gray_levels:
                top = self.quantizer.gray_levels - 1
                raise ValueError(f"{where} holds {images.max()}; its levels should be 0..{top}")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the training images, their order and labels."""
        return digest((self.train, self.train_labels))


def load(
    name: str,
    *,
    image_size: int,
    channels: int,
    data_dir: str | os.PathLike[str] = "",
    resize: str = "none",
    split_seed: int = 0,
) -> ImageData:
    """Read a data set into memory as uint8 (n, image_size, image_size, channels).

    Never downloads. A set without a test split has a seeded tenth held out, digits 297 images.

    Args:
        name: "digits" (scikit-learn's, 8x8, 17 levels); a tensorflow-datasets name, prepared under
            `data_dir`; an .npz file (train and test, or train_images and test_images, or images,
            uint8 NHWC or NHW, and labels; see `data.npz`); or a folder of images (with train/ and
            test/, or one set; class subfolders become labels; see `data.folders`).
        image_size: height and width in pixels.
        channels: 1 (gray) or 3 (color).
        data_dir: "" for TFDS_DATA_DIR, else ~/tensorflow_datasets.
        resize: what to do with images of another size, a key of `RESIZES`.
        split_seed: decides which images are held out.

    Raises:
        FileNotFoundError: for missing data.
        ValueError: for an unknown name, a size, channel count or dtype that does not fit, an empty
            set or a damaged file.
    """
    require_choice("config.data.resize", resize, RESIZES)
    require_in("config.data.image_size", image_size, "[1, inf)")
    require_in("config.data.channels", channels, "[1, inf)")
    reader = reader_of(name)
    exact = {key: rule for key, rule in RESIZES.items() if not rule.interpolates}
    rules = RESIZES if reader.gray_levels == 256 else exact
    if resize not in rules:
        raise ValueError(
            f"config.data.resize={resize!r} would blur the {reader.gray_levels} gray levels of "
            f"{name!r}; choose 'pad'"
        )
    loaded, notes, class_names = {}, [], None
    for split, source in reader.read(name, data_dir).items():
        if not source.count:
            raise ValueError(f"config.data.name={name!r}: the {split} split holds no images")
        fit = _Fit(image_size, channels, resize, rules)
        loaded[split] = _collect(source, fit, all_gray=split == "test")
        notes += source.notes
        class_names = class_names or source.class_names
    if "test" not in loaded:
        images, labels = loaded["train"]
        loaded = _hold_out(name, reader, images, labels, split_seed)
    (train, train_labels), (test, test_labels) = loaded["train"], loaded["test"]
    if reader.gray_levels == 256 and (note := _note_on_levels(train)):
        notes.append(f"config.data.name={name!r}: {note}")
    return ImageData(
        name=name,
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        quantizer=quantizer(name),
        class_names=class_names,
        notes=tuple(notes),
    )


def quantizer(name: str) -> Quantizer:
    """Return the quantizer of a data set, known without reading it."""
    return Quantizer(gray_levels=gray_levels(name))


def train_count(name: str) -> int | None:
    """Return the number of training images if it is known without loading them, for planning."""
    return _TRAIN_COUNTS.get(name.split(":")[0])


def _collect(
    source: Split, fit: "_Fit", *, all_gray: bool
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"] | None]:
    """Return the images and labels of a split; no labels unless every image has one.

    Gray images among colored ones are repeated to three channels, and a note says how many. That
    all are gray is an error unless `all_gray`.
    """
    shape = (source.count, fit.image_size, fit.image_size, fit.channels)
    require_memory("config.data.image_size", fit.image_size, math.prod(shape))
    images = np.empty(shape, np.uint8)
    labels, gray = [], []
    for row, item in enumerate(source.items):
        if fit.channels == 3 and item.image.shape[-1] == 1:
            gray.append(item)
            images[row] = fit(item._replace(image=np.repeat(item.image, 3, axis=-1)))
        else:
            images[row] = fit(item)
        if item.label is not None:
            labels.append(item.label)
    if gray and len(gray) == source.count and not all_gray:
        fit.require_channels(gray[0])
    if gray:
        source.notes.append(
            f"gray images among colored ones, repeated to three channels: {len(gray)} of "
            f"{source.count}, the first is {gray[0].where}"
        )
    return images, np.array(labels, np.int32) if len(labels) == source.count else None


def _note_on_levels(images: UInt8[np.ndarray, "n h w c"]) -> str | None:
    """Return a line if the images use few of 256 gray levels: they may be meant otherwise."""
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


def _hold_out(
    name: str, reader: Reader, images: np.ndarray, labels: np.ndarray | None, split_seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Split one set into train and test by a seeded draw, each in the original order."""
    count = len(images)
    held = reader.test_count or max(1, round(count * _HELD_OUT_FRACTION))
    if held >= count:
        raise ValueError(f"config.data.name={name!r} has {count} image; train and test need two")
    sequence = np.random.SeedSequence(split_seed, spawn_key=(HOLD_OUT,))
    order = np.random.default_rng(sequence).permutation(count)
    chosen = {"train": np.sort(order[held:]), "test": np.sort(order[:held])}
    return {k: (images[i], None if labels is None else labels[i]) for k, i in chosen.items()}


def _pad(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "s s c"] | None:
    height, width, _ = image.shape
    if max(height, width) > size:
        return None
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(image, ((top, size - height - top), (left, size - width - left), (0, 0)))


def _crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "s s c"]:
    from PIL import Image

    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Cropped before resizing: `box=` of Pillow's resize lets what lies outside bleed in.
    square = image[top : top + side, left : left + side]
    bands = [Image.fromarray(np.ascontiguousarray(square[..., k])) for k in range(channels)]
    resized = [band.resize((size, size), Image.Resampling.LANCZOS) for band in bands]
    return np.stack([np.asarray(band) for band in resized], axis=-1)


class Resize(NamedTuple):
    """A rule for images of another size.

    Attributes:
        apply: the image at (size, size) from (image, size); None where the rule cannot.
        interpolates: whether it makes gray levels that were not there.
        meaning: what it does, for messages.
    """

    apply: Callable[[np.ndarray, int], np.ndarray | None]
    interpolates: bool
    meaning: str


RESIZES = {
    "none": Resize(lambda image, size: None, False, "images must have the configured size"),
    "pad": Resize(_pad, False, "smaller images get a symmetric border of zeros"),
    "crop": Resize(_crop, True, "the center square is resized (Lanczos)"),
}


class _Fit(NamedTuple):
    """Makes images (image_size, image_size, channels) by the rule `resize` of `rules`."""

    image_size: int
    channels: int
    resize: str
    rules: dict[str, Resize]

    def __call__(self, item: Item) -> np.ndarray:
        """Return the fitted image.

        Raises:
            ValueError: for another number of channels, or a size that the rule cannot change.
        """
        self.require_channels(item)
        image, size = item.image, self.image_size
        height, width, _ = image.shape
        if height == width == size:
            return image
        if (fitted := self.rules[self.resize].apply(image, size)) is not None:
            return fitted
        remedies = [f"set config.data.image_size={height}"] if height == width else []
        able = (k for k, rule in self.rules.items() if rule.apply(image, size) is not None)
        if name := next(able, None):
            remedies.append(f"choose config.data.resize={name!r} ({self.rules[name].meaning})")
        raise ValueError(
            f"config.data.image_size={size}, but {item.where} is {height}x{width} pixels; "
            f"{', or '.join(remedies) or 'resize the images'}"
        )

    def require_channels(self, item: Item) -> None:
        """Raise ValueError unless an image has the configured number of channels."""
        if (found := item.image.shape[-1]) != self.channels:
            raise ValueError(
                f"config.data.channels={self.channels}, but {item.where} has {found}; "
                f"set config.data.channels={found} or convert the images"
            )
