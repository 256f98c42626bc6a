"""Zip archives from strangers, opened only if reading them costs no more than their size suggests.

An archive states its members' sizes and places itself. Members may overlap, so that a small archive
holds each byte many times. They may be encrypted, or packed by methods that take gigabytes to
unpack. None of that is in the files that this project reads.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from errors import FileError

_LONGEST_DIRECTORY = 2**23  # bytes of the list of members, some 80,000 of them
_LONGEST_NAME = 500  # characters
HEADER = 30  # bytes of a member's header without its name
_SIGNATURE = b"PK\3\4"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1  # of a member's flags

# What the module zipfile raises for damaged archives.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # an unknown version or method
    RuntimeError,  # a member that is encrypted after all
    ValueError,
    OverflowError,
    MemoryError,
)


@contextmanager
def clear_errors(where: str) -> Iterator[None]:
    """Turn every error of reading a file that is damaged into a FileError of one line.

    Args:
        where: the file's name at the start of messages.
    """
    try:
        yield
    except FileError as error:
        raise FileError(f"{where}: {error}") from error
    except OSError as error:
        raise FileError(f"{where}: it cannot be read ({error.strerror or error})") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileError(f"{where}: it is damaged or incomplete ({reason[:120]})") from error


def member_start(path: Path, header: int) -> int:
    """Return the position of a member's bytes in an archive, from that of its own header.

    Raises:
        zipfile.BadZipFile: if there is no member's header.
    """
    with path.open("rb") as file:
        file.seek(header)
        return header + header_length(file.read(HEADER))


def header_length(header: bytes) -> int:
    """Return the length of a member's header from its first `HEADER` bytes.

    Raises:
        zipfile.BadZipFile: if they are no member's header.
    """
    if len(header) < HEADER or header[:4] != _SIGNATURE:
        raise zipfile.BadZipFile("a member is not where the list of members says")
    name, extra = struct.unpack("<HH", header[26:30])
    return HEADER + name + extra


@contextmanager
def open_archive(
    path: Path, *, longest_list: int = _LONGEST_DIRECTORY
) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive for reading; use it within `clear_errors`.

    Its members together take no more bytes of the archive than it has. They are stored, or packed
    by deflate. No two have the same name. Their unpacked sizes are what they state, unchecked.

    Args:
        path: the archive, a file by `require_file`.
        longest_list: bytes of the list of members, at most.

    Raises:
        FileError: it is not such an archive; without its name.
        OSError, or an error in `DAMAGE`: it is damaged or cannot be read.
    """
    with _ShortReads(path) as file:
        file.limit = longest_list
        with zipfile.ZipFile(file) as archive:
            file.limit = None
            _check_members(archive, path.stat().st_size)
            yield archive


class _ShortReads(io.FileIO):
    """A file that refuses reads beyond `limit` bytes; zipfile reads the list of members in one."""

    limit: int | None = _LONGEST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise FileError(f"its list of members has {size} bytes; valid are at most {self.limit}")
        return super().read(-1 if size is None else size)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise FileError("two of its members have the same name")
    for member in members:
        if len(member.filename) > _LONGEST_NAME:
            raise FileError(f"the name of a member has {len(member.filename)} characters")
        if member.flag_bits & _ENCRYPTED:
            raise FileError(f"its member {member.filename[:80]!r} is encrypted. Write it without")
        if member.compress_type not in _METHODS:
            raise FileError(
                f"its member {member.filename[:80]!r} is packed by method "
                f"{member.compress_type}; valid are stored and deflate"
            )
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise FileError(f"its member {member.filename[:80]!r} states two sizes")
    if (total := sum(member.compress_size for member in members)) > size:
        raise FileError(f"its members take {total} bytes, but it has {size}: they overlap")
