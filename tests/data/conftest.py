"""No test of data/ reaches the network or the user's files."""

import socket

import pytest


@pytest.fixture(autouse=True)
def _sandbox(tmp_path, monkeypatch):
    """No test reaches the network or the user's home: names do not resolve, the home is empty."""

    def refuse(host, *args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, f"no network in tests: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
