"""A reader of pickles that runs nothing.

A pickle is a program for a stack machine (`pickletools` documents each instruction), and some of
its instructions import and call whatever the file names. This machine has only the others: it
builds dicts, lists, tuples, numbers and text. A name is never looked up. It is compared with a list
that the caller gives, and stands for the caller's function of plain values; any other name ends the
reading. There is no instruction here that imports, sets an attribute or makes an object.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, NamedTuple, final

from errors import FileError

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
    """A name that the file may mention, such as "torch.FloatStorage": text, and nothing behind."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a pickle may say.

    Attributes:
        values: names that may stand in the file as they are.
        calls: names that the file may call, and what this does to the arguments, which are plain
            values, `Name`s, or results of such calls. It raises FileError for wrong arguments.
        persistent: the meaning of a persistent id; None if there may be none.
    """

    values: frozenset[str]
    calls: Mapping[str, Callable[..., Any]]
    persistent: Callable[[Any], Any] | None = None


def load(file: BufferedIOBase, vocabulary: Vocabulary) -> Any:
    """The value of the next pickle in `file`, which is left behind its end.

    State that the file wants to set on a dict (the instruction BUILD) is dropped. The results of
    `calls` may have a method `set_state`, which gets it; anything else has no state.

    Raises:
        FileError: the pickle asks for anything but plain values and the vocabulary.
        ValueError: it is damaged.
    """
    machine = _Machine(vocabulary)
    for opcode, argument, _ in pickletools.genops(file):
        try:
            if opcode.name == "STOP":
                return machine.pop()
            machine.execute(opcode.name, argument)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"instruction {opcode.name} has not what it needs") from error
    raise ValueError("the pickle has no end")


@final
class _Machine:
    """The stack, a stack of stacks for marks, and the memo."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def execute(self, opcode: str, argument: Any) -> None:
        """One instruction."""
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
                f"its pickle uses the instruction {opcode}, which makes objects of classes and is "
                f"refused. {REMEDY}"
            )

    def _skip(self, _: Any) -> None:
        pass

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        """What lies above the last mark, which is taken away with it."""
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
        target.update(zip(items[::2], items[1::2], strict=True))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, argument: str) -> None:
        self._name(_dotted(argument))

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._name(f"{module}.{name}")

    def _name(self, text: str) -> None:
        if text not in self._vocabulary.values and text not in self._vocabulary.calls:
            raise _refusal(text)
        self._stack.append(Name(text))

    def _reduce(self, _: Any) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise TypeError("not a name and its arguments")
        if name.text not in self._vocabulary.calls:
            raise _refusal(name.text)
        self._stack.append(self._vocabulary.calls[name.text](*arguments))

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
    "Where the file is trusted, load it with the software that wrote it and save the plain tensors "
    "alone: torch.save(net.state_dict(), path), or safetensors"
)


def _dotted(argument: str) -> str:
    """What pickletools reads as "module name", as "module.name"."""
    return argument.replace(" ", ".")


def _refusal(name: str) -> FileError:
    shown = name if len(name) <= 80 else f"{name[:80]}..."
    return FileError(f"its pickle asks to run {shown!r}, which is refused. {REMEDY}")
