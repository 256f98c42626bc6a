"""Writes files that torch.load(path, weights_only=True) reads, without torch.

The format is that of `torch_files.py`, a zip archive; the pickle in it is written here instruction
by instruction (`pickletools` documents them), with the names that torch itself writes for tensors.
"""

import struct
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from files.writing import write_file

_Storages = dict[int, tuple[int, np.ndarray]]  # number and content, by the id of the array given

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


def write_torch(path: Path, tree: Any) -> None:
    """Writes nested dicts, lists and tuples of arrays, numbers, text and None; whole or not at all.

    Arrays become tensors that need no gradient; the same array object twice shares its storage. The
    same tree makes the same bytes.

    Raises:
        TypeError: for a value that torch has no plain form for, naming where it is.
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
    # Not the time of day, so that the same weights make the same file.
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)


def _value(value: Any, where: str, arrays: _Storages) -> list[bytes]:
    """The instructions that leave `value` on the stack; new arrays are added to `arrays`."""
    match value:
        case None:
            return [b"N"]
        case bool() | np.bool_():
            return [b"\x88" if value else b"\x89"]
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
        "text or None. Convert it first, as np.asarray does for arrays of JAX"
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
    """A call of torch's _rebuild_tensor_v2 on a storage, which is named by its number."""
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
