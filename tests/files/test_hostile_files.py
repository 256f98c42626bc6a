"""A part of the campaign of hostile files: no traceback, no file that takes all time or memory.

The whole is `benchmarks/hostile_files.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_content import MADE, write_hostile

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_hostile_files_end_in_one_line(tmp_path):
    call = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "hostile_files.py", "--count=35", "--seed=2"],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "BENCHMARK_RESULTS": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert call.returncode == 0, call.stdout + call.stderr
    assert re.search(r"all +35 files: .* 0 traceback, 0 time, 0 memory, 0 program", call.stdout)


def test_the_same_seed_makes_the_same_files(tmp_path):
    sizes = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        rng = np.random.default_rng(5)
        for target in MADE:
            write_hostile(rng, target, folder / target)
        # Archives carry the time at which they were written.
        sizes.append([file.lstat().st_size for file in sorted(folder.iterdir())])
    assert sizes[0] == sizes[1]
