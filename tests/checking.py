"""The type checker behind jaxtyping's import hook, which conftest.py installs.

The hook decorates inner functions too, whenever the outer one is called. Making beartype's checks
takes 2 ms, so functions of the same name and annotations share them.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_checked: dict[Any, Callable] = {}


def checked(function: Callable) -> Callable:
    """Return a function of the hook, whose body is none of ours, with its checks."""
    names = function.__module__, function.__qualname__
    key = *names, function.__code__, repr(function.__annotations__)
    if key not in _checked:
        # To Python's typing rules (PEP 484) an int is a float, and so it is here.
        _checked[key] = beartype(function, conf=BeartypeConf(is_pep484_tower=True))
    return _checked[key]
