"""Images as stored integers, and the float batches that networks see.

A data set stores levels k in {0, ..., L-1}. On the way to the network they become floats:

    dequantize   x = (k + u) / L,  u ~ U[0, 1)     a density on [0, 1)^D
    normalize    x = k / (L - 1)                   the same levels without noise
    scale        y = low + (high - low) x          the range that the network sees

Uniform dequantization turns a log-density into a bound on the log-probability of the levels,

    log P(k) >= E_u[log p(x)] - D log L            (Theis et al. 2016, arXiv:1511.01844, 3.1)

whose last term is `Quantizer.log_det`. Every random number is a pure function of a seed and a
counter (epoch, step or image index), so a resumed run sees the batches it would have seen.
"""

import os
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, UInt8

from data import readers
from data.preparation import DIGITS
from data.readers import Item, Split
from data.scaling import Quantizer

RESIZES = {
    "none": "images must have the size that the config states",
    "pad": "smaller images get a symmetric border of zeros",
    "crop": "the centre square is resized (Lanczos)",
}

_TRAIN_COUNTS = {
    DIGITS: 1500,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "svhn_cropped": 73_257,
    "celeb_a": 162_770,
}
_DIGITS_TEST_COUNT = 297
_HELD_OUT_FRACTION = 0.1

# Independent random streams of one seed.
_SPLIT, _SHUFFLE, _FLIP, _TRAIN_NOISE, _TEST_NOISE = range(5)


# Value ranges.


# Random numbers by counter.


# Batches.


# Data sets in memory.


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set in memory: stored levels, labels where there are any, and their quantizer.

    Raises ValueError for an empty split, splits of different image shapes, labels of another
    length, or levels beyond the quantizer's.
    """

    name: str
    train: UInt8[np.ndarray, "n h w c"]
    test: UInt8[np.ndarray, "m h w c"]
    train_labels: Int32[np.ndarray, " n"] | None = None
    test_labels: Int32[np.ndarray, " m"] | None = None
    quantizer: Quantizer = Quantizer()

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


def load(
    name: str,
    *,
    image_size: int,
    channels: int,
    data_dir: str | os.PathLike[str] = "",
    resize: str = "none",
    split_seed: int = 0,
) -> ImageData:
    """Reads a data set into memory as uint8 (n, image_size, image_size, channels).

    `name` is "digits" (scikit-learn's, 8x8, 17 levels), a tensorflow-datasets name that was
    prepared under `data_dir` (default: TFDS_DATA_DIR, else ~/tensorflow_datasets), an .npz file
    (train and test, or train_images and test_images, or images; uint8 NHWC or NHW; and labels), or
    a folder of images (with train/ and test/, or one set; class subfolders become labels). A set
    without a test split gets a seeded 10% held out, digits 297. `resize` is a key of `RESIZES`.

    Never downloads. Raises FileNotFoundError for missing data and ValueError for an unknown name,
    a size, channel count or dtype that does not fit, an empty set or a damaged file.
    """
    if resize not in RESIZES:
        raise ValueError(f"config.data.resize={resize!r} is not one of {', '.join(RESIZES)}")
    for field_name, value in {"image_size": image_size, "channels": channels}.items():
        if value < 1:
            raise ValueError(f"config.data.{field_name}={value}: choose 1 or more")
    if name == DIGITS and resize == "crop":
        raise ValueError("config.data.resize='crop' would blur digits' 17 levels; choose 'pad'")
    loaded = {}
    for split, source in readers.read(name, data_dir).items():
        if not source.count:
            raise ValueError(f"config.data.name={name!r}: the {split} split holds no images")
        loaded[split] = _collect(source, image_size, channels, resize)
    if "test" not in loaded:
        loaded = _hold_out(name, *loaded["train"], split_seed)
    (train, train_labels), (test, test_labels) = loaded["train"], loaded["test"]
    return ImageData(
        name=name,
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        quantizer=quantizer(name),
    )


def quantizer(name: str) -> Quantizer:
    """The levels of a data set, known without reading it: digits have 17, all others 256."""
    return Quantizer(gray_levels=17) if name == DIGITS else Quantizer()


def train_count(name: str) -> int | None:
    """Number of training images where it is known without loading them, for planning."""
    return _TRAIN_COUNTS.get(name.split(":")[0])


def _collect(
    source: Split, image_size: int, channels: int, resize: str
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"] | None]:
    """Images and labels of a split; the labels are None unless every image has one."""
    images = np.empty((source.count, image_size, image_size, channels), np.uint8)
    labels = []
    for row, item in enumerate(source.items):
        images[row] = _fit(item, image_size, channels, resize)
        if item.label is not None:
            labels.append(item.label)
    return images, np.array(labels, np.int32) if len(labels) == source.count else None


def _hold_out(
    name: str, images: np.ndarray, labels: np.ndarray | None, split_seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Splits one set into train and test by a seeded draw, each in the original order."""
    count = len(images)
    held = _DIGITS_TEST_COUNT if name == DIGITS else max(1, round(count * _HELD_OUT_FRACTION))
    if held >= count:
        raise ValueError(f"config.data.name={name!r} has {count} image; train and test need two")
    sequence = np.random.SeedSequence(split_seed, spawn_key=(_SPLIT,))
    order = np.random.default_rng(sequence).permutation(count)
    chosen = {"train": np.sort(order[held:]), "test": np.sort(order[:held])}
    return {k: (images[i], None if labels is None else labels[i]) for k, i in chosen.items()}


def _fit(item: Item, image_size: int, channels: int, resize: str) -> np.ndarray:
    """The image as (image_size, image_size, channels); raises ValueError if `resize` cannot."""
    image = item.image
    height, width, found = image.shape
    if found != channels:
        raise ValueError(
            f"config.data.channels={channels}, but {item.where} has {found}; "
            f"set config.data.channels={found} or convert the images"
        )
    if height == width == image_size:
        return image
    if resize == "crop":
        return _crop(image, image_size)
    if resize == "pad" and max(height, width) <= image_size:
        top, left = (image_size - height) // 2, (image_size - width) // 2
        rows, columns = image_size - height - top, image_size - width - left
        return np.pad(image, ((top, rows), (left, columns), (0, 0)))
    remedy = "" if height != width else f"set config.data.image_size={height}, or "
    choice = "pad" if max(height, width) < image_size else "crop"
    raise ValueError(
        f"config.data.image_size={image_size}, but {item.where} is {height}x{width} pixels; "
        f"{remedy}choose config.data.resize={choice!r} ({RESIZES[choice]})"
    )


def _crop(image: UInt8[np.ndarray, "h w c"], image_size: int) -> UInt8[np.ndarray, "s s c"]:
    """The centre square, resized by Lanczos."""
    from PIL import Image

    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Cropped before resizing: `box=` of Pillow's resize lets what lies outside bleed in.
    square = image[top : top + side, left : left + side]
    bands = [Image.fromarray(np.ascontiguousarray(square[..., k])) for k in range(channels)]
    size = (image_size, image_size)
    resized = [band.resize(size, Image.Resampling.LANCZOS) for band in bands]
    return np.stack([np.asarray(band) for band in resized], axis=-1)
