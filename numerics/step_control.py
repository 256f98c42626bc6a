"""Step-size control for diffrax that stops at states that are not finite."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class NonFiniteGuard(diffrax.AbstractStepSizeController):
    """Wraps a step-size controller and stops the solve when the state becomes non-finite.

    diffrax alone would try until its step limit: at a state that is not finite, or with a step too
    small to move the time. The guard's state also counts the steps tried before the first accepted
    one.
    """

    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction: Any) -> "NonFiniteGuard":
        return NonFiniteGuard(self.controller.wrap(direction))

    def init(self, *args: Any, **kwargs: Any) -> tuple:
        end, state = self.controller.init(*args, **kwargs)
        return end, _GuardState(state, jnp.array(False), jnp.array(0), jnp.array(False))

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> tuple:
        keep, start, end, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1, args, error, order, state.inner
        )
        kept = jnp.asarray(keep)
        stuck = (end <= start) | (result != diffrax.RESULTS.successful)
        nonfinite = jnp.where(kept, ~all_finite(y1), stuck & ~all_finite(error))
        result = diffrax.RESULTS.where(nonfinite, diffrax.RESULTS.dt_min_reached, result)
        started = state.started | kept
        guard = _GuardState(inner, started, state.retries + ~started, nonfinite)
        return keep, start, end, jump, guard, result


class _GuardState(NamedTuple):
    inner: Any
    started: Bool[Array, ""]
    retries: Int[Array, ""]
    nonfinite: Bool[Array, ""]


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Return whether all numbers in a pytree are finite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
