"""Files from the web: downloaded once, resumed after an interruption, checked before use.

The bytes received so far lie beside the final name in <name>.partial. The file takes its final name
when its SHA-256 is the expected one. No download is endless: a file that grows beyond its largest
size is deleted, and a server that sends next to nothing is left.
"""

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from files.writing import sha256_of

_CHUNK = 1 << 20  # bytes
_SLOW = (2**16, 60.0)  # a server that sends fewer bytes within these seconds is left
_NOT_SATISFIABLE = 416  # the file ends before the first byte requested


def download(
    url: str, path: Path, *, sha256: str, max_bytes: int, remedy: str, timeout: float = 20.0
) -> None:
    """Download `url` to `path`, with a progress bar on a terminal; resume a partial download.

    Args:
        url: http or https.
        path: the file's final name; its folder is made if missing.
        sha256: of the whole file, 64 hexadecimal digits.
        max_bytes: the file's size, or somewhat more.
        remedy: the end of every message, such as where to put the file by hand.
        timeout: seconds to wait for the server.

    Raises:
        ConnectionError: if the address cannot be reached, or the transfer stops before its end. The
            next call continues with the bytes received.
        OSError: if the file cannot be written.
        ValueError: if the file has more than `max_bytes` bytes, or another SHA-256; it is deleted.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            _fetch(url, file, path.name, max_bytes, timeout)
        found = sha256_of(partial)
        if found == sha256:
            os.replace(partial, path)
            return
        partial.unlink()
    except ConnectionError as error:
        raise ConnectionError(f"{url}: {error}; {remedy}") from error
    except ValueError as error:
        partial.unlink(missing_ok=True)
        raise ValueError(f"{url}: {error}; {remedy}") from error
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}); {remedy}") from error
    finally:
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink()
    raise ValueError(f"{url}: its sha256 is {found}, expected {sha256}; {remedy}")


def _fetch(url: str, file: Any, name: str, max_bytes: int, timeout: float) -> None:
    """Append to `file`, open for appending, the rest of the contents of `url`.

    Raises:
        ConnectionError: if the server cannot be reached or the transfer stops; without the address.
        OSError: if the file cannot be written.
        ValueError: if it has more than `max_bytes` bytes.
    """
    start = file.tell()
    if start > max_bytes:
        start = _emptied(file)
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _NOT_SATISFIABLE and start:  # complete, as the checksum will show
                return
        raise ConnectionError(f"the server replied {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise ConnectionError(f"it cannot be reached ({reason})") from error
    with response:
        if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:  # it sends the whole file
            start = _emptied(file)
        total = None if response.length is None else start + response.length
        if total is not None and total > max_bytes:
            raise ValueError(
                f"the server offers {total} bytes, but the file has at most {max_bytes}"
            )
        _copy(response, file, name, start, total, max_bytes)
        if total is not None and file.tell() < total:
            raise ConnectionError(
                f"the transfer ended after {file.tell()} of {total} bytes; run again to continue"
            )


def _emptied(file: Any) -> int:
    """Delete the contents of `file`, and return its position, 0; `truncate` alone would keep it."""
    return file.truncate(file.seek(0))


def _copy(
    response: http.client.HTTPResponse,
    file: Any,
    name: str,
    start: int,
    total: int | None,
    max_bytes: int,
) -> None:
    """Append the body of a response to `file`, from the byte `start` on; raise as `_fetch`."""
    from tqdm import tqdm

    least, seconds = _SLOW
    bar = tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None)
    with bar:
        since, at = time.monotonic(), file.tell()
        while chunk := _next_chunk(response):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > max_bytes:
                raise ValueError(f"the server has sent more than {max_bytes} bytes")
            if time.monotonic() - since > seconds:
                if file.tell() - at < least:
                    raise ConnectionError(
                        f"it has sent less than {least} bytes in {seconds:.0f} seconds; run again "
                        "to continue"
                    )
                since, at = time.monotonic(), file.tell()
    file.flush()


def _next_chunk(response: http.client.HTTPResponse) -> bytes:
    """Return the bytes that are there, or wait for some; b"" at the end."""
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"the transfer has stopped ({error or type(error).__name__}); run again to continue"
        ) from error
