"""Build objects from the sections of a configuration.

A section such as config.sampling holds the fields of whatever its `name` chooses. A field that the
chosen thing does not have is unused if a file sets it, and an error if the command line does.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from errors import ConfigError, require_choice


class Reader:
    """Builds objects from sections and records the value that each field resolved to.

    Args:
        config: a resolved configuration, nested dicts of built-in types.
        overrides: dotted names of the fields that the command line sets.
    """

    def __init__(self, config: dict[str, Any], overrides: Collection[str] = ()) -> None:
        self.config, self.overrides = config, overrides
        self.resolved = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
        self._tables: dict[tuple[str, str], Mapping[str, Any]] = {}  # by section and field

    def lookup(self, path: str, table: Mapping[str, Any], field: str = "name") -> Any:
        """Return the entry of `table` that a field names."""
        name = self.config[path][field]
        self._tables[path, field] = table
        with config_errors(path):
            require_choice(field, name, table)
        return table[name]

    def offer(self, path: str, table: Mapping[str, Any], field: str) -> None:
        """Let messages about unused fields name rows of a table that is not looked up.

        `field` begins with what its table needs, such as "name=pc predictor".
        """
        self._tables[path, field] = table

    def build_named(
        self, path: str, table: Mapping[str, type], *, fixed: Mapping[str, Any] | None = None
    ) -> Any:
        """Build an object of the class that the section's `name` chooses; see `build_all`."""
        cls = self.lookup(path, table)
        return self.build_all(path, (cls,), ignore={"name"}, fixed=fixed)[cls]

    def build(self, path: str, cls: type) -> Any:
        """Build an object of `cls` from a whole section."""
        return self.build_all(path, (cls,))[cls]

    def build_all(
        self,
        path: str,
        classes: tuple[type, ...],
        *,
        ignore: Collection[str] = (),
        fixed: Mapping[str, Any] | None = None,
    ) -> dict[type, Any]:
        """Build objects that share a section; each takes the fields that it has.

        `fixed` gives values that come from elsewhere to the classes that have such a field.

        Returns:
            The object of each class, in the order of `classes`.

        Raises:
            ConfigError: for a value that a class refuses, or a field of none of them that the
                command line sets.
        """
        fixed = fixed or {}
        given = {k: v for k, v in self.config[path].items() if v is not None and k not in ignore}
        fields = [{f.name for f in dataclasses.fields(cls)} for cls in classes]
        used = set().union(*fields) & self.config[path].keys()
        for name in sorted(given.keys() - used):
            if f"{path}.{name}" in self.overrides:
                raise ConfigError(self._unused(path, name, used | set(ignore)))
        self.resolved[path] |= dict.fromkeys(given.keys() - used)
        built: dict[type, Any] = {}
        for cls, names in zip(classes, fields, strict=True):
            values = {**given, **fixed}
            with config_errors(path):
                thing = cls(**{name: values[name] for name in names & values.keys()})
            taken = (names & used).difference(ignore)
            self.resolved[path] |= {name: to_builtin(getattr(thing, name)) for name in taken}
            built[cls] = thing
        return built

    def record(self, path: str, **values: Any) -> None:
        """Record what fields of a section resolved to, where no object says so."""
        self.resolved[path] |= values

    def _unused(self, path: str, name: str, used: set[str]) -> str:
        section = self.config[path]
        choices = [
            f"{field}={section[field]!r}"
            for field in ("name", "schedule", "predictor", "corrector")
            if field in used and section.get(field)
        ]
        chosen = f" with {', '.join(choices)}" if choices else ""
        return (
            f"config.{path}.{name}={section[name]!r} is not used{chosen}; "
            f"the fields used are: {', '.join(sorted(used))}{self._users(path, name)}"
        )

    def _users(self, path: str, name: str) -> str:
        """Return a phrase with the choices that would use a field, or ""."""
        phrases = []
        for (section, field), table in self._tables.items():
            rows = [key for key, row in table.items() if name in _fields_of(row)]
            if section == path and rows:
                *most, last = rows
                choices = f"{', '.join(most)} or {last}" if most else last
                phrases.append(f"; {name} is used with config.{path}.{field}={choices}")
        return "".join(phrases)


def _fields_of(row: Any) -> set[str]:
    """Return the fields that a row of a table has: a class, or what holds classes of options."""
    if isinstance(row, type):
        return {f.name for f in dataclasses.fields(row)} if dataclasses.is_dataclass(row) else set()
    if isinstance(row, Mapping):
        row = tuple(row.values())
    held = row if isinstance(row, tuple) else (getattr(row, "options", None),)
    return set().union(*(_fields_of(each) for each in held if each is not None))


@contextlib.contextmanager
def config_errors(path: str) -> Iterator[None]:
    """Turn a ValueError or TypeError into a ConfigError that starts with the section's name."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        message = str(error)
        prefix = "" if message.startswith("config.") else f"config.{path}."
        raise ConfigError(prefix + message) from error


def to_builtin(value: Any) -> Any:
    """Convert to built-in types, as JSON and hashing want them; every sequence becomes a tuple."""
    if isinstance(value, ConfigDict | dict):
        return {key: to_builtin(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(to_builtin(item) for item in value)
    return value
