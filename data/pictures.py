"""Inputs of sampling tasks by name: image files, measurements, test images, masks.

All are floats, images and masks in [0, 1]. The caller states the shape that they must have.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from data.stored import decode
from data.streamed import Converted
from errors import FileError
from files.arrays import open_arrays, read_array
from files.copies import local_input
from files.kinds import require_file

Shape = tuple[int, ...]
TestImages = Float[np.ndarray, "n h w c"] | Converted


def _read(field: str, name: str) -> Float[np.ndarray, "..."]:
    """Read the file that a field names: .npy, .npz, or any image with 8 bits per channel.

    Images and arrays of uint8 are divided by 255; other numbers are kept.
    """
    path, where = local_input(name), f"{field}={name!r}"
    if path.suffix not in (".npy", ".npz"):
        image, more_pages = decode(path, where)
        if more_pages:
            raise ValueError(f"{where} has several pages; give one image per file")
        return image / np.float32(255)
    if path.suffix == ".npy":
        found = read_array(path, where)
    else:
        with open_arrays(path, where) as arrays:
            if "samples" not in arrays and len(arrays) != 1:
                names = ", ".join(sorted(arrays)[:20]) or "no array"
                raise ValueError(f"{where} holds {names}; name one of them samples")
            found = arrays["samples" if "samples" in arrays else next(iter(arrays))]
    if found.dtype == np.uint8:
        return found / np.float32(255)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{where} holds {found.dtype}; give finite real numbers")
    if not np.isfinite(found).all():
        raise ValueError(f"{where} holds NaN or infinity; give finite real numbers")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{where} holds numbers beyond float32; give smaller ones")
    return found


def to_channels(image: Any, channels: int) -> Any:
    """Convert images (..., h, w, c) of NumPy or JAX between 1 and 3 channels; keep all others."""
    if image.shape[-1] == 3 and channels == 1:
        return image @ np.array([[0.299], [0.587], [0.114]], image.dtype)  # ITU-R BT.601
    if image.shape[-1] == 1 and channels == 3:
        return image.repeat(3, axis=-1)
    return image


def read_images(
    names: str,
    shape: Shape,
    test_images: Callable[[], TestImages] | None,
    *,
    in_range: bool = True,
    convert: bool = True,
) -> Float[np.ndarray, "count ..."]:
    r"""Read the inputs that `names` lists, each of `shape`.

    Args:
        names: separated by commas: files, or test, test:3, test:0-7 for test images. A comma in a
            file's name is written as \,.
        shape: of one input.
        test_images: returns the test images in [0, 1]; None where inputs are not images.
        in_range: whether numbers outside [0, 1] are an error.
        convert: whether to convert between gray and color where `shape` needs it.

    Raises:
        ValueError: for a name that is not a file, or inputs of another shape or range.
    """
    found = []
    for name in _split(names):
        if name.partition(":")[0] == "test" and not os.path.exists(name):
            found.append(_chosen(name, test_images))
            continue
        array = _read("input", name)
        if len(shape) == 3 and array.ndim in (2, 3) and array.shape[:2] == shape[:2]:
            image = array if array.ndim == 3 else array[..., None]
            array = to_channels(image, shape[-1]) if convert else image
        if array.ndim == len(shape):
            array = array[None]
        if array.shape[1:] != shape or not array.size:
            channels_first = len(shape) == 3 and array.shape[1:] == (shape[2], *shape[:2])
            remedy = "transpose it from NCHW to NHWC" if channels_first else "resize it"
            raise ValueError(
                f"input={name!r} has shape {array.shape[1:] if array.size else array.shape}, but "
                f"must have {shape}; {remedy}"
            )
        found.append(array)
    images = np.concatenate(found)
    if in_range and not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(
            f"input={names!r} has numbers from {images.min():.3g} to {images.max():.3g}; images "
            "must be in [0, 1], or uint8"
        )
    return images


def _split(names: str) -> list[str]:
    """Split names at commas without a backslash before them, and drop the backslashes.

    Raises:
        ValueError: for an empty name.
    """
    found = [name.strip().replace("\\,", ",") for name in re.split(r"(?<!\\),", names)]
    if not all(found):
        raise ValueError(
            f"input={names!r} has an empty name; separate names by one comma, and write a comma "
            "in a name as \\,"
        )
    return found


def _chosen(
    name: str, test_images: Callable[[], TestImages] | None
) -> Float[np.ndarray, "count ..."]:
    """Return the test images of a name such as test:0-7."""
    if test_images is None:
        raise ValueError(f"input={name!r} must be a measurement, not a test image; give a file")
    images = test_images()
    valid = re.fullmatch(r"test|test:(\d{1,9})(?:-(\d{1,9}))?", name, re.ASCII)
    first, last = valid.groups() if valid else (None, None)
    start = int(first or 0)
    stop = int(last or first) + 1 if first else len(images)
    if not valid or not start < stop <= len(images):
        raise ValueError(
            f"input={name!r} does not exist; the test images are test:0 to test:{len(images) - 1}"
        )
    return images[start:stop]


def _halves(shape: Shape) -> dict[str, Bool[np.ndarray, "h w"]]:
    """Return the masks that have a name; all but "border" are half of the image."""
    height, width = shape[:2]
    row, column = np.mgrid[:height, :width]
    above, before = row < height / 2, column < width / 2
    inside = (abs(row - (height - 1) / 2) < height / 4) & (
        abs(column - (width - 1) / 2) < width / 4
    )
    return {
        "left": before,
        "right": ~before,
        "top": above,
        "bottom": ~above,
        "border": ~inside,
        "random": np.random.default_rng(0)
        .permuted(((row + column) % 2 == 0).ravel())
        .reshape(height, width),
    }


def read_mask(name: str, shape: Shape) -> Float[np.ndarray, "h w c"]:
    """Return 1 where an image is known and 0 elsewhere.

    Args:
        name: a file, white where the image is known, or left, right, top, bottom, border, random.
        shape: of an image, (height, width, channels).

    Raises:
        ValueError: for an unknown name, or a mask of another shape or with other values.
    """
    halves = _halves(shape)
    if name in halves:
        return halves[name][..., None].astype(np.float32)
    try:
        if not name:
            raise FileError("mask='' names no file")
        require_file(local_input(name), f"mask={name!r}")
    except FileError as error:
        raise ValueError(
            f"{str(error).removesuffix('. Check the path')}; give a file, white where the image is "
            f"known, or choose one of: {', '.join(halves)}"
        ) from error
    mask = np.atleast_3d(_read("mask", name))
    if mask.shape[-1] == 3 and shape[-1] != 3 and (mask == mask[..., :1]).all():
        mask = mask[..., :1]
    if mask.shape not in (shape, (*shape[:-1], 1)):
        raise ValueError(
            f"mask={name!r} has shape {mask.shape}, but must have {(*shape[:-1], 1)}"
            + (f" or {shape}" if shape[-1] > 1 else "")
        )
    if not mask.any():
        raise ValueError(f"mask={name!r} is black; make the known pixels white")
    # `_read` has divided levels by 255: an array of 0 and 1 as uint8 has 1/255 for white.
    white = mask.max()
    if not np.isin(mask, (0, white)).all():
        raise ValueError(
            f"mask={name!r} has gray pixels; they must be black (unknown) or white (known)"
        )
    if white not in (1, 255, np.float32(1) / np.float32(255)):
        raise ValueError(
            f"mask={name!r} has {white:g} for known pixels; give 0 for unknown and 1, or 255, for "
            "known ones"
        )
    return (mask == white).astype(np.float32)
