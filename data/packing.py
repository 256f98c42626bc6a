"""Pack any data set into a folder of array_record files, which are fast to read in any order.

Images that have the size already keep the bytes of their files; others are resized and stored as
PNG, so that nothing is lost. Each file holds 4096 images or fewer. A file is written whole or not
at all, and one that is there is not made again: the same command continues after it was stopped.
"""

import errno
import io
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.fitting import Fit
from data.records import FORMAT, INDEX
from data.stored import Item, Split
from data.streamed import thread_count
from errors import ConfigError
from files.writing import remove_abandoned, unfinished, write_file, write_json

_SHARD = 4096  # images per file
_PLAN, _DAMAGED = "unfinished.json", "damaged.txt"
_SHOWN = 20  # damaged images that are printed


def pack(
    name: str, splits: dict[str, Split], fit: Fit, target: Path, *, skip_damaged: bool = False
) -> str:
    """Write the images of a data set, fitted, into the folder `target`.

    Args:
        name: of the data set.
        splits: as its reader gives them.
        fit: makes images of one size.
        target: a new folder, or one in which the same command was stopped.
        skip_damaged: leave out images that cannot be read.

    Returns:
        One line that says where it is.

    Raises:
        ConfigError: if images cannot be read, with all of them in a file; or if the folder holds
            something else.
        ValueError: for an image that does not fit.
        OSError: if the disk is full; the same command continues.
    """
    fingerprints = {
        split: source.fingerprint() if source.fingerprint else str(source.count)
        for split, source in splits.items()
    }
    plan = {"format": FORMAT, "name": name, "images": fingerprints, "fit": list(fit[:3])}
    if (done := _begin(target, plan)) is not None:
        return done
    damaged: list[str] = []
    index: dict[str, Any] = {}
    with ThreadPoolExecutor(thread_count(), thread_name_prefix="pack") as threads:
        for split, source in splits.items():
            kept, shards = [], []
            total = source.count
            with tqdm(total=total, desc=f"packing {split}", dynamic_ncols=True) as bar:
                for number, first in enumerate(range(0, total, _SHARD)):
                    shard = target / f"{split}-{number:05}.array_record"
                    rows = range(first, min(first + _SHARD, total))
                    facts = _write_shard(threads, source, fit, rows, shard, bar)
                    damaged += facts["damaged"]
                    kept += facts["rows"]
                    shards += [shard.name] if facts["rows"] else []
            if not kept:
                raise ConfigError(f"config.data.name={name!r}: no {split} image can be read")
            index[split] = {"count": len(kept), "shards": shards, "labels": None}
            if (labels := _labels(target, split, source, kept)) is not None:
                index[split]["labels"] = labels
    if damaged:
        write_file(target / _DAMAGED, lambda file: file.write_text("\n".join([*damaged, ""])))
        if not skip_damaged:
            more = [f"and {len(damaged) - _SHOWN} more"] if len(damaged) > _SHOWN else []
            print("\n".join(damaged[:_SHOWN] + more))
            raise ConfigError(
                f"config.data.name={name!r}: {len(damaged)} images cannot be read, listed in "
                f"{target / _DAMAGED}; repair or remove them and give a new --target, or leave "
                "them out by --skip_damaged"
            )
    names = next(iter(splits.values())).class_names
    counts = {split: about["count"] for split, about in index.items()}
    fingerprint = f"{fingerprints} {fit[:3]} {counts}"
    about = {"fingerprint": fingerprint, "class_names": names and list(names), "splits": index}
    write_json(target / INDEX, plan | about)
    _remove_facts(target)
    return _done(target)


def _begin(target: Path, plan: dict[str, Any]) -> str | None:
    """Return the line of a folder that is finished, else begin or continue.

    Raises:
        ConfigError: if the folder holds something else.
    """
    other = f"--target={str(target)!r} holds other images or settings; give a new folder"
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--target={str(target)!r} is a file; give a new folder")
    for file in (target / INDEX, target / _PLAN):
        if file.exists():
            try:
                found = json.loads(file.read_text())
                same = {key: found.get(key) for key in plan} == plan
            except (ValueError, AttributeError):
                same = False
            if not same:
                raise ConfigError(other)
            if file.name == INDEX:
                _remove_facts(target)
                return _done(target)
            remove_abandoned(target)
            return None
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(other)
    write_json(target / _PLAN, plan)
    return None


def _done(target: Path) -> str:
    return f"prepared in {target}; give it as --config.data.name={target}"


def _remove_facts(target: Path) -> None:
    for file in (*target.glob("*-?????.json"), target / _PLAN):
        file.unlink(missing_ok=True)


def _write_shard(
    threads: ThreadPoolExecutor, source: Split, fit: Fit, rows: range, shard: Path, bar: tqdm
) -> dict[str, list]:
    """Write a file of images, unless it is there; return the rows in it, and what is damaged."""
    from array_record.python.array_record_module import ArrayRecordWriter

    facts = shard.with_suffix(".json")
    if facts.exists():
        bar.update(len(rows))
        return json.loads(facts.read_text())
    kept, damaged = [], []
    with unfinished(shard) as file:
        writer = ArrayRecordWriter(os.fspath(file), "group_size:1")
        try:
            for row, found in _encoded(threads, source, fit, rows):
                if isinstance(found, bytes):
                    writer.write(found)
                    kept.append(row)
                else:
                    damaged.append(str(found))
                bar.update(1)
        except RuntimeError as error:
            raise _disk_error(error, shard) from error
        finally:
            _close(writer, shard)
    if not kept:
        shard.unlink()
    write_json(facts, {"rows": kept, "damaged": damaged})
    return {"rows": kept, "damaged": damaged}


def _close(writer: Any, shard: Path) -> None:
    try:
        writer.close()
    except RuntimeError as error:
        raise _disk_error(error, shard) from error


def _disk_error(error: RuntimeError, shard: Path) -> OSError:
    """Return the system's error, such as a full disk, that only the text of the writer names."""
    for cause in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(cause) in str(error):
            return OSError(cause, os.strerror(cause), str(shard))
    return OSError(errno.EIO, " ".join(str(error).split()), str(shard))


def _encoded(
    threads: ThreadPoolExecutor, source: Split, fit: Fit, rows: range
) -> Iterator[tuple[int, bytes | ValueError]]:
    """Yield each row with its image file, or with the error of reading it, in order."""

    def encode(row: int) -> bytes | ValueError:
        try:
            item = source.items[row]
        except ValueError as error:
            return error
        return _image_file(item, fit)

    waiting = deque()
    ahead = 4 * thread_count()
    try:
        for row in rows:
            waiting.append((row, threads.submit(encode, row)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _image_file(item: Item, fit: Fit) -> bytes:
    """Return the bytes of the image's own file if its size fits, else those of a PNG.

    Raises:
        ValueError: if the image does not fit.
    """
    from PIL import Image

    fitted = fit(item)
    if item.encoded is not None and item.image.shape[:2] == fit.shape[:2]:
        return item.encoded
    file = io.BytesIO()
    Image.fromarray(fitted if fitted.shape[-1] == 3 else fitted[..., 0]).save(file, "PNG")
    return file.getvalue()


def _labels(target: Path, split: str, source: Split, kept: list[int]) -> str | None:
    """Write the labels of the images that are kept; return the name of the file."""
    if source.labels is not None:
        labels = source.labels()
        chosen = None if labels is None else labels[kept]
    else:
        found = [source.items[row].label for row in kept]
        chosen = None if None in found else np.array(found, np.int32)
    if chosen is None:
        return None
    file = target / f"{split}_labels.npy"
    write_file(file, lambda temporary: np.save(temporary, chosen))
    return file.name
