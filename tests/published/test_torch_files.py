"""Files of torch.save, read and written.

torch_zip.pt and torch_stream.pt were written by torch.save of PyTorch 2.13, in its two formats.
"""

import io
import pickletools
import zipfile

import numpy as np
import pytest
from published_files import ARRAY, DATA, as_file, same, tensor, zipped

from errors import FileError
from published.formats import read
from published.formats.torch_writer import write_torch

BASE = np.arange(24, dtype=np.float32)
SAVED = {
    "base": BASE,
    "view": BASE[4:10].reshape(2, 3),
    "transposed": BASE.reshape(4, 6).T,
    "half": np.arange(3, dtype=np.float16) / np.float16(2),
    "bfloat16": np.array([0x3FC0_0000, 0xC000_0000, 0x7F62_0000], np.uint32).view(np.float32),
    "int": np.array(7),
    "bool": np.array([True, False]),
    "bytes": np.arange(3, dtype=np.uint8),
    "double": np.array([0.1]),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.ones(2, np.float32),
    "expanded": np.ones((2, 3), np.float32),
    "size": (1, 2),
    "dtype": "torch.float32",
    "device": "cpu",
    "plain": {"x": 1, "y": [1, 2.5, None, True, "text", (1,)]},
    "numpy": 3.5,
    "big": 2**80,
    "module": {"weight": np.array([[1, 2]], np.float32), "bias": np.array([3], np.float32)},
}


@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_stream.pt"])
def test_torch_file_is_read(name):
    found = read.read(DATA / name)
    assert [key for key in SAVED if not same(found[key], SAVED[key])] == []
    assert np.shares_memory(found["base"], found["view"])
    assert not found["base"].flags.writeable


TREE = {
    "array": ARRAY,
    "again": ARRAY,
    "transposed": ARRAY.T,
    "scalar": np.array(2, np.int64),
    "empty": np.zeros((0, 2)),
    "flags": np.array([True, False]),
    "list": [1, -5, 2**40, -(2**70), 0.5, True, False, None, "ä", (), (1, [2])],
    0: {"nested": {}},
}


def test_written_file_is_read_again(tmp_path):
    write_torch(tmp_path / "a.pt", TREE)
    write_torch(tmp_path / "b.pt", TREE)
    found = read.read(tmp_path / "a.pt")
    assert same(found, TREE)
    assert np.shares_memory(found["array"], found["again"])
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_written_pickle_is_well_formed(tmp_path):
    """Python's own checker of the stack finds nothing; torch itself has read such a file."""
    write_torch(tmp_path / "a.pt", TREE)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        pickletools.dis(archive.read("archive/data.pkl"), out=io.StringIO())


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"a": {"b": object()}}, "/a/b is a object; valid is"),
        ({"a": np.zeros(2, np.complex64)}, "/a has numbers of type complex64; valid is float64"),
        ({(1,): 2}, r"/ has the key \(1,\)"),
    ],
)
def test_unwritable_value_is_named(tmp_path, tree, problem):
    with pytest.raises(TypeError, match=problem):
        write_torch(tmp_path / "a.pt", tree)
    assert list(tmp_path.iterdir()) == []


def test_tensor_may_be_any_view_of_its_storage(tmp_path):
    data = ARRAY.tobytes()
    path = as_file(tmp_path / "a.pt", zipped(tensor(1, (2, 2), (3, 1)), [data]))
    assert same(read.read(path), ARRAY[:, 1:])
    path = as_file(
        tmp_path / "b.pt", zipped(tensor(0, (6,), (1,)), [ARRAY.astype(">f4")], byteorder=b"big")
    )
    assert same(read.read(path), ARRAY.ravel())


@pytest.mark.parametrize(
    ("view", "problem"),
    [
        ((0, (7,), (1,)), "beyond its storage of 6"),
        ((5, (2,), (1,)), "beyond its storage of 6"),
        ((0, (2, 2), (5, 1)), "beyond its storage of 6"),
        ((-1, (2,), (1,)), "without storage and offset"),
        ((0, (2,), (-1,)), "without shape and strides"),
        ((0, (2**40, 2**20), (0, 0)), "repeats 6 elements"),
        ((0, (2,), (1,), 7), "holds 6 elements"),
        ((0, (2,), (1, 1)), "without shape and strides"),
    ],
)
def test_tensor_outside_of_its_storage_is_refused(tmp_path, view, problem):
    path = as_file(tmp_path / "a.pt", zipped(tensor(*view), [ARRAY.tobytes()]))
    with pytest.raises(FileError, match=f"damaged or incomplete .*{problem}"):
        read.read(path)


def test_storage_of_two_types_is_refused(tmp_path):
    one = tensor(0, (2,), (1,))[2:-1]
    other = one.replace(b"FloatStorage", b"ShortStorage")
    path = as_file(tmp_path / "a.pt", zipped(b"(" + one + other + b"t.", [ARRAY.tobytes()]))
    with pytest.raises(FileError, match="storage 0 has two types"):
        read.read(path)


def test_compressed_archive_is_refused(tmp_path):
    """Or a small file could ask for all memory there is."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(FileError, match="compressed zip archive"):
        read.read(tmp_path / "a.pt")
