r"""Maximum mean discrepancy between two sets of points, with Gaussian kernels of several widths.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = mean_h exp(-|x - y|^2 / (2 h^2))

estimated without bias from pairs of different points (Gretton et al. 2012, Lemma 6), so that it may
be negative. The widths h are the median distance between points of the second set, and 1/2, 1/4 and
1/8 of it: a mixture of kernels sees coarse and fine structure (Li et al. 2015, arXiv:1502.02761).
"""

import numpy as np
from jaxtyping import Float

from errors import require_in
from metrics.frechet import check_alike, check_features

_FRACTIONS = (1.0, 0.5, 0.25, 0.125)  # of the median distance
_MOST = 2000  # points of a set whose pairs are compared


def mmd_squared(
    x: Float[np.ndarray, "n features"],
    y: Float[np.ndarray, "m _"],
    *,
    widths: tuple[float, ...] = (),
) -> float:
    """Return the unbiased estimate of MMD^2, from at most 2000 points of each set.

    Args:
        x: points of one set.
        y: points of the other, which decides the widths.
        widths: of the kernels; () for those of the module's docstring.

    Raises:
        ValueError: for fewer than 2 points in a set, a number of features that differs, or points
            that are not finite.
    """
    require_in("number of points", min(len(x), len(y)), "[2, inf)")
    check_alike(x.shape[1], y.shape[1])
    for points in (x, y):
        check_features(points)
    x, y = (_spread(points).astype(np.float64) for points in (x, y))
    yy = _squared_distances(y, y)
    if not widths:
        median = np.sqrt(np.median(yy[np.triu_indices(len(y), 1)]))
        widths = tuple(fraction * max(median, 1e-12) for fraction in _FRACTIONS)
    within = sum(_mean_of_pairs(_kernel(d, widths)) for d in (_squared_distances(x, x), yy))
    return float(within - 2 * _kernel(_squared_distances(x, y), widths).mean())


def _spread(points: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "k features"]:
    count = min(len(points), _MOST)
    return points[np.linspace(0, len(points) - 1, count).astype(int)]


def _squared_distances(
    x: Float[np.ndarray, "n features"], y: Float[np.ndarray, "m features"]
) -> Float[np.ndarray, "n m"]:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None, :]
    return np.maximum(squares - 2 * x @ y.T, 0)


def _kernel(
    squares: Float[np.ndarray, "n m"], widths: tuple[float, ...]
) -> Float[np.ndarray, "n m"]:
    return np.mean([np.exp(-squares / (2 * width**2)) for width in widths], axis=0)


def _mean_of_pairs(kernel: Float[np.ndarray, "n n"]) -> float:
    """Return the mean over pairs of different points, of which the kernel of one is 1."""
    count = len(kernel)
    return (kernel.sum() - count) / (count * (count - 1))
