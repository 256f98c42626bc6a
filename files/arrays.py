"""Arrays in .npz and .npy files from strangers: headers first, and only what is wanted.

NumPy allocates what a file's header states. Here a header is compared with the bytes that follow,
before memory is taken, and a packed array may be larger than its file only within bounds. Object
arrays, which are pickles and could run code, are refused, and so are structured ones.

    with open_arrays(path, "config.data.name='a.npz'") as arrays:
        if "images" in arrays and arrays.header("images").dtype == np.uint8:
            images = arrays["images"]
"""

import ast
import contextlib
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, NamedTuple, final

import numpy as np
from jaxtyping import Shaped

from errors import FileError
from files.archives import clear_errors, member_start, open_archive
from files.buckets import readable
from files.kinds import require_file
from files.paths import AnyPath

Array = Shaped[np.ndarray, "..."]
Stream = IO[bytes] | BufferedIOBase

MAX_DIMS = 32
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096  # bytes
_DTYPE = re.compile(r"[<>|=]?[biufcSU]\d{1,9}")
_CHUNK = 2**24  # bytes read at a time
# Arrays unpacked from one archive may have this many bytes in any case, and beyond that this many
# times the bytes of the archive. Images of one color are packed by a factor of 1000.
_UNPACKED = 2**29
_FACTOR = 16


class Header(NamedTuple):
    """What a file says about an array: its shape, its type, and whether columns come first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool = False

    @property
    def bytes(self) -> int:
        """Number of bytes of the array."""
        return count_elements(self.shape) * self.dtype.itemsize


def count_elements(shape: Any) -> int:
    """Return the number of elements of an array of this shape, at most 2^62.

    Raises:
        ValueError: it is not a list or tuple of at most 32 integers of at least 0, or has too many
            elements. The message is short, whatever `shape` is.
    """
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMS:
        raise ValueError(f"a shape that is not a list of at most {MAX_DIMS} sizes")
    if not all(type(size) is int and 0 <= size < 2**62 for size in shape):
        raise ValueError("a shape with sizes that are not integers from 0 to 2^62")
    count = math.prod(shape)
    if count >= 2**62:
        raise ValueError("a shape of more than 2^62 elements")
    return count


@final
class Arrays:
    """The arrays of an open .npz; iteration yields their names, and `arrays[name]` reads one.

    Arrays have this machine's byte order.

    All methods raise FileError as `open_arrays`, and KeyError for a name that is not there.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path, where: str) -> None:
        size = path.stat().st_size
        self._archive, self._path = archive, path
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        self._left = max(_UNPACKED, _FACTOR * size)
        self._where = where

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> Array:
        with clear_errors(self._where), self._opened(name) as (stream, header):
            return _read_array(stream, header)

    def header(self, name: str) -> Header:
        """Return the shape and type of an array without reading it."""
        member = self._members[name]
        with clear_errors(self._where), self._archive.open(member) as stream:
            return _read_header(stream, member.file_size, name)

    def place(self, name: str) -> int | None:
        """Return the position in the file of an array's first number; None if it is packed."""
        member = self._members[name]
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        with clear_errors(self._where), self._archive.open(member) as stream:
            _read_header(stream, member.file_size, name)
            return member_start(self._path, member.header_offset) + stream.tell()

    def rows(self, name: str, count: int) -> Iterator[Array]:
        """Yield the rows of an array in blocks of at most `count`, so that it need not fit memory.

        Raises:
            FileError: also where it has no rows, or is stored column by column.
        """
        with clear_errors(self._where), self._opened(name) as (stream, header):
            if not header.shape or (header.columns_first and len(header.shape) > 1):
                raise FileError(f"its array {name!r} is not stored row by row")
            total = max(header.shape[:1]) if header.bytes else 0
            for first in range(0, total, count):
                shape = (min(count, total - first), *header.shape[1:])
                yield _read_array(stream, Header(shape, header.dtype))

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Stream, Header]]:
        """Open an array behind its header, and compare its checksum at the end."""
        member = self._members[name]
        if member.compress_type != zipfile.ZIP_STORED:
            self._left -= member.file_size
            if self._left < 0:
                raise FileError(
                    f"its array {name!r} would unpack to {member.file_size} bytes, beyond "
                    f"{_UNPACKED} bytes and {_FACTOR} times the file. If you trust it, write it by "
                    "numpy.savez, without compression"
                )
        with self._archive.open(member) as stream:
            yield stream, _read_header(stream, member.file_size, name)
            stream.read(1)  # zipfile compares the checksum at the end of a member


@contextmanager
def open_arrays(path: AnyPath, where: str) -> Iterator[Arrays]:
    """Open an .npz; nothing but the list of its arrays is read before one is wanted.

    Args:
        path: the file.
        where: its name at the start of messages, such as "config.data.name='a.npz'".

    Raises:
        FileError: `path` is not a file, or not an .npz, or damaged, or holds objects, or would
            unpack to much more than its size; also from the `Arrays`. The message has one line,
            without a remedy. Errors of the caller while it is open are not changed.
    """
    require_file(path, where)
    with clear_errors(where), contextlib.ExitStack() as stack:
        local = stack.enter_context(readable(path))
        with local.open("rb") as file:
            _check_start(file.read(len(_MAGIC)))
        archive = stack.enter_context(open_archive(local))
        arrays = Arrays(archive, local, where)
        closing = stack.pop_all()
    with closing:
        yield arrays


def _check_start(start: bytes) -> None:
    """Raise FileError if a file with this start is another than an .npz."""
    if start == _MAGIC:
        raise FileError("it is a single array, .npy, instead of an .npz")
    if start.startswith(b"\x80"):
        raise FileError(
            "it is a pickle, which may run code when it is read. If you trust it, load it and "
            "save its arrays by numpy.savez"
        )
    if not start.startswith(b"PK"):
        raise FileError("it is not an .npz archive. Write it by numpy.savez")


def read_arrays(path: AnyPath, where: str) -> dict[str, Array]:
    """Return all arrays of an .npz that one of our own commands has written, as `open_arrays`."""
    with open_arrays(path, where) as arrays:
        return {name: arrays[name] for name in arrays}


def read_array(path: Path, where: str) -> Array:
    """Return the array of an .npy.

    Raises:
        FileError: as `open_arrays`.
    """
    require_file(path, where)
    with clear_errors(where), path.open("rb") as file:
        return _read_array(file, _read_header(file, path.stat().st_size, path.stem))


def array_place(path: Path, where: str) -> tuple[Header, int]:
    """Return the header of an .npy, and the position of the first number.

    Raises:
        FileError: as `open_arrays`.
    """
    require_file(path, where)
    with clear_errors(where), path.open("rb") as file:
        return _read_header(file, path.stat().st_size, path.stem), file.tell()


def _read_header(file: Stream, size: int, name: str) -> Header:
    """Read the header of an array in `size` bytes, which it must fill.

    Raises:
        FileError: it does not, or is no header of a plain array.
    """
    prefix = file.read(len(_MAGIC) + 2)
    if len(prefix) < len(_MAGIC) + 2 or not prefix.startswith(_MAGIC):
        raise FileError(f"its member {name!r} is not an array of NumPy")
    form = "<H" if prefix[-2] == 1 else "<I"
    (length,) = struct.unpack(form, _exactly(file, struct.calcsize(form)))
    if length > _LONGEST_HEADER:
        raise FileError(
            f"the header of its array {name!r} has {length} bytes; valid are at most "
            f"{_LONGEST_HEADER}, without named fields"
        )
    header = _parse(_exactly(file, length), name)
    found = size - len(prefix) - struct.calcsize(form) - length
    if header.bytes != found:
        raise FileError(
            f"its array {name!r} has {found} bytes, but {header.dtype}{list(header.shape)} "
            f"needs {header.bytes}"
        )
    return header


def _parse(text: bytearray, name: str) -> Header:
    """Return what the text of a header says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about strange texts
            fields = ast.literal_eval(text.decode("latin1").strip())
        descr, columns_first, shape = (
            fields[field] for field in ("descr", "fortran_order", "shape")
        )
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise FileError(f"the header of its array {name!r} is damaged") from error
    if not isinstance(descr, str) or not _DTYPE.fullmatch(descr):
        kind = "objects" if isinstance(descr, str) and "O" in descr else "other than plain numbers"
        raise FileError(
            f"its array {name!r} holds {kind}, which is refused; valid are numbers, booleans "
            "and text"
        )
    if type(columns_first) is not bool or not isinstance(shape, tuple):
        raise FileError(f"the header of its array {name!r} is damaged")
    try:
        count_elements(shape)
        return Header(shape, np.dtype(descr), columns_first)
    except (ValueError, TypeError) as error:
        raise FileError(f"its array {name!r} has {error}") from error


def _read_array(file: Stream, header: Header) -> Array:
    """Read an array, whose size was compared with the file's before."""
    order = "F" if header.columns_first else "C"
    array = np.empty(header.shape, header.dtype, order)
    if not header.bytes:
        return array
    content = array.reshape(-1, order="A").view(np.uint8)  # the same memory
    for first in range(0, len(content), _CHUNK):
        part = content[first : first + _CHUNK]
        part[:] = np.frombuffer(_exactly(file, len(part)), np.uint8)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _exactly(file: Stream, size: int) -> bytearray:
    """Read `size` bytes.

    Raises:
        EOFError: the file ends before.
    """
    data = bytearray()
    while len(data) < size:
        if not (part := file.read(size - len(data))):
            raise EOFError(f"it ends {size - len(data)} bytes early")
        data += part
    return data
