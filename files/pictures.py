"""Image grids as arrays, and PNG and GIF files of uint8 images."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from files.buckets import remove
from files.paths import AnyPath
from files.writing import unfinished, write_file

Images = UInt8[np.ndarray, "count height width channels"]


def _displayable(images: UInt8[np.ndarray, "*count h w c"]) -> UInt8[np.ndarray, "*count h v d"]:
    """Return images of 1 or 3 channels; of other numbers, the channels side by side in gray."""
    *count, height, width, channels = images.shape
    if channels in (1, 3):
        return images
    return np.moveaxis(images, -1, -2).reshape(*count, height, channels * width, 1)


def image_grid(images: Images, *, columns: int | None = None) -> UInt8[np.ndarray, "h w c"]:
    """Tile images with a one-pixel gray gap.

    The grid has 1 or 3 channels: those of other images lie side by side in gray.

    Args:
        images: in reading order. Those below 40 pixels are enlarged by a whole factor.
        columns: images per row; None for a roughly square grid.
    """
    images = _displayable(images)
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 128, np.uint8)
    tiles[:count, :height, :width] = images
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels)
    grid = tiles.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    scale = max(1, 40 // max(height, width))
    return grid[:-1, :-1].repeat(scale, axis=0).repeat(scale, axis=1)


def _pil_image(array: UInt8[np.ndarray, "h w c"]) -> Any:
    from PIL import Image

    array = _displayable(array)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def write_png(path: AnyPath, array: UInt8[np.ndarray, "h w c"]) -> None:
    """Write an image as PNG."""
    write_file(path, lambda temporary: _pil_image(array).save(temporary))


def png_bytes(array: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Return an image as the content of a PNG file."""
    content = io.BytesIO()
    _pil_image(array).save(content, "png")
    return content.getvalue()


def write_png_folder(folder: AnyPath, images: UInt8[np.ndarray, "count h w c"]) -> None:
    """Write images as PNG files 000000.png, 000001.png, ..., instead of what the folder holds."""
    with unfinished(folder) as temporary:
        temporary.mkdir(parents=True)
        for number, image in enumerate(images):
            _pil_image(image).save(temporary / f"{number:06}.png")
        remove(folder)


def write_gif(path: AnyPath, frames: Sequence[UInt8[np.ndarray, "h w c"]]) -> None:
    """Write an animation at 15 frames per second whose last frame stays for two seconds."""
    first, *rest = [_pil_image(frame) for frame in frames]
    durations = [66] * len(rest) + [2000]
    write_file(
        path,
        lambda temporary: first.save(
            temporary, save_all=True, append_images=rest, duration=durations, loop=0
        ),
    )
