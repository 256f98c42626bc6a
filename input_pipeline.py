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

import difflib
import functools
import gzip
import hashlib
import importlib.util
import itertools
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, UInt8, UInt64

# NumPy or JAX floats of any shape.
Floats = Float[np.ndarray, "*shape"] | Float[jax.Array, "*shape"]

DIGITS = "digits"
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
# Split -> key of its images, key of its labels (which may be missing).
_NPZ_LAYOUTS = (
    {"train": ("train", "train_labels"), "test": ("test", "test_labels")},
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
    {"train": ("images", "labels")},
)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_PREPARE = "`python main.py --config=... --mode=prepare`"

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
        """k / (levels - 1), in [0, 1]."""
        return stored / np.float32(self.levels - 1)

    def dequantize(
        self, stored: UInt8[np.ndarray, "*shape"], noise: Float32[np.ndarray, "*shape"]
    ) -> Float32[np.ndarray, "*shape"]:
        """(k + u) / levels, in [0, 1), for noise u in [0, 1).

        u should be a multiple of 2^-16, as this module draws it: then k + u is exact in float32
        and stays in its bin. Finer noise may round up to the next level.
        """
        x = stored + noise
        x /= self.levels
        return x

    def quantize(
        self,
        x: Floats,
        *,
        dequantized: bool = False,
    ) -> UInt8[np.ndarray, "*shape"]:
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
    Raises ValueError for an empty data set, a batch size below 1 or a negative seed.
    """

    images: UInt8[np.ndarray, "n h w c"]
    batch_size: int
    seed: int
    random_flip: bool
    dequantize: bool
    quantizer: Quantizer = field(default_factory=Quantizer)
    scaler: ImageScaler = field(default_factory=ImageScaler)

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
    quantizer: Quantizer = field(default_factory=Quantizer)

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


class _Item(NamedTuple):
    """One image (h, w, c) uint8 with its label, and where it came from, for messages."""

    where: str
    image: np.ndarray
    label: int | None


class _Split(NamedTuple):
    """`count` images, decoded one by one so that large originals never meet in memory."""

    count: int
    items: Iterable[_Item]


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
    path = _as_path(name)
    if name == DIGITS:
        splits = _read_digits()
    elif path is not None:
        splits = _read_npz(path) if path.suffix == ".npz" else _read_folder(path)
    else:
        splits = _read_tfds(name, _data_root(data_dir))
    fit = functools.partial(_fit, image_size=image_size, channels=channels, resize=resize)
    loaded = {}
    for split, (count, items) in splits.items():
        if not count:
            raise ValueError(f"config.data.name={name!r}: the {split} split holds no images")
        shape = (image_size, image_size, channels)
        loaded[split] = _collect(count, items, shape, fit)
    if "test" not in loaded:
        loaded = _hold_out(name, *loaded["train"], split_seed)
    (train, train_labels), (test, test_labels) = loaded["train"], loaded["test"]
    return ImageData(
        name=name,
        train=train,
        test=test,
        train_labels=train_labels,
        test_labels=test_labels,
        quantizer=Quantizer(levels=17) if name == DIGITS else Quantizer(),
    )


def train_count(name: str) -> int | None:
    """Number of training images where it is known without loading them, for planning."""
    return _TRAIN_COUNTS.get(name.split(":")[0])


def _collect(
    count: int, items: Iterable[_Item], shape: tuple[int, int, int], fit: Callable[[_Item], Any]
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"] | None]:
    """Images and labels of a split; the labels are None unless every image has one."""
    images = np.empty((count, *shape), np.uint8)
    labels = []
    for row, item in enumerate(items):
        images[row] = fit(item)
        if item.label is not None:
            labels.append(item.label)
    return images, np.array(labels, np.int32) if len(labels) == count else None


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


def _fit(item: _Item, *, image_size: int, channels: int, resize: str) -> np.ndarray:
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


# Readers, one a source: name of split -> images.


def _read_digits() -> dict[str, _Split]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]  # levels 0..16, stored as floats
    items = map(_Item, itertools.repeat(DIGITS), images, digits.target.tolist())
    return {"train": _Split(len(images), items)}


def _read_npz(path: Path) -> dict[str, _Split]:
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


def _npz_split(where: str, arrays: dict[str, np.ndarray], key: str, labels_key: str) -> _Split:
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
    return _Split(len(images), map(_Item, places, stacked, numbers))


def _read_folder(path: Path) -> dict[str, _Split]:
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
        split: _Split(len(found), _decode_files(roots[split], found, labels))
        for split, found in files.items()
    }


def _image_files(root: Path) -> list[Path]:
    """The images below `root` in sorted order, hidden files left out."""
    files = (file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in files if not file.name.startswith("."))


def _decode_files(root: Path, files: list[Path], labels: dict[str, int]) -> Iterator[_Item]:
    for file in files:
        label = labels[file.relative_to(root).parts[0]] if labels else None
        yield _Item(str(file), _decode(file), label)


def _decode(file: Path) -> UInt8[np.ndarray, "h w c"]:
    """The upright picture in its own one or three channels; ValueError names a damaged file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
    # Pillow reports damage as any of these, depending on the format and on the place.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not a readable image, remove it: {error}") from error
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ValueError(f"{file} has more than 8 bits a channel; convert it to 8 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise ValueError(f"{file} is transparent in places; flatten it onto a background")
    picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    return np.atleast_3d(np.asarray(picture))


def _read_tfds(name: str, root: Path) -> dict[str, _Split]:
    builder = _stock_builder(name, root)
    where = f"config.data.name={name!r}"
    if not _is_prepared(builder):
        files = [info.filename for info in (builder.url_infos or {}).values()]
        archives = ", ".join(files) if builder.name in _TENSORFLOW_FREE else "its archives"
        raise FileNotFoundError(
            f"{where} is not prepared: no {builder.data_path} (config.data.dir). Run {_PREPARE}, "
            f"which downloads it; offline, first put {archives} into {_manual_dir(root, builder)}"
        )
    splits = builder.info.splits
    if "train" not in splits or "image" not in builder.info.features:
        raise ValueError(f"{where} needs a split 'train' and a feature 'image', has {list(splits)}")
    names = {"train": "train"}
    if held := next((split for split in ("test", "validation") if split in splits), None):
        names["test"] = held
    sources = {split: builder.as_data_source(stored) for split, stored in names.items()}
    return {
        split: _Split(len(source), _decode_records(f"{name} {split}", source))
        for split, source in sources.items()
    }


def _decode_records(where: str, source: Sequence[dict[str, Any]]) -> Iterator[_Item]:
    for row, record in enumerate(source):
        label = record.get("label")
        number = int(label) if isinstance(label, int | np.integer) else None
        yield _Item(f"{where}[{row}]", record["image"], number)


# Names and places.


def _as_path(name: str) -> Path | None:
    """The file or folder that `name` means, or None for a tensorflow-datasets name."""
    path = Path(name).expanduser()
    if name.endswith(".npz") or path.is_dir():
        return path
    if not {"/", os.sep}.intersection(name):
        return None
    # A tensorflow-datasets name may carry a configuration: celeb_a_hq/256.
    return None if name.split("/")[0] in _registered_names() else path


def _data_root(data_dir: str | os.PathLike[str]) -> Path:
    """`data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = os.fspath(data_dir) or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def _manual_dir(root: Path, builder: Any, manual_dir: str | os.PathLike[str] = "") -> Path:
    """Where archives are put by hand; its subfolder named like the data set comes first.

    MNIST and Fashion-MNIST give their archives the same names, so one folder cannot hold both.
    """
    manual = Path(manual_dir).expanduser() if os.fspath(manual_dir) else root / "downloads/manual"
    own = manual / builder.name
    return own if own.is_dir() else manual


def _registered_names() -> list[str]:
    """The names that tensorflow-datasets knows; none where it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        return []
    return tfds.list_builders(with_community_datasets=False)  # the community's need the network


def _stock_builder(name: str, root: Path) -> Any:
    """The tensorflow-datasets builder of `name`; ValueError with near matches if unknown."""
    known = _registered_names()
    base = name.split("/")[0].split(":")[0]
    if base not in known:
        near = difflib.get_close_matches(base, [DIGITS, *known], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        missing = "" if known else " (not installed: pip install tensorflow-datasets array-record)"
        raise ValueError(
            f"config.data.name={name!r} is unknown: {hint}Choose 'digits', the path of an .npz or "
            f"of a folder of images, or a name of tensorflow-datasets{missing}"
        )
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=root)
    except (ValueError, AssertionError) as error:  # an unknown configuration or version
        raise ValueError(f"config.data.name={name!r}: {str(error).splitlines()[0]}") from error


def _is_prepared(builder: Any) -> bool:
    """Whether the directory is complete; ValueError if its records need TensorFlow to be read."""
    if not (builder.data_path / "dataset_info.json").exists():
        return False
    found = builder.info.file_format.value
    if found != "array_record":
        raise ValueError(
            f"{builder.data_path} holds {found} records, which only TensorFlow reads; move it "
            f"away, or set config.data.dir to a fresh directory, and run {_PREPARE}"
        )
    return True


# Preparation without TensorFlow.


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "",
    manual_dir: str | os.PathLike[str] = "",
) -> Path | None:
    """Downloads a tensorflow-datasets name once, into records that `load` reads.

    Returns the stock directory, or None for digits and paths, which need no preparation. CIFAR-10,
    MNIST and Fashion-MNIST do without TensorFlow. Archives in `manual_dir` (default:
    <data_dir>/downloads/manual) or its subfolder `name` are used instead of the network. An
    interrupted preparation leaves nothing behind that counts as prepared; the next call redoes it.

    Raises ConnectionError when an archive can neither be found nor reached, ValueError for an
    unknown name or a damaged archive, RuntimeError when TensorFlow is needed and missing.
    """
    if name == DIGITS or _as_path(name) is not None:
        return None
    root = _data_root(data_dir)
    builder = _stock_builder(name, root)
    if _is_prepared(builder):
        return Path(builder.data_path)
    import tensorflow_datasets as tfds

    manual = _manual_dir(root, builder, manual_dir)
    if builder.name in _TENSORFLOW_FREE:
        builder = _TENSORFLOW_FREE[builder.name](type(builder))(data_dir=root)
        _check_archives(builder, root / "downloads", manual)
    elif importlib.util.find_spec("tensorflow") is None:
        raise RuntimeError(
            f"config.data.name={name!r}: preparing it needs TensorFlow once (reading never does): "
            "pip install tensorflow-cpu"
        )
    config = tfds.download.DownloadConfig(
        manual_dir=manual,
        try_download_gcs=False,
        # Overwrites a directory without dataset_info.json, which would pass for finished.
        download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS,
    )
    builder.download_and_prepare(download_config=config, file_format="array_record")
    return Path(builder.data_path)


def _check_archives(builder: Any, downloads: Path, manual: Path) -> None:
    """Fails at once where an archive is damaged, or neither here nor within reach."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    for url, info in builder.url_infos.items():
        archive = manual / info.filename
        if not archive.is_file():
            cached = get_dl_fname(url, info.checksum)
            if next(downloads.rglob(cached), None) is None:
                _check_reachable(builder, url, manual)
            continue
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != info.checksum:
            raise ValueError(
                f"{archive} is not the {info.filename} of {builder.name}: its sha256 is {digest}, "
                f"expected {info.checksum}; fetch it again from {url}"
            )


def _check_reachable(builder: Any, url: str, manual: Path) -> None:
    """One short request: tensorflow-datasets itself retries for minutes."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=5) as response:
            response.raise_for_status()
    except requests.RequestException as error:
        archives = ", ".join(info.filename for info in builder.url_infos.values())
        raise ConnectionError(
            f"config.data.name={builder.name!r}: cannot reach {url} ({type(error).__name__}); put "
            f"{archives} into {manual} and run {_PREPARE} again"
        ) from error


def _cifar10_builder(stock: type) -> type:
    """The stock builder of CIFAR-10, reading its archive without TensorFlow."""

    class Cifar10(stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            layout = self._cifar_info
            files = _read_tar(Path(dl_manager.download(layout.url)), layout.prefix)
            names = files[layout.label_files[0]].decode().split()
            self.info.features["label"].names = names
            return {
                "train": self._generate_examples("train_", map(files.get, layout.train_files)),
                "test": self._generate_examples("test_", map(files.get, layout.test_files)),
            }

        def _generate_examples(
            self, split_prefix: str, batches: Iterable[bytes]
        ) -> Iterator[tuple[int, Any]]:
            from PIL import Image

            # A record is one label and the planes R, G, B of 32x32.
            records = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for key, (label, image) in enumerate(zip(records[:, 0], images, strict=True)):
                picture = Image.fromarray(np.ascontiguousarray(image))
                yield key, {"id": f"{split_prefix}{key:05d}", "image": picture, "label": int(label)}

    return Cifar10


def _mnist_builder(stock: type) -> type:
    """The stock builder of MNIST or Fashion-MNIST, reading its archives without TensorFlow."""

    class Mnist(stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            archives = dl_manager.download({i.filename: url for url, i in self.url_infos.items()})
            return {
                split: self._generate_examples(
                    _read_idx(Path(archives[f"{prefix}-images-idx3-ubyte.gz"])),
                    _read_idx(Path(archives[f"{prefix}-labels-idx1-ubyte.gz"])),
                )
                for split, prefix in {"train": "train", "test": "t10k"}.items()
            }

        def _generate_examples(
            self, images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, " n"]
        ) -> Iterator[tuple[int, Any]]:
            from PIL import Image

            for key, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield key, {"image": Image.fromarray(image), "label": int(label)}

    return Mnist


_TENSORFLOW_FREE = {
    "cifar10": _cifar10_builder,
    "mnist": _mnist_builder,
    "fashion_mnist": _mnist_builder,
}


def _read_tar(archive: Path, prefix: str) -> dict[str, bytes]:
    """The files below `prefix` of a .tar.gz, by name."""
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and m.name.startswith(prefix)]
            return {m.name.removeprefix(prefix): tar.extractfile(m).read() for m in members}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged, fetch it again: {error}") from error


def _read_idx(archive: Path) -> UInt8[np.ndarray, "..."]:
    """An idx file (gzip): two zeros, type 8 (uint8), rank, big-endian int32 shape, the data."""
    try:
        content = gzip.decompress(archive.read_bytes())
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged, fetch it again: {error}") from error
