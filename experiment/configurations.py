"""Configuration files: where they are, and which there are."""

import contextlib
import functools
import os
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from errors import ConfigError
from experiment.reader import to_builtin

PROJECT = Path(__file__).resolve().parents[1]


def find_configuration(name: str) -> Path:
    """Return the file of a configuration: as given, or else in the project's own folder.

    Raises:
        ConfigError: if there is no such file.
    """
    for path in (Path(name), PROJECT / name):
        if os.path.isfile(path):  # False for a name that no file can have, too
            return path
    raise ConfigError(
        f"--config={name!r} is not a file; give one such as: {', '.join(configuration_names())}"
    )


def configuration_names() -> list[str]:
    """Return the names of the project's configuration files, such as configs/vp_digits.py."""
    files = (PROJECT / "configs").glob("[a-z]*_*.py")
    return sorted(str(file.relative_to(PROJECT)) for file in files)


def load_configuration(name: str) -> ConfigDict:
    """Return the configuration that a file makes.

    Args:
        name: `configs/file.py` or `configs/file.py:variant`. A file that is not there is looked for
            in the folder of the project.

    Raises:
        ConfigError: if there is no such file, or it cannot be loaded.
    """
    file, _, variant = name.partition(":")
    path = find_configuration(file)
    try:
        config = runpy.run_path(str(path))["get_config"](*filter(None, [variant]))
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() must return a ConfigDict, not {config!r:.40}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it is a program, and may raise anything or exit
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--config={file!r} cannot be loaded: {reason}") from error
    return config


def with_fields(config: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a resolved configuration with other values, {"section.field": value}."""
    copy = {
        name: dict(section) if isinstance(section, dict) else section
        for name, section in config.items()
    }
    for name, value in fields.items():
        section, _, field = name.partition(".")
        copy[section][field] = value
    return copy


@functools.cache
def default_configuration() -> dict[str, Any]:
    """Return the fields of configs/default.py and their defaults, as nested built-in types."""
    return to_builtin(load_configuration("configs/default.py"))


def with_younger_sections(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with the sections that it is too old to have, at defaults."""
    return default_configuration() | saved if "model" in saved else saved  # damaged


def known_configurations() -> Iterator[tuple[str, ConfigDict]]:
    """Yield every configuration of the project with its name, each with its variants."""
    for name in configuration_names():
        with contextlib.suppress(Exception):  # a user's own file may raise anything
            variants = runpy.run_path(str(PROJECT / name)).get("VARIANTS", ("",))
            for variant in variants:
                full = ":".join(filter(None, [name, variant]))
                yield full, load_configuration(full)
