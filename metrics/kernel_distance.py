r"""Kernel distance between two sets of features (KID), unbiased for any number of images.

The squared maximum mean discrepancy with the kernel k(x, y) = (x . y / d + 1)^3 of d features,

    KID = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (n (n - 1))
          - 2 sum_{i, j} k(x_i, y_j) / n^2,

as a mean over random subsets of n images per set (Gretton et al. 2012, Lemma 6; Binkowski et al.
2018, arXiv:1801.01401, Section 4). It can be negative. The standard error over *images* is that of
the delete-many jackknife (Shao & Wu 1989).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from metrics.frechet import check_alike, check_features


class KernelDistance(NamedTuple):
    """A mean over subsets, two standard errors, and the number and size of the subsets.

    Attributes:
        mean: the distance.
        over_subsets: error from the choice of subsets of these images, std / sqrt(subsets), as
            published. It goes to 0 for many subsets and ignores other images, as subsets share
            images.
        over_images: error from having these images.
        subsets: their number.
        subset_size: images per subset.
    """

    mean: float
    over_subsets: float
    over_images: float
    subsets: int
    subset_size: int


def kernel_distance(
    x: Float[np.ndarray, "n features"],
    y: Float[np.ndarray, "m features"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Return the unbiased squared maximum mean discrepancy of two sets of features.

    The error over images takes the smaller set's count N for both: for subsets of n, drawn without
    replacement, it is std sqrt(n / (N - n)).

    Args:
        x: features of one set.
        y: features of the other.
        subsets: at least 2.
        subset_size: at least 2. At most half of the smaller set is used, so that subsets differ.
        seed: decides the subsets.

    Raises:
        ValueError: for fewer than 4 images in a set, features that differ in number or are not
            finite, and options out of range.
    """
    for features in (x, y):
        check_features(features)
    check_alike(x.shape[1], y.shape[1])
    smaller = min(len(x), len(y))
    if smaller < 4:
        raise ValueError(
            f"the kernel distance of {len(x)} and {len(y)} images needs at least 4 of each"
        )
    if subsets < 2 or subset_size < 2:
        raise ValueError(f"subsets={subsets} and subset_size={subset_size} must be at least 2")
    size = min(subset_size, smaller // 2)
    rng = np.random.default_rng(seed)
    values = np.array(
        [
            _discrepancy(
                x[rng.choice(len(x), size, replace=False)],
                y[rng.choice(len(y), size, replace=False)],
            )
            for _ in range(subsets)
        ]
    )
    spread = values.std(ddof=1)
    return KernelDistance(
        float(values.mean()),
        float(spread / math.sqrt(subsets)),
        float(spread * math.sqrt(size / (smaller - size))),
        subsets,
        size,
    )


def _discrepancy(x: Float[np.ndarray, "n features"], y: Float[np.ndarray, "n features"]) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (len(x) * (len(x) - 1)) - 2 * xy.mean())
