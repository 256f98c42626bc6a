"""Archives of arrays: whole, damaged, and made to take all memory or time."""

import contextlib
import io
import os
import struct
import zipfile

import numpy as np
import pytest

from errors import FileError
from files import arrays as arrays_module
from files.arrays import count_elements, open_arrays, read_array, read_arrays

ARRAYS = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
    "text": np.array("eps"),
    "number": np.array(7),
    "complex": np.array([1 + 2j]),
    "empty": np.zeros((0, 3), np.float32),
}


def header(descr="'<f4'", shape="(2, 3)", version=1, order="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode("latin1")
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, len(text)) + text


def archive(path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_wrote(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_arrays(tmp_path / "a.npz", "a")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_single_array_is_the_one_that_numpy_wrote(tmp_path, name):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy", "a"), ARRAYS[name])


def test_rows_come_in_blocks(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with open_arrays(tmp_path / "a.npz", "a") as arrays:
        blocks = list(arrays.rows("images", 1))
        with pytest.raises(FileError, match=r"a: its array 'columns' is not stored row by row"):
            list(arrays.rows("columns", 1))
        with pytest.raises(FileError, match=r"'number' is not stored row by row"):
            list(arrays.rows("number", 1))
    np.testing.assert_array_equal(np.stack([block[0] for block in blocks]), ARRAYS["images"])


def test_only_wanted_arrays_are_read(tmp_path):
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "a.npz", allow_pickle=True, images=ARRAYS["images"], other=objects)
    with open_arrays(tmp_path / "a.npz", "a") as arrays:
        assert "other" in arrays
        assert arrays.header("images").shape == (2, 3, 4)
        np.testing.assert_array_equal(arrays["images"], ARRAYS["images"])
        with pytest.raises(FileError, match=r"a: its array 'other' holds objects"):
            arrays.header("other")
        with pytest.raises(FileError, match=r"a: its array 'other' holds objects"):
            arrays["other"]


def test_errors_of_the_caller_pass_unchanged(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(ValueError, match=r"^mine$") as caught, open_arrays(tmp_path / "a.npz", "a"):
        raise ValueError("mine")
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            header(shape="(1000000, 1000000)") + bytes(24),
            "has 24 bytes, but .* needs 4000000000000",
        ),
        (header(shape="(2, 4)") + bytes(24), "has 24 bytes"),
        (header(shape="(1,) * 600000") + bytes(4), "is damaged"),
        (header(shape=f"({'1,' * 40})") + bytes(4), "at most 32 sizes"),
        (header(shape=f"({'9' * 5000},)"), "at most 4096"),
        (header(shape=f"({'9' * 4000},)"), "sizes that are not integers from 0"),
        (header(shape=f"({2**61}, 4)"), "more than 2.62 elements"),
        (header(shape="(-2, -3)") + bytes(24), "sizes that are not integers from 0"),
        (header(shape="(True, 6)") + bytes(24), "sizes that are not integers from 0"),
        (header(shape="(2.0, 3)") + bytes(24), "sizes that are not integers from 0"),
        (header(shape="[2, 3]") + bytes(24), "damaged"),
        (header(order="1") + bytes(24), "damaged"),
        (header(shape="(" * 500 + ")" * 500), "damaged"),
        (header(shape="-" * 3000 + "1"), "damaged"),
        (header("{}['a']"), "damaged"),
        (header("'|O'") + bytes(48), "holds objects"),
        (header("[('a', '<f4')]") + bytes(24), "other than plain numbers"),
        (header("'<M8[s]'") + bytes(48), "other than plain numbers"),
        (header("'V999999999'"), "other than plain numbers"),
        (header("'(10000,10000)f4'"), "other than plain numbers"),
        (header("'<f3'") + bytes(18), "data type"),
        (header("'<U99999999'") + bytes(24), "has 24 bytes, but"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "has 4294967295 bytes; valid are at most"),
        (b"\x93NUMPY\x01\x00\xff", "ends 1 bytes early"),
        (b"hello", "not an array of NumPy"),
        (b"", "not an array of NumPy"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_strange_array_is_refused_in_one_line(tmp_path, content, problem):
    (tmp_path / "a.npy").write_bytes(content)
    archive(tmp_path / "a.npz", a=content)
    archive(tmp_path / "b.npz", zipfile.ZIP_DEFLATED, a=content)
    for read in (
        lambda: read_array(tmp_path / "a.npy", "the name"),
        lambda: read_arrays(tmp_path / "a.npz", "the name"),
        lambda: read_arrays(tmp_path / "b.npz", "the name"),
    ):
        with pytest.raises(FileError, match=rf"^the name: .*{problem}") as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_small_archive_takes_little_memory(tmp_path, monkeypatch):
    """Where 8 kB would unpack to 8 MB, beyond the bound, nothing is unpacked."""
    monkeypatch.setattr(arrays_module, "_UNPACKED", 2**22)
    path = archive(
        tmp_path / "a.npz", zipfile.ZIP_DEFLATED, a=header("'|u1'", f"({2**23},)") + bytes(2**23)
    )
    with pytest.raises(FileError, match=r"'a' would unpack to 8388\d+ bytes.* without compression"):
        read_arrays(path, "a")
    with open_arrays(path, "a") as arrays:
        assert arrays.header("a").shape == (2**23,)
        with pytest.raises(FileError, match=r"would unpack to"):
            next(arrays.rows("a", 1))
    archive(path, a=header("'|u1'", f"({2**23},)") + bytes(2**23))  # as large as it says
    assert read_arrays(path, "a")["a"].shape == (2**23,)


def whole():
    content = io.BytesIO()
    np.savez_compressed(content, a=np.arange(1000))
    return bytearray(content.getvalue())


def test_overlapping_members_are_refused(tmp_path):
    """Ten thousand members that are the same bytes."""
    content = whole()
    end = content.rindex(b"PK\x05\x06")
    start = content.rindex(b"PK\x01\x02", 0, end)
    entry = content[start:end]
    entries = b"".join(entry.replace(b"a.npy", b"%05d" % number) for number in range(10_000))
    tail = struct.pack("<HHIIH", 10_000, 10_000, len(entries), start, 0)
    path = tmp_path / "a.npz"
    path.write_bytes(content[:start] + entries + content[end : end + 8] + tail)
    with pytest.raises(FileError, match=r"a: its members take .* they overlap"):
        read_arrays(path, "a")
    path.write_bytes(content[:start] + entry * 2 + content[end : end + 8] + tail)
    with pytest.raises(FileError, match=r"a: .*"):
        read_arrays(path, "a")


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (8, 1, "is encrypted"),
        (10, 14, "packed by method 14"),
        (10, 12, "packed by method 12"),
        (10, 99, "packed by method 99"),
        (6, 99, "damaged or incomplete .*version"),
        (24, 0, "its array 'a' has"),
    ],
)
def test_odd_member_is_refused_in_one_line(tmp_path, offset, value, problem):
    content = whole()
    content[content.rindex(b"PK\x01\x02") + offset] = value
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FileError, match=rf"^a: .*{problem}") as caught:
        read_arrays(tmp_path / "a.npz", "a")
    assert "\n" not in str(caught.value)


def test_long_list_of_members_is_refused(tmp_path):
    content = whole()
    end = content.rindex(b"PK\x05\x06")
    (tmp_path / "a.npz").write_bytes(
        content[:end]
        + bytes(9_000_000)
        + content[end : end + 12]
        + struct.pack("<IIH", 9 * 10**6, 0, 0)
    )
    with pytest.raises(FileError, match=r"a: its list of members has 9000000 bytes; valid"):
        read_arrays(tmp_path / "a.npz", "a")


def test_damage_is_one_line(tmp_path):
    """Truncated at any place, or with any byte changed, outside the date and attributes."""
    content = whole()
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(FileError, match=r"^a: .+$"):
            read_arrays(path, "a")
    for position in rng.integers(0, len(content), 200):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        with contextlib.suppress(FileError):
            assert np.array_equal([*read_arrays(path, "a").values()], [np.arange(1000)])


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_what_is_no_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    read = read_arrays if name == "a.npz" else read_array
    with pytest.raises(FileError, match=r"^a: it is a pipe"):
        read(tmp_path / name, "a")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not an .npz archive"),
        (b"\x80\x04N.", "a pickle, which may run code"),
        (header() + bytes(24), "a single array, .npy"),
        (b"PK\x03\x04", "damaged or incomplete"),
    ],
)
def test_other_files_are_refused(tmp_path, content, problem):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FileError, match=rf"^a: .*{problem}"):
        read_arrays(tmp_path / "a.npz", "a")


def test_elements_are_counted_only_for_the_shape_of_an_array():
    assert count_elements([2, 3]) == 6
    assert count_elements(()) == 1
    for shape in ([2] * 600_000, None, "23", [2.0], [True], [-1], [2**40, 2**40], [2**63, 0]):
        with pytest.raises(ValueError, match=r"a shape"):
            count_elements(shape)
