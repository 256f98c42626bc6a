"""Folders for programs that append to files, which no bucket can: written here, and uploaded."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import final

from files.buckets import names_below, readable, write_object
from files.paths import AnyPath, in_bucket


@final
class StagedFolder:
    """A folder of this machine whose files are uploaded to a folder in a bucket.

    A folder of this machine is its own staged folder, and nothing is uploaded.

    Args:
        folder: where the files belong.
        starts_with: files that are copied from the bucket at the start, if they are there.
        ignores: subfolders that stay here, except for the files of `starts_with`.

    Raises:
        BucketError: if the bucket cannot be read.
    """

    def __init__(
        self, folder: AnyPath, starts_with: tuple[str, ...] = (), ignores: tuple[str, ...] = ()
    ) -> None:
        self._folder, self._kept, self._ignored = folder, starts_with, ignores
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of what is uploaded
        self._at = time.monotonic()
        self._stack = ExitStack()
        self.path = Path(folder) if not in_bucket(folder) else self._make()

    def _make(self) -> Path:
        path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="scoresde-")))
        for name in self._kept:
            with suppress(FileNotFoundError), readable(self._folder / name) as file:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(file.read_bytes())
        return path

    def upload(self, *, seconds: float = 0.0) -> None:
        """Upload what has changed, unless the last upload is less than `seconds` ago.

        A file is uploaded whole.

        Raises:
            BucketError: if the bucket cannot be written.
        """
        if not in_bucket(self._folder) or time.monotonic() - self._at < seconds:
            return
        changed = {}
        for name in names_below(self.path):
            found = (self.path / name).stat()
            stamp = found.st_size, found.st_mtime_ns
            ignored = name.partition("/")[0] in self._ignored and name not in self._kept
            if not ignored and self._uploaded.get(name) != stamp:
                changed[name] = stamp
        with ThreadPoolExecutor() as pool:
            list(
                pool.map(lambda name: write_object(self._folder / name, self.path / name), changed)
            )
        self._uploaded |= changed
        self._at = time.monotonic()

    def close(self) -> None:
        """Upload what has changed, and delete the folder on this machine if it was made for this.

        Raises:
            BucketError: if the bucket cannot be written.
        """
        with self._stack:
            self.upload()
