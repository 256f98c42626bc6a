"""Files of torch.save: zip archives since PyTorch 1.6, and streams before.

    zip       <any>/data.pkl               a pickle of the object, tensors by storage key
              <any>/data/<key>             the bytes of one storage
              <any>/byteorder              "little" or "big"; little if absent
    stream    four pickles                 a magic number, the protocol, C types, the object
              a pickle                     the storage keys, sorted
              per key                      the number of elements as int64, then their bytes

A tensor is a view (offset, shape, strides, all in elements) of a storage. Several tensors may share
a storage. The formats are those of `torch/serialization.py` and `torch/_utils.py` of PyTorch.
"""

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped

from errors import FileError
from files.archives import open_archive
from files.arrays import MAX_DIMS, count_elements
from published.formats import pickles
from published.formats.bounds import DEPTH, INTEGER_KEYS
from published.formats.pickles import Name, Vocabulary

Array = Shaped[np.ndarray, "..."]
ByteOrder = Literal["<", ">", "|", "="]

ZIP_START = b"PK\x03\x04"
_STREAM_MAGIC = (
    b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the instruction with the magic number, and STOP
)

# bfloat16 is the upper half of a float32, and is read as float32.
BFLOAT16 = "bfloat16"
_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": BFLOAT16,
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_DTYPES = {f"torch.{dtype}" for dtype in _STORAGES.values()}
_EXPANDED = 2**24  # elements of a tensor that repeats its storage, at most


def is_stream(start: bytes) -> bool:
    """Return whether a file with this start has the older format."""
    return start[:1] == b"\x80" and _STREAM_MAGIC in start[:32]


def read_zip(path: Path) -> Any:
    """Return the object in a zip archive, as dicts, lists, tuples, arrays and plain values.

    Raises:
        FileError: it is not an archive of torch.save, or its pickle holds more than data.
        ValueError: it is damaged; other exceptions are possible.
    """
    with open_archive(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise FileError("it is a compressed zip archive, which torch.save does not write")
        roots = [name.removesuffix("data.pkl") for name in sizes if name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}constants.pkl" in sizes:
            raise FileError(
                "it is a zip archive, but not one of torch.save. Save the plain tensors: "
                "torch.save(net.state_dict(), path)"
            )
        root = roots[0]
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in sizes else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"byte order {order!r}")

        def read_storage(storage: _Storage) -> Array:
            data = archive.read(f"{root}data/{storage.key}")
            return _elements(data, storage.dtype, "<" if order == b"little" else ">")

        with archive.open(f"{root}data.pkl") as file:
            tree = pickles.load(file, _vocabulary({}))
        return _resolve(tree, _once(read_storage))


def read_stream(file: IO[bytes], length: int) -> Any:
    """Return the object in a file of the older format, `length` bytes long.

    Raises:
        FileError: its pickle holds more than data.
        ValueError: it is damaged; other exceptions are possible.
    """
    plain = Vocabulary(values=frozenset(), calls={})
    pickles.load(file, plain)  # the magic number, already checked by `is_stream`
    protocol, system = pickles.load(file, plain), pickles.load(file, plain)
    if type(protocol) is not int or protocol != 1001 or not isinstance(system, dict):
        raise ValueError("an unknown protocol")
    dtypes: dict[str, str] = {}
    tree = pickles.load(file, _vocabulary(dtypes))
    order = "<" if system.get("little_endian", True) else ">"
    storages = {}
    keys = pickles.load(file, plain)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("no list of storages")
    for key in keys:
        (count,) = struct.unpack(f"{order}q", file.read(8))
        size = count * _itemsize(dtypes[key])
        if not 0 <= size <= length - file.tell():
            raise ValueError(f"storage {key} of {size} bytes is incomplete")
        storages[key] = _elements(file.read(size), dtypes[key], order)
    return _resolve(tree, lambda storage: storages[storage.key])


class _Storage(NamedTuple):
    """Elements of one type in the file, from the element `start` on."""

    key: str
    dtype: str
    size: int
    start: int


class _View(NamedTuple):
    """A tensor before its storage is read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class _ScalarType:
    """A NumPy dtype of one number, as a pickle describes it."""

    code: str
    order: ByteOrder = "="

    def set_state(self, state: Any) -> None:
        """Set the byte order from a dtype's state (version, byte order, ...)."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("an unknown state of a NumPy type")
        self.order = state[1]


def _vocabulary(dtypes: dict[str, str]) -> Vocabulary:
    """Return the vocabulary of tensors; `dtypes` receives the type of each storage."""

    def persistent(identity: Any) -> _Storage:
        storage = _storage(identity)
        if dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise ValueError(f"storage {storage.key} has two types")
        return storage

    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _ordered,
        "torch._utils._rebuild_tensor": _view,
        "torch._utils._rebuild_tensor_v2": _view,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch.Size": _size,
        "torch.device": _device,
        "_codecs.encode": _encode,
        "numpy.dtype": lambda code, *_: _ScalarType(_scalar_code(code)),
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
    }
    return Vocabulary(
        values=frozenset(_DTYPES | _STORAGES.keys()), calls=calls, persistent=persistent
    )


def _ordered(pairs: Any = ()) -> dict:
    if not isinstance(pairs, list | tuple) or len(pairs) > INTEGER_KEYS:
        raise ValueError("an OrderedDict that is not made of pairs")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("an OrderedDict that is not made of pairs")
    return pickles.dictionary([key for key, _ in pairs], [value for _, value in pairs])


def _size(sizes: Any) -> tuple[int, ...]:
    if not _are_sizes(sizes):
        raise ValueError("a size of a tensor that is none")
    return tuple(sizes)


def _device(*words: Any) -> str:
    if not all(isinstance(word, str | int) for word in words):
        raise ValueError("a device without a name")
    return ":".join(map(str, words))


def _encode(text: Any, encoding: Any) -> bytes:
    """Return the bytes that Python 3 writes as text in pickles for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("an encoding other than latin1")
    return text.encode("latin1")


def _scalar_code(code: Any) -> str:
    if not isinstance(code, str):
        raise ValueError("a NumPy type without a name")
    if code not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"):
        raise FileError(f"it holds a NumPy number of type {code[:40]!r}, which is refused")
    return code


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    if not isinstance(dtype, _ScalarType) or not isinstance(data, bytes):
        raise ValueError("a NumPy number without type and bytes")
    return np.frombuffer(data, np.dtype(dtype.code).newbyteorder(dtype.order), count=1)[0].item()


def _storage(identity: Any) -> _Storage:
    """Return the storage of a persistent id: ("storage", type, key, place, count[, view])."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("a persistent id that is not a storage")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, Name) or kind.text not in _STORAGES:
        raise ValueError("a storage without a type")
    start = 0
    if view and view[0] is not None:  # (key, offset, count) within the storage
        _, start, count = view[0]
    if not isinstance(key, str) or not _are_sizes((count, start)):
        raise ValueError("a storage without key and size")
    return _Storage(key, _STORAGES[kind.text], count, start)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    """Return a tensor, which must lie within its storage."""
    if not isinstance(storage, _Storage) or not _are_sizes((offset,)):
        raise ValueError("a tensor without storage and offset")
    if not (_are_sizes(shape) and _are_sizes(strides) and len(shape) == len(strides)):
        raise ValueError("a tensor without shape and strides")
    count = count_elements(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count and last >= storage.size:
        raise ValueError(f"a tensor {shape} beyond its storage of {storage.size} elements")
    if count > max(storage.size, _EXPANDED):
        raise ValueError(f"a tensor {shape} that repeats {storage.size} elements")
    return _View(storage, offset, shape, strides)


def _are_sizes(values: Any) -> bool:
    """Return whether values are a tuple of a few integers from 0 to 2^62."""
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_DIMS
        and all(type(value) is int and 0 <= value < 2**62 for value in values)
    )


def _itemsize(dtype: str) -> int:
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def _elements(data: bytes, dtype: str, order: ByteOrder) -> Array:
    """Return the numbers in `data`, in this machine's byte order."""
    if dtype == BFLOAT16:
        halves = np.frombuffer(data, np.dtype(np.uint16).newbyteorder(order))
        return (halves.astype(np.uint32) << 16).view(np.float32)
    array = np.frombuffer(data, np.dtype(dtype).newbyteorder(order))
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _once(read: Callable[[_Storage], Array]) -> Callable[[_Storage], Array]:
    """Return `read` with one call per storage."""
    done: dict[str, Array] = {}

    def remembered(storage: _Storage) -> Array:
        if storage.key not in done:
            done[storage.key] = read(storage)
        return done[storage.key]

    return remembered


def _resolve(tree: Any, read: Callable[[_Storage], Array]) -> Any:
    """Return `tree` with its tensors read and its names as text."""
    done: dict[int, Any] = {}
    parents: set[int] = set()

    def children(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(item) for key, item in value.items()}
        return type(value)(resolved(item) for item in value)

    def resolved(value: Any) -> Any:
        if isinstance(value, _View):
            return _tensor(value, read)
        if isinstance(value, _Storage | _ScalarType):
            return None
        if isinstance(value, Name):
            return value.text
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) in parents or len(parents) >= DEPTH:
            raise ValueError("containers within themselves, or too deep")
        if id(value) not in done:
            parents.add(id(value))
            done[id(value)] = children(value)
            parents.remove(id(value))
        return done[id(value)]

    return resolved(tree)


def _tensor(view: _View, read: Callable[[_Storage], Array]) -> Array:
    """Return the tensor as a read-only array that shares its storage's memory."""
    storage = read(view.storage)
    if view.storage.start + view.storage.size > storage.size:
        raise ValueError(f"storage {view.storage.key} holds {storage.size} elements")
    first = view.storage.start + view.offset
    strides = tuple(stride * storage.itemsize for stride in view.strides)
    return np.lib.stride_tricks.as_strided(
        storage[first:] if count_elements(view.shape) else storage[:0],
        view.shape,
        strides,
        writeable=False,
    )
