"""Reads the subtrees of a configuration into objects, and tells what is wrong with a field by name.

A subtree such as config.sde holds the fields of whatever is chosen there by `name`. A field that
the chosen thing does not have is an error if given by hand, and unused if a file sets it.
"""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from ml_collections import ConfigDict

from errors import ConfigError


class Reader:
    """Reads subtrees of a configuration into objects and notes what each field resolved to."""

    def __init__(self, config: ConfigDict, explicit: frozenset[str]) -> None:
        self.config = config.copy_and_resolve_references()
        self.explicit = explicit
        self.resolved = plain(config)

    def errors(self, path: str) -> "Prefix":
        """A context in which a ValueError becomes a ConfigError with the config path in front."""
        return Prefix(path)

    def lookup(self, path: str, field: str, table: Mapping[str, Any]) -> Any:
        """The entry of `table` named by a field."""
        name = self.config[path][field]
        if name not in table:
            raise ConfigError(
                f"config.{path}.{field}={name!r} is unknown; "
                f"choose one of: {', '.join(sorted(table))}"
            )
        return table[name]

    def choose(self, path: str, table: Mapping[str, type]) -> Any:
        """An object of the class that `name` names, from the other fields of the subtree."""
        return self.construct(path, self.lookup(path, "name", table), ignore={"name"})

    def construct(self, path: str, cls: type, ignore: Set[str] = frozenset()) -> Any:
        """An object of `cls` from a whole subtree; every field must be one of its own."""
        (thing,) = self.construct_all(path, (cls,), ignore)
        return thing

    def construct_all(self, path: str, classes: tuple[type, ...], ignore: Set[str]) -> list[Any]:
        """Objects that share a subtree, each taking the fields that it has."""
        subtree = dict(self.config[path].items())
        owned = {
            cls: {f.name for f in dataclasses.fields(cls)} & subtree.keys() - ignore
            for cls in classes
        }
        known = set().union(*owned.values())
        given = {k: plain(v) for k, v in subtree.items() if v is not None and k not in ignore}
        for name in sorted(given.keys() - known):
            if f"{path}.{name}" in self.explicit:
                fields = ", ".join(sorted(known | ignore))
                owners = " and ".join(cls.__name__ for cls in classes) or "what is chosen here"
                raise ConfigError(
                    f"config.{path}.{name}={given[name]!r} is not a field of {owners}; "
                    f"its fields are: {fields}"
                )
            self.resolved[path][name] = None
        things = []
        for cls in classes:
            with self.errors(path):
                thing = cls(**{k: v for k, v in given.items() if k in owned[cls]})
            things.append(thing)
            for name in owned[cls]:
                self.resolved[path][name] = plain(getattr(thing, name))
        return things


class Prefix:
    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError | TypeError) and not isinstance(error, ConfigError):
            message = str(error)
            prefix = "" if message.startswith("config.") else f"config.{self.path}."
            raise ConfigError(prefix + message) from error


def plain(value: Any) -> Any:
    """Plain Python, as JSON and hashing want it: dicts, and tuples for all sequences."""
    if isinstance(value, ConfigDict | dict):
        return {key: plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value
