"""Feature extractors: functions from samples to the numbers that metrics compare.

An extractor maps uint8 images 0..255, or rows of floats, to float features, and to class
probabilities if it is a classifier. `PIXELS` is here; Inception-v3 is in `metrics.inception`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Images = UInt8[np.ndarray, "batch h w c"]


class Extracted(NamedTuple):
    """Features of images, and class probabilities if the extractor is a classifier."""

    features: Float[np.ndarray, "batch features"]
    probabilities: Float[np.ndarray, "batch classes"] | None


@dataclass(frozen=True)
class Extractor:
    """A function from images 0..255 to features, with a name and an identity.

    Attributes:
        name: as in config.eval.features.
        digest: differs between extractors with other weights, resizing or value range.
        compute: the function; `__call__` checks its input and output.
        of_images: whether it takes uint8 images; otherwise, floats (batch, ...).
    """

    name: str
    digest: str
    compute: Callable[[Any], Extracted]
    of_images: bool = True

    def __call__(self, images: Any) -> Extracted:
        """Return the features of uint8 images (batch, height, width, channels), or of rows.

        Raises:
            ValueError: for images that are not uint8, and for features that are not finite.
        """
        if self.of_images and (images.dtype != np.uint8 or images.ndim != 4):
            raise ValueError(
                f"features={self.name!r} need uint8 images (batch, height, width, channels), "
                f"got {images.dtype} {images.shape}"
            )
        extracted = self.compute(images)
        bad = ~np.isfinite(extracted.features).all(axis=1)
        if bad.any():
            raise ValueError(
                f"features={self.name!r} of {bad.sum()} of {len(images)} images are not finite; "
                "check the extractor's weights"
            )
        return extracted


def _pixels(images: Images) -> Extracted:
    return Extracted(images.reshape(len(images), -1) / np.float32(255), None)


# The pixels themselves, in [0, 1], for tiny gray images.
PIXELS = Extractor("pixels", "pixels", _pixels)

_SIDE = 8  # of a thumbnail, in pixels


def _thumbnails(images: Images) -> Extracted:
    means = images.astype(np.float32) / np.float32(255)
    for axis in (1, 2):
        size = images.shape[axis]
        edges = np.arange(min(size, _SIDE) + 1) * size // min(size, _SIDE)
        sums = np.add.reduceat(means, edges[:-1], axis=axis)
        shape = [-1 if each == axis else 1 for each in range(means.ndim)]
        means = sums / np.diff(edges).astype(np.float32).reshape(shape)
    return Extracted(means.reshape(len(images), -1), None)


# Means over blocks, at most 8 x 8 per channel: few features for images of any size, so that few
# images give a covariance.
THUMBNAILS = Extractor("thumbnails", "thumbnails-8", _thumbnails)


def _raw(rows: Float[np.ndarray, "batch ..."]) -> Extracted:
    return Extracted(rows.reshape(len(rows), -1), None)


# The numbers of points and series themselves, in the units of the data.
RAW = Extractor("raw", "raw", _raw, of_images=False)
