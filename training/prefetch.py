"""Inputs of training steps that a background thread makes while the steps before them run."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any


@contextmanager
def prefetched(
    make: Callable[[Any], Any], items: Iterable[Any], *, ahead: int
) -> Iterator[Iterator[Any]]:
    """Give an iterator over make(item) for each item, in their order.

    One thread makes up to `ahead` results before they are wanted. An error of `make` is raised
    where its result would come. The thread has ended when the context is left, whatever the reason.

    Args:
        make: makes a result; called by one thread at a time.
        items: what to make results of; endless or not.
        ahead: number of results, finished or not, that wait; 0 makes each when it is wanted.
    """
    if not ahead:
        yield map(make, items)
        return
    rest = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting = deque(thread.submit(make, item) for item in islice(rest, ahead))

        def results() -> Iterator[Any]:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(make, item) for item in islice(rest, 1))
                yield result

        try:
            yield results()
        finally:
            _cancel(waiting)


def _cancel(waiting: Iterable[Future]) -> None:
    for future in waiting:
        future.cancel()
