"""Files of Flax, whole and wrong."""

import msgpack
import numpy as np
import pytest
from published_files import ARRAY, as_file, packed, same

from errors import FileError
from published.formats import flax_files, read


def test_flax_file_is_read(tmp_path):
    flat = ARRAY.ravel()
    chunks = {"0": packed(flat[:4]), "1": packed(flat[4:])}
    tree = {
        "step": packed(np.array(7), code=3),
        "params": {"kernel": packed(ARRAY), "half": packed(np.array([0x3FC0], "<u2"), "bfloat16")},
        "large": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2, "1": 3},
            "chunks": chunks,
        },
        "complex": msgpack.ExtType(2, msgpack.packb((1.0, 2.0))),
        "none": None,
    }
    found = read.read(as_file(tmp_path / "checkpoint_8", msgpack.packb(tree)))
    expected = {
        "step": 7,
        "params": {"kernel": ARRAY, "half": np.array([1.5], np.float32)},
        "large": ARRAY,
        "complex": 1 + 2j,
        "none": None,
    }
    assert same(found, expected)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (msgpack.ExtType(9, b""), "the extension 9"),
        (packed(ARRAY, "object"), "array of type 'object'"),
        (packed(ARRAY, "float64"), "damaged"),
        (
            msgpack.ExtType(1, msgpack.packb(((-2, -3), "float32", ARRAY.tobytes()))),
            "sizes that are not integers from 0",
        ),
        (msgpack.ExtType(1, msgpack.packb(7)), "damaged"),
        (msgpack.ExtType(1, msgpack.packb(([1] * 20_000, "float32", b"aaaa"))), "damaged"),
        (msgpack.ExtType(2, msgpack.packb(("1", [2]))), "damaged"),
        (msgpack.ExtType(3, msgpack.packb(((2,), "float32", bytes(8)))), "damaged"),
        ([1, 2], "damaged"),
        ({1: 2}, "damaged"),
        ({"k" * 501: 1}, "key of 501 characters"),
        ({"k\n": 1}, "cannot be printed"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {}}, "pieces"),
        ({"__msgpack_chunked_array__": True, "shape": 2, "chunks": 3}, "damaged"),
    ],
)
def test_wrong_flax_file_is_one_clear_error(tmp_path, value, problem):
    with pytest.raises(FileError, match=problem):
        read.read(as_file(tmp_path / "a", msgpack.packb({"a": value})))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x81\xa1a\xdd\x7f\xff\xff\xff", "claims to hold more than 1000000 values"),
        (b"\xdf\x00\x0f\x42\x40", "claims to hold more than 1000000 values"),
        (b"\x81\xa1a" + b"\xde\xff\xff" * 1000, "claims to hold more than 1000000 values"),
        (b"\x81\xa1a" * 900 + b"\xc0", "deeper than 100|recursion"),
        (b"\x81\xa1a" * 5000 + b"\xc0", "damaged"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "damaged"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "damaged"),
        (b"\x81\xa1a\xc1", "damaged"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_lengths_are_compared_with_the_file(tmp_path, content, problem):
    with pytest.raises(FileError, match=problem):
        read.read(as_file(tmp_path / "a", content))


def test_values_of_every_kind_are_counted():
    """The walk over the bytes ends where the values do."""
    sizes = (0, 20, 40, 300, 70_000)
    values = [None, True, 1.5, -1, -100, -(2**40), 200, 70_000, 2**40, 2**63, *map(bytes, sizes)]
    values += ["a" * size for size in sizes] + [{str(k): k for k in range(20)}, {"a": {}}, [[]]]
    values += [[0] * size for size in (3, 20, 70_000)]
    values += [msgpack.ExtType(1, bytes(size)) for size in (1, 2, 3, 4, 8, 16, 300, 70_000)]
    content = msgpack.packb(dict(enumerate(values)))
    flax_files._check_length(content)
    for length in (0, 50, len(content) // 2):
        with pytest.raises(IndexError):
            flax_files._check_length(content[:length])
