"""Files of compressed images: a line of JSON, and the words of several stacks.

The words begin with the tops of the stacks, one of each in turn. So the beginning of a file is that
of all stacks, and is enough for a preview.
"""

import hashlib
import json
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

_FORMAT = "scoresde code 1"
_LONGEST_HEADER = 2**16  # bytes


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
    header = {"format": _FORMAT, "words": [len(words) for words in stacks]}
    header |= {"sha256": hashlib.sha256(body).hexdigest()} | about
    content = json.dumps(header).encode() + b"\n" + body
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
        FileError: if it is missing, another kind of file, damaged, or cut short.
    """
    require_file(path, where)
    with readable(path) as local:
        line, _, body = local.read_bytes().partition(b"\n")
    try:
        about: dict[str, Any] = json.loads(line[:_LONGEST_HEADER])
        counts = [int(count) for count in about["words"]] if about["format"] == _FORMAT else []
    except (ValueError, KeyError, TypeError):
        about, counts = {}, []
    if not counts or min(counts) < 1:
        raise FileError(f"{where} is no file of --mode=compress, or its first line is damaged")
    size = 4 * sum(counts)
    if len(body) > size or (
        len(body) == size and hashlib.sha256(body).hexdigest() != about.get("sha256")
    ):
        raise FileError(f"{where} is damaged: its checksum differs; copy the file again")
    if len(body) < size and not partial:
        raise FileError(
            f"{where} is cut short: {len(body)} of {size} bytes follow its first line; copy it "
            "again, or decode what is there with --preview"
        )
    present = np.arange(max(counts))[:, None] < counts
    words = np.frombuffer(body[: len(body) // 4 * 4], "<u4")
    lanes = np.broadcast_to(np.arange(len(counts)), present.shape)[present][: len(words)]
    return about, [words[lanes == lane][::-1] for lane in range(len(counts))]
