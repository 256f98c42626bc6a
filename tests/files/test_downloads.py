"""Downloads against a server on loopback: resumed after an interruption, checked, never half."""

import pytest
from file_server import CONTENT, SHA256, serving

from files.downloads import download


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as handler:
        yield handler


def test_interrupted_download_resumes(server, tmp_path):
    path, server.stop = tmp_path / "weights.pth", 1_250_000

    def get() -> None:
        download(server.url, path, sha256=SHA256, remedy="put it there")

    with pytest.raises(
        ConnectionError, match=r"ended after 1250000 of 3000000 bytes; .* put it there"
    ):
        get()
    assert not path.exists()
    server.stop = len(CONTENT)
    get()
    assert path.read_bytes() == CONTENT
    assert server.requested == [None, "bytes=1250000-"]

    partial = path.rename(tmp_path / "weights.pth.partial")  # killed before the last step
    get()
    assert (path.read_bytes(), partial.exists()) == (CONTENT, False)

    path.unlink()
    partial.write_bytes(b"some bytes")
    server.ranges = False  # a server that always sends the whole
    get()
    assert path.read_bytes() == CONTENT


def test_failed_downloads_leave_nothing(server, tmp_path):
    path = tmp_path / "folder/weights.pth"

    def fails(error: type, url: str, message: str, sha256: str = SHA256) -> None:
        with pytest.raises(error, match=message) as caught:
            download(url, path, sha256=sha256, remedy="put it there", timeout=2.0)
        assert str(caught.value).endswith("put it there")
        assert "\n" not in str(caught.value)
        assert not path.parent.is_dir() or list(path.parent.iterdir()) == []

    fails(ValueError, server.url, rf"sha256 is {SHA256}, expected 0+;", "0" * 64)
    fails(ConnectionError, f"{server.url}.txt", r"weights.pth.txt: .* replied 404")
    fails(ConnectionError, "http://127.0.0.1:9/weights.pth", r"cannot be reached \(.*refused")
    path.parent.rmdir()
    path.parent.write_bytes(b"not a folder")
    fails(OSError, server.url, r"weights.pth cannot be written \(")


def test_stalled_download_says_so(server, tmp_path):
    server.stop, server.pause = 2_000_000, 30.0
    with pytest.raises(ConnectionError, match=r"the transfer has stopped \(.*timed out\); run"):
        download(server.url, tmp_path / "w.pth", sha256=SHA256, remedy="wait", timeout=0.2)
    assert 0 < (tmp_path / "w.pth.partial").stat().st_size < 2_000_000
