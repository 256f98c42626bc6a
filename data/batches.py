"""Batches as functions of the seed and the step."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8, UInt64

from data.datasets import _FLIP, _SHUFFLE, _TEST_NOISE, _TRAIN_NOISE
from data.scaling import ImageScaler, Quantizer


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
