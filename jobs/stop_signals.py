"""Stop a loop between two of its steps, by SIGTERM or Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and Ctrl-C in a list that the loop reads; a second one acts at once."""
    received: list[int] = []
    previous = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        previous[each] = signal.signal(each, note)
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
