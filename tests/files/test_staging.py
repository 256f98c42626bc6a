"""Files that grow on this machine and are uploaded whole: what has changed, when it is due."""

import pytest
from fake_buckets import fake_buckets

from files.paths import as_path
from files.staging import StagedFolder


@pytest.fixture
def root(tmp_path):
    with fake_buckets(tmp_path) as root:
        yield root / "bucket"


def test_folder_of_this_machine_is_its_own(tmp_path):
    staged = StagedFolder(tmp_path)
    assert staged.path == tmp_path
    staged.upload()
    staged.close()
    assert tmp_path.exists()


def test_changes_are_uploaded_when_they_are_due(root):
    (root / "run/kept").mkdir(parents=True)
    (root / "run/kept/log").write_text("1\n")
    staged = StagedFolder(as_path("gs://bucket/run"), ("kept/log", "none"), ignores=("kept",))
    with (staged.path / "kept/log").open("a") as file:
        file.write("2\n")
    (staged.path / "kept/large").write_text("stays here")
    staged.upload(seconds=60)
    assert (root / "run/kept/log").read_text() == "1\n"
    staged.upload()
    assert (root / "run/kept/log").read_text() == "1\n2\n"
    (root / "run/kept/log").unlink()
    (staged.path / "new").write_text("new")
    staged.close()
    assert not staged.path.exists()
    assert [path.name for path in (root / "run").rglob("*") if path.is_file()] == ["new"]
