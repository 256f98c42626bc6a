"""Objects: written whole, listed, moved, removed, and copied to this machine when they change."""

import numpy as np
import pytest

from errors import BucketError, FileError
from files.arrays import read_arrays
from files.buckets import move, names_below, remove, require_access
from files.copies import local_copy, local_input
from files.kinds import require_file
from files.paths import as_path
from files.pictures import write_png_folder
from files.writing import make_folder, sha256_of, write_file, write_json, write_npz


def test_files_are_written_as_objects_and_read_back(root, run):
    make_folder(run)
    assert not (root / "run").exists(), "a bucket has no folders"
    write_json(run / "a.json", {"step": 1})
    write_npz(run / "b.npz", {"x": np.arange(3)})
    write_png_folder(run / "png", np.zeros((2, 4, 4, 1), np.uint8))
    assert names_below(run) == ["a.json", "b.npz", "png/000000.png", "png/000001.png"]
    assert (root / "run/a.json").read_text() == '{\n  "step": 1\n}\n'
    assert read_arrays(run / "b.npz", "b")["x"].tolist() == [0, 1, 2]
    assert sha256_of(run / "a.json") == sha256_of(root / "run/a.json")


def test_failed_writer_leaves_the_old_object(root, run):
    write_json(run / "a.json", 1)

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_file(run / "a.json", fail)
    assert (root / "run/a.json").read_text() == "1\n"


def test_pictures_of_an_earlier_run_do_not_stay(run):
    for count in (3, 1):
        write_png_folder(run / "png", np.zeros((count, 4, 4, 1), np.uint8))
    assert names_below(run / "png") == ["000000.png"]


def test_moved_folder_is_gone_from_its_old_name(run):
    for name in ("a", "b/c"):
        write_json(run / "old" / name, name)
    write_json(run / "new" / "before", 0)
    move(run / "old", run / "new", last="a")
    assert names_below(run) == ["new/a", "new/b/c"]
    move(run / "new/a", run / "a")
    assert names_below(run) == ["a", "new/b/c"]


def test_mark_of_a_whole_folder_goes_first_and_comes_last(run, monkeypatch):
    """However a deletion or a move is cut short, no part of a folder bears the mark."""
    for name in ("a", "mark", "z"):
        write_json(run / name, name)
    seen = []
    for verb in ("unlink", "copy"):
        original = getattr(type(run), verb)

        def watched(self, *more, verb=verb, original=original, **named):
            seen.append((verb, self.name))
            return original(self, *more, **named)

        monkeypatch.setattr(type(run), verb, watched)
    move(run, as_path("gs://bucket/aside"), last="mark")
    assert [name for verb, name in seen if verb == "copy"] == ["a", "z", "mark"]
    assert next(name for verb, name in seen[-4:] if verb == "unlink") == "mark"
    remove(as_path("gs://bucket/aside"))
    remove(as_path("gs://bucket/aside"))  # there is nothing any more
    assert names_below(as_path("gs://bucket/aside")) == []


def test_missing_objects_are_missing_files(run):
    write_json(run / "a", 1)
    assert not local_copy(run / "b").exists()
    with pytest.raises(FileError, match="there is no such file"):
        require_file(run / "b", "b")
    with pytest.raises(FileError, match="a folder instead"):
        require_file(run, "run")
    require_file(run / "a", "a")


def test_missing_and_forbidden_buckets_are_one_line(root):
    require_access(as_path("gs://bucket/new/run"), writes=True)
    assert not list(root.iterdir()), "the probe is deleted"
    require_access(as_path("gs://readonly/run"))
    for name, writes, words in (
        ("nowhere", False, "no bucket gs://nowhere.*gcloud storage buckets create"),
        ("forbidden", False, "Forbidden.*storage.objectUser .* on gs://forbidden"),
        ("readonly", True, "Forbidden.*storage.objectUser .* on gs://readonly"),
    ):
        with pytest.raises(BucketError, match=words):
            require_access(as_path(f"gs://{name}/run"), writes=writes)
    for name in ("nowhere", "forbidden", "readonly"):
        with pytest.raises(BucketError, match=name):
            write_json(as_path(f"gs://{name}/a.json"), 1)
    with pytest.raises(BucketError, match="no bucket"):
        local_input("gs://nowhere/a.npz")
