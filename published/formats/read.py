"""Checkpoints that other projects have published, in any format and under any file name.

    torch.save           nested dicts, lists and tuples of arrays, numbers and text
    safetensors          {name: array}
    diffusers folder     {"config": its JSON, "tensors": {name: array}}
    Flax (MessagePack)   nested dicts of arrays and numbers

No format's own software is needed, and no code in a file is executed: a pickle that holds more than
data is refused (`pickles.py`).
"""

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import msgpack

from errors import FileError
from files.copies import local_copy
from files.kinds import require_file
from files.paths import AnyPath
from published.formats import flax_files, safetensors, torch_files
from published.formats.bounds import check_tree
from published.formats.pickles import REMEDY

# Exceptions that the readers, and the libraries they call, raise for damaged files.
_DAMAGE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    EOFError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    msgpack.UnpackException,
)
_LONGEST_CONFIG = 2**18  # bytes of a config.json
_WEIGHTS = "diffusion_pytorch_model"


def read(path: AnyPath) -> Any:
    """Return the content of a published checkpoint: read-only arrays and plain values.

    What lies in a bucket is copied to the user's cache first.

    Raises:
        FileError: `path` does not exist, is damaged, incomplete, of another format, or code. The
            message has one line with the remedy.
    """
    if not path.is_dir():
        require_file(path, str(path))
    try:
        local = local_copy(path)
        tree = _read_folder(local) if local.is_dir() else _read_file(local)
        check_tree(tree)
        return tree
    except OSError as error:
        raise FileError(f"{path}: it cannot be read ({error.strerror or error})") from error
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise FileError(
            f"{path}: it is damaged or incomplete ({_reason(error)}). Download it again, and "
            "compare its size or checksum with the publisher's"
        ) from error


def _reason(error: BaseException) -> str:
    """Return one short line about an error."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:120]}..."


def _read_file(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(512)
    size = path.stat().st_size
    if size == 0:
        raise FileError("it is empty. Download it again")
    if start.startswith(torch_files.ZIP_START):
        return torch_files.read_zip(path)
    if torch_files.is_stream(start):
        with path.open("rb") as file:
            return torch_files.read_stream(file, size)
    if safetensors.is_safetensors(start, size):
        return safetensors.read_safetensors(path)
    if flax_files.is_msgpack_map(start):
        return flax_files.read_flax(path)
    raise _unknown(start, size)


def _unknown(start: bytes, size: int) -> FileError:
    """Return the error for a file of another format."""
    if start.startswith(b"version https://git-lfs"):
        return FileError(
            "it is a pointer of Git LFS instead of the file. Fetch the file itself with "
            "`git lfs pull`, or download it from the repository's web page"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return FileError(
            "it is a web page instead of the file. Open the address in a browser, and download "
            "the file that it links to"
        )
    if start.startswith(b"\x80") and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileError(
            f"it is a bare pickle. Loading it would execute code, so it is refused. {REMEDY}"
        )
    begins = ascii(start[:16].decode("latin1"))
    return FileError(
        f"its {size} bytes begin with {begins}, which is not a known format. Valid are files of "
        "torch.save, safetensors and Flax, and folders of diffusers"
    )


def _read_folder(path: Path) -> dict[str, Any]:
    """Return the network in a folder of diffusers, or in its subfolder unet/."""
    for folder in (path, path / "unet"):
        weights = [
            file
            for file in (folder / f"{_WEIGHTS}.safetensors", folder / f"{_WEIGHTS}.bin")
            if file.is_file()
        ]
        if weights and (folder / "config.json").is_file():
            if (folder / "config.json").stat().st_size > _LONGEST_CONFIG:
                raise ValueError(f"config.json is longer than {_LONGEST_CONFIG} bytes")
            config = json.loads((folder / "config.json").read_text())
            if not isinstance(config, dict):
                raise ValueError("config.json is not a JSON object")
            return {"config": config, "tensors": _read_file(weights[0])}
    raise FileError(
        f"it is a folder without config.json and {_WEIGHTS}.safetensors, here or in unet/. Give a "
        "file in it, or a folder of diffusers"
    )
