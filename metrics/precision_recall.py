r"""Precision and recall: the fidelity of samples, and their coverage of the real images.

The manifold of a set is the union of balls around its points. A ball reaches to the k-th nearest
other point of the set (Kynkaanniemi et al. 2019, arXiv:1904.06991, Section 2).

    precision = share of samples inside the manifold of the real images
    recall    = share of real images inside the manifold of the samples

Distances are computed in blocks, in float64, by |x - y|^2 = |x|^2 + |y|^2 - 2 x . y of centered
features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from metrics.frechet import check_alike, check_features

_BLOCK = 2048  # images at a time, on either side of a block of distances


class PrecisionRecall(NamedTuple):
    """Precision and recall, both in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    real: Float[np.ndarray, "n features"], samples: Float[np.ndarray, "m features"], *, k: int = 3
) -> PrecisionRecall:
    """Return improved precision and recall; a point on the edge of a ball is inside.

    Compare only numbers from sets of the same sizes, since balls shrink with more images.

    Args:
        real: features of real images.
        samples: features of samples.
        k: the nearest neighbor whose distance is the radius; the published one is 3.

    Raises:
        ValueError: unless both sets have more than k images and k >= 1, and for features that
            differ in number or are not finite.
    """
    for features in (real, samples):
        check_features(features)
    check_alike(real.shape[1], samples.shape[1])
    fewer = min(len(real), len(samples))
    if not 1 <= k < fewer:
        raise ValueError(f"k={k} must be in 1..{fewer - 1}: each set needs more than k images")
    center = real.mean(axis=0, dtype=np.float64)
    real_radii, sample_radii = _radii(real, center, k), _radii(samples, center, k)
    precise, found = np.zeros(len(samples), bool), np.zeros(len(real), bool)
    for rows, columns, squares in _blocks(samples, real, center):
        precise[rows] |= (squares <= real_radii[None, columns]).any(axis=1)
        found[columns] |= (squares <= sample_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(found.mean()))


def _radii(
    points: Float[np.ndarray, "n features"], center: Float[np.ndarray, "features"], k: int
) -> Float[np.ndarray, "n"]:
    """Return the squared distance of each point to the k-th nearest other one."""
    nearest = np.full((len(points), k), np.inf)
    for rows, columns, squares in _blocks(points, points, center):
        if rows == columns:
            np.fill_diagonal(squares, np.inf)
        known = np.concatenate([nearest[rows], squares], axis=1)
        nearest[rows] = np.partition(known, k - 1, axis=1)[:, :k]
    return nearest.max(axis=1)


def _blocks(
    a: Float[np.ndarray, "n features"],
    b: Float[np.ndarray, "m features"],
    center: Float[np.ndarray, "features"],
) -> Iterator[tuple[slice, slice, Float[np.ndarray, "rows columns"]]]:
    """Yield blocks of the matrix of squared distances, each with its rows and columns."""
    for rows in _slices(len(a)):
        x = a[rows] - center
        x_squares = (x**2).sum(axis=1)[:, None]
        for columns in _slices(len(b)):
            y = b[columns] - center
            scale = x_squares + (y**2).sum(axis=1)[None]
            squares = scale - 2 * (x @ y.T)
            # Copies of an image lie below the rounding of the product: their distance is 0.
            squares[squares < x.shape[1] * np.finfo(np.float64).eps * scale] = 0
            yield rows, columns, squares


def _slices(count: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, count)) for first in range(0, count, _BLOCK)]
