"""A bucket for the tests of copies and objects."""

import pytest
from fake_buckets import fake_buckets

from files.paths import as_path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of this machine that holds the objects of gs://bucket."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fake_buckets(tmp_path / "buckets") as root:
        yield root / "bucket"


@pytest.fixture
def run(root):
    """A path in that bucket."""
    return as_path("gs://bucket/run")
