"""Images of training batches, read by Grain before they are wanted.

Grain evaluates a function of a position, here of a part of a batch, in threads or in processes, and
returns the results in order. A position states its step and rows, so that a stream that starts at
any step gives the same images, however many workers there are.

Grain's own shuffle is not used. The order of images is that of `data.batches`, which does not
change when a set outgrows the memory. It takes 8 bytes per image and epoch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from data.streamed import StreamedImages, thread_count
from errors import FileError

# Images that a worker reads at a time, at most: a thread, and a process, which has to send them.
_PART, _SENT = 16, 64
_BYTES = 2**22  # of these images, at most, unless one alone is larger
_LAST = 2**60  # positions, more than any training has


@dataclass(frozen=True)
class _Part:
    """Reads part k of the stream: consecutive rows of the batches from a step on."""

    images: StreamedImages
    indices: Callable[[int], Int64[np.ndarray, " batch_size"]]
    step: int
    first: int
    count: int
    size: int  # rows of a part, at most

    @property
    def parts(self) -> int:
        """The number of parts per batch."""
        return -(-self.count // self.size)

    def __call__(self, position: int) -> UInt8[np.ndarray, "part h w c"]:
        steps, part = divmod(int(position), self.parts)
        first = self.first + part * self.size
        stop = min(first + self.size, self.first + self.count)
        return self.images.read(self.indices(self.step + steps)[first:stop])


class ReadAhead:
    """Reads rows of batches; from the second of consecutive steps on, before they are wanted.

    Args:
        images: all images.
        indices: returns which images are in the batch of a step. Worker processes need a function
            that can be pickled.
        processes: number of worker processes; 0 reads with threads of this process.
    """

    def __init__(
        self,
        images: StreamedImages,
        indices: Callable[[int], Int64[np.ndarray, " batch_size"]],
        *,
        processes: int,
    ) -> None:
        self._images, self._indices, self._processes = images, indices, processes
        self._next: tuple[int, int, int] | None = None  # what the stream gives next
        self._stream: Any = None
        self._parts = 0

    def rows(self, step: int, first: int, count: int) -> UInt8[np.ndarray, "count h w c"]:
        """Return rows first .. first + count - 1 of the batch of a step.

        Raises:
            FileError: if an image cannot be read.
        """
        if not count:
            return self._images.read(np.arange(0))
        if self._next != (step, first, count):
            self.close()
            found = self._images[self._indices(step)[first : first + count]]
        else:
            if self._stream is None:
                self._start(step, first, count)
            found = np.concatenate([self._part() for _ in range(self._parts)])
        self._next = step + 1, first, count
        return found

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._next = None

    def _part(self) -> UInt8[np.ndarray, "part h w c"]:
        try:
            return next(self._stream)
        except FileError:
            self.close()
            raise
        except Exception as error:  # of a worker process, with its traceback in the message
            self.close()
            raise _from_worker(error) from error

    def _start(self, step: int, first: int, count: int) -> None:
        import grain

        image = math.prod(self._images.shape[1:])
        size = max(1, min(_SENT if self._processes else _PART, _BYTES // image))
        read = _Part(self._images, self._indices, step, first, count, size)
        self._parts = read.parts
        positions = grain.MapDataset.range(0, _LAST).map(read)
        threads = 1 if self._processes else thread_count()
        # As much as one batch waits, beside what the training loop has made of it already.
        waiting = max(2 * threads, read.parts) if not self._processes else 2
        stream = positions.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=waiting)
        )
        if self._processes:
            _parse_flags()
            each = -(-read.parts // self._processes) + 1
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._processes, per_worker_buffer_size=each
                )
            )
        self._stream = iter(stream)


def _parse_flags() -> None:
    """Let Grain read its flags, which it needs for processes; absl may not have parsed any."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _from_worker(error: Exception) -> Exception:
    """Return the FileError that a worker process has raised, found in its text; else the error."""
    lines = [line.strip() for line in str(error).splitlines()]
    marks = [line.partition("FileError: ")[2] for line in lines if "FileError: " in line]
    return FileError(marks[-1]) if marks else error
