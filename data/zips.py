"""Zip archives of images, as the dataset tools of StyleGAN and EDM write them.

    00000/img00000000.png  00000/img00000001.png  ...
    dataset.json           {"labels": [["00000/img00000000.png", 6], ...]}, or "labels": null

Images are read by their position in the archive, in any thread or process. An archive that changes
shows by a member's header or checksum.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from data.bytes import read_part
from data.fingerprints import fingerprint_of
from data.listing import Names
from data.stored import SUFFIXES, Directory, ImageFile, ImageFiles, Split, Splits
from errors import FileError
from files.archives import HEADER, clear_errors, header_length, open_archive
from files.kinds import require_file

LABELS_FILE = "dataset.json"
_LONGEST_LIST = 2**28  # bytes of the list of members, some 3 million of them
_LARGEST = 2**28  # bytes of an image, unpacked


@dataclass(frozen=True, kw_only=True)
class ZipItems(ImageFiles):
    """The images of an archive.

    Args:
        path: the archive.
        names: of its images, in order.
        starts: positions of their headers.
        packed, sizes: their bytes in the archive and unpacked; equal where they are not packed.
        checksums: their CRC-32.
        numbers: the labels, where there are any.
    """

    path: str
    names: Names
    starts: Int64[np.ndarray, " n"]
    packed: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    checksums: UInt32[np.ndarray, " n"]
    numbers: Int32[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> ImageFile:
        """Return the file of an image."""
        where = f"{self.path}/{self.names[index]}"
        label = None if self.numbers is None else int(self.numbers[index])
        return ImageFile(self._content(index, where), label, where)

    def _content(self, index: int, where: str) -> bytes:
        start, packed, size = (
            int(array[index]) for array in (self.starts, self.packed, self.sizes)
        )
        with clear_errors(where):
            header = read_part(self.path, start, HEADER)
            found = read_part(self.path, start + header_length(header), packed)
            method = struct.unpack("<H", header[8:10])[0]
            if method != zipfile.ZIP_STORED:
                found = zlib.decompressobj(-15).decompress(found, size + 1)
            if len(found) != size or zlib.crc32(found) != int(self.checksums[index]):
                raise zipfile.BadZipFile("its checksum differs; copy or make the archive again")
        return found

    def fingerprint(self) -> str:
        """Return text that differs for other images: names, sizes and checksums."""
        content = np.stack([self.sizes, self.checksums.astype(np.int64)])
        sizes = np.array([os.path.getsize(self.path)], np.int64)
        names = zlib.crc32(self.names.content.tobytes()), zlib.crc32(content.tobytes())
        return fingerprint_of([f"zip {names}"], sizes, [self.path])

    def labels(self) -> Int32[np.ndarray, " n"] | None:
        """Return the labels."""
        return self.numbers


def read_zip(name: str, data_dir: Directory) -> Splits:
    """Return the images of an archive in the order of their names, as one split.

    Raises:
        FileError: if it cannot be read.
        ValueError: if it holds no images, or labels that do not fit them.
    """
    path = Path(os.path.expanduser(name))
    where = f"config.data.name={str(path)!r}"
    require_file(path, where)
    with clear_errors(where), open_archive(path, longest_list=_LONGEST_LIST) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and "__MACOSX" not in m.filename]
        images = [m for m in members if os.path.splitext(m.filename)[1].lower() in SUFFIXES]
        images.sort(key=lambda member: member.filename)
        if large := next((m for m in images if m.file_size > _LARGEST), None):
            raise FileError(f"its image {large.filename!r} has {large.file_size} bytes")
        table = [m for m in members if m.filename.rpartition("/")[2] == LABELS_FILE]
        content = archive.read(table[0]) if table else b"{}"
    if not images:
        raise ValueError(f"{where} holds no images ({' '.join(SUFFIXES)})")
    names = [member.filename for member in images]
    labels = labels_of(f"{where}: {LABELS_FILE}", content, names)
    items = ZipItems(
        path=str(path),
        names=Names.of(names),
        starts=np.array([member.header_offset for member in images], np.int64),
        packed=np.array([member.compress_size for member in images], np.int64),
        sizes=np.array([member.file_size for member in images], np.int64),
        checksums=np.array([member.CRC for member in images], np.uint32),
        numbers=labels,
    )
    others = len(members) - len(images) - len(table)
    notes = [f"{where}: not read: {others} files that are no images"] if others else []
    if labels is None and any("/" in each for each in names):
        notes.append(f"{where}: no labels in {LABELS_FILE}; its folders are not taken for classes")
    split = Split(items=items, labels=items.labels, fingerprint=items.fingerprint, notes=notes)
    return {"train": split}


def labels_of(where: str, content: bytes, names: Sequence[str]) -> Int32[np.ndarray, " n"] | None:
    """Return the labels that a dataset.json gives to images; None if it has none.

    Raises:
        ValueError: if it is damaged, an image has no label, or a label is no integer.
    """
    try:
        table: Any = json.loads(content).get("labels")
        if not table:
            return None
        found = {str(name).replace("\\", "/"): label for name, label in table}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where} is damaged ({str(error)[:80]}); make it again") from error
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise ValueError(f"{where} has no label for {missing!r}; label all images, or none")
    labels = [found[name] for name in names]
    if not all(type(label) is int and 0 <= label < 2**31 for label in labels):
        raise ValueError(f"{where} has labels that are no integers from 0; number the classes")
    return np.array(labels, np.int32)
