"""Freed memory stays within a small process, which a child process shows by its page faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import resource
from numerics.memory import keep_freed_memory, share_heap
share_heap()
keep_freed_memory({limit})
for _ in range(20):
    b"x" * 40 * 2**20
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(*, limit: int = 10**9, **variables: str) -> int:
    """Page faults of a process that uses a block of 40 MB again and again."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    program = [sys.executable, "-c", PROGRAM.format(limit=limit)]
    return int(subprocess.check_output(program, cwd=ROOT, env=environment | variables))


@pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")
@pytest.mark.slow
def test_only_a_small_process_keeps_its_memory_and_only_where_the_user_set_nothing():
    kept = faults()
    assert faults(limit=1000) > 3 * kept
    assert faults(MALLOC_ARENA_MAX="4") > 3 * kept
