r"""Sliced Wasserstein distance between two sets of points (Rabin et al. 2011; Bonneel et al. 2015).

    SW^2 = E_theta W_2^2(theta . x, theta . y)

over directions theta, uniform on the unit sphere. In one dimension, optimal transport pairs sorted
numbers, so that W_2^2 is the mean squared difference of quantiles. The distance has the unit of the
points. Between isotropic Gaussians, SW^2 = |m_1 - m_2|^2 / d + (s_1 - s_2)^2.
"""

import numpy as np
from jaxtyping import Float

from errors import require_in
from metrics.frechet import check_alike, check_features


def sliced_wasserstein(
    x: Float[np.ndarray, "n features"],
    y: Float[np.ndarray, "m _"],
    *,
    directions: int = 256,
    seed: int = 0,
) -> float:
    """Return the distance SW of two sets, by Monte Carlo over directions.

    Finite sets of one distribution have a distance too, of order 1 / sqrt(n): compare with that of
    two sets of data.

    Args:
        x: points of one set.
        y: points of the other.
        directions: number of directions.
        seed: decides the directions.

    Raises:
        ValueError: for sets that are empty, differ in their number of features, or are not finite.
    """
    require_in("directions", directions, "[1, inf)")
    require_in("number of points", min(len(x), len(y)), "[1, inf)")
    check_alike(x.shape[1], y.shape[1])
    for points in (x, y):
        check_features(points)
    normal = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    theta = normal / np.linalg.norm(normal, axis=0)
    a, b = (np.sort(points.astype(np.float64) @ theta, axis=0) for points in (x, y))
    # The quantiles of both at the middles of as many equal parts.
    levels = (np.arange(max(len(a), len(b))) + 0.5) / max(len(a), len(b))
    a, b = (each[(levels * len(each)).astype(int)] for each in (a, b))
    return float(np.sqrt(np.mean((a - b) ** 2)))
