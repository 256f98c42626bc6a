"""Errors that a user can cause, and the checks of names and numbers that every module shares.

`main` prints each error as one line: what is wrong, where, what is valid, and the remedy.
"""

import contextlib
import functools
import math
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

# Where Linux says how much memory a container or a job of a cluster may have.
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class ScoreSDEError(Exception):
    """An error with a one-line message for whoever typed the command."""


class ConfigError(ScoreSDEError, ValueError):
    """The configuration asks for something that cannot be had."""


class WorkdirError(ScoreSDEError):
    """The working directory does not fit the command."""


class BucketError(ScoreSDEError):
    """A path in a bucket cannot be used."""


class CheckpointError(ScoreSDEError):
    """A checkpoint cannot be written or read."""


class MisfitError(CheckpointError):
    """A checkpoint holds the parameters of another network."""


class TrainingError(ScoreSDEError):
    """Training cannot go on, for example after a loss that is not finite."""


class SamplingError(ScoreSDEError):
    """Samples became NaN or infinite."""


class IntegrationError(ScoreSDEError):
    """A differential equation could not be solved to its end."""


class FileError(ScoreSDEError, ValueError):
    """A file that another project has published cannot be read."""


class CodecError(ScoreSDEError):
    """Images cannot be compressed, or compressed ones cannot be read."""


class BoundError(ScoreSDEError):
    """A term of a likelihood bound is NaN or infinite."""


class EvaluationError(ScoreSDEError):
    """A metric is NaN or infinite."""


class HostsError(ScoreSDEError):
    """Several hosts cannot work together."""


SEEDS = "[0, 4294967295]"  # JAX uses 32 bits of a seed, and would drop the others


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of `choices`, which the message lists."""
    choices = sorted(choices)
    if value not in choices:
        valid = ", ".join(map(str, choices))
        raise ValueError(f"{name}={value!r} is unknown; choose one of: {valid}")


def require_choices(name: str, values: Collection[Any], choices: Iterable[Any]) -> None:
    """Raise ValueError unless `values` are one or more of `choices`, which the message lists."""
    choices = list(choices)
    unknown = sorted(set(values).difference(choices))
    if unknown or not values:
        problem = f"{unknown[0]!r} is unknown" if unknown else "it is empty"
        valid = ", ".join(map(str, choices))
        raise ValueError(f"{name}={values!r}: {problem}; choose some of: {valid}")


def require_in(name: str, value: Any, interval: str) -> None:
    """Raise ValueError unless a number lies in an interval such as "(0, 1]" or "[1, inf)".

    Arrays pass: jit may have traced a number that was checked when it was given.
    """
    if not isinstance(value, int | float):
        return
    opening, low, high, closing = _parse(interval)
    above = value > low if opening == "(" else value >= low
    below = value < high if closing == ")" else value <= high
    if not (above and below):
        condition = f"must lie in {interval}"
        if high == math.inf:
            condition = f"must be {'above' if opening == '(' else 'at least'} {low:g}"
            condition += " and finite" if value == math.inf else ""
        raise ValueError(f"{name}={value} {condition}")


def memory_bytes() -> int:
    """Return the memory in bytes of the machine, or of the container or job if that has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits()])


def _memory_limits() -> Iterator[int]:
    """Yield the limits in bytes of the control groups of this process, of either version."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, name = ("memory", "memory.limit_in_bytes") if kinds else ("", "memory.max")
        inside = PurePosixPath(group.lstrip("/"))
        for folder in (inside, *inside.parents):
            with contextlib.suppress(OSError):  # a container does not see the groups around it
                text = (_GROUPS / root / folder / name).read_text().strip()
                if text.isdecimal():  # or "max"
                    yield int(text)


def require_memory(name: str, value: int, size: int) -> None:
    """Raise ValueError if the `size` bytes that a number asks for exceed `memory_bytes`."""
    memory = memory_bytes()
    if size > memory:
        raise ValueError(
            f"{name}={value} needs {size / 1e9:,.0f} GB of memory, and this machine or "
            f"its container has {memory / 1e9:,.0f}; give a smaller number"
        )


@functools.cache
def _parse(interval: str) -> tuple[str, float, float, str]:
    low, high = interval[1:-1].split(", ")
    return interval[0], float(low), float(high), interval[-1]
