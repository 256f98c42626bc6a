"""Files that torch.load(path, weights_only=True) reads, written without torch.

The format is that of `torch_files.py`, a zip archive. This module writes the instructions of its
pickle one by one (`pickletools` documents them), with the names that torch writes for tensors.
"""

import struct
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from files.paths import AnyPath
from files.writing import write_file

_Storages = dict[int, tuple[int, np.ndarray]]  # number and content, by the id of the array

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def write_torch(path: AnyPath, tree: Any) -> None:
    """Write nested dicts, lists and tuples of arrays, numbers, text and None, atomically.

    Arrays become tensors without gradients. An array object that occurs twice shares its storage.
    The same tree makes the same bytes.

    Raises:
        TypeError: torch has no plain form for a value; the message has its path.
        OSError: the file cannot be written.
    """
    arrays: _Storages = {}
    program = b"\x80\x02" + b"".join(_value(tree, "", arrays)) + b"."
    little = sys.byteorder == "little"

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "archive/data.pkl", program)
            _add(archive, "archive/byteorder", b"little" if little else b"big")
            for key, array in arrays.values():
                _add(archive, f"archive/data/{key}", array.tobytes())
            _add(archive, "archive/version", b"3\n")

    write_file(path, write)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed time, so that the same weights make the same file.
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)


def _value(value: Any, where: str, arrays: _Storages) -> list[bytes]:
    """Return the instructions that push `value`; add new arrays to `arrays`."""
    match value:
        case None:
            return [b"N"]
        case bool() | np.bool_():
            return [b"\x88" if bool(value) else b"\x89"]
        case int() | np.integer():
            return [_integer(int(value))]
        case float() | np.floating():
            return [b"G", struct.pack(">d", value)]
        case str():
            return [_text(value)]
        case np.ndarray():
            return _tensor(value, where, arrays)
        case Mapping():
            parts = [b"}("]
            for key, item in value.items():
                if not isinstance(key, str | int):
                    raise TypeError(f"{where or '/'} has the key {key!r}; valid is text or integer")
                parts += [*_value(key, where, arrays), *_value(item, f"{where}/{key}", arrays)]
            return [*parts, b"u"]
        case list() | tuple():
            parts = [b"](" if isinstance(value, list) else b"("]
            for index, item in enumerate(value):
                parts += _value(item, f"{where}/{index}", arrays)
            return [*parts, b"e" if isinstance(value, list) else b"t"]
    raise TypeError(
        f"{where or '/'} is a {type(value).__name__}; valid is a dict, list, tuple, array, number, "
        "text or None. Convert it first; np.asarray converts arrays of JAX"
    )


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _sizes(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _tensor(value: np.ndarray, where: str, arrays: _Storages) -> list[bytes]:
    """Return a call of torch's _rebuild_tensor_v2 on a storage with a number as its name."""
    array = value.astype(value.dtype.newbyteorder("="), order="C", copy=False)
    if str(array.dtype) not in _STORAGES:
        raise TypeError(
            f"{where or '/'} has numbers of type {value.dtype}; valid is {', '.join(_STORAGES)}"
        )
    key, _ = arrays.setdefault(id(value), (len(arrays), array))
    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    return [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        _text("storage"),
        f"ctorch\n{_STORAGES[str(array.dtype)]}\n".encode(),
        _text(str(key)),
        _text("cpu"),
        _integer(array.size),
        b"tQ",  # the storage, by its persistent id
        _integer(0),
        _sizes(array.shape),
        _sizes(strides),
        b"\x89ccollections\nOrderedDict\n)RtR",  # no gradient, no hooks
    ]
