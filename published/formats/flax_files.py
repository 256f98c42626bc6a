"""Files of flax.training.checkpoints before Orbax: MessagePack, with arrays as extensions.

    extension 1    an array: the MessagePack of (shape, dtype name, bytes in row-major order)
    extension 2    a complex number: the MessagePack of (real, imaginary)
    extension 3    a NumPy number: as an array of shape ()

Arrays beyond 2^30 bytes are dicts of flat pieces. Tuples and lists are dicts with the keys "0",
"1", ... The format is that of `flax/serialization.py`.
"""

import math
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Shaped

from errors import FileError

_ARRAY, _COMPLEX, _NUMBER = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
}


def is_msgpack_map(start: bytes) -> bool:
    """Return whether a file with this start may hold a non-empty map."""
    return start[:1] in (b"\xde", b"\xdf") or b"\x81" <= start[:1] <= b"\x8f"


def read_flax(path: Path) -> dict[str, Any]:
    """Return nested dicts of arrays and plain values; bfloat16 as float32.

    Raises:
        FileError: it is not a file of Flax.
        ValueError: it is damaged; other exceptions are possible.
    """
    tree = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False)
    if not isinstance(tree, dict):
        raise FileError("it is MessagePack, but not a state of Flax")
    return _joined(tree)


def _extension(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (_ARRAY, _NUMBER):
        raise FileError(f"it is MessagePack with the extension {code}, which Flax does not write")
    array = _array(data)
    return array if code == _ARRAY else array[()].item()


def _array(data: bytes) -> Shaped[np.ndarray, "..."]:
    shape, name, content = msgpack.unpackb(data, raw=True)
    dtype = name.decode("ascii")
    if dtype not in _DTYPES:
        raise FileError(f"it holds an array of type {dtype[:40]!r}, which is unknown")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape that is not one of an array")
    if dtype == "bfloat16":
        halves = np.frombuffer(content, "<u2")
        flat = (halves.astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(content, dtype)
    if flat.size != math.prod(shape):
        raise ValueError(f"an array {shape} of {flat.size} numbers")
    return flat.reshape(shape)


def _joined(tree: Any) -> Any:
    """Return `tree` with arrays joined from their pieces."""
    if not isinstance(tree, dict):
        return tree
    if _CHUNKED not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    shape, pieces = (
        [tree[field][str(index)] for index in range(len(tree[field]))]
        for field in ("shape", "chunks")
    )
    return np.concatenate(pieces).reshape(shape)
