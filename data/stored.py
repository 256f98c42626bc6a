"""Stored images one by one: what a reader gives, and the decoding of image files."""

import abc
import io
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from files.kinds import require_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# Pillow's names of these formats. Left to itself it tries all that it knows, by content, and starts
# Ghostscript for PostScript.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")

_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of `warnings.filters`

# A phone's photo with its preview, MPO, counts as one.
_ONE_PAGE = ("JPEG", "MPO", "BMP", "PPM")
_TURNING = frozenset(("exif", "xmp"))  # where a JPEG file would say that it is to be turned

# A file may have this many pixels in any case, and beyond that this many per byte. Photographs have
# about 5 per byte.
_PIXELS, _PIXELS_PER_BYTE = 2**26, 32

Directory = str | os.PathLike[str]


class Item(NamedTuple):
    """One image (h, w, c) uint8 with its label, and where it came from, for messages.

    `more_pages` is whether its file has further pages, which are not read; `encoded` are the bytes
    of its file, where it has one.
    """

    where: str
    image: np.ndarray
    label: int | None
    more_pages: bool = False
    encoded: bytes | None = None


@runtime_checkable
class Items(Protocol):
    """Images by row, each read when it is indexed, by any thread.

    What worker processes read can be pickled.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> Item:
        """Return an image; raise ValueError of one line if it cannot be read."""
        ...


class ImageFile(NamedTuple):
    """The bytes of an image file, the label, and where it came from, for messages."""

    content: bytes
    label: int | None
    where: str


class ImageFiles(abc.ABC):
    """Base of `Items` that are image files, each on its own or within larger files.

    What has to be opened for all of them is `_source`, which each process opens for itself.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abc.abstractmethod
    def file(self, index: int) -> ImageFile:
        """Return the file of an image, 0 <= index < len(self)."""

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        content, label, where = self.file(index)
        image, more_pages = decode(io.BytesIO(content), where)
        return Item(where, image, label, more_pages=more_pages, encoded=content)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_source"}


@dataclass(frozen=True)
class Split:
    """Images of a split in any order, each read and decoded when it is wanted.

    Args:
        items: the images.
        labels: returns the labels of all images without their pixels; None where that is no faster
            than to read the images.
        fingerprint: returns text that differs for other images; None to take it from all pixels.
        notes: lines for the user, complete once the items are read.
        class_names: the name of label 0, 1, ...; None where labels have no names.
        in_order: whether reading in another order than that of the rows is slow.
    """

    items: Items
    labels: Callable[[], Int32[np.ndarray, " n"] | None] | None = None
    fingerprint: Callable[[], str] | None = None
    notes: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] | None = None
    in_order: bool = False

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.items)


Splits = dict[str, Split]


class Picture(NamedTuple):
    """An image in its own one or three channels, and whether its file has further pages."""

    image: UInt8[np.ndarray, "h w c"]
    more_pages: bool


def decode(source: Path | io.BytesIO, where: str) -> Picture:
    """Return the first image of a file, upright. No input starts another program.

    Args:
        source: the file, or its bytes.
        where: its name for messages.

    Raises:
        ValueError: for what is no file, a damaged file, one of another format, of too many pixels
            or with more than 8 bits per channel, or transparency.
    """
    from PIL import Image, ImageOps

    if isinstance(source, Path):
        require_file(source, where)
    _ignore_warnings()
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            problem = _problem(opened, _size(source))
            if problem is None:
                if _may_be_turned(opened):
                    ImageOps.exif_transpose(opened, in_place=True)
                if _is_transparent(opened):
                    problem = "is transparent in places; flatten it onto a background"
            if problem is None:
                mode = "L" if opened.mode in ("1", "L", "LA") else "RGB"
                pixels = np.asarray(opened if opened.mode == mode else opened.convert(mode))
                image = pixels if pixels.ndim == 3 else pixels[..., None]
                return Picture(image, _has_more_pages(opened))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{where} has too many pixels; make it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{where} is not a readable image of the formats {', '.join(_FORMATS)}; convert it to "
            "one of them, or remove it"
        ) from error
    # Damage raises whatever the format's plugin happens to do with wrong numbers.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{where} is not a readable image, remove it ({reason})") from error
    raise ValueError(f"{where} {problem}")


def _ignore_warnings() -> None:
    """Ignore Pillow's warnings, about odd metadata and many pixels, from now on.

    `warnings.catch_warnings` would not do: threads that leave it in another order than they entered
    it lose the filters of the program.
    """
    if _FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_FILTER[3].pattern)


def _size(source: Path | io.BytesIO) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes


def _problem(opened: Any, size: int) -> str | None:
    """Return why an image in a file of `size` bytes is not read, before its pixels are."""
    width, height = opened.size
    if width * height > max(_PIXELS, _PIXELS_PER_BYTE * size):
        return f"has too many pixels, {width}x{height} in {size} bytes; make it smaller"
    if _is_deep(opened):
        return "has more than 8 bits per channel; convert it to 8 bits"
    return None


def _may_be_turned(opened: Any) -> bool:
    """Return whether an image could state that it is to be turned; only JPEG is looked into."""
    return opened.format != "JPEG" or not _TURNING.isdisjoint(opened.info)


def _is_transparent(picture: Any) -> bool:
    if not picture.has_transparency_data:
        return False
    return picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _is_deep(opened: Any) -> bool:
    """Return whether an opened image stores more than 8 bits per channel.

    Pillow keeps the upper 8 bits of color, without a word; the arguments of its decoder show it.
    """
    if opened.mode.startswith("I") or opened.mode == "F":
        return True
    arguments = [
        argument
        for tile in opened.tile
        for argument in (tile.args if isinstance(tile.args, tuple) else (tile.args,))
    ]
    if opened.format == "PPM":  # (mode, highest level)
        return any(isinstance(argument, int) and argument > 255 for argument in arguments)
    if opened.format == "BMP":  # ";16" are bits per pixel there
        return False
    return any(isinstance(argument, str) and ";16" in argument for argument in arguments)


def _has_more_pages(opened: Any) -> bool:
    """Return whether a second page can be reached."""
    if opened.format in _ONE_PAGE:
        return False
    try:
        opened.seek(1)
    except Exception:  # EOFError, or damage behind the page that is read
        return False
    return True
