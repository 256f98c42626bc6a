"""Describe the data for `--mode=check`: their size, where images are, how fast they are read."""

import time
from typing import NamedTuple

from data import datasets
from data.batches import Order
from data.datasets import Size
from data.read_ahead import ReadAhead
from data.streamed import StreamedImages, thread_count
from experiment.data import Data
from experiment.images import as_images

_SECONDS = 1.0  # of reading
_BATCH = 64


class DataPlan(NamedTuple):
    """A line about the data, and the numbers of images; None if they are not found."""

    text: str
    train_count: int | None = None
    test_count: int | None = None


def describe_data(data: Data, classes: int = 0) -> DataPlan:
    """Return a line about the data, with the images per second of a short trial.

    `classes` are those of the network; 0 if it has none.

    Raises:
        ConfigError: for other labels; those of images that are read during training are compared
            only if they are stored apart.
    """
    if not data.kind.quantized:
        return _describe_rows(data, classes)
    options = data.options
    try:
        reader, splits, fit = as_images(data).open_splits()
        size = datasets.size_of(reader, splits, fit, options.memory_gb)
        images = StreamedImages(splits["train"].items, fit)
        rate = _trial(images, options.workers)
    except (ValueError, OSError) as error:
        return DataPlan(f"cannot be read: {error}")
    known = splits["train"].labels
    if classes and (known or size.held):
        data.require_classes(known() if known else data.splits.train_labels, classes, "model")
    return DataPlan(f"{_line(size, data)}; {rate}", size.counts["train"], size.counts["test"])


def _describe_rows(data: Data, classes: int) -> DataPlan:
    """Return a line about points or series, which are always held in memory."""
    if classes:
        data.require_classes(data.splits.train_labels, classes, "model")
    train, test = data.splits.train, data.splits.test
    counts = f"{len(train):,} train + {len(test):,} test {data.kind.name}"
    shape, size = "x".join(map(str, data.shape)), 4 * data.size * (len(train) + len(test)) / 1e9
    return DataPlan(f"{counts} of {shape}, {size:.2f} GB: held in memory", len(train), len(test))


def _line(size: Size, data: Data) -> str:
    counts = " + ".join(f"{count:,} {split}" for split, count in size.counts.items())
    shape = "x".join(map(str, data.shape))
    place = "held in memory" if size.held else "read during training"
    return (
        f"{counts} images of {shape}, {size.bytes / 1e9:.2f} GB: {place} "
        f"(limit {size.budget / 1e9:.2f} GB)"
    )


def _trial(images: StreamedImages, workers: int) -> str:
    """Read images in training's order for a second, or each once; return the speed."""
    order = Order(len(images), _BATCH, 0)
    ahead = ReadAhead(images, order.indices, processes=workers)
    try:
        count, step = 0, 0
        for step in range(2):  # the first is read at once, the second starts the workers
            ahead.rows(step, 0, _BATCH)
        start = time.perf_counter()
        while count < len(images) and time.perf_counter() < start + _SECONDS:
            step += 1
            count += len(ahead.rows(step, 0, _BATCH))
        seconds = time.perf_counter() - start
    finally:
        ahead.close()
    by = f"{workers} processes" if workers else f"{thread_count()} threads"
    return f"{count / seconds:,.0f} images/s read by {by}"
