"""Small files of other projects, as their software writes them, and wrong ones.

At the end, the weights and images that the generators of the fixtures drew too, for files that hold
names alone.
"""

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import msgpack
import numpy as np

DATA = Path(__file__).parent / "fixtures" / "published"
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def same(a, b):
    """Whether two trees of arrays and plain values agree, types included."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def as_file(path, content):
    path.write_bytes(content)
    return path


def zipped(program, storages=(), **extra):
    """A file of torch.save with the given pickle and bytes of storages."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        for name, data in extra.items():
            archive.writestr(f"archive/{name}", data)
    return content.getvalue()


def streamed(program):
    """The older format, with the given pickle of the object."""
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join(head) + program + pickle.dumps([], 2)


def tensor(offset, shape, strides, count=6):
    """The pickle of one float32 tensor on storage 0."""
    sizes = [pickle.dumps(value, 2)[2:-1] for value in (offset, shape, strides)]
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    number = pickle.dumps(count, 2)[2:-1]
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number + b"tQ" + b"".join(sizes)
    ) + b"\x89NtR."


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


TENSORS = safetensors(
    {
        "__metadata__": {"format": "pt"},
        "half": entry("BF16", (2,), (24, 28)),
        "full": entry(),
        "number": entry("I64", (), (28, 36)),
    },
    ARRAY.tobytes() + b"\xc0\x3f\x00\xc0" + struct.pack("<q", -3),
)


def packed(array, name=None, code=1):
    parts = (array.shape, name or array.dtype.name, array.tobytes())
    return msgpack.ExtType(code, msgpack.packb(parts))


SIZE, TIMES = 8, np.array([0.25, 0.5], np.float32)
TOLERANCE = 1e-5  # of the largest number
LABEL = np.array([249.75, 499.5], np.float32)  # timesteps of OpenAI


def drawn(shapes):
    """Weights for names and shapes; the fixtures' generator had the same function."""
    return {name: _drawn(name, tuple(shape)) for name, shape in shapes.items()}


def _drawn(name, shape):
    u = np.random.default_rng(zlib.crc32(name.encode())).uniform(-1.0, 1.0, shape)
    if name.endswith("resample_filter"):
        taps = np.array([1.0, 3.0, 3.0, 1.0] if shape[-1] == 4 else [1.0, 1.0])
        u = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    elif len(shape) > 1:
        u = u * np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith(".weight") and "time_proj" not in name:
        u = 1.0 + 0.5 * u
    elif name.endswith(".bias"):
        u = 0.5 * u
    return u.astype(np.float32)


def images():
    shape = (2, SIZE, SIZE, 3)
    return np.random.default_rng(SIZE).uniform(-1.0, 1.0, shape).astype(np.float32)
