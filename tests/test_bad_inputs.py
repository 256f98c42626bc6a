"""A part of the campaign of bad command lines: each ends in one line, or runs.

The whole is `benchmarks/bad_inputs.py`.
"""

import random
import sys

import pytest
from command_line import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from bad_inputs import command, fault, write_files

from main import MODES


@pytest.mark.slow
def test_random_command_lines_end_in_one_line(tmp_path):
    draw = random.Random(11)
    (tmp_path / "files").mkdir()
    files = write_files(tmp_path / "files", draw)
    for _ in range(20):
        arguments = command(draw, files, list(MODES))
        assert not fault(arguments, str(tmp_path)), arguments
