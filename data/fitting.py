"""Images of one size from images of any size, by name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from data.stored import Item


def _pad(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "s s c"] | None:
    height, width, _ = image.shape
    if max(height, width) > size:
        return None
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(image, ((top, size - height - top), (left, size - width - left), (0, 0)))


def _crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "s s c"]:
    from PIL import Image

    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Cropped before resizing: `box=` of Pillow's resize lets what lies outside bleed in.
    square = image[top : top + side, left : left + side]
    bands = [Image.fromarray(np.ascontiguousarray(square[..., k])) for k in range(channels)]
    resized = [band.resize((size, size), Image.Resampling.LANCZOS) for band in bands]
    return np.stack([np.asarray(band) for band in resized], axis=-1)


class Resize(NamedTuple):
    """A rule for images of another size.

    Attributes:
        apply: the image at (size, size) from (image, size); None where the rule cannot.
        interpolates: whether it makes gray levels that were not there.
        meaning: what it does, for messages.
    """

    apply: Callable[[np.ndarray, int], np.ndarray | None]
    interpolates: bool
    meaning: str


def _keep(image: UInt8[np.ndarray, "h w c"], size: int) -> None:
    return None


RESIZES = {
    "none": Resize(_keep, False, "images must have the configured size"),
    "pad": Resize(_pad, False, "smaller images get a symmetric border of zeros"),
    "crop": Resize(_crop, True, "the center square is resized (Lanczos)"),
}


class Fit(NamedTuple):
    """Makes images (image_size, image_size, channels) by the rule `resize` of `choices`.

    Attributes:
        choices: names in `RESIZES` of the rules that suit the images.
    """

    image_size: int
    channels: int
    resize: str
    choices: tuple[str, ...] = tuple(RESIZES)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of fitted images."""
        return self.image_size, self.image_size, self.channels

    def __call__(self, item: Item) -> np.ndarray:
        """Return the fitted image; a gray one is repeated to three channels.

        Raises:
            ValueError: for another number of channels, or a size that the rule cannot change.
        """
        if self.repeats(item):
            item = item._replace(image=np.repeat(item.image, 3, axis=-1))
        self.require_channels(item)
        image, size = item.image, self.image_size
        height, width, _ = image.shape
        if height == width == size:
            return image
        if (fitted := RESIZES[self.resize].apply(image, size)) is not None:
            return fitted
        remedies = [f"set config.data.image_size={height}"] if height == width else []
        able = (k for k in self.choices if RESIZES[k].apply(image, size) is not None)
        if name := next(able, None):
            remedies.append(f"choose config.data.resize={name!r} ({RESIZES[name].meaning})")
        raise ValueError(
            f"config.data.image_size={size}, but {item.where} is {height}x{width} pixels; "
            f"{', or '.join(remedies) or 'resize the images'}"
        )

    def repeats(self, item: Item) -> bool:
        """Return whether an image is gray where colored ones are wanted."""
        return self.channels == 3 and item.image.shape[-1] == 1

    def require_channels(self, item: Item) -> None:
        """Raise ValueError unless an image has the configured number of channels."""
        if (found := item.image.shape[-1]) != self.channels:
            raise ValueError(
                f"config.data.channels={self.channels}, but {item.where} has {found}; "
                f"set config.data.channels={found} or convert the images"
            )
