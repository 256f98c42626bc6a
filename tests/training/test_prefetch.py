"""A thread that makes inputs ahead: their order, its errors, and its end."""

import itertools
import threading
import time

import pytest

from training.prefetch import prefetched


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_results_come_in_order_each_once(ahead):
    with prefetched(lambda n: n**2, range(20), ahead=ahead) as results:
        assert list(results) == [n**2 for n in range(20)]
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_is_made_ahead_than_was_asked_for(ahead):
    made = []
    with prefetched(made.append, itertools.count(), ahead=ahead) as results:
        for number in range(4):
            next(results)
            deadline = time.monotonic() + 10
            while len(made) < number + 1 + ahead and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert made == list(range(number + 1 + ahead))
    assert not threads()


@pytest.mark.parametrize("ahead", [0, 2])
def test_error_comes_where_its_result_would(ahead):
    def make(number):
        if number == 3:
            raise OSError("no such image")
        return number

    with prefetched(make, itertools.count(), ahead=ahead) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="no such image"):
            next(results)
    assert not threads()


def test_thread_ends_with_the_loop_that_is_interrupted():
    made = []

    def make(number):
        made.append(number)
        time.sleep(0.01)

    def interrupted():
        with prefetched(make, itertools.count(), ahead=50) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not threads()
    assert len(made) < 10  # what was waiting is not made any more
