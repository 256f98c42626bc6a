"""Files of compressed images: a header of packed JSON, and the words of several stacks.

The words begin with the tops of the stacks, one of each in turn. So the beginning of a file is that
of all stacks, and is enough for a preview.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt32

from errors import FileError
from files.buckets import readable
from files.kinds import require_file
from files.paths import AnyPath
from files.writing import write_file

Words = UInt32[np.ndarray, "_"]

_PROGRAM = b"scoresde code "
_FORMAT = _PROGRAM + b"2\n"
_LENGTH = struct.Struct("<I")  # of the packed header, in bytes
_LONGEST_HEADER = 2**20  # bytes, unpacked


def write_code(path: AnyPath, about: dict[str, Any], stacks: Sequence[Words]) -> int:
    """Write stacks, given from bottom to top, and what is known about them; return the bytes.

    Raises:
        OSError, BucketError: if the file cannot be written.
    """
    longest = max(len(words) for words in stacks)
    table = np.zeros((longest, len(stacks)), "<u4")
    present = np.arange(longest)[:, None] < [len(words) for words in stacks]
    for column, words in enumerate(stacks):
        table[: len(words), column] = words[::-1]
    body = table[present].tobytes()
    facts = {"words": [len(words) for words in stacks], "sha256": hashlib.sha256(body).hexdigest()}
    header = zlib.compress(json.dumps(about | facts).encode(), 9)
    content = _FORMAT + _LENGTH.pack(len(header)) + header + body
    write_file(path, lambda file: file.write_bytes(content))
    return len(content)


def read_code(
    path: AnyPath, where: str, *, partial: bool = False
) -> tuple[dict[str, Any], list[Words]]:
    """Return what is known about the stacks of a file, and the stacks from bottom to top.

    Args:
        path: the file.
        where: names it in errors.
        partial: whether the file may be cut short; then stacks lack words at the bottom.

    Raises:
        FileError: if it is missing, of another kind or version, damaged, or cut short.
    """
    require_file(path, where)
    with readable(path) as local:
        content = local.read_bytes()
    if content.startswith(_PROGRAM) and not content.startswith(_FORMAT):
        raise FileError(f"{where} was written by another version; decompress it with that version")
    try:
        about, body = _split(content)
        counts = [int(count) for count in about["words"]]
    except (ValueError, KeyError, TypeError, struct.error, zlib.error):
        about, body, counts = {}, b"", []
    if not counts or min(counts) < 1:
        raise FileError(f"{where} is no file of --mode=compress, or its beginning is damaged")
    size = 4 * sum(counts)
    if len(body) > size or (
        len(body) == size and hashlib.sha256(body).hexdigest() != about.get("sha256")
    ):
        raise FileError(f"{where} is damaged: its checksum differs; copy the file again")
    if len(body) < size and not partial:
        raise FileError(
            f"{where} is cut short: {len(body)} of {size} bytes follow its header; copy it "
            "again, or decode what is there with --preview"
        )
    words = np.frombuffer(body[: len(body) // 4 * 4], "<u4")
    rows = min(max(counts), len(words))  # each has a word at least
    present = np.arange(rows)[:, None] < counts
    lanes = np.broadcast_to(np.arange(len(counts)), present.shape)[present][: len(words)]
    return about, [words[lanes == lane][::-1] for lane in range(len(counts))]


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header, whose checksum zlib verifies, and what follows."""
    if not content.startswith(_FORMAT):
        raise ValueError("another format")
    start = len(_FORMAT) + _LENGTH.size
    (length,) = _LENGTH.unpack(content[len(_FORMAT) : start])
    unpacker = zlib.decompressobj()
    header = unpacker.decompress(content[start : start + length], _LONGEST_HEADER)
    if not unpacker.eof:
        raise ValueError("an incomplete header")
    return json.loads(header), content[start + length :]
