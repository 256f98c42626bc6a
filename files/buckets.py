"""Files in buckets: written whole, listed, removed, and copied to this machine for a while.

Programs of others (NumPy, Pillow, TensorBoard, zip archives) write and read files of this machine.
So a file is written here and then uploaded as one object, and copied here before it is read.
`copies.py` has the copies that are kept.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from files.paths import AnyPath, bucket_errors, in_bucket, missing_bucket

AT_A_TIME = 16  # requests; each waits for the network
_CHUNK = 2**24  # bytes


def require_access(path: AnyPath, *, writes: bool = False) -> None:
    """Raise BucketError unless the bucket of `path` exists and may be listed, and written to.

    It does nothing for a path of this machine.

    Args:
        path: a file or folder, which need not exist.
        writes: whether to write an object beside those of `path`, and to delete it.
    """
    if not in_bucket(path):
        return
    with bucket_errors(path):
        try:
            next(iter(path.iterdir()), None)
        except (FileNotFoundError, NotADirectoryError):  # of the folder, or of the bucket
            if not bucket_exists(path):
                raise missing_bucket(path) from None
    if writes:
        probe = path / ".writable"
        write_object(probe, b"")
        with bucket_errors(probe):
            probe.unlink()


def bucket_exists(path: AnyPath) -> bool:
    """Return whether there is the bucket of `path`, as far as this account may know."""
    parts = [path, *path.parents]
    root = next(part for part in parts if os.fspath(part).count("/") <= 2)
    with bucket_errors(path):
        return root.exists()


def write_object(path: AnyPath, content: bytes | Path) -> None:
    """Write one object, with given bytes or those of a file; it appears whole or not at all.

    Raises:
        BucketError: if it cannot be written.
    """
    with bucket_errors(path):
        try:
            with path.open("wb") as target:
                if isinstance(content, bytes):
                    target.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, target, _CHUNK)
        except FileNotFoundError:
            raise missing_bucket(path) from None


def upload(source: Path, path: AnyPath) -> None:
    """Write a file, or the files of a folder, as objects.

    Each appears whole or not at all; those of a folder appear one after the other.

    Raises:
        BucketError: if one cannot be written.
    """
    if source.is_file():
        write_object(path, source)
        return
    files = sorted(file for file in source.rglob("*") if file.is_file())
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        names = (file.relative_to(source).as_posix() for file in files)
        list(pool.map(write_object, [path / name for name in names], files))


def names_below(path: AnyPath) -> list[str]:
    """Return the files below a folder, "a/b.txt", sorted; none if there is no folder.

    Raises:
        BucketError: if the bucket cannot be listed.
    """
    if not in_bucket(path):
        return sorted(
            file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()
        )
    found, folders = [], [""]
    with bucket_errors(path), ThreadPoolExecutor(AT_A_TIME) as pool:
        while folders:
            entries = [
                f"{folder}{entry.name}" for folder in folders for entry in _entries(path / folder)
            ]
            kinds = list(pool.map(lambda name: (path / name).is_dir(), entries))
            found += [name for name, folder in zip(entries, kinds, strict=True) if not folder]
            folders = [f"{name}/" for name, folder in zip(entries, kinds, strict=True) if folder]
    return sorted(found)


def _entries(folder: AnyPath) -> list[AnyPath]:
    """Return what lies in a folder of a bucket, except the object that stands for itself."""
    try:
        return [entry for entry in folder.iterdir() if entry.name and entry != folder]
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove(path: AnyPath, *, first: str = "") -> None:
    """Delete a file, or a folder with all that is in it, if it exists.

    Args:
        path: what to delete.
        first: a file in the folder that goes first: the one that says that the folder is whole.

    Raises:
        OSError, BucketError: if it cannot be deleted.
    """
    if not in_bucket(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    with bucket_errors(path):
        if first:
            (path / first).unlink(missing_ok=True)
        names = names_below(path)
        objects = [path / name for name in names] if names else [path]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(lambda each: each.unlink(missing_ok=True), objects))
        if names and path.is_dir():  # a bucket that keeps empty folders
            folder: Any = path
            folder.rmtree(missing_ok=True)


def move(path: AnyPath, target: AnyPath, *, last: str = "") -> None:
    """Give a file or folder another name; what had that name is deleted.

    In a bucket each object is copied and then deleted, `last` at the end.

    Raises:
        OSError, BucketError: if it cannot be moved.
    """
    remove(target)
    if not in_bucket(path):
        path.rename(target)
        return
    with bucket_errors(path):
        names = sorted(names_below(path), key=lambda name: (name == last, name))
        pairs = [(path / name, target / name) for name in names] or [(path, target)]
        for source, copied in pairs:
            objects: Any = source
            objects.copy(copied, overwrite=True)
    remove(path, first=last)


@contextmanager
def readable(path: AnyPath) -> Iterator[Path]:
    """Give a file of this machine with the content of `path`: itself, or a copy for a while.

    Raises:
        FileNotFoundError: if it is missing in the bucket.
        BucketError: if it cannot be read.
    """
    if not in_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="scoresde-") as folder:
        copied = Path(folder, path.name)
        download(path, copied)
        yield copied


def download(path: AnyPath, target: Path) -> None:
    """Copy an object; an error of writing is an OSError, and one of the bucket a BucketError."""
    with ExitStack() as stack:
        with bucket_errors(path):
            source = stack.enter_context(path.open("rb"))
        file = stack.enter_context(target.open("wb"))
        while True:
            with bucket_errors(path):
                chunk = source.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
