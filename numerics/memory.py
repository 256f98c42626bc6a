"""Keep freed memory within the process, for XLA on CPUs.

XLA frees the temporary memory of a program after each call. The GNU C library then returns it to
the system, which clears it again for the next call. docs/benchmarks.md, Networks, has times.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Parameters of mallopt, and the variables of the environment by which a user sets them.
_TRIM, _LARGE_BLOCKS, _HEAPS = -1, -4, -8
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_ARENA_MAX")
_DEFAULT_LARGE_BLOCKS = 65_536  # blocks that may have a mapping of their own


def share_heap() -> None:
    """Let all threads use one heap, which keeps what it has, so that each reuses freed memory.

    Call it before other threads run: each takes its heap at its first allocation.
    """
    if mallopt := _mallopt():
        mallopt(_HEAPS, 1)
        mallopt(_TRIM, -1)


def keep_freed_memory(limit: int = 10**9) -> None:
    """Keep large blocks as well from now on, if the process takes at most `limit` bytes.

    Blocks of different sizes leave gaps, so a large process could grow to several times its size.
    """
    if mallopt := _mallopt():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        small = pages * os.sysconf("SC_PAGE_SIZE") <= limit
        mallopt(_LARGE_BLOCKS, 0 if small else _DEFAULT_LARGE_BLOCKS)


def _mallopt() -> Callable[[int, int], int] | None:
    """Return the GNU C library's mallopt; None for another library, or where a user has set it."""
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
