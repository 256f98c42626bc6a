"""Paths in a folder of this machine, or in a bucket of Google Cloud Storage, gs://BUCKET/FOLDER.

A path of this machine is a `pathlib.Path`. One in a bucket is a path of `etils.epath`, which has
the methods that both need. A bucket is no file system: an object appears whole or not at all, and
is safe once it is written. It cannot be renamed, locked, or appended to.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import BucketError, ScoreSDEError

if TYPE_CHECKING:
    AnyPath = Path
else:
    from etils import epath

    AnyPath = Path | epath.Path

_BUCKET = "gs://"


def as_path(name: str | os.PathLike[str]) -> AnyPath:
    """Return the path that a user has named, with "~" expanded.

    Raises:
        BucketError: for another URL than gs://BUCKET/..., or if the package for it is missing.
    """
    text = os.fspath(name)
    if not in_bucket(text):
        if "://" in text:
            raise BucketError(
                f"{text}: give the path of a folder or file, or gs://BUCKET/PATH; mount other "
                "stores as a file system"
            )
        return Path(os.path.expanduser(text))  # pathlib's raises for an unknown user
    if not text.removeprefix(_BUCKET).strip("/"):
        raise BucketError(f"{text}: name a bucket and a path in it, such as gs://BUCKET/PATH")
    _load_client(text)
    from etils import epath

    path: Any = epath.Path(text)
    return path


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Return whether a path lies in a bucket."""
    return os.fspath(path).startswith(_BUCKET)


def bucket_of(path: AnyPath) -> str:
    """Return the address of a path's bucket, gs://BUCKET."""
    return _BUCKET + os.fspath(path).removeprefix(_BUCKET).partition("/")[0]


def _load_client(text: str) -> None:
    """Choose the client of buckets, gcsfs, or raise BucketError if it is missing."""
    if importlib.util.find_spec("gcsfs") is None:
        raise BucketError(
            f"{text}: a bucket needs a package that is not installed; run: pip install gcsfs"
        )
    from fsspec.config import conf

    # TensorFlow, where it is installed, would read buckets in its stead, with its own errors.
    os.environ.setdefault("EPATH_USE_TF", "0")
    # Orbax writes objects by another library, so that lists which are kept would lack them.
    conf.setdefault("gcs", {})["use_listings_cache"] = False
    # Its log has the tracebacks of errors that it raises too, and `bucket_errors` makes one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


@contextmanager
def bucket_errors(path: AnyPath) -> Iterator[None]:
    """Turn all errors of a bucket's client into a BucketError, except for a missing object.

    It does nothing for a path of this machine.

    Raises:
        BucketError: with one line and the remedy.
        FileNotFoundError: if the object is missing; when writing, the bucket is.
    """
    if not in_bucket(path):
        yield
        return
    try:
        yield
    except (FileNotFoundError, ScoreSDEError):
        raise
    except Exception as error:  # of gcsfs, aiohttp and google.auth
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BucketError(
            f"{path} cannot be used ({reason}). Log in by `gcloud auth application-default login`, "
            "or give this machine's account the roles storage.objectUser and "
            f"storage.legacyBucketReader on {bucket_of(path)} (docs/clusters.md)"
        ) from error


def missing_bucket(path: AnyPath) -> BucketError:
    """Return the error for a bucket that does not exist."""
    bucket = bucket_of(path)
    return BucketError(
        f"{path}: there is no bucket {bucket}, or this machine's account may not see it. Check the "
        f"name, create it by `gcloud storage buckets create {bucket}`, or give the account the "
        "roles of docs/clusters.md"
    )
