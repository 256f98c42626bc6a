"""A reader of pickles that executes no code.

A pickle is a program for a stack machine (`pickletools` documents each instruction). Some of its
instructions import and call anything that the file names. This machine has only the others, which
build dicts, lists, tuples, numbers and text. It never imports a name, but compares it with a list
of the caller, where it stands for a function of plain values. Any other name ends the reading. No
instruction here imports, sets an attribute or makes an object.

A value may be shared so often that hashing, comparing or printing it never ends (`bounds.py`). So
the machine, and functions of the caller, check a value's type before they do any of these.
"""

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast, final

from errors import FileError
from published.formats.bounds import INTEGER_KEYS, NODES, check_key

_LONGEST = 2**26  # bytes of a pickle, without the storages
_ARGUMENTS = 16  # of a call, at most

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """A name that the file may contain, such as "torch.FloatStorage", as text alone."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The valid names and ids in a pickle.

    Attributes:
        values: names that may be values.
        calls: names that the file may call, and our function for each. Its arguments are plain
            values, `Name`s, or results of such calls. It raises FileError for wrong arguments.
        persistent: reads a persistent id; None if there may be no such id.
    """

    values: frozenset[str]
    calls: Mapping[str, Callable[..., Any]]
    persistent: Callable[[Any], Any] | None = None


def load(file: IO[bytes], vocabulary: Vocabulary) -> Any:
    """Return the value of the next pickle in `file`, and advance `file` to its end.

    The instruction BUILD sets the state of an object. The state of a dict is dropped. Results of
    `calls` with a method `set_state` receive theirs. Any other object is refused.

    Raises:
        FileError: the pickle needs more than plain values and the vocabulary, or is too long.
        ValueError: it is damaged.
    """
    machine, bounded = _Machine(vocabulary), cast(IO[bytes], _Bounded(file))
    for number, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
        if number >= NODES:
            raise FileError(f"its pickle has more than {NODES} instructions")
        try:
            if opcode.name == "STOP":
                return machine.pop()
            machine.execute(opcode.name, argument)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"instruction {opcode.name} lacks its operands") from error
    raise ValueError("the pickle has no end")


def dictionary(keys: Sequence[Any], values: Sequence[Any]) -> dict:
    """Return a dict, with the keys checked before they are hashed.

    Raises:
        ValueError: `check_key` refuses a key.
    """
    for key in keys:
        check_key(key)
    return dict(zip(keys, values, strict=True))


@final
class _Bounded:
    """A file of which at most `_LONGEST` bytes are read; no read takes memory beyond its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _LONGEST

    def read(self, size: int) -> bytes:
        return self._counted(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._left + 1))

    def tell(self) -> int:
        return self._file.tell()

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise FileError(f"its pickle is longer than {_LONGEST} bytes")
        return data


@final
class _Machine:
    """The stack, a stack of stacks for marks, and the memo."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._integer_keys = 0
        self._made = 0  # values in the results of calls

    def pop(self) -> Any:
        return self._stack.pop()

    def execute(self, opcode: str, argument: Any) -> None:
        """Execute one instruction."""
        if opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode]())
        elif opcode in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[opcode])]
            self._stack.append(tuple(reversed(items)))
        elif opcode in _METHODS:
            _METHODS[opcode](self, argument)
        elif opcode == "INST":
            raise _refusal(_dotted(argument))
        else:
            raise FileError(
                f"its pickle has the instruction {opcode}, which makes objects of classes and is "
                f"refused. {REMEDY}"
            )

    def _skip(self, _: Any) -> None:
        pass

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        """Remove and return everything above the last mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._set(items)

    def _append(self, _: Any) -> None:
        self._extend([self.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("not a list")
        target.extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("not pairs for a dict")
        keys = items[::2]
        self._integer_keys += sum(type(key) is int for key in keys)
        if self._integer_keys > INTEGER_KEYS:
            raise FileError(f"its dicts have more than {INTEGER_KEYS} integers as keys")
        target.update(dictionary(keys, items[1::2]))

    def _put(self, index: int) -> None:
        if not 0 <= index < NODES:  # others could be chosen so that their hashes collide
            raise ValueError("a memo that no pickle of this size needs")
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, argument: str) -> None:
        self._name(_dotted(argument))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("not a name")
        self._name(f"{module}.{name}")

    def _name(self, text: str) -> None:
        if text not in self._vocabulary.values and text not in self._vocabulary.calls:
            raise _refusal(text)
        self._stack.append(Name(text))

    def _reduce(self, _: Any) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise TypeError("not a name and its arguments")
        if len(arguments) > _ARGUMENTS:
            raise ValueError(f"a call with {len(arguments)} arguments")
        if name.text not in self._vocabulary.calls:
            raise _refusal(name.text)
        result = self._vocabulary.calls[name.text](*arguments)
        # Arguments may be shared by many calls, and each copies them.
        if isinstance(result, dict | list | tuple | str | bytes):
            self._made += len(result)
            if self._made > NODES:
                raise FileError(f"calls in its pickle make more than {NODES} values")
        self._stack.append(result)

    def _build(self, _: Any) -> None:
        state, target = self.pop(), self.pop()
        if hasattr(type(target), "set_state"):
            target.set_state(state)
        elif type(target) is not dict:
            raise FileError(f"its pickle sets the state of an object, which is refused. {REMEDY}")
        self._stack.append(target)

    def _persistent(self, _: Any) -> None:
        if self._vocabulary.persistent is None:
            raise ValueError("a persistent id in a pickle that may have none")
        self._stack.append(self._vocabulary.persistent(self.pop()))


_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._skip,
    "FRAME": _Machine._skip,
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}

REMEDY = (
    "If you trust the file, load it with the software that wrote it and save the tensors alone: "
    "torch.save(net.state_dict(), path), or safetensors"
)


def _dotted(argument: str) -> str:
    """Return "module.name" for the "module name" of pickletools."""
    return argument.replace(" ", ".")


def _refusal(name: str) -> FileError:
    shown = name if len(name) <= 80 else f"{name[:80]}..."
    return FileError(f"its pickle calls {shown!r}, which is refused. {REMEDY}")
