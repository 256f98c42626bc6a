"""Downloads against a server on loopback: resumed after an interruption, checked, never half."""

import pytest
from file_server import CONTENT, SHA256, serving

from files import downloads
from files.downloads import download

SIZE = len(CONTENT)


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as handler:
        yield handler


def test_interrupted_download_resumes(server, tmp_path):
    path, server.stop = tmp_path / "weights.pth", 1_250_000

    def get() -> None:
        download(server.url, path, sha256=SHA256, max_bytes=SIZE, remedy="put it there")

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
            download(url, path, sha256=sha256, max_bytes=SIZE, remedy="put it there", timeout=2.0)
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
        download(
            server.url, tmp_path / "w.pth", sha256=SHA256, max_bytes=SIZE, remedy="w", timeout=0.2
        )
    assert 0 < (tmp_path / "w.pth.partial").stat().st_size <= 2_000_000


@pytest.mark.parametrize("announced", [True, False])
def test_longer_file_is_not_downloaded(server, tmp_path, announced):
    """Whether the server says how long it is, or sends without an end."""
    server.announced = announced
    with pytest.raises(ValueError, match=r"the server (offers 3000000|has sent more than) .*; w$"):
        download(server.url, tmp_path / "w.pth", sha256=SHA256, max_bytes=10**6, remedy="w")
    assert list(tmp_path.iterdir()) == []


def test_partial_file_that_is_too_long_is_begun_anew(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_CHUNK", 1000)  # shorter than the buffer of the file
    (tmp_path / "w.pth.partial").write_bytes(bytes(SIZE + 1))
    download(server.url, tmp_path / "w.pth", sha256=SHA256, max_bytes=SIZE, remedy="w")
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requested == [None]


def test_server_that_sends_next_to_nothing_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_SLOW", (10**9, 0.0))
    with pytest.raises(
        ConnectionError, match=r"it has sent less than .* run again to continue; w$"
    ):
        download(server.url, tmp_path / "w.pth", sha256=SHA256, max_bytes=SIZE, remedy="w")
    assert 0 < (tmp_path / "w.pth.partial").stat().st_size < SIZE
