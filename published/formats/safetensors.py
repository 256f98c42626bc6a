"""Files of safetensors.

    8 bytes      length n of the header, little-endian
    n bytes      JSON: {"<name>": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest     the tensors, row-major, little-endian, without gaps

The format is documented at https://github.com/huggingface/safetensors.
"""

import json
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from errors import FileError
from files.arrays import count_elements
from published.formats.bounds import check_tree

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # the upper half of a float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_LONGEST_HEADER = 2**24  # bytes, some 100,000 tensors; as objects they take 30 times as many


def is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes with this start is one."""
    if len(start) < 9 or start[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", start[:8])
    return 2 <= length <= min(size, _LONGEST_HEADER)


def read_safetensors(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return the tensors by name; bfloat16 as float32.

    Raises:
        FileError: a tensor has an unknown type.
        ValueError: the file is damaged; other exceptions are possible.
    """
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), memoryview(content)[8 + length :]
    header.pop("__metadata__", None)
    check_tree(header)
    spans = sorted(_span(entry, len(data)) for entry in header.values())
    ends = [(0, 0), *spans, (len(data), len(data))]
    if any(end != start for (_, end), (start, _) in pairwise(ends)):
        raise ValueError("the tensors leave gaps, overlap, or end before the file does")
    return {name: _tensor(entry, data) for name, entry in header.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Float32[np.ndarray, "..."]]) -> None:
    """Write float32 tensors by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, _DTYPES["F32"]).tobytes())


def _span(entry: Any, size: int) -> tuple[int, int]:
    """Return the first and last byte of a tensor, after checks of its entry."""
    if entry["dtype"] not in _DTYPES:
        valid = ", ".join(_DTYPES)
        raise FileError(
            f"it holds numbers of type {entry['dtype'][:40]!r}; valid is {valid}. Save them as F32"
        )
    (start, end), shape = entry["data_offsets"], entry["shape"]
    if type(start) is not int or type(end) is not int:
        raise ValueError("a tensor at places that are not integers")
    expected = count_elements(shape) * np.dtype(_DTYPES[entry["dtype"]]).itemsize
    if not 0 <= start <= end <= size or end - start != expected:
        raise ValueError(f"a tensor {shape} in bytes {start} .. {end} of {size}")
    return start, end


def _tensor(entry: Any, data: memoryview) -> Shaped[np.ndarray, "..."]:
    start, end = entry["data_offsets"]
    stored = np.frombuffer(data[start:end], _DTYPES[entry["dtype"]])
    if entry["dtype"] == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False).reshape(entry["shape"])
