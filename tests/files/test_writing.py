"""Files appear whole or not at all, and their checksums are those of sha256sum."""

import hashlib
import json

import pytest

from files.writing import sha256_of, write_file, write_json


def test_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"old": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_file(tmp_path / "deep" / "a.json", fail)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"old": 1}


def test_checksum_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
