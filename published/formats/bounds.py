"""What a checkpoint may hold at most, so that no small file takes all time or memory.

A pickle may contain the same container many times. As a tree, 60 tuples with twice the one before
have 2^60 values. Whoever hashes, compares, prints, copies or counts them never ends. So types are
checked before values are used, and a tree is walked once, as a tree, up to a bound.
"""

from typing import Any

from errors import FileError

NODES = 1_000_000  # values of a checkpoint, or instructions of its pickle
DEPTH = 100  # of nested containers
INTEGER_KEYS = 10_000  # of all dicts; integers can be chosen so that their hashes collide
_LONGEST_KEY = 500  # characters


def check_key(key: Any) -> None:
    """Raise ValueError unless `key` is a short text or an integer, without hashing it."""
    if type(key) is int:
        if not -(2**63) <= key < 2**63:
            raise ValueError("a dict has an integer key beyond 64 bits")
    elif type(key) is not str:
        raise ValueError(f"a dict has a key of type {type(key).__name__}")
    elif len(key) > _LONGEST_KEY:
        raise ValueError(f"a dict has a key of {len(key)} characters")
    elif not key.isprintable():
        raise ValueError(f"a dict has the key {key[:40]!r}, which cannot be printed")


def check_tree(tree: Any) -> None:
    """Check the number of values in `tree`, their nesting and the keys of dicts.

    A value that occurs twice counts twice.

    Raises:
        FileError: there are more than `NODES` values.
        ValueError: there are more than `DEPTH` levels, or other keys than `check_key` accepts.
    """
    level, count = [tree], 0
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            count += len(value) if isinstance(value, dict | list | tuple) else 0
            if count >= NODES:
                raise FileError(f"it holds more than {NODES} values, some of them many times over")
            if isinstance(value, dict):
                for key in value:
                    check_key(key)
                inner.extend(value.values())
            elif isinstance(value, list | tuple):
                inner.extend(value)
        level = inner
        if not level:
            return
    raise ValueError(f"containers within themselves, or nested deeper than {DEPTH}")
