"""Content of hostile files: small good files that are changed, and files made to never end."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image
from published_files import ARRAY, DATA, TENSORS, packed, streamed, tensor, zipped

TRACE = "<trace>"  # in a file: a folder that exists if its code has run
FOLDER = "trace.d"  # its name beside the file

Random = np.random.Generator


# Small good files.


def _npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


STATE = {
    "step": 7,
    "optimizer": {"target": {"Conv_0": {"kernel": packed(ARRAY)}}},
    "params_ema": {"Conv_0": {"kernel": packed(ARRAY)}},
}
PYTORCH = {"model": {"a.weight": 1}, "ema": {"shadow_params": []}, "step": 7, "optimizer": [1.5]}


def _picture(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(content, kind)
    return content.getvalue()


WHOLE: dict[str, list[bytes]] = {
    "checkpoint": [
        zipped(tensor(0, (2, 3), (3, 1)), [ARRAY.tobytes()]),
        zipped(pickle.dumps(PYTORCH, 2)),
        streamed(pickle.dumps(PYTORCH, 2)),
        (DATA / "torch_zip.pt").read_bytes(),
        (DATA / "torch_stream.pt").read_bytes(),
        TENSORS,
        msgpack.packb(STATE) or b"",
    ],
    "statistics": [
        _npz(mu=np.zeros(4), sigma=np.eye(4)),
        _npz(pool_3=np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)),
    ],
    "moments": [
        _npz(
            format=np.array("eps moments, version 1"),
            times=np.array([1.0, 0.5]),
            half_log_snr=np.array([0.0, 1.0]),
            values=np.ones(2),
            errors=np.zeros(2),
        )
    ],
    "arrays": [_npz(images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))],
    "array": [_npy(np.zeros((8, 8, 3), np.float32))],
}
WHOLE["weights"] = WHOLE["checkpoint"]
WHOLE["images"] = [_npz(train=np.zeros((9, 8, 8, 3), np.uint8), test=np.zeros((3, 8, 8), np.uint8))]
WHOLE["picture"] = [_picture(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "EPS")]
WHOLE["cache"] = WHOLE["arrays"]


# Changes of any file.


def _flipped(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for position in rng.integers(0, len(content), rng.integers(1, 9)):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.integers(0, len(content))]


def _huge(rng: Random, content: bytes) -> bytes:
    """Write a huge number somewhere, in 2, 4 or 8 bytes of either order."""
    size = int(rng.choice([2, 4, 8]))
    number = (1 << int(rng.integers(8 * size - 12, 8 * size))) - 1
    at = int(rng.integers(0, len(content)))
    order = "little" if rng.random() < 0.5 else "big"
    return content[:at] + number.to_bytes(size, order) + content[at + size :]


def _digits(rng: Random, content: bytes) -> bytes:
    """Replace a digit of text by many."""
    places = [at for at, byte in enumerate(content) if 48 <= byte < 58]
    at = int(rng.choice(places or [0]))
    return content[:at] + b"9" * int(rng.choice([9, 19, 400, 5000])) + content[at + 1 :]


def _repeated(rng: Random, content: bytes) -> bytes:
    first, last = sorted(map(int, rng.integers(0, len(content) + 1, 2)))
    return content[:last] + content[first:last] * int(rng.integers(1, 2000)) + content[last:]


def _joined(rng: Random, content: bytes) -> bytes:
    """Continue with another format."""
    other = [file for files in WHOLE.values() for file in files]
    return _cut(rng, content) + _cut(rng, other[int(rng.integers(len(other)))])[::-1][:2000]


CHANGES: list[Callable[[Random, bytes], bytes]] = [
    *(_flipped, _cut, _huge, _digits, _repeated, _joined)
]


def _changed(rng: Random, content: bytes) -> bytes:
    """Change a file, or one member of an archive, whose checksum is then right."""
    change = CHANGES[int(rng.integers(len(CHANGES)))]
    if not content.startswith(b"PK") or rng.random() < 0.3:
        return change(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[int(rng.integers(len(members)))]
    members[name] = change(rng, members[name] or b"0")
    method = zipfile.ZIP_STORED if rng.random() < 0.7 else zipfile.ZIP_DEFLATED
    return _archive(members, method)


def _archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


# Files that are made to never end, to take all memory, or to run code.


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _tower(rng: Random) -> bytes:
    """Return instructions for shared containers, whose expansion has up to 2^200 values."""
    height = int(rng.integers(20, 200))
    kind = rng.choice(["tuple", "list", "dict"])
    floors = [b")q\x000" if kind == "tuple" else b"]q\x000"]
    for i in range(height):
        floors.append(
            {
                "tuple": b"h%ch%c\x86" % (i, i),
                "list": b"](h%ch%ce" % (i, i),
                "dict": b"}(Va\nh%cVb\nh%cu" % (i, i),
            }[kind]
            + b"q%c0" % (i + 1)
        )
    return b"".join(floors) + b"h%c" % height


CALLS = ("torch\nSize", "torch\ndevice", "numpy\ndtype", "collections\nOrderedDict")
CALLS += ("_codecs\nencode", "torch._utils\n_rebuild_tensor_v2", "numpy.core.multiarray\nscalar")


def _bomb(rng: Random) -> bytes:
    """Return a pickle that asks to hash, show, compare, count or copy far too much."""
    tower, call = _tower(rng), b"c" + str(rng.choice(CALLS)).encode() + b"\n"
    count = int(rng.integers(1, 6)) * 20_000
    number = (2**61 - 1) << int(rng.integers(0, 3))
    keys = [b"\x8a\x0b" + (k * number).to_bytes(11, "little") + b"N" for k in range(1, count)]
    spaced = [b"\x8a\x09" + (k << 40).to_bytes(9, "little") + b"N" for k in range(1, count)]
    programs = [
        tower,
        b"}" + tower + b"Ns",
        b"}(" + tower + b"Nu",
        b"}" + _text("model") + tower + b"s",
        b"}(" + _text("model") + b"}" + _text("step") + tower + b"u",
        call + b"(" + tower + b"tR",
        call + b"((" + tower + b"N\x86ttR",
        call + b"(" + tower + tower + b"tR",
        tower + tower + b"\x93",
        tower + b"Q",
        call + tower + b"b",
        b"}(" + b"".join(keys) + b"u",
        b"}(" + b"".join(spaced) + b"u",
        call + b"((" + b"K\x02" * count + b"ttR",
        call + b"((" + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0f" * count + b"ttR",
        call + b"q\x00((" + b"".join(b"V%d\nN\x86" % k for k in range(9_000)) + b"ttq\x01"
        + b"0h\x00h\x01R" * count,
        call + b"q\x00(" + _text("a" * count) + b"Vlatin1\ntq\x01" + b"h\x00h\x01R" * count,
        b"]" * count + b"a" * (count - 1),
        b")" + b"\x85" * count,
        b"N0" * 30 * count + b"N",
        b"]q\x00h\x00a",
        b"\x8d" + struct.pack("<Q", 2 ** int(rng.integers(20, 63))),
        b"\x8b" + struct.pack("<I", 2**31 - 1) + b"\xff" * 1000,
        b"N" + b"".join(b"r" + struct.pack("<I", k << 12) for k in range(count)),
        b"}(" + _text("model") + b"}" + _text("ema") + b"}" + _text("shadow_params") + b"]s"
        + _text("step") + b"\x8a\x09" + bytes(8) + b"\x01" + b"u",
        b"cos\nmkdir\n(" + _text(TRACE) + b"tR",
        b"cbuiltins\nexec\n(" + _text(f"import os; os.mkdir({TRACE!r})") + b"tR",
        b"csubprocess\nPopen\n((" + _text("mkdir") + _text(TRACE) + b"ttR",
    ]  # fmt: skip
    return b"\x80\x02" + programs[int(rng.integers(len(programs)))] + b"."


def _packed_state(rng: Random) -> bytes:
    """Return MessagePack with lengths, nesting, dimensions or a step that are too large."""
    dims = int(rng.integers(33, 600_000))
    step = [2**63, -1, True, "12", 1.5, None, 2**31, [1], b"7"][int(rng.integers(9))]
    wide = msgpack.ExtType(1, msgpack.packb(([2**60] * dims, "float32", b"abcd")) or b"")
    state = msgpack.packb(STATE | {"optimizer": {"target": {"a": wide}}}) or b""
    contents = [
        msgpack.packb(STATE | {"step": step}),
        state,
        b"\x81\xa1a" * int(rng.integers(90, 5000)) + b"\xc0",
        b"\x81\xa1a" + b"\xdd\x00\xff\xff\xff" * int(rng.integers(1, 1000)),
        b"\x81\xa1a" + b"\xdf\x7f\xff\xff\xff" * int(rng.integers(1, 500)),
        b"\x81\xa1a\xdd\x00\xff\xff\xff" + bytes(2**24),
        b"\x81\xa1a" + b"\xde\xff\xff" + b"\xa1b\xc0" * 2**16,
        msgpack.packb({"a": {str(k): [] for k in range(2**17)}}),
    ]
    return contents[int(rng.integers(len(contents)))] or b""


def _safetensors(rng: Random) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    dims = int(rng.integers(33, 600_000))
    depth = int(rng.integers(200, 200_000))
    headers = [
        json.dumps({"a": entry | {"shape": [2**60] * dims}}),
        json.dumps({"a": entry | {"shape": [2**40, 2**40]}}),
        json.dumps({"a": entry | {"dtype": "F" * dims}}),
        json.dumps({"a" * dims: entry}),
        json.dumps({"a": entry | {"data_offsets": [-(2**70), 2**70]}}),
        '{"a": ' + "[" * depth + "]" * depth + "}",
        '{"a": ' * depth + "1" + "}" * depth,
        '{"a": [' + "{}," * 10 * dims + "1]}",
        '{"a": ' + "9" * dims + "}",
    ]
    header = headers[int(rng.integers(len(headers)))].encode()
    return struct.pack("<Q", len(header)) + header + ARRAY.tobytes()


def _checkpoint(rng: Random) -> bytes:
    kind = int(rng.integers(4))
    if kind < 2:
        return zipped(_bomb(rng)) if kind else streamed(_bomb(rng))
    return _packed_state(rng) if kind == 2 else _safetensors(rng)


def _header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text


def _strange_array(rng: Random) -> bytes:
    n = int(rng.integers(1000, 600_000))
    headers = [
        _header(f"({2**40},)"),
        _header(f"({10**12}, 0)"),
        _header("(" + "2," * n + ")"),
        _header("(" * n + ")" * n),
        _header("-" * n + "1"),
        _header(f"({'9' * n},)"),
        _header("(4,)", "'|O'"),
        _header("(4,)", "[('a', '|u1')] * 10**9"),
        _header("(4,)", f"'<U{2**29}'"),
        _header("(4,)", "'(100000,100000)f8'"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        pickle.dumps(np.array([{}], dtype=object), 4),
    ]
    return headers[int(rng.integers(len(headers)))] + bytes(int(rng.choice([0, 4, 1000])))


def _strange_archive(rng: Random) -> bytes:
    """Return an archive with the usual names and strange contents."""
    names = ("mu", "sigma", "pool_3", "images", "labels", "format", "times", "provenance", "count")
    kind = int(rng.integers(5))
    if kind == 0:
        size = int(rng.integers(5, 12)) * 2**27
        chunk = _deflated_zeros(size)
        return chunk if rng.random() < 0.9 else _cut(rng, chunk)
    members = {f"{name}.npy": _strange_array(rng) for name in rng.permutation(names)[:5]}
    content = bytearray(_archive(members, zipfile.ZIP_DEFLATED))
    first = content.index(b"PK\x01\x02")
    if kind == 1:  # encrypted, packed in another way, or of another version
        content[first + int(rng.choice([6, 8, 10]))] = int(rng.integers(256))
    elif kind == 2:  # many members that are the same bytes
        end = content.index(b"PK\x05\x06")
        entry = content[first : content.index(b"PK", first + 4)]
        size = struct.unpack("<H", entry[28:30])[0]
        count = int(rng.integers(2, 60_000))
        entries = b"".join(
            entry[:46] + b"%0*d" % (size, k) + entry[46 + size :] for k in range(count)
        )
        tail = struct.pack("<HHIIH", count, count, len(entries), first, 0)
        return bytes(content[:first] + entries + content[end : end + 8] + tail)
    elif kind == 3:  # sizes that are not true
        at = first + int(rng.choice([20, 24]))
        content[at : at + 4] = struct.pack("<I", int(rng.integers(2**32)))
    return bytes(content)


def _deflated_zeros(size: int) -> bytes:
    """Return an archive of a few megabytes that unpacks to `size` bytes of zeros."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("images", "pool_3", "mu"):
            shape = f"({size // 16},4)" if name == "pool_3" else f"({size},)"
            descr = "'<f4'" if name == "pool_3" else "'|u1'"
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                stream.write(_header(shape, descr))
                for first in range(0, size, 2**24):
                    stream.write(bytes(min(2**24, size - first)))
            if name == "images" and size > 2**30:
                break
    return content.getvalue()


MADE: dict[str, Callable[[Random], bytes]] = {
    "checkpoint": _checkpoint,
    "weights": _checkpoint,
    "statistics": _strange_archive,
    "moments": _strange_archive,
    "arrays": _strange_archive,
    "cache": _strange_archive,
    "array": _strange_array,
    "images": _strange_archive,
    "picture": lambda rng: _changed(rng, WHOLE["picture"][int(rng.integers(7))]),
}


def write_hostile(rng: Random, target: str, path: Path) -> None:
    """Write a hostile file for one of the readers in `MADE`, or something that is no file."""
    chance = rng.random()
    if chance < 0.03:
        os.mkfifo(path)
    elif chance < 0.05:
        path.symlink_to(str(rng.choice(["/dev/zero", "/dev/random", path.name, "nowhere", "."])))
    elif chance < 0.5:
        path.write_bytes(MADE[target](rng).replace(TRACE.encode(), FOLDER.encode()))
    else:
        good = WHOLE[target]
        path.write_bytes(_changed(rng, good[int(rng.integers(len(good)))]))
