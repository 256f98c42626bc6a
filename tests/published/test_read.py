"""The reader of every format: folders, other files, and damage."""

import contextlib
import os
import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
from published_files import (
    ARRAY,
    DATA,
    TENSORS,
    as_file,
    packed,
    same,
    streamed,
    tensor,
    zipped,
)

from errors import FileError
from published.formats import read


@pytest.mark.parametrize("folder", [".", "unet"])
def test_diffusers_folder_is_read(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "config.json").write_text('{"sample_size": 32}')
    as_file(tmp_path / folder / "diffusion_pytorch_model.safetensors", TENSORS)
    found = read.read(tmp_path)
    assert found["config"] == {"sample_size": 32}
    assert same(found["tensors"]["full"], ARRAY)


NO_CHECKPOINTS = {
    "empty": (b"", "is empty. Download it again"),
    "web page": (b"\n<!DOCTYPE html><html>quota exceeded", "web page instead of the file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "pickle": (
        pickle.dumps({"a": 1}, 4),
        "bare pickle. Loading it would execute code, .* torch.save",
    ),
    "text": (b"Entry not found", "begin with 'Entry not found', which is not a known format"),
    "archive": (zipped(b"N.", **{"constants.pkl": b""}), "not one of torch.save"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_other_file_is_one_clear_error(tmp_path, name):
    content, problem = NO_CHECKPOINTS[name]
    path = as_file(tmp_path / "net.pth", content)
    with pytest.raises(FileError, match=problem) as caught:
        read.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_file_and_wrong_folder_are_clear_errors(tmp_path):
    with pytest.raises(FileError, match="there is no such file"):
        read.read(tmp_path / "a.pth")
    with pytest.raises(FileError, match=r"a folder without config\.json"):
        read.read(tmp_path)


WHOLE = {
    "zip": zipped(tensor(0, (2, 3), (3, 1)), [ARRAY.tobytes()]),
    "stream": streamed(pickle.dumps({"a": [1, 2.0, "b"]}, 2)),
    "safetensors": TENSORS,
    "flax": msgpack.packb({"step": 1, "params": {"kernel": packed(ARRAY)}}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_file_is_an_error_at_every_byte(tmp_path, name):
    content = WHOLE[name]
    read.read(as_file(tmp_path / "a", content))
    for length in range(len(content)):
        with pytest.raises(FileError):
            read.read(as_file(tmp_path / "a", content[:length]))


@pytest.mark.parametrize("name", [*WHOLE, "torch_stream.pt", "torch_zip.pt"])
def test_changed_bytes_are_an_error_or_another_value(tmp_path, name):
    content = WHOLE.get(name) or (DATA / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[position] = rng.integers(0, 256)
        path = as_file(tmp_path / "a", bytes(changed))
        with contextlib.suppress(FileError):
            read.read(path)


def test_unreadable_file_is_a_clear_error(tmp_path, monkeypatch):
    path = as_file(tmp_path / "a", TENSORS)

    def fail(*_, **__):
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(FileError, match=r"cannot be read \(Permission denied\)"):
        read.read(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="it is a pipe instead of a file"):
        read.read(tmp_path / "pipe")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FileError, match=r"a folder without config\.json"):
        read.read(tmp_path)


def test_long_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(f'{{"a": "{"b" * 300_000}"}}')
    as_file(tmp_path / "diffusion_pytorch_model.safetensors", TENSORS)
    with pytest.raises(FileError, match=r"config\.json is longer than 262144 bytes"):
        read.read(tmp_path)
