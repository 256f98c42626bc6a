"""The files of checkpoints: which are finished, their checksums, and how they are removed.

On a file system a checkpoint has its name when it is finished, since Orbax renames it then. In a
bucket, where nothing can be renamed, Orbax writes an object at the end that marks it as finished,
and deleting a checkpoint begins with that object.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from absl import logging

from errors import BucketError
from files.buckets import move, names_below, remove
from files.paths import AnyPath, bucket_errors, in_bucket
from files.text import one_line
from files.writing import sha256_of, sync_tree

# Orbax appends the first to the name of an unfinished save on a file system. We append the others
# to a checkpoint that is being deleted (a rename is atomic, the removal of a tree is not) or did
# not load.
_UNFINISHED = ".orbax-checkpoint-tmp"
_DELETING = ".deleting"
_CORRUPT = ".corrupt"
_FINISHED = "commit_success.txt"  # of Orbax, in buckets
_CHECKSUMS = "SHA256SUMS"


class DamagedError(Exception):
    """The files of one checkpoint are damaged or missing."""


def finished_steps(directory: AnyPath) -> tuple[int, ...]:
    """Return the steps of the finished checkpoints in a directory, ascending."""
    try:
        with bucket_errors(directory):
            paths = [path for path in directory.iterdir() if path.name.isdecimal()]
            if in_bucket(directory):
                paths = [path for path in paths if (path / _FINISHED).exists()]
            else:
                paths = [path for path in paths if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return tuple(sorted(int(path.name) for path in paths))


def seal(directory: AnyPath, step: int) -> None:
    """Write the checksums of a checkpoint whose files are written and which is not finished yet."""
    path = directory / (f"{step}" if in_bucket(directory) else f"{step}{_UNFINISHED}")
    lines = [f"{sha256_of(path / name)}  {name}\n" for name in _files(path)]
    with bucket_errors(path):
        (path / _CHECKSUMS).write_text("".join(lines))
    sync_tree(path)


def verify(path: AnyPath, prefix: str = "") -> None:
    """Raise DamagedError unless the files of a checkpoint below `prefix` are those written."""
    try:
        with bucket_errors(path):
            lines = (path / _CHECKSUMS).read_text().splitlines()
    except FileNotFoundError as error:
        raise DamagedError(f"{_CHECKSUMS} is missing") from error
    except (OSError, ValueError) as error:
        raise DamagedError(one_line(error)) from error
    try:
        checksums = {name: checksum for checksum, name in map(str.split, lines)}
        if unlisted := [name for name in _files(path) if name not in checksums]:
            raise DamagedError(f"{_CHECKSUMS} does not list {unlisted[0]}")
        for name, checksum in checksums.items():
            if name.startswith(prefix) and _checksum(path, name) != checksum:
                raise DamagedError(f"{name} fails its checksum")
    except (OSError, ValueError) as error:  # ValueError: the list itself is damaged
        raise DamagedError(one_line(error)) from error


def _checksum(path: AnyPath, name: str) -> str:
    try:
        return sha256_of(path / name)
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is missing") from error


def _files(path: AnyPath) -> list[str]:
    """Return the items' files below `path`, except hidden ones, which file systems may add."""
    names = (name.rpartition("/") for name in names_below(path))
    return [f"{folder}/{name}" for folder, _, name in names if folder and name[0] != "."]


def tidy(directory: AnyPath, damaged: Collection[int]) -> None:
    """Remove what killed saves and deletions left, and set damaged checkpoints aside.

    A damaged checkpoint is renamed, not deleted, since someone may want to salvage it. In its place
    it would count as one of the latest and push good ones out.
    """
    if in_bucket(directory):
        _remove_unfinished(directory)
    elif directory.is_dir():
        for path in directory.iterdir():
            if _UNFINISHED in path.name or path.name.endswith(_DELETING):
                shutil.rmtree(path, ignore_errors=True)
    for step in set(damaged).intersection(finished_steps(directory)):
        move(directory / str(step), directory / f"{step}{_CORRUPT}", last=_FINISHED)


def _remove_unfinished(directory: AnyPath) -> None:
    """Remove the checkpoints in a bucket that are not marked as finished."""
    finished = finished_steps(directory)
    try:
        with bucket_errors(directory):
            paths = list(directory.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        if path.name.isdecimal() and int(path.name) not in finished:
            remove(path)


def delete(directory: AnyPath, step: int) -> None:
    """Delete a checkpoint; what a kill leaves of it is no checkpoint."""
    path = directory / str(step)
    try:
        if in_bucket(directory):
            remove(path, first=_FINISHED)
        else:
            doomed = Path(directory / f"{step}{_DELETING}")
            path.rename(doomed)
            shutil.rmtree(doomed)
    except (OSError, BucketError) as error:  # untidy, but no reason to stop a run
        logging.warning("cannot delete checkpoint %s: %s", step, error)
