r"""Precision and recall: the shares of samples that look real, and of real images that are found.

The manifold of a set is the union of balls around its points, each with the radius to the k-th
nearest other point of the set (Kynkaanniemi et al. 2019, arXiv:1904.06991, Section 2).

    precision = share of samples inside the manifold of the real images
    recall    = share of real images inside the manifold of the samples

Distances come in blocks, in float64, from |x - y|^2 = |x|^2 + |y|^2 - 2 x . y of centred features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from metrics.frechet import check_alike, check_features

_BLOCK = 2048  # images at a time, on either side of a block of distances


class PrecisionRecall(NamedTuple):
    """Both are in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    real: Float[np.ndarray, "n features"], samples: Float[np.ndarray, "m features"], *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall; a point on the edge of a ball is inside.

    Compare only numbers from sets of the same sizes: balls shrink as images become more.

    Args:
      k: which nearest neighbour gives the radius; the published one is 3.

    Raises:
      ValueError: unless both sets have more than k images and k >= 1, and for features that differ
        in number or are not finite.
    """
    for features in (real, samples):
        check_features(features)
    check_alike(real.shape[1], samples.shape[1])
    fewer = min(len(real), len(samples))
    if not 1 <= k < fewer:
        raise ValueError(f"k={k} must be in 1..{fewer - 1}: each set needs more than k images")
    centre = real.mean(axis=0, dtype=np.float64)
    real_radii, sample_radii = _radii(real, centre, k), _radii(samples, centre, k)
    precise, found = np.zeros(len(samples), bool), np.zeros(len(real), bool)
    for rows, columns, squares in _blocks(samples, real, centre):
        precise[rows] |= (squares <= real_radii[None, columns]).any(axis=1)
        found[columns] |= (squares <= sample_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(found.mean()))


def _radii(
    points: Float[np.ndarray, "n features"], centre: Float[np.ndarray, "features"], k: int
) -> Float[np.ndarray, "n"]:
    """Squared distance of each point to the k-th nearest other one."""
    nearest = np.full((len(points), k), np.inf)
    for rows, columns, squares in _blocks(points, points, centre):
        if rows == columns:
            np.fill_diagonal(squares, np.inf)
        known = np.concatenate([nearest[rows], squares], axis=1)
        nearest[rows] = np.partition(known, k - 1, axis=1)[:, :k]
    return nearest.max(axis=1)


def _blocks(
    a: Float[np.ndarray, "n features"],
    b: Float[np.ndarray, "m features"],
    centre: Float[np.ndarray, "features"],
) -> Iterator[tuple[slice, slice, Float[np.ndarray, "rows columns"]]]:
    """Blocks of the matrix of squared distances, each with its rows and columns."""
    for rows in _slices(len(a)):
        x = a[rows] - centre
        x_squares = (x**2).sum(axis=1)[:, None]
        for columns in _slices(len(b)):
            y = b[columns] - centre
            scale = x_squares + (y**2).sum(axis=1)[None]
            squares = scale - 2 * (x @ y.T)
            # Below the rounding of the product lie the copies of an image: their distance is 0.
            squares[squares < x.shape[1] * np.finfo(np.float64).eps * scale] = 0
            yield rows, columns, squares


def _slices(count: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, count)) for first in range(0, count, _BLOCK)]
