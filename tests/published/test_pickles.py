"""Pickles that are programs, damaged, or made to never end."""

import copyreg
import pickle
import time

import pytest
from published_files import as_file, streamed, zipped

from errors import FileError
from published.formats import bounds, pickles, read

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
        (b"}(]Nu.", "key of type list"),
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


def tower(kind, height=60):
    """A pickle of `height` containers, each with twice the one before; no STOP."""
    opening, closing = {"tuple": (b"", b"\x86"), "list": (b"](", b"e")}[kind]
    floors = (b"%bh%ch%c%bq%c0" % (opening, i, i, closing, i + 1) for i in range(height))
    return b")q\x000" + b"".join(floors) + b"h%c" % height


NUMBER = b"cnumpy\ndtype\n"
ENDLESS = {
    "shared tuples": (tower("tuple") + b".", "more than 1000000 values"),
    "shared lists": (tower("list") + b".", "more than 1000000 values"),
    "shared lists under names": (b"}Va\n" + tower("list") + b"s.", "more than 1000000 values"),
    "hashed as a key": (b"}" + tower("tuple") + b"Ns.", "key of type tuple"),
    "hashed as one of many keys": (b"}(" + tower("tuple") + b"Nu.", "key of type tuple"),
    "hashed in pairs": (
        b"ccollections\nOrderedDict\n((" + tower("tuple") + b"N\x86ttR.",
        "key of type tuple",
    ),
    "pairs that are one container": (
        b"ccollections\nOrderedDict\n(" + tower("list") + b"tR.",
        "key of type list",
    ),
    "shown as a device": (b"ctorch\ndevice\n(" + tower("tuple") + b"tR.", "device without a name"),
    "shown as a module": (tower("tuple") + b"Vx\n\x93.", "STACK_GLOBAL lacks its operands"),
    "shown as a type": (NUMBER + b"(" + tower("tuple") + b"tR.", "type without a name"),
    "shown as a size": (b"ctorch\nSize\n(" + tower("tuple") + b"tR.", "size of a tensor"),
    "compared with a kind of id": (tower("tuple") + b"Q.", "not a storage"),
    "compared with an encoding": (b"c_codecs\nencode\n(Va\n" + tower("tuple") + b"tR.", "latin1"),
    "20000 dimensions": (
        b"ctorch\nSize\n((" + b"K\x02" * 20_000 + b"ttR.",
        "size of a tensor",
    ),
    "equal hashes": (
        b"}("
        + b"".join(
            b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(1, 20_000)
        )
        + b"u.",
        "beyond 64 bits|integers as keys",
    ),
    "many integers": (
        b"}(" + b"".join(b"J" + k.to_bytes(4, "little") + b"N" for k in range(10_001)) + b"u.",
        "more than 10000 integers as keys",
    ),
    "a memo that collides": (b"Np%d\n." % (2**61 - 1), "a memo that no pickle"),
    "arguments copied by many calls": (
        b"ctorch\ndevice\nq\x00(" + b"K\x01" * 10_000 + b"tq\x01" + b"0h\x00h\x01R" * 10_000 + b".",
        "a call with 10000 arguments",
    ),
    "pairs copied by many calls": (
        b"ccollections\nOrderedDict\nq\x00(("
        + b"".join(b"V%d\nN\x86" % k for k in range(9_000))
        + b"ttq\x01"
        + b"0h\x00h\x01R" * 10_000
        + b".",
        "make more than 1000000 values",
    ),
    "bytes copied by many calls": (
        b"c_codecs\nencode\nq\x00(V"
        + b"a" * 500_000
        + b"\nVlatin1\ntq\x01"
        + b"h\x00h\x01R" * 10_000
        + b".",
        "make more than 1000000 values",
    ),
    "a text longer than the file": (b"\x8d" + (2**40).to_bytes(8, "little") + b"a.", "damaged"),
    "depth": (b"]" * 5000 + b"a" * 4999 + b".", "too deep"),
    "a long key": (b"}V" + b"a" * 501 + b"\nNs.", "key of 501 characters"),
    "a key of two lines": (b"}X\x03\x00\x00\x00a\nbNs.", "cannot be printed"),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("form", [zipped, streamed])
@pytest.mark.slow
def test_endless_pickle_ends_in_one_line(tmp_path, name, form):
    program, problem = ENDLESS[name]
    path = as_file(tmp_path / "a.pt", form(program))
    start = time.process_time()
    with pytest.raises(FileError, match=problem) as caught:
        read.read(path)
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("part", range(5))
def test_no_part_of_a_stream_is_hashed_or_shown(tmp_path, part):
    """The parts are the magic number, the protocol, C types, the object and the storages."""
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, {}, [])]
    bombs = {
        2: b"}Vlittle_endian\n" + tower("tuple") + b"s.",  # true, and never shown
        4: b"](" + tower("tuple") + b"e.",
    }
    parts[part] = b"\x80\x02" + bombs.get(part, tower("tuple") + b".")
    path = as_file(tmp_path / "a.pt", b"".join(parts))
    if part == 2:
        assert read.read(path) == {}
        return
    with pytest.raises(FileError, match=r"damaged|not a known format|bare pickle|1000000 values"):
        read.read(path)


def test_containers_may_be_shared_within_bounds(tmp_path):
    found = read.read(as_file(tmp_path / "a.pt", zipped(tower("list", 10) + b".")))
    for _ in range(10):
        assert found[0] is found[1]
        found = found[0]
    assert found == ()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (b"N0" * 500 + b"N.", "more than 1000 instructions"),
        (b"](" + b"N" * 900 + b"e\x85q\x00" + b"h\x00" * 3 + b"\x87.", "more than 1000 values"),
    ],
)
def test_values_and_instructions_are_counted(tmp_path, monkeypatch, program, problem):
    monkeypatch.setattr(pickles, "NODES", 1000)
    monkeypatch.setattr(bounds, "NODES", 1000)
    with pytest.raises(FileError, match=problem):
        read.read(as_file(tmp_path / "a.pt", zipped(program)))


def test_long_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_LONGEST", 1000)
    read.read(as_file(tmp_path / "a.pt", zipped(b"V" + b"a" * 900 + b"\n.")))
    for program in (b"V" + b"a" * 1000 + b"\n.", b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"."):
        with pytest.raises(FileError, match="longer than 1000 bytes"):
            read.read(as_file(tmp_path / "a.pt", zipped(program)))
