"""Published files of every format, whole, damaged and malicious.

torch_zip.pt and torch_stream.pt were written by torch.save of PyTorch 2.13, in its two formats.
"""

import contextlib
import copyreg
import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest

from errors import FileError
from published import mapping
from published.formats import read
from published.formats.torch_writer import write_torch

DATA = Path(__file__).parent.parent / "fixtures" / "published"
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


BASE = np.arange(24, dtype=np.float32)
SAVED = {
    "base": BASE,
    "view": BASE[4:10].reshape(2, 3),
    "transposed": BASE.reshape(4, 6).T,
    "half": np.arange(3, dtype=np.float16) / np.float16(2),
    "bfloat16": np.array([0x3FC0_0000, 0xC000_0000, 0x7F62_0000], np.uint32).view(np.float32),
    "int": np.array(7),
    "bool": np.array([True, False]),
    "bytes": np.arange(3, dtype=np.uint8),
    "double": np.array([0.1]),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.ones(2, np.float32),
    "expanded": np.ones((2, 3), np.float32),
    "size": (1, 2),
    "dtype": "torch.float32",
    "device": "cpu",
    "plain": {"x": 1, "y": [1, 2.5, None, True, "text", (1,)]},
    "numpy": 3.5,
    "big": 2**80,
    "module": {"weight": np.array([[1, 2]], np.float32), "bias": np.array([3], np.float32)},
}


@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_stream.pt"])
def test_torch_file_is_read(name):
    found = read.read(DATA / name)
    assert [key for key in SAVED if not same(found[key], SAVED[key])] == []
    assert np.shares_memory(found["base"], found["view"])
    assert not found["base"].flags.writeable


TREE = {
    "array": ARRAY,
    "again": ARRAY,
    "transposed": ARRAY.T,
    "scalar": np.array(2, np.int64),
    "empty": np.zeros((0, 2)),
    "flags": np.array([True, False]),
    "list": [1, -5, 2**40, -(2**70), 0.5, True, False, None, "ä", (), (1, [2])],
    0: {"nested": {}},
}


def test_written_file_is_read_again(tmp_path):
    write_torch(tmp_path / "a.pt", TREE)
    write_torch(tmp_path / "b.pt", TREE)
    found = read.read(tmp_path / "a.pt")
    assert same(found, TREE)
    assert np.shares_memory(found["array"], found["again"])
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_written_pickle_is_well_formed(tmp_path):
    """Python's own checker of the stack finds nothing; torch itself has read such a file."""
    write_torch(tmp_path / "a.pt", TREE)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        pickletools.dis(archive.read("archive/data.pkl"), out=io.StringIO())


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"a": {"b": object()}}, "/a/b is a object; valid is"),
        ({"a": np.zeros(2, np.complex64)}, "/a has numbers of type complex64; valid is float64"),
        ({(1,): 2}, r"/ has the key \(1,\)"),
    ],
)
def test_unwritable_value_is_named(tmp_path, tree, problem):
    with pytest.raises(TypeError, match=problem):
        write_torch(tmp_path / "a.pt", tree)
    assert list(tmp_path.iterdir()) == []


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


def test_tensor_may_be_any_view_of_its_storage(tmp_path):
    data = ARRAY.tobytes()
    path = as_file(tmp_path / "a.pt", zipped(tensor(1, (2, 2), (3, 1)), [data]))
    assert same(read.read(path), ARRAY[:, 1:])
    path = as_file(
        tmp_path / "b.pt", zipped(tensor(0, (6,), (1,)), [ARRAY.astype(">f4")], byteorder=b"big")
    )
    assert same(read.read(path), ARRAY.ravel())


@pytest.mark.parametrize(
    ("view", "problem"),
    [
        ((0, (7,), (1,)), "beyond its storage of 6"),
        ((5, (2,), (1,)), "beyond its storage of 6"),
        ((0, (2, 2), (5, 1)), "beyond its storage of 6"),
        ((-1, (2,), (1,)), "without storage and offset"),
        ((0, (2,), (-1,)), "without shape and strides"),
        ((0, (2**40, 2**20), (0, 0)), "repeats 6 elements"),
        ((0, (2,), (1,), 7), "holds 6 elements"),
        ((0, (2,), (1, 1)), "without shape and strides"),
    ],
)
def test_tensor_outside_of_its_storage_is_refused(tmp_path, view, problem):
    path = as_file(tmp_path / "a.pt", zipped(tensor(*view), [ARRAY.tobytes()]))
    with pytest.raises(FileError, match=f"damaged or incomplete .*{problem}"):
        read.read(path)


# Each makes the folder <trace> when Python's own unpickler reads it.
ATTACKS = {
    "GLOBAL, REDUCE": b"cos\nmkdir\n(V<trace>\ntR.",
    "STACK_GLOBAL": b"\x80\x04Vos\nVmkdir\n\x93(V<trace>\ntR.",
    "STACK_GLOBAL, dotted": b"\x80\x04Vshutil\nVos.mkdir\n\x93(V<trace>\ntR.",
    "INST": b"(V<trace>\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nV<trace>\no.",
    "BUILD": (  # an OrderedDict whose __setstate__ is a function
        b"\x80\x02ccollections\nOrderedDict\n)R}V__setstate__\ncos\nmkdir\nsbV<trace>\nb."
    ),
    "EXT1": b"\x82\xf0(V<trace>\ntR.",
    "EXT2": b"\x83\xf0\x00(V<trace>\ntR.",
    "EXT4": b"\x84\xf0\x00\x00\x00(V<trace>\ntR.",
    "eval": b"cbuiltins\neval\n(V__import__('os').mkdir('<trace>')\ntR.",
    "memo": b"cos\nmkdir\nq\x000h\x00(V<trace>\ntR.",
}


@pytest.fixture
def _extension():
    copyreg.add_extension("os", "mkdir", 0xF0)
    yield
    copyreg.remove_extension("os", "mkdir", 0xF0)


@pytest.mark.usefixtures("_extension")
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("form", [zipped, streamed])
def test_malicious_pickle_runs_nothing(tmp_path, name, form):
    trace = tmp_path / "trace"
    program = ATTACKS[name].replace(b"<trace>", str(trace).encode())
    pickle.loads(program)
    trace.rmdir()  # so the attack is one
    with pytest.raises(FileError, match="refused"):
        read.read(as_file(tmp_path / "a.pt", form(program)))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (b"ctorch.storage\n_load_from_bytes\n.", "calls 'torch.storage._load_from_bytes'"),
        (b"cargparse\nNamespace\n)R.", "calls 'argparse.Namespace', which is refused"),
        (b"\x80\x04Vtorch._utils\nVos.system\n\x93.", "calls 'torch._utils.os.system'"),
        (b"ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ, which makes objects"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX"),
        (b"ctorch\nFloatStorage\n)R.", "calls 'torch.FloatStorage'"),
        (b"ctorch\nFloatStorage\n}b.", "sets the state of an object"),
        (b"]}b.", "sets the state of an object"),
        (b"ccollections\nOrderedDict\n}b.", "sets the state of an object"),
        (b"]q\x00h\x00a.", "containers within themselves"),
        (b"](" + b"](" * 200 + b"e" * 200 + b"e.", "containers within themselves, or too deep"),
        (b"(Va\nNNt.", None),
        (b"}(NNu.", "key of type NoneType"),
        (b"}(]Nu.", "SETITEMS lacks its operands"),
        (b"h\x07.", "BINGET lacks its operands"),
        (b"Na.", "APPEND lacks its operands"),
        (b"R.", "REDUCE lacks its operands"),
        (b".", "STOP lacks its operands"),
        (b"N", "exhausted before seeing STOP"),
        (b"Va\nQ.", "persistent id that is not a storage"),
        (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "encoding other than latin1"),
        (b"cnumpy\ndtype\n(VO8\ntR.", "NumPy number of type 'O8', which is refused"),
    ],
)
def test_strange_pickle_is_one_clear_error(tmp_path, program, problem):
    path = as_file(tmp_path / "a.pt", zipped(program))
    if problem is None:
        assert read.read(path) == ("a", None, None)
        return
    with pytest.raises(FileError, match=problem) as caught:
        read.read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_shared_containers_are_read_once(tmp_path):
    """Forty lists of the one before, twice each, are forty lists and not 2^40."""
    program = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(40)) + b"."
    found = read.read(as_file(tmp_path / "a.pt", zipped(program)))
    for _ in range(40):
        assert found[0] is found[1]
        found = found[0]
    assert found == []


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


def test_safetensors_are_read(tmp_path):
    found = read.read(as_file(tmp_path / "a", TENSORS))
    expected = {
        "half": np.array([1.5, -2], np.float32),
        "full": ARRAY,
        "number": np.array(-3, np.int64),
    }
    assert same(found, expected)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry(offsets=(0, 20))}, r"tensor \[2, 3\] in bytes 0 .. 20 of 24"),
        ({"a": entry(shape=(2, 4), offsets=(0, 32))}, "in bytes 0 .. 32 of 24"),
        ({"a": entry(shape=(5,), offsets=(4, 24))}, "gaps, overlap"),
        ({"a": entry(shape=(5,), offsets=(0, 20))}, "gaps, overlap"),
        ({"a": entry(), "b": entry()}, "gaps, overlap"),
        ({"a": entry(shape=(-2, -3))}, "sizes that are not integers of at least 0"),
        ({"a": entry("F8_E4M3", (24,))}, "type 'F8_E4M3'; valid is F64, F32"),
        ({"a": 1}, "damaged"),
        (b'{"a": [[[', "damaged"),
    ],
)
def test_wrong_safetensors_are_one_clear_error(tmp_path, header, problem):
    with pytest.raises(FileError, match=problem):
        read.read(as_file(tmp_path / "a", safetensors(header, ARRAY.tobytes())))


@pytest.mark.parametrize("folder", [".", "unet"])
def test_diffusers_folder_is_read(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "config.json").write_text('{"sample_size": 32}')
    as_file(tmp_path / folder / "diffusion_pytorch_model.safetensors", TENSORS)
    found = read.read(tmp_path)
    assert found["config"] == {"sample_size": 32}
    assert same(found["tensors"]["full"], ARRAY)


def packed(array, name=None, code=1):
    parts = (array.shape, name or array.dtype.name, array.tobytes())
    return msgpack.ExtType(code, msgpack.packb(parts))


def test_flax_file_is_read(tmp_path):
    flat = ARRAY.ravel()
    chunks = {"0": packed(flat[:4]), "1": packed(flat[4:])}
    tree = {
        "step": packed(np.array(7), code=3),
        "params": {"kernel": packed(ARRAY), "half": packed(np.array([0x3FC0], "<u2"), "bfloat16")},
        "large": {
            "__msgpack_chunked_array__": True,
            "shape": {"0": 2, "1": 3},
            "chunks": chunks,
        },
        "complex": msgpack.ExtType(2, msgpack.packb((1.0, 2.0))),
        "none": None,
    }
    found = read.read(as_file(tmp_path / "checkpoint_8", msgpack.packb(tree)))
    expected = {
        "step": 7,
        "params": {"kernel": ARRAY, "half": np.array([1.5], np.float32)},
        "large": ARRAY,
        "complex": 1 + 2j,
        "none": None,
    }
    assert same(found, expected)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (msgpack.ExtType(9, b""), "the extension 9"),
        (packed(ARRAY, "object"), "array of type 'object'"),
        (packed(ARRAY, "float64"), "damaged"),
        (
            msgpack.ExtType(1, msgpack.packb(((-2, -3), "float32", ARRAY.tobytes()))),
            "a shape that is not one of an array",
        ),
        (msgpack.ExtType(1, msgpack.packb(7)), "damaged"),
    ],
)
def test_wrong_flax_file_is_one_clear_error(tmp_path, value, problem):
    with pytest.raises(FileError, match=problem):
        read.read(as_file(tmp_path / "a", msgpack.packb({"a": value})))


NO_CHECKPOINTS = {
    "empty": (b"", "is empty. Download it again"),
    "web page": (b"\n<!DOCTYPE html><html>quota exceeded", "web page instead of the file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "pickle": (
        pickle.dumps({"a": 1}, 4),
        "bare pickle. Loading it would execute code, .* torch.save",
    ),
    "text": (b"Entry not found", "begin with 'Entry not found', which is not a known format"),
    "archive": (zipped(b"N.", **{"constants.pkl": b""}), "not one of torch.save"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_other_file_is_one_clear_error(tmp_path, name):
    content, problem = NO_CHECKPOINTS[name]
    path = as_file(tmp_path / "net.pth", content)
    with pytest.raises(FileError, match=problem) as caught:
        read.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_folder_are_clear_errors(tmp_path):
    with pytest.raises(FileError, match="there is no such file or folder"):
        read.read(tmp_path / "a.pth")
    with pytest.raises(FileError, match=r"a folder without config\.json"):
        read.read(tmp_path)


def test_compressed_archive_is_refused(tmp_path):
    """Or a small file could ask for all memory there is."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(FileError, match="compressed zip archive"):
        read.read(tmp_path / "a.pt")


WHOLE = {
    "zip": zipped(tensor(0, (2, 3), (3, 1)), [ARRAY.tobytes()]),
    "stream": streamed(pickle.dumps({"a": [1, 2.0, "b"]}, 2)),
    "safetensors": TENSORS,
    "flax": msgpack.packb({"step": 1, "params": {"kernel": packed(ARRAY)}}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_file_is_an_error_at_every_byte(tmp_path, name):
    content = WHOLE[name]
    read.read(as_file(tmp_path / "a", content))
    for length in range(len(content)):
        with pytest.raises(FileError):
            read.read(as_file(tmp_path / "a", content[:length]))


@pytest.mark.parametrize("name", [*WHOLE, "torch_stream.pt", "torch_zip.pt"])
def test_changed_bytes_are_an_error_or_another_value(tmp_path, name):
    content = WHOLE.get(name) or (DATA / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[position] = rng.integers(0, 256)
        path = as_file(tmp_path / "a", bytes(changed))
        with contextlib.suppress(FileError):
            read.read(path)


def test_unreadable_file_is_a_clear_error(tmp_path, monkeypatch):
    path = as_file(tmp_path / "a", TENSORS)

    def fail(*_, **__):
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(FileError, match=r"cannot be read \(Permission denied\)"):
        read.read(path)


class Shape:
    def __init__(self, *shape):
        self.shape = shape


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (mapping.IDENTICAL, (2, 3), (2, 3)),
        (mapping.CONV, (5, 4, 3, 2), (3, 2, 4, 5)),
        (mapping.LINEAR, (5, 4), (4, 5)),
        (mapping.CONV_1X1, (5, 4, 1, 1), (4, 5)),
        (mapping.CONV_1D, (5, 4, 1), (4, 5)),
        (mapping.FLAX_CONV_1X1, (1, 1, 4, 5), (4, 5)),
        (mapping.IMAGE_CHANNELS, (1, 1, 1, 5), (5,)),
    ],
)
def test_layouts_are_inverse(layout, theirs, ours):
    w = np.arange(np.prod(theirs)).reshape(theirs)
    assert layout.to_ours(w).shape == ours
    assert np.array_equal(layout.to_theirs(layout.to_ours(w)), w)


def test_conv_layout_keeps_the_meaning():
    w = np.random.default_rng(0).normal(size=(5, 4, 3, 2))
    assert mapping.CONV.to_ours(w)[2, 1, 3, 4] == w[4, 3, 2, 1]


@pytest.mark.parametrize("order", ["part head channel", "head part channel", "head channel part"])
def test_part_is_cut_out_of_a_fused_matrix(order):
    """Each row says which part, head and channel it is of."""
    sizes = {"part": 3, "head": 2, "channel": 4}
    grids = np.meshgrid(*(np.arange(sizes[word]) for word in order.split()), indexing="ij")
    rows = dict(zip(order.split(), (grid.ravel() for grid in grids), strict=True))
    w = np.stack([rows["part"], rows["head"], rows["channel"]], axis=1)
    for index in range(3):
        value = mapping.part(index, mapping.IDENTICAL, heads=2, order=order).to_ours(w)
        expected = [[index, head, channel] for head in range(2) for channel in range(4)]
        assert value.tolist() == expected
        columns = mapping.part(index, mapping.LINEAR, heads=2, order=order, axis=1).to_ours(w.T)
        assert columns.tolist() == expected


def test_impossible_part_is_refused():
    with pytest.raises(ValueError, match="part 3 of 3"):
        mapping.part(3, mapping.LINEAR)
    with pytest.raises(ValueError, match="order 'part channel'"):
        mapping.part(0, mapping.LINEAR, order="part channel")


RULES = [mapping.LINEAR.weight("a/kernel", "x.weight"), mapping.IDENTICAL.weight("b", "x.bias")]
TEMPLATE = {"a": {"kernel": Shape(3, 2)}, "b": Shape(2)}
THEIRS = {"x.weight": ARRAY, "x.bias": np.ones(2, np.float16)}


def test_translation_and_back():
    params = mapping.translate(RULES, TEMPLATE, THEIRS)
    assert same(params, {"a": {"kernel": ARRAY.T}, "b": np.ones(2, np.float32)})
    assert params["a"]["kernel"].flags.c_contiguous
    back = mapping.translate_back(RULES, params)
    assert same(back, {"x.weight": ARRAY, "x.bias": np.ones(2, np.float32)})


def test_unused_tensors_are_named_by_patterns():
    tensors = THEIRS | {"x.count": np.ones(()), "sigmas": np.ones(7)}
    mapping.translate(RULES, TEMPLATE, tensors, unused=["*.count", "sigmas"])
    with pytest.raises(ValueError, match=r"net\.pt does not fit .*1 surplus: sigmas \(7,\)"):
        mapping.translate(RULES, TEMPLATE, tensors, unused=["*.count"], source="net.pt")


def test_all_misfits_are_told_at_once():
    template = TEMPLATE | {"c": Shape(1), "d": Shape(2, 2)}
    rules = [*RULES, mapping.IDENTICAL.weight("c", "y"), mapping.CONV.weight("d", "x.bias")]
    tensors = {"x.weight": ARRAY.T, "x.bias": np.ones(2), "z": np.ones(4)}
    with pytest.raises(ValueError, match="does not fit this network") as caught:
        mapping.translate(rules, template, tensors)
    for text in (
        "1 missing: y for c (1,)",
        "2 wrongly shaped: x.weight (3, 2) for a/kernel (3, 2), x.bias (2,) for d (2, 2)",
        "1 surplus: z (4,)",
        "Set the fields of config.model",
    ):
        assert text in str(caught.value)


def test_long_lists_of_misfits_are_shortened():
    tensors = THEIRS | {f"more.{i}": np.ones(1) for i in range(30)}
    with pytest.raises(ValueError, match=r"30 surplus: more.0 \(1,\), .* and 28 more"):
        mapping.translate(RULES, TEMPLATE, tensors)


def test_rules_that_miss_a_parameter_are_an_error():
    with pytest.raises(ValueError, match="1 without a rule: b"):
        mapping.translate(RULES[:1], TEMPLATE, THEIRS, unused=["*"])
    with pytest.raises(ValueError, match=r"1 only in the rules: b from x\.bias"):
        mapping.translate(RULES, {"a": TEMPLATE["a"]}, THEIRS)
    with pytest.raises(ValueError, match="1 in two rules: b"):
        mapping.translate([*RULES, RULES[1]], TEMPLATE, THEIRS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_numbers_that_are_not_finite_are_named(bad):
    with pytest.raises(ValueError, match=r"x\.bias \(b\) has 1 of 2 numbers that are not finite"):
        mapping.translate(RULES, TEMPLATE, THEIRS | {"x.bias": np.array([1.0, bad])})
    with pytest.raises(ValueError, match="b has 1 of 2 numbers"):
        mapping.translate_back(RULES, {"a": {"kernel": ARRAY.T}, "b": np.array([1.0, bad])})


def test_part_has_no_way_back():
    rules = [mapping.part(0, mapping.LINEAR).weight("a", "qkv")]
    with pytest.raises(ValueError, match="1 without an inverse: a as qkv"):
        mapping.translate_back(rules, {"a": ARRAY})
