"""Things that have the name of a file and are none."""

import os
import socket
from pathlib import Path

import pytest

from errors import FileError
from files.kinds import require_file


def test_files_and_links_to_them_pass(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").symlink_to("a")
    require_file(tmp_path / "a", "a")
    require_file(tmp_path / "b", "b")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing", "there is no such file"),
        ("file/below", "there is no such file"),
        ("broken", "there is no such file"),
        ("loop", "cannot be read"),
        ("a\0b", "no valid path"),
        ("x" * 300, r"cannot be read \(File name too long\)"),
        ("folder", "a folder instead of a file"),
        ("pipe", "a pipe instead of a file"),
        ("socket", "a socket instead of a file"),
        ("/dev/zero", "a device instead of a file"),
    ],
)
def test_everything_else_is_refused_in_one_line(tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)  # sockets have short paths
    Path("file").write_bytes(b"")
    Path("folder").mkdir()
    Path("broken").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(FileError, match=rf"^config\.field='a': .*{problem}") as caught:
            require_file(Path(name), "config.field='a'")
    assert "\n" not in str(caught.value)
