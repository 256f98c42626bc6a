r"""Adams' method as a solver of diffrax: one evaluation of the field per step, of order five.

The derivative is interpolated through past times and integrated. Each step predicts the state from
the last k slopes, evaluates the field there, and corrects the state with that slope and the k - 1
before it (Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, Sec. III.5, in the
mode PEC). The difference to one slope fewer is the estimate of the error. The times are those of
the accepted steps, so that step sizes are free. k grows from 1 at the start.

A Runge-Kutta step of this order has 6 evaluations, and a rejected step loses most of them.
Where an evaluation is a network's, this is the cheaper choice. In exchange it keeps k slopes.

Order six takes as many evaluations along a network's ODE, order eight twice as many. Both are less
stable: where the field changes suddenly, order six makes three times the error.
"""

from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from diffrax import AbstractLocalInterpolation
from jaxtyping import Array, Bool, Float

_ORDER = 5


class AdamsPath(AbstractLocalInterpolation):
    """The state within a step: the integral of the corrector's polynomial."""

    t0: Float[Array, ""]
    t1: Float[Array, ""]
    y0: Any
    nodes: Float[Array, "slopes"]
    known: Bool[Array, "slopes"]
    slopes: Any

    def evaluate(self, t0: Any, t1: Any | None = None, left: bool = True) -> Any:
        if t1 is not None:
            return jax.tree.map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        length = self.t1 - self.t0
        part = integrals(self.nodes, self.known, (t0 - self.t0) / length)
        return _moved(self.y0, length * part, self.slopes)


class Adams(diffrax.AbstractAdaptiveSolver):
    """Adams' predictor and corrector with free step sizes."""

    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Any] = AdamsPath

    def order(self, terms: Any) -> int:
        return _ORDER

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> tuple:
        """Return the times of the last slopes, newest first, the slopes, and how many there are."""
        times = jnp.full(_ORDER, t0, jnp.result_type(t0))
        slopes = jax.tree.map(
            lambda slope: jnp.zeros((_ORDER, *slope.shape), slope.dtype).at[0].set(slope),
            terms.vf(t0, y0, args),
        )
        return times, slopes, jnp.array(1)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple:
        times, slopes, count = solver_state
        length = t1 - t0
        nodes, ranks = (times - t0) / length, jnp.arange(_ORDER)
        predicted = _moved(y0, length * integrals(nodes, ranks < count), slopes)
        slope = terms.vf(t1, predicted, args)

        nodes, times = _pushed(1.0, nodes), _pushed(t1, times)
        slopes = jax.tree.map(_pushed, slope, slopes)
        count = jnp.minimum(count + 1, _ORDER)
        weights = length * integrals(nodes, ranks < count)
        fewer = length * integrals(nodes, ranks < count - 1)
        error = _moved(jax.tree.map(jnp.zeros_like, y0), weights - fewer, slopes)
        y1 = _moved(y0, weights, slopes)
        path = dict(y0=y0, nodes=nodes, known=ranks < count, slopes=slopes)
        return y1, error, path, (times, slopes, count), diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)


def integrals(
    nodes: Float[Array, "slopes"],
    known: Bool[Array, "slopes"],
    end: float | Float[Array, ""] = 1.0,
) -> Float[Array, "slopes"]:
    """Return the integral from 0 to `end` of each known node's Lagrange polynomial, 0 for others.

    The polynomial of node j is 1 there and 0 at the other known nodes. Gauss-Legendre points
    integrate it exactly, without a system of equations.
    """
    points, weights = np.polynomial.legendre.leggauss((len(nodes) + 1) // 2)
    others = known[None] & ~jnp.eye(len(nodes), dtype=bool)
    gaps = jnp.where(others, nodes[:, None] - nodes[None], 1)
    at = end * jnp.asarray((points + 1) / 2, nodes.dtype)
    from_nodes = at[:, None, None] - nodes[None, None]
    factors = jnp.where(others[None], from_nodes / gaps[None], 1)
    values = jnp.asarray(weights / 2, nodes.dtype) @ jnp.prod(factors, axis=-1)
    return jnp.where(known, end * values, 0)


def _pushed(new: Any, old: Float[Array, "slopes *shape"]) -> Float[Array, "slopes *shape"]:
    """Return `old` with `new` in front, without its last."""
    return jnp.concatenate([jnp.asarray(new, old.dtype)[None], old[:-1]])


def _moved(y: Any, weights: Float[Array, "slopes"], slopes: Any) -> Any:
    """Return y + sum_j weights[j] slopes[j]."""

    def leaf(y: Array, slopes: Array) -> Array:
        return y + jnp.tensordot(weights.astype(slopes.dtype), slopes, axes=1)

    return jax.tree.map(leaf, y, slopes)
