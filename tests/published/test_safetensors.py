"""Files of safetensors, whole and wrong."""

import numpy as np
import pytest
from published_files import ARRAY, TENSORS, as_file, entry, safetensors, same

from errors import FileError
from published.formats import read


def test_safetensors_are_read(tmp_path):
    found = read.read(as_file(tmp_path / "a", TENSORS))
    expected = {
        "half": np.array([1.5, -2], np.float32),
        "full": ARRAY,
        "number": np.array(-3, np.int64),
    }
    assert same(found, expected)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry(offsets=(0, 20))}, r"tensor \[2, 3\] in bytes 0 .. 20 of 24"),
        ({"a": entry(shape=(2, 4), offsets=(0, 32))}, "in bytes 0 .. 32 of 24"),
        ({"a": entry(shape=(5,), offsets=(4, 24))}, "gaps, overlap"),
        ({"a": entry(shape=(5,), offsets=(0, 20))}, "gaps, overlap"),
        ({"a": entry(), "b": entry()}, "gaps, overlap"),
        ({"a": entry(shape=(-2, -3))}, "sizes that are not integers from 0"),
        ({"a": entry("F8_E4M3", (24,))}, "type 'F8_E4M3'; valid is F64, F32"),
        ({"a": 1}, "damaged"),
        ({"a": entry(shape=[2**61] * 20_000)}, "a list of at most 32 sizes"),
        ({"a": entry() | {"shape": "23"}}, "a list of at most 32 sizes"),
        ({"a": entry(offsets=(0, 2**70))}, "in bytes 0 .. "),
        ({"a": entry(offsets=(-24, 0))}, "in bytes -24 .. 0 of 24"),
        ({"a": entry("F" * 1000)}, "type 'F{40}'; valid is"),
        ({"a": entry([1])}, "damaged"),
        ({"a" * 501: entry()}, "key of 501 characters"),
        ({"a\nb": entry()}, "cannot be printed"),
        (b'{"a":[' + b"1," * 1_000_000 + b"1]}", "more than 1000000 values"),
        (b"{" + b'"a":{' * 500 + b"}" * 501, "deeper than 100"),
        (b"[]", "not a known format"),
        (b'{"a": [[[', "damaged"),
    ],
)
def test_wrong_safetensors_are_one_clear_error(tmp_path, header, problem):
    with pytest.raises(FileError, match=problem):
        read.read(as_file(tmp_path / "a", safetensors(header, ARRAY.tobytes())))
