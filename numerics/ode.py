"""diffrax behind one function: adaptive integration of many independent ODEs at once.

Each sample has its own step sizes (the solve is vmapped), so a sample's error never depends on
what else is in the batch; all samples run in lockstep until the slowest has finished. Or the batch
has common ones, chosen by the error of all its numbers together, as published results have it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from errors import IntegrationError
from numerics.arrays import pytree


class Method(NamedTuple):
    """A Runge-Kutta pair of diffrax, and its evaluations of the field in one step.

    first_same_as_last: the last stage of an accepted step is the first of the next. Nothing can be
    taken over until a step has been accepted, so what is tried before that costs one more each.
    """

    solver: type[diffrax.AbstractSolver]
    evaluations: int
    first_same_as_last: bool


# diffrax's implicit solvers are missing, as each of their steps wants the Jacobian of the network;
# and ReversibleHeun, whose virtue is in gradients through the solve.
SOLVERS = {
    "heun": Method(diffrax.Heun, 2, False),
    "midpoint": Method(diffrax.Midpoint, 2, False),
    "ralston": Method(diffrax.Ralston, 2, False),
    "bosh3": Method(diffrax.Bosh3, 3, True),
    "tsit5": Method(diffrax.Tsit5, 6, True),
    "dopri5": Method(diffrax.Dopri5, 6, True),
    "dopri8": Method(diffrax.Dopri8, 13, True),
}


# Whose error the step sizes follow.
CONTROLS = ("per_sample", "batch")


# Tolerances are traced, so that others are no other program.
@pytree(static=("solver", "max_steps", "control"))
@dataclass(frozen=True, kw_only=True)
class ODEOptions:
    """How to integrate: a solver of SOLVERS, relative and absolute tolerance, and a step limit.

    Tolerances below 1e-7 gain nothing in float32 and cost many steps. With control "batch" all
    samples take the same steps, and a sample's result depends on the others, within the tolerance.
    """

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096
    control: str = "per_sample"

    def __post_init__(self) -> None:
        for name, choices in (("solver", SOLVERS), ("control", CONTROLS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name}={value!r} is unknown; choose one of: {', '.join(sorted(choices))}"
                )
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")


class Solution(NamedTuple):
    """The state at the end (and on the way, if asked), and what it took to get there.

    `reached` is the time of the last accepted step, the end if all went well; `broken` says that
    NaN or infinity stopped it there.
    """

    y: Any
    evaluations: Int[Array, "batch"]
    success: Bool[Array, "batch"]
    path: Any
    reached: Float[Array, "batch"]
    broken: Bool[Array, "batch"]


class Watched(diffrax.AbstractStepSizeController):
    """A step size controller, watched.

    Its state has what diffrax does not tell: how many steps were tried before the first was
    accepted, and whether NaN or infinity left no way on. There it stops, where diffrax would try
    until its step limit: at a state that is not finite, or at a step too small to move the time.
    """

    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction: Any) -> "Watched":
        return Watched(self.controller.wrap(direction))

    def init(self, *args: Any, **kwargs: Any) -> tuple:
        end, state = self.controller.init(*args, **kwargs)
        return end, _Watch(state, jnp.array(False), jnp.array(0), jnp.array(False))

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1: Any, args: Any, error: Any, order: Any, state: Any
    ) -> tuple:
        keep, start, end, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1, args, error, order, state.inner
        )
        kept = jnp.asarray(keep)
        stuck = (end <= start) | (result != diffrax.RESULTS.successful)
        broken = jnp.where(kept, ~all_finite(y1), stuck & ~all_finite(error))
        result = diffrax.RESULTS.where(broken, diffrax.RESULTS.dt_min_reached, result)
        started = state.started | kept
        watch = _Watch(inner, started, state.retries + ~started, broken)
        return keep, start, end, jump, watch, result


class _Watch(NamedTuple):
    inner: Any
    started: Bool[Array, ""]
    retries: Int[Array, ""]
    broken: Bool[Array, ""]


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all numbers in a pytree are finite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def integrate(
    field: Callable[[Float[Array, ""], Any, Any], Any],
    y0: Any,
    args: Any,
    *,
    t0: float | Float[Array, ""],
    t1: float | Float[Array, ""],
    options: ODEOptions,
    frames: int | Float[Array, "frames"] = 0,
) -> Solution:
    """Solve dy/dt = field(t, y, args) from t0 to t1 (either direction) for each sample.

    `field` sees one sample; `y0` and `args` are pytrees with a leading batch axis. The first step
    that is tried is a hundredth of the way. With `frames`, `path` holds the state at these times,
    on the way from t0 to t1, or at so many equally spaced ones, t0 first; it is shaped (batch,
    frames, ...). Traceable; a failed sample has `success` False, and must be checked with
    `require_success`.
    """
    method = SOLVERS[options.solver]
    # The solver's own time goes from 0 to 1. Of ends that are traced diffrax would check the order
    # by a call to Python, and what makes such calls is in no compilation cache.
    way = t1 - t0
    ts = None
    if not isinstance(frames, int):
        ts = (frames - t0) / way
    elif frames:
        ts = jnp.linspace(0.0, 1.0, frames)

    def along(time: Float[Array, ""], y: Any, arg: Any) -> Any:
        return jax.tree.map(lambda slope: way * slope, field(t0 + way * time, y, arg))

    # Of the last two errors, so that steps do not grow and shrink in turns: along a network's flow
    # a third of all steps were refused without.
    pid = diffrax.PIDController(rtol=options.rtol, atol=options.atol, pcoeff=0.2, icoeff=0.6)
    ends = diffrax.SubSaveAt(t1=True)

    def solve(field: Callable[..., Any], y: Any, arg: Any) -> Solution:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            method.solver(),
            t0=0.0,
            t1=1.0,
            dt0=0.01,
            y0=y,
            args=arg,
            stepsize_controller=Watched(pid),
            max_steps=options.max_steps,
            saveat=diffrax.SaveAt(
                subs=[ends] if ts is None else [ends, diffrax.SubSaveAt(ts=ts)],
                controller_state=True,
            ),
            adjoint=diffrax.ForwardMode(),  # a plain loop: nothing here is differentiated
            throw=False,
        )
        end = jax.tree.map(lambda leaf: leaf[0], solution.ys[0])
        successful = solution.result == diffrax.RESULTS.successful
        watch = solution.controller_state
        evaluations = solution.stats["num_steps"] * method.evaluations
        if method.first_same_as_last:
            evaluations += 1 + watch.retries
        return Solution(
            y=end,
            evaluations=evaluations,
            success=successful & all_finite(end),
            path=None if ts is None else solution.ys[1],
            reached=t0 + way * solution.ts[0][0],
            broken=watch.broken,
        )

    if options.control == "per_sample":
        return jax.vmap(partial(solve, along))(y0, args)
    solution = solve(jax.vmap(along, in_axes=(None, 0, 0)), y0, args)
    batch = len(jax.tree.leaves(y0)[0])
    shared = jax.tree.map(
        lambda number: jnp.broadcast_to(number, batch),
        solution._replace(y=None, path=None),
    )
    path = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), solution.path)
    return shared._replace(y=solution.y, path=path)


def require_success(
    success: Bool[Array, "batch"],
    where: str,
    options: Any,
    *,
    times: Float[Array, "batch"] | None = None,
    broken: Bool[Array, "batch"] | None = None,
) -> None:
    """Raise IntegrationError unless every sample's solve succeeded.

    `times` tells when each has stopped, and `broken` which were stopped by NaN or infinity.
    """
    failed = ~np.asarray(success)
    if not failed.any():
        return
    by_nan = broken is not None and bool(np.any(broken))
    if by_nan:
        failed = np.asarray(broken)
    what = f"{where}: {failed.sum()} of {failed.size} samples"
    at = ""
    if times is not None:
        high, low = f"{np.max(times[failed]):.4g}", f"{np.min(times[failed]):.4g}"
        at = f" at t={high}" if low == high else f" between t={high} and t={low}"
    if by_nan:
        raise IntegrationError(
            f"{what} became NaN or infinite{at}; check the network for NaN there"
        )
    raise IntegrationError(
        f"{what} did not reach the end within max_steps={options.max_steps} or became non-finite"
        f"{at and ', but stopped'}{at}; raise max_steps, loosen rtol={options.rtol} and "
        f"atol={options.atol}, or check the network for NaN"
    )
