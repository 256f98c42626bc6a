"""Batches of scaled images as pure functions of a seed and a counter.

The counter is an epoch (order), a step (flips and noise of training) or a test image's index (its
noise). No generator carries a state, so a resumed run sees the batches it would have seen. Random
words come from PCG64, which can skip ahead: part of a batch costs only its own numbers.
`data.scaling` explains dequantization and value ranges.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8, UInt64

from data.dequantization import DEQUANTIZATIONS
from data.read_ahead import ReadAhead
from data.scaling import ImageScaler, Quantizer
from data.streamed import StreamedImages
from errors import SEEDS, require_choice, require_in

_AT_ONCE = 2**15  # numbers of a batch that are scaled at a time

Stored = np.ndarray | StreamedImages  # images in memory, or read when they are indexed

# Independent random streams of one seed. Their numbers fix every batch: append, never reorder.
HOLD_OUT, _SHUFFLE, _FLIP, _TRAIN_NOISE, _TEST_NOISE, COUPLING, PRIOR = range(7)


def _bits(
    seed: int, stream: int, counter: int, *, skip: int, words: int
) -> UInt64[np.ndarray, " words"]:
    """Return `words` random words of the stream (seed, stream, counter), after its first `skip`."""
    require_in("seed", seed, SEEDS)
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, counter))
    return np.random.PCG64(sequence).advance(skip).random_raw(words)


def _uniform(
    seed: int, stream: int, counter: int, *, first: int, count: int, shape: tuple[int, ...]
) -> Float32[np.ndarray, "count h w c"]:
    """Return rows first..first+count-1 of an endless table of uniforms in [0, 1).

    Each row has shape `shape`. The numbers are multiples of 2^-16, so that level plus noise fits
    float32's 24 bits exactly.
    """
    dims = math.prod(shape)
    words = -(-dims // 4)  # one word holds four numbers; rows start on whole words
    bits = _bits(seed, stream, counter, skip=first * words, words=count * words)
    numbers = bits.view(np.uint16).reshape(count, 4 * words)[:, :dims]
    return numbers.reshape(count, *shape) * np.float32(2**-16)


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Int64[np.ndarray, " count"]:
    """Return the order of epoch `epoch`: a uniform permutation of 0..count-1."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_SHUFFLE, epoch))
    order = np.random.default_rng(sequence).permutation(count)
    order.setflags(write=False)  # the cache hands out this very array
    return order


class Order(NamedTuple):
    """Which of `count` images are in the global batch of each step."""

    count: int
    batch_size: int
    seed: int

    def indices(self, step: int) -> Int64[np.ndarray, " batch_size"]:
        """Return the indices of the images in batch `step` (0, 1, ...), in order."""
        require_in("step", step, "[0, inf)")
        count = self.count
        position = step * self.batch_size + np.arange(self.batch_size)
        chosen = np.empty(self.batch_size, np.int64)
        for epoch in range(position[0] // count, position[-1] // count + 1):
            inside = position // count == epoch
            chosen[inside] = _permutation(count, self.seed, epoch)[position[inside] % count]
        return chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingBatches:
    """The endless training stream: batch k is a pure function of (seed, k).

    Every epoch is a fresh permutation of all images; batches straddle epochs and drop nothing.

    Args:
        images: all training images, as stored levels. Those that are not in memory are read ahead
            where steps follow one another, and give the same batches.
        batch_size: rows of the global batch.
        seed: decides order, flips and noise.
        random_flip: whether to mirror half of the images.
        dequantization: how levels become numbers, a name in DEQUANTIZATIONS.
        quantizer: the map from stored levels to [0, 1].
        scaler: the map from [0, 1] to the network's range.
        labels: the images' classes, for networks with class labels.
        workers: processes that read images ahead; 0 for threads.

    Raises:
        ValueError: for an empty data set, a batch size below 1, a negative seed or an unknown name.
    """

    images: UInt8[Stored, "n h w c"]
    batch_size: int
    seed: int
    random_flip: bool
    dequantization: str
    quantizer: Quantizer = Quantizer()
    scaler: ImageScaler = ImageScaler()
    labels: Int32[np.ndarray, " n"] | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ValueError("images is empty: give at least one training image")
        require_in("config.training.batch_size", self.batch_size, "[1, inf)")
        require_in("config.seed", self.seed, SEEDS)
        require_choice("dequantization", self.dequantization, DEQUANTIZATIONS)

    def indices(self, step: int) -> Int64[np.ndarray, " batch_size"]:
        """Return the indices of the training images in batch `step` (0, 1, ...), in order."""
        return self._order.indices(step)

    @property
    def _order(self) -> Order:
        return Order(len(self.images), self.batch_size, self.seed)

    @cached_property
    def _ahead(self) -> ReadAhead | None:
        if isinstance(self.images, np.ndarray):
            return None
        return ReadAhead(self.images, self._order.indices, processes=self.workers)

    def close(self) -> None:
        """End the workers that read images ahead; batches can be read afterwards."""
        if self._ahead is not None:
            self._ahead.close()

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows h w c"]:
        """Return rows `rows` of global batch `step`, in [scaler.low, scaler.high].

        Random numbers are drawn for these rows alone; disjoint slices together are the batch.

        Raises:
            ValueError: for a slice with a stride.
            FileError: if an image cannot be read.
        """
        first, stop, stride = rows.indices(self.batch_size)
        if stride != 1:
            raise ValueError(f"rows={rows} must be consecutive; use a stride of 1")
        count = max(stop - first, 0)
        if self._ahead is None:
            stored = self.images[self.indices(step)[rows]]
        else:
            stored = self._ahead.rows(step, first, count)
        if self.random_flip:
            flipped = _bits(self.seed, _FLIP, step, skip=first, words=count) >> 63 == 1
            stored[flipped] = stored[flipped, :, ::-1]
        how, shape, noise = DEQUANTIZATIONS[self.dequantization], stored.shape[1:], None
        if how.noisy:
            noise = _uniform(self.seed, _TRAIN_NOISE, step, first=first, count=count, shape=shape)
        batch = np.empty(stored.shape, np.float32)
        # A few rows at a time: what is computed on the way stays in the processor's cache, instead
        # of in fresh memory of the size of a batch.
        few = max(1, _AT_ONCE // max(1, math.prod(shape)))
        for start in range(0, count, few):
            part = slice(start, start + few)
            drawn = None if noise is None else noise[part]
            batch[part] = self.scaler.forward(how.training(self.quantizer, stored[part], drawn))
        return batch

    def labels_at(self, step: int, rows: slice = slice(None)) -> Int32[np.ndarray, " rows"]:
        """Return the classes of the images `at(step, rows)`.

        Raises:
            ValueError: if the data have no labels.
        """
        if self.labels is None:
            raise ValueError("these training images have no labels")
        return self.labels[self.indices(step)[rows]]


def test_batch(
    images: UInt8[Stored, "n h w c"],
    indices: Sequence[int] | np.ndarray,
    *,
    seed: int,
    draw: int,
    quantizer: Quantizer,
    scaler: ImageScaler,
    dequantization: str = "uniform",  # noqa: PT028 (not a test)
) -> Float32[np.ndarray, "batch h w c"]:
    """Return the test images `indices` as training sees images, but never flipped.

    An image's noise is a pure function of (seed, draw, its index): the batching does not matter.

    Args:
        images: all test images, as stored levels.
        indices: which of them, in 0..n-1.
        seed: decides the noise.
        draw: number of the dequantization, as bits/dim averages over several.
        quantizer: the map from stored levels to [0, 1].
        scaler: the map from [0, 1] to the network's range.
        dequantization: how levels become numbers, a name in DEQUANTIZATIONS.

    Returns:
        The images in [scaler.low, scaler.high].

    Raises:
        IndexError: for an index outside 0..n-1.
    """
    stored = _chosen(images, indices)
    how, noise = DEQUANTIZATIONS[dequantization], None
    if how.noisy:
        noise = test_noise(images, indices, seed=seed, draw=draw)
    return scaler.forward(how.training(quantizer, stored, noise))


def test_noise(
    images: UInt8[Stored, "n h w c"],
    indices: Sequence[int] | np.ndarray,
    *,
    seed: int,
    draw: int,
) -> Float32[np.ndarray, "batch h w c"]:
    """Return the uniform noise in [0, 1) of `test_batch`.

    Raises:
        IndexError: for an index outside 0..n-1.
    """
    noise = np.empty(_chosen(images, indices).shape, np.float32)
    for row, index in enumerate(np.asarray(indices, np.int64).tolist()):
        shape = images.shape[1:]
        noise[row] = _uniform(seed, _TEST_NOISE, draw, first=index, count=1, shape=shape)[0]
    return noise


def _chosen(
    images: UInt8[Stored, "n h w c"], indices: Sequence[int] | np.ndarray
) -> UInt8[np.ndarray, "batch h w c"]:
    chosen = np.asarray(indices, np.int64)
    if np.any((chosen < 0) | (chosen >= len(images))):
        raise IndexError(f"test image indices must lie in 0..{len(images) - 1}, got {chosen}")
    return images[chosen]
