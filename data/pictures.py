"""Pictures that people give by name: files, test images of the data, masks.

All are floats in [0, 1]; whoever reads them knows which shape they must have.
"""

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

from data.readers import decode

Shape = tuple[int, ...]


def _read(field: str, name: str) -> Float[np.ndarray, "..."]:
    """The numbers of the file that a field names: .npy, .npz, or any image of 8 bits a channel.

    Integers of 8 bits count from 0 to 255, and so do an image's; other numbers stay what they are.
    """
    path = Path(name.strip()).expanduser()
    where = f"{field}={name!r}"
    if not path.is_file():
        raise ValueError(f"{where} is no file")
    if path.suffix not in (".npy", ".npz"):
        return decode(path, where) / np.float32(255)
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as arrays:
                if "samples" not in arrays and len(arrays) != 1:
                    names = ", ".join(arrays)
                    raise ValueError(f"it holds {names}; one must be named samples")
                found = arrays["samples" if "samples" in arrays else next(iter(arrays))]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if found.dtype == np.uint8:
        return found / np.float32(255)
    if found.dtype.kind not in "bif" or not np.isfinite(found).all():
        raise ValueError(f"{where} holds NaN, infinity or what is no real number")
    return found.astype(np.float32)


def _to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Images (..., h, w, c) of 1 or 3 channels as images of as many as there should be."""
    if image.shape[-1] == 3 and channels == 1:
        return image @ np.array([[0.299], [0.587], [0.114]], image.dtype)  # ITU-R BT.601
    if image.shape[-1] == 1 and channels == 3:
        return np.repeat(image, 3, axis=-1)
    return image


def read_images(
    names: str,
    shape: Shape,
    test_images: Callable[[], Float[np.ndarray, "n h w c"]] | None,
    *,
    in_range: bool = True,
    convert: bool = True,
) -> Float[np.ndarray, "count ..."]:
    """The pictures that `names` lists, each of `shape`.

    Args:
      names: separated by commas: files, or test, test:3, test:0-7 for test images.
      test_images: makes them; None where they cannot be meant.
      in_range: whether numbers outside [0, 1] are an error.
      convert: whether colours are made grey levels, and these colours, where that is asked for.

    Raises:
      ValueError: for a name that is no file, or pictures of another shape or range.
    """
    found = []
    for name in names.split(","):
        kind, _, numbers = name.strip().partition(":")
        if kind == "test" and not Path(name).exists():
            found.append(_chosen(name, numbers, test_images))
            continue
        array = _read("input", name)
        if len(shape) == 3 and array.ndim in (2, 3) and array.shape[:2] == shape[:2]:
            image = array if array.ndim == 3 else array[..., None]
            array = _to_channels(image, shape[-1]) if convert else image
        if array.ndim == len(shape):
            array = array[None]
        if array.shape[1:] != shape:
            raise ValueError(
                f"input={name!r} has shape {array.shape[1:]}, but must have {shape}; resize it "
                "first"
            )
        found.append(array)
    images = np.concatenate(found)
    if in_range and not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(
            f"input={names!r} has numbers from {images.min():.3g} to {images.max():.3g}; images "
            "are in [0, 1], or integers of 8 bits"
        )
    return images


def _chosen(
    name: str, numbers: str, test_images: Callable[[], np.ndarray] | None
) -> Float[np.ndarray, "count h w c"]:
    if test_images is None:
        raise ValueError(f"input={name!r}: a measurement is no test image; give a file")
    images = test_images()
    first, dash, last = numbers.partition("-")
    try:
        start = int(first) if first else 0
        stop = int(last) + 1 if dash else (start + 1 if first else len(images))
    except ValueError:
        start = stop = -1
    if not 0 <= start < stop <= len(images):
        raise ValueError(
            f"input={name!r} is none of the test images, test:0 to test:{len(images) - 1}"
        )
    return images[start:stop]


def _halves(shape: Shape) -> dict[str, np.ndarray]:
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
    """1 where an image is known, 0 elsewhere: a file, or the name of a half.

    Raises:
      ValueError: for a name that is neither, or a mask of another shape or values.
    """
    halves = _halves(shape)
    if name in halves:
        return halves[name][..., None].astype(np.float32)
    if not name or not Path(name).expanduser().is_file():
        raise ValueError(
            f"mask={name!r} is no file; give one, white where the image is known, or one of: "
            f"{', '.join(halves)}"
        )
    mask = np.atleast_3d(_read("mask", name))
    if mask.shape[-1] == 3 and shape[-1] != 3 and (mask == mask[..., :1]).all():
        mask = mask[..., :1]
    if mask.shape not in (shape, (*shape[:-1], 1)):
        raise ValueError(
            f"mask={name!r} has shape {mask.shape}, but must have {(*shape[:-1], 1)}"
            + (f" or {shape}" if shape[-1] > 1 else "")
        )
    if not mask.any():
        raise ValueError(f"mask={name!r} is black: nothing is known; make known pixels white")
    known = mask == mask.max()
    if not (known | (mask == 0)).all():
        raise ValueError(
            f"mask={name!r} has greys; pixels must be black (unknown) or white (known)"
        )
    return known.astype(np.float32)
