"""Files of compressed images: whole, cut short, damaged, and of other programs."""

import numpy as np
import pytest

from errors import FileError
from files.codes import read_code, write_code

STACKS = [
    np.array(words, np.uint32) for words in ([1, 2, 3, 4, 5, 6, 7], [9], [20, 21, 22, 23, 24])
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "code"
    size = write_code(path, {"images": 3}, STACKS)
    assert path.stat().st_size == size
    return path


def test_stacks_read_back_as_they_were_written(file):
    about, stacks = read_code(file, "code")
    assert about["images"] == 3
    for found, expected in zip(stacks, STACKS, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_file_that_is_cut_short_has_the_tops_of_all_stacks(file):
    file.write_bytes(file.read_bytes()[: -7 * 4 - 1])
    with pytest.raises(FileError, match=r"^code is cut short: 23 of 52 bytes .* with --preview$"):
        read_code(file, "code")
    _, stacks = read_code(file, "code", partial=True)
    assert [list(words) for words in stacks] == [[6, 7], [9], [23, 24]]


def test_damaged_and_foreign_files_are_one_line(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match=r"^code is damaged: its checksum differs"):
        read_code(file, "code")
    file.write_bytes(content + b"more")
    with pytest.raises(FileError, match=r"^code is damaged"):
        read_code(file, "code", partial=True)
    file.write_bytes(b"scoresde code 1\n" + content)
    with pytest.raises(FileError, match=r"^code was written by another version; decompress it"):
        read_code(file, "code")
    start = b"scoresde code 2\n"
    foreign_files = (b"", b"\x89PNG\r\n", start, start + b"\x05\0\0\0abcde", bytes(content[:60]))
    for foreign in foreign_files:
        file.write_bytes(foreign)
        with pytest.raises(FileError, match=r"^code is no file of --mode=compress"):
            read_code(file, "code")
    file.write_bytes(start.replace(b"2", b"1") + content)
    with pytest.raises(FileError, match=r"^code was written by another version; decompress it"):
        read_code(file, "code")
