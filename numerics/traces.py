"""Traces of Jacobians by directional derivatives: exact, or estimated along random probes.

    tr J = sum_i e_i^T J e_i = E v^T J v,    for probes v with E v v^T = I

(Hutchinson 1990). The exact trace takes one directional derivative per dimension, the estimate one
per probe. The estimate's variance is smallest for probes of random signs, where the diagonal of J
adds nothing to it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def _rademacher(key: Key[Array, ""], probes: int, x: Float[Array, "*shape"]) -> Array:
    return jax.random.rademacher(key, (probes, *x.shape), x.dtype)


def _gaussian(key: Key[Array, ""], probes: int, x: Float[Array, "*shape"]) -> Array:
    return jax.random.normal(key, (probes, *x.shape), x.dtype)


# Draws `probes` directions v shaped like x, with unit covariance: (probes, *shape).
PROBES: dict[str, Callable[..., Array]] = {"rademacher": _rademacher, "gaussian": _gaussian}
_DIRECTIONS = 64  # directions of the exact trace per batched derivative


def exact_trace(
    jacobian: Callable[[Float[Array, "batch *shape"]], Float[Array, "batch *shape"]],
    x: Float[Array, "batch *shape"],
) -> Float[Array, "batch"]:
    """Return the trace of each sample's Jacobian; `jacobian` maps directions to derivatives.

    Sample k of the derivatives must depend on sample k of the directions alone, as it does for
    networks.
    """
    dims = x[0].size

    def diagonal(i: Int[Array, ""]) -> Float[Array, "batch"]:
        e = jnp.broadcast_to(jax.nn.one_hot(i, dims, dtype=x.dtype).reshape(x.shape[1:]), x.shape)
        return jacobian(e).reshape(x.shape[0], dims)[:, i]

    if dims <= _DIRECTIONS:  # all at once, since a loop would be slow to take gradients of
        return jnp.sum(jax.vmap(diagonal)(jnp.arange(dims)), axis=0)
    return jnp.sum(jax.lax.map(diagonal, jnp.arange(dims), batch_size=_DIRECTIONS), axis=0)
