"""Optimal transport between two batches, by ott-jax and SciPy.

With the cost C = |x - y|^2, the regularized plan P minimizes <P, C> + epsilon KL(P | uniform) among
the joint distributions with uniform marginals. Sinkhorn's iteration finds it (Cuturi 2013,
arXiv:1306.0895). For epsilon = 2 g^2 it is the coupling of the Schroedinger bridge of a Brownian
motion of diffusion g over unit time (Leonard 2014, arXiv:1308.0215). For epsilon = 0 the plan is a
permutation, the assignment of least cost.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_THRESHOLD, _MOST = 1e-2, 2000  # where Sinkhorn's iteration stops: marginals' error, iterations

Vectors = Float[np.ndarray, "n d"]


def require_ott(what: str, remedy: str) -> None:
    """Raise ValueError unless ott-jax is installed, which `what` needs."""
    if importlib.util.find_spec("ott") is None:
        raise ValueError(
            f"{what} needs ott-jax, which is not installed; run pip install ott-jax, or {remedy}"
        )


def squared_distances(x: Vectors, y: Vectors) -> Float[np.ndarray, "n n"]:
    """Return |x_i - y_j|^2 for all pairs."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.maximum(found, 0)


def assignment(x: Vectors, y: Vectors) -> Int[np.ndarray, " n"]:
    """Return for each row of x the row of y that the assignment of least cost gives it."""
    from scipy.optimize import linear_sum_assignment  # takes a tenth of a second

    return linear_sum_assignment(squared_distances(x, y))[1]


def entropic_plan(x: Vectors, y: Vectors, epsilon: float) -> Float[np.ndarray, "n n"]:
    """Return the plan with entropic regularization `epsilon` > 0, in units of |x - y|^2.

    The rows sum to 1 / n, up to rounding.
    """
    with jax.numpy_rank_promotion("allow"):  # inside ott-jax
        plan = np.asarray(_sinkhorn(jnp.asarray(x), jnp.asarray(y), epsilon), np.float64)
    return plan / plan.sum(axis=1, keepdims=True) / len(plan)


@jax.jit
def _sinkhorn(x: Array, y: Array, epsilon: Any) -> Array:
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    problem = LinearProblem(PointCloud(x, y, epsilon=epsilon))
    return Sinkhorn(threshold=_THRESHOLD, max_iterations=_MOST)(problem).matrix
