"""Buckets that are folders: epath's own test file system, with what an object store cannot do.

An object appears when its writer closes it. There are no folders, only names with slashes. Nothing
is appended to or renamed. The bucket "forbidden" may not be used, and "readonly" not be written to.
"""

import contextlib
import functools
import io
import os
import shutil
from pathlib import Path
from unittest import mock

import orbax.checkpoint  # noqa: F401  # so that its module of buckets can be replaced
from etils.epath.testing import mock_epath
from orbax.checkpoint._src.path import gcs_utils

BUCKETS = ("bucket", "readonly")


class Upload(io.BytesIO):
    """An object that is being written."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def close(self):
        if not self.closed:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_name(f"{self.file.name}.{os.getpid()}.upload")
            partial.write_bytes(self.getvalue())
            partial.rename(self.file)
        super().close()


class Buckets:
    """The functions of a file system for gs://NAME/PATH, the file NAME/PATH below a folder."""

    def __init__(self, root):
        self.root = Path(root)
        for name in BUCKETS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def file(self, path, *, writes=False):
        found = self.root / os.fspath(path).removeprefix("gs://")
        bucket = found.relative_to(self.root).parts[0]
        if bucket == "forbidden" or (writes and bucket == "readonly"):
            raise OSError(f"Forbidden: {path}\nme@here has no access to objects")
        if writes and bucket not in BUCKETS:
            raise FileNotFoundError(path)
        return found

    def open(self, path, mode):
        assert "a" not in mode, "nothing can be appended to an object"
        if "r" in mode:
            return self.file(path).open(mode)
        upload = Upload(self.file(path, writes=True))
        return upload if "b" in mode else io.TextIOWrapper(upload, write_through=True)

    def exists(self, path):
        return self.file(path).is_file() or self.isdir(path)

    def isdir(self, path):
        folder = self.file(path)
        return folder.is_dir() and (folder.parent == self.root or any(folder.iterdir()))

    def listdir(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        return [each.name for each in self.file(path).iterdir() if each.suffix != ".upload"]

    def glob(self, path):
        bucket, _, pattern = path.removeprefix("gs://").partition("/")
        found = self.file(f"gs://{bucket}").glob(pattern)
        return [f"gs://{each.relative_to(self.root)}" for each in found]

    def remove(self, path):
        file = self.file(path, writes=True)
        file.unlink()
        for folder in file.parents:
            if folder.parent == self.root or any(folder.iterdir()):
                break
            folder.rmdir()

    def rmtree(self, path):
        shutil.rmtree(self.file(path, writes=True))

    def rename(self, path, target):
        raise AssertionError(f"{path} cannot be renamed")

    replace = rename

    def copy(self, path, target, *, overwrite):
        with self.open(target, "wb") as file:
            file.write(self.file(path).read_bytes())

    def stat(self, path):
        return self.original_stat(self.file(path))

    def mkdir(self, path, **more):
        self.file(path, writes=True)

    makedirs = mkdir

    def functions(self):
        """The functions, as epath takes them: all other paths go to the original."""

        def route(name, original, path, *more, **named):
            if not os.fspath(path).startswith("gs://"):
                return original(path, *more, **named)
            self.original_stat = original
            return getattr(self, name)(path, *more, **named)

        names = "open exists isdir listdir glob remove rmtree rename replace copy stat mkdir"
        return {name: functools.partial(route, name) for name in (*names.split(), "makedirs")}


@contextlib.contextmanager
def fake_buckets(root):
    """Make gs://NAME/PATH the file NAME/PATH below a folder."""
    import files.leases
    import files.paths

    buckets = Buckets(root)

    def storage(path):  # of the library by which Orbax writes arrays
        return {"driver": "file", "path": str(buckets.file(path, writes=True))}

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock_epath(**buckets.functions()))
        for module, name, value in (
            (gcs_utils, "get_kvstore_for_gcs", storage),
            (files.paths, "_load_client", lambda text: None),
            (files.leases, "PAUSE", 0.0),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield buckets.root
