"""Files of flax.training.checkpoints before Orbax: MessagePack, with arrays as extensions.

    extension 1    an array: the MessagePack of (shape, dtype name, bytes in row-major order)
    extension 2    a complex number: the MessagePack of (real, imaginary)
    extension 3    a NumPy number: as an array of shape ()

Arrays beyond 2^30 bytes are dicts of flat pieces. Tuples and lists are dicts with the keys "0",
"1", ... The format is that of `flax/serialization.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Shaped

from errors import FileError
from files.arrays import MAX_DIMS, count_elements
from published.formats.bounds import NODES

_ARRAY, _COMPLEX, _NUMBER = 1, 2, 3
# How values are stored whose first byte is the key, by the format's documentation
# (https://github.com/msgpack/msgpack/blob/master/spec.md): the bytes of their length, the bytes
# between it and the content, and the values per unit of length; or the bytes of a number.
_SIZED = {
    **{0xC4 + size: (2**size, 0, 0) for size in range(3)},  # bytes
    **{0xC7 + size: (2**size, 1, 0) for size in range(3)},  # extensions
    **{0xD9 + size: (2**size, 0, 0) for size in range(3)},  # text
    **{0xDC + size: (2 * 2**size, 0, 1) for size in range(2)},  # arrays
    **{0xDE + size: (2 * 2**size, 0, 2) for size in range(2)},  # maps
}
_FIXED = {
    **{0xCA: 4, 0xCB: 8},  # floats
    **{0xCC + size: 2**size for size in range(4)},  # integers
    **{0xD0 + size: 2**size for size in range(4)},
    **{0xD4 + size: 1 + 2**size for size in range(5)},  # extensions
}
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
    content = path.read_bytes()
    _check_length(content)
    tree = msgpack.unpackb(
        content, ext_hook=_extension, raw=False, strict_map_key=True, max_array_len=0
    )
    if not isinstance(tree, dict):
        raise FileError("it is MessagePack, but not a state of Flax")
    return _joined(tree)


def _check_length(content: bytes) -> None:
    """Raise unless a file has at most `NODES` values; `msgpack` makes an object of each.

    Raises:
        FileError: it has more values.
        IndexError: it ends early.
    """
    position, values, wanted = 0, 0, 1
    while wanted:
        values += 1
        wanted -= 1
        if values > NODES:
            raise FileError(f"it holds more than {NODES} values")
        code = content[position]
        position += 1
        if code in _SIZED:  # a number of bytes, or of values, follows
            width, extra, inner = _SIZED[code]
            length = int.from_bytes(content[position : position + width], "big")
            position += width + extra
            wanted += inner * length
            position += 0 if inner else length
        elif code in _FIXED:
            position += _FIXED[code]
        elif 0x80 <= code <= 0x8F:
            wanted += 2 * (code & 0x0F)
        elif 0x90 <= code <= 0x9F:
            wanted += code & 0x0F
        elif 0xA0 <= code <= 0xBF:
            position += code & 0x1F
        if wanted > NODES:
            raise FileError(f"it claims to hold more than {NODES} values")


def _extension(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        real, imaginary = msgpack.unpackb(data, max_array_len=2)
        return complex(float(real), float(imaginary))
    if code not in (_ARRAY, _NUMBER):
        raise FileError(f"it is MessagePack with the extension {code}, which Flax does not write")
    array = _array(data)
    return array if code == _ARRAY else array[()].item()


def _array(data: bytes) -> Shaped[np.ndarray, "..."]:
    shape, name, content = msgpack.unpackb(data, raw=True, max_array_len=MAX_DIMS, max_map_len=0)
    if type(name) is not bytes or type(content) is not bytes:
        raise ValueError("an array without type and content")
    dtype = name.decode("ascii")
    if dtype not in _DTYPES:
        raise FileError(f"it holds an array of type {dtype[:40]!r}, which is unknown")
    count = count_elements(shape)
    if dtype == "bfloat16":
        halves = np.frombuffer(content, "<u2")
        flat = (halves.astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(content, dtype)
    if flat.size != count:
        raise ValueError(f"an array {shape} of {flat.size} numbers")
    return flat.reshape(shape)


def _joined(tree: Any) -> Any:
    """Return `tree` with arrays joined from their pieces."""
    if not isinstance(tree, dict):
        return tree
    if _CHUNKED not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    shape, pieces = (_listed(tree[field]) for field in ("shape", "chunks"))
    if not all(isinstance(piece, np.ndarray) and piece.ndim == 1 for piece in pieces):
        raise ValueError("an array with pieces that are not arrays")
    if count_elements(shape) != sum(map(len, pieces)):
        raise ValueError("an array whose pieces do not make its shape")
    return np.concatenate(pieces).reshape(shape)


def _listed(tree: Mapping[str, Any]) -> list[Any]:
    """Return the values of a dict with the keys "0", "1", ..."""
    return [tree[str(index)] for index in range(len(tree))]
