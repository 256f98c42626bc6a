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

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, UInt8, UInt64

import data_readers
from data_preparation import DIGITS
from data_readers import Item, Split

# NumPy or JAX floats of any shape.
Floats = Float[np.ndarray, "*shape"] | Float[jax.Array, "*shape"]

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


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Stored levels 0..levels-1 (uint8) to and from floats in [0, 1].

    Raises ValueError unless 2 <= levels <= 256.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise ValueError(f"Quantizer.levels={self.levels}: levels are uint8, choose 2..256")

    def normalize(self, stored: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """k / (levels - 1), in [0, 1]. Raises ValueError for what are not stored levels."""
        self._check(stored)
        return stored / np.float32(self.levels - 1)

    def dequantize(
        self, stored: UInt8[np.ndarray, "*shape"], noise: Float32[np.ndarray, "*shape"]
    ) -> Float32[np.ndarray, "*shape"]:
        """(k + u) / levels, in [0, 1), for noise u in [0, 1).

        u should be a multiple of 2^-16, as this module draws it: then k + u is exact in float32
        and stays in its bin. Finer noise may round up to the next level. Raises ValueError for what
        are not stored levels.
        """
        self._check(stored)
        x = stored + noise
        x /= self.levels
        return x

    def _check(self, stored: UInt8[np.ndarray, "..."]) -> None:
        if stored.dtype != np.uint8 or (stored.size and stored.max() >= self.levels):
            raise ValueError(
                f"stored levels are uint8 in 0..{self.levels - 1}, got {stored.dtype} up to "
                f"{stored.max() if stored.size else 'nothing'}; give images before they are scaled"
            )

    def quantize(self, x: Floats, *, dequantized: bool = False) -> UInt8[np.ndarray, "*shape"]:
        """Levels of floats in [0, 1]; what lies outside is clipped. Raises ValueError on NaN.

        By default the nearest level, round((levels - 1) x), the inverse of `normalize`. With
        `dequantized` the bin that holds x, floor(levels x), the exact inverse of `dequantize`.
        """
        values = np.asarray(x, np.float64)
        if np.isnan(values).any():
            raise ValueError(f"cannot quantize: {np.isnan(values).sum()} of {values.size} are NaN")
        if dequantized:
            # Half a step of u, which covers the float32 rounding of (k + u) / levels.
            level = np.floor(values * self.levels + 2**-17)
        else:
            level = np.rint(values * (self.levels - 1))
        return np.clip(level, 0, self.levels - 1).astype(np.uint8)

    def log_det(self, dims: int) -> float:
        """log |d dequantize(k) / dk| of an image of `dims` numbers: -dims log(levels), in nats."""
        return -dims * math.log(self.levels)

    def to_uint8(self, stored: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """round(255 k / (levels - 1)): 0..255, for pictures."""
        return np.rint(stored * (255.0 / (self.levels - 1))).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ImageScaler:
    """The affine map from [0, 1] to [low, high], the range that the network sees.

    VE processes use [0, 1], VP processes [-1, 1]. Raises ValueError unless low < high, both finite.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"ImageScaler needs finite low < high, got [{self.low}, {self.high}]")

    def forward(self, x: Floats) -> Floats:
        """low + (high - low) x, of the type of x (NumPy or JAX)."""
        y = x * (self.high - self.low)
        y += self.low  # in place for NumPy, which fresh memory would slow by half
        return y

    def inverse(self, y: Floats) -> Floats:
        """(y - low) / (high - low), of the type of y (NumPy or JAX)."""
        return (y - self.low) / (self.high - self.low)

    def log_det(self, dims: int) -> float:
        """log |d forward / dx| of an image of `dims` numbers: dims log(high - low), in nats."""
        return dims * math.log(self.high - self.low)


# Random numbers by counter.


def _bits(
    seed: int, stream: int, counter: int, *, skip: int, words: int
) -> UInt64[np.ndarray, " words"]:
    """`words` random words of the stream (seed, stream, counter), after its first `skip`."""
    if seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, counter))
    return np.random.PCG64(sequence).advance(skip).random_raw(words)


def _uniform(
    seed: int, stream: int, counter: int, *, first: int, count: int, shape: tuple[int, ...]
) -> Float32[np.ndarray, "count h w c"]:
    """Rows first..first+count-1 of an endless table of uniforms in [0, 1), each of `shape`.

    The numbers are multiples of 2^-16: level plus noise then fits float32's 24 bits exactly.
    """
    dims = math.prod(shape)
    words = -(-dims // 4)  # one word holds four numbers; rows start on whole words
    bits = _bits(seed, stream, counter, skip=first * words, words=count * words)
    numbers = bits.view(np.uint16).reshape(count, 4 * words)[:, :dims]
    return numbers.reshape(count, *shape) * np.float32(2**-16)


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Int64[np.ndarray, " count"]:
    """The order of epoch `epoch`: a uniform permutation of 0..count-1."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SHUFFLE, epoch))
    order = np.random.default_rng(sequence).permutation(count)
    order.setflags(write=False)  # the cache hands out this very array
    return order


# Batches.


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingBatches:
    """The endless training stream: batch k is a pure function of (seed, k).

    Every epoch is a fresh permutation of all images; batches straddle epochs and drop nothing.
    `labels` are the classes of the images, for networks that see them.
    Raises ValueError for an empty data set, a batch size below 1 or a negative seed.
    """

    images: UInt8[np.ndarray, "n h w c"]
    batch_size: int
    seed: int
    random_flip: bool
    dequantize: bool
    quantizer: Quantizer = Quantizer()
    scaler: ImageScaler = ImageScaler()
    labels: Int32[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ValueError("TrainingBatches.images is empty: give at least one training image")
        if self.batch_size < 1:
            raise ValueError(f"config.training.batch_size={self.batch_size}: choose 1 or more")
        if self.seed < 0:
            raise ValueError(f"config.seed={self.seed}: choose 0 or more")

    def indices(self, step: int) -> Int64[np.ndarray, " batch_size"]:
        """Which training images batch `step` (0, 1, ...) holds, in order."""
        if step < 0:
            raise ValueError(f"step={step} must not be negative")
        count = len(self.images)
        position = step * self.batch_size + np.arange(self.batch_size)
        chosen = np.empty(self.batch_size, np.int64)
        for epoch in range(position[0] // count, position[-1] // count + 1):
            inside = position // count == epoch
            chosen[inside] = _permutation(count, self.seed, epoch)[position[inside] % count]
        return chosen

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows h w c"]:
        """Rows `rows` of global batch `step`, in [scaler.low, scaler.high].

        A host asks for the rows it holds and draws random numbers for those alone; the rows of all
        hosts together are the whole batch. Raises ValueError for a strided slice.
        """
        first, stop, stride = rows.indices(self.batch_size)
        if stride != 1:
            raise ValueError(f"rows={rows}: a host holds consecutive rows, use a stride of 1")
        count = max(stop - first, 0)
        stored = self.images[self.indices(step)[rows]]
        if self.random_flip:
            flipped = _bits(self.seed, _FLIP, step, skip=first, words=count) >> 63 == 1
            stored[flipped] = stored[flipped, :, ::-1]
        if self.dequantize:
            shape = stored.shape[1:]
            noise = _uniform(self.seed, _TRAIN_NOISE, step, first=first, count=count, shape=shape)
            return self.scaler.forward(self.quantizer.dequantize(stored, noise))
        return self.scaler.forward(self.quantizer.normalize(stored))

    def labels_at(self, step: int, rows: slice = slice(None)) -> Int32[np.ndarray, " rows"]:
        """The classes of the images `at(step, rows)`; there must be labels."""
        return self.labels[self.indices(step)[rows]]


def test_batch(
    images: UInt8[np.ndarray, "n h w c"],
    indices: Sequence[int] | np.ndarray,
    *,
    seed: int,
    draw: int,
    quantizer: Quantizer,
    scaler: ImageScaler,
    dequantize: bool = True,  # noqa: PT028 (not a test)
) -> Float32[np.ndarray, "batch h w c"]:
    """The images `indices`, in [scaler.low, scaler.high], unflipped.

    The noise of an image is a pure function of (seed, draw, its index): every batching gives the
    same numbers. `draw` counts dequantizations of one image, as bits/dim averages over several.
    Raises IndexError for an index outside 0..n-1.
    """
    chosen = np.asarray(indices, np.int64)
    if np.any((chosen < 0) | (chosen >= len(images))):
        raise IndexError(f"test image indices must lie in 0..{len(images) - 1}, got {chosen}")
    stored = images[chosen]
    if not dequantize:
        return scaler.forward(quantizer.normalize(stored))
    noise = np.empty(stored.shape, np.float32)
    for row, index in enumerate(chosen.tolist()):
        shape = images.shape[1:]
        noise[row] = _uniform(seed, _TEST_NOISE, draw, first=index, count=1, shape=shape)[0]
    return scaler.forward(quantizer.dequantize(stored, noise))


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
            if images.max() >= self.quantizer.levels:
                top = self.quantizer.levels - 1
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
    for split, source in data_readers.read(name, data_dir).items():
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
    return Quantizer(levels=17) if name == DIGITS else Quantizer()


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
