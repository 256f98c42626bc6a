"""Stop a loop between two of its steps, by SIGTERM or Ctrl-C, on all hosts after the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from training.hosts import several
from training.parallel import DataParallel


class Stop:
    """The signals that this host has received, and what all hosts make of them.

    Args:
        parallel: the devices of all hosts.
    """

    def __init__(self, parallel: DataParallel) -> None:
        self.received: list[int] = []
        self._parallel = parallel
        self._asked: jax.Array | None = None
        self._agreed = 0

    @property
    def signal(self) -> int:
        """The signal that stops the loop; 0 for none."""
        if several():
            return self._agreed
        return self.received[0] if self.received else 0

    def after_call(self) -> int:
        """Return `signal` after a call of the training step; the loop asks once for each.

        With several hosts, the answer is what their signals were one call before. So nothing waits:
        by now the devices have it.
        """
        if several():
            mine = max(self.received, default=0)
            before, self._asked = self._asked, self._parallel.largest(mine)
            if before is not None:
                self._agreed = int(np.asarray(before))
        return self.signal


@contextmanager
def stop_signals(parallel: DataParallel) -> Iterator[Stop]:
    """Collect SIGTERM and Ctrl-C for the loop; a second one acts at once."""
    stop = Stop(parallel)
    previous = {}

    def note(number: int, frame: Any) -> None:
        stop.received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        previous[each] = signal.signal(each, note)
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
