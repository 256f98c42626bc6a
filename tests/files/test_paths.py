"""Paths of this machine and in buckets, and the one line for each that cannot be used."""

import importlib.util
from pathlib import Path

import pytest
from fake_buckets import fake_buckets

from errors import BucketError
from files.paths import as_path, bucket_errors, bucket_of, in_bucket


def test_paths_of_this_machine_are_those_of_pathlib():
    assert as_path("a/b.txt") == Path("a/b.txt")
    assert as_path("~") == Path.home()
    assert not in_bucket("a/gs://b")


def test_paths_in_buckets_keep_their_address(tmp_path):
    with fake_buckets(tmp_path):
        path = as_path("gs://bucket/run")
        assert in_bucket(path / "a")
        assert str(path / "a" / "b.txt") == "gs://bucket/run/a/b.txt"
        assert bucket_of(path / "a") == "gs://bucket"
        assert as_path(path) == path


@pytest.mark.parametrize("text", ["s3://bucket/run", "file:///run", "gs://", "gs:///"])
def test_other_addresses_are_refused_with_the_form_that_is_valid(text):
    with pytest.raises(BucketError, match=r"gs://BUCKET/PATH"):
        as_path(text)


def test_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BucketError, match=r"^gs://bucket/run: .*pip install gcsfs$"):
        as_path("gs://bucket/run")


def test_errors_of_the_client_are_one_line_with_the_remedy(tmp_path):
    class HttpError(Exception):
        """Of the client: no OSError."""

    with fake_buckets(tmp_path):
        path = as_path("gs://bucket/run")
    with (
        pytest.raises(BucketError, match=r"^gs://bucket/run .*\(no\s.*way\).*roles .*bucket ") as e,
        bucket_errors(path),
    ):
        raise HttpError("no\nway")
    assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError), bucket_errors(path):
        raise FileNotFoundError
    with pytest.raises(PermissionError), bucket_errors(Path("a")):  # as ever on this machine
        raise PermissionError
