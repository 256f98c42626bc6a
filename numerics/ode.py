"""Adaptive integration of many independent ODEs at once, by diffrax.

With step sizes "per_sample" the solve is vmapped: a sample's error never depends on the rest of the
batch, and all samples run in lockstep until the slowest has finished. With "batch" all samples take
the same steps, chosen by the error of all numbers together, as published results do.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from errors import IntegrationError, require_choice, require_in
from numerics.arrays import is_traced, pytree, whole


class Method(NamedTuple):
    """A method with an estimate of its error.

    Attributes:
        solver: the module and name of its class, a solver of diffrax.
        evaluations: evaluations of the field per step.
        first_same_as_last: whether the last stage of an accepted step is the first of the next.
            Before a step has been accepted there is nothing to reuse, so each step tried until
            then costs one more.
        before: evaluations of the field before the first step.
        first_step: length of the first step that is tried, as a fraction of the interval.
    """

    solver: str
    evaluations: int
    first_same_as_last: bool = False
    before: int = 0
    first_step: float = 0.01


# Implicit solvers are missing: each of their steps needs the Jacobian of the network. So is
# ReversibleHeun, whose advantage is in gradients through the solve.
ODE_METHODS = {
    "heun": Method("diffrax.Heun", 2),
    "midpoint": Method("diffrax.Midpoint", 2),
    "ralston": Method("diffrax.Ralston", 2),
    "bosh3": Method("diffrax.Bosh3", 3, first_same_as_last=True),
    "tsit5": Method("diffrax.Tsit5", 6, first_same_as_last=True),
    "dopri5": Method("diffrax.Dopri5", 6, first_same_as_last=True),
    "dopri8": Method("diffrax.Dopri8", 13, first_same_as_last=True),
    # A step of its first order is short.
    "adams": Method("numerics.adams.Adams", 1, before=1, first_step=0.0003),
}

STEP_SIZE_CONTROLS = ("per_sample", "batch")


# Tolerances are traced: changing them does not recompile.
@pytree(static=("solver", "max_steps", "step_size_control"))
@dataclass(frozen=True, kw_only=True)
class ODEOptions:
    """How to integrate an ODE.

    Args:
        solver: a name in ODE_METHODS.
        rtol, atol: relative and absolute tolerance, in (0, 1). Below 1e-7 they gain nothing in
            float32 and cost many steps.
        max_steps: limit of the number of steps, at least 1.
        step_size_control: step sizes "per_sample"; or common to the "batch", and then a sample's
            result depends on the others, within the tolerance.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096
    step_size_control: str = "per_sample"

    def __post_init__(self) -> None:
        require_choice("solver", self.solver, ODE_METHODS)
        require_choice("step_size_control", self.step_size_control, STEP_SIZE_CONTROLS)
        require_in("rtol", self.rtol, "(0, 1)")
        require_in("atol", self.atol, "(0, 1)")
        require_in("max_steps", self.max_steps, "[1, inf)")


class Solution(NamedTuple):
    """The result of a solve.

    Attributes:
        y: the state at the end; NaN if it was not reached.
        evaluations: evaluations of the field.
        success: whether the end was reached.
        path: the states at the requested times, if any.
        t_stopped: the time of the last accepted step; the end in case of success.
        nonfinite: whether NaN or infinity stopped the solve.
    """

    y: Any
    evaluations: Int[Array, "batch"]
    success: Bool[Array, "batch"]
    path: Any
    t_stopped: Float[Array, "batch"]
    nonfinite: Bool[Array, "batch"]

    @property
    def slowest(self) -> Any:
        """The evaluations of the slowest sample, a number; inside jit an array."""
        most = self.evaluations.max()
        return most if is_traced(most) else int(most)


def solve(
    terms: Any,
    solver: Any,
    controller: Any,
    y0: Any,
    args: Any,
    *,
    first_step: float,
    max_steps: int,
    evaluations: int,
    first_same_as_last: bool = False,
    before: int = 0,
    frames: Float[Array, "frames"] | None = None,
) -> Solution:
    """Solve a differential equation from time 0 to 1 by diffrax; traceable.

    Args:
        terms: diffrax's terms.
        solver: diffrax's method.
        controller: chooses the step sizes.
        y0: the state at time 0, a pytree.
        args: passed to the terms.
        first_step: length of the first step that is tried.
        max_steps: limit of the number of steps.
        evaluations: evaluations of the field per step.
        first_same_as_last, before: as in `Method`.
        frames: times at which `path` has the states.
    """
    import diffrax

    from numerics.step_control import NonFiniteGuard, all_finite

    ends = diffrax.SubSaveAt(t1=True)
    solution: Any = diffrax.diffeqsolve(  # whose type makes all it may save optional
        terms,
        solver,
        t0=0.0,
        t1=1.0,
        dt0=first_step,
        y0=y0,
        args=args,
        stepsize_controller=NonFiniteGuard(controller),
        max_steps=max_steps,
        saveat=diffrax.SaveAt(
            subs=[ends] if frames is None else [ends, diffrax.SubSaveAt(ts=frames)],
            controller_state=True,
        ),
        adjoint=diffrax.ForwardMode(),  # a plain loop: nothing here is differentiated
        throw=False,
    )
    end = jax.tree.map(lambda leaf: leaf[0], solution.ys[0])
    guard = solution.controller_state
    count = solution.stats["num_steps"] * evaluations + before
    success = (solution.result == diffrax.RESULTS.successful) & all_finite(end)
    return Solution(
        y=jax.tree.map(lambda leaf: jnp.where(success, leaf, jnp.nan), end),
        evaluations=count + 1 + guard.retries if first_same_as_last else count,
        success=success,
        path=None if frames is None else solution.ys[1],
        t_stopped=solution.ts[0][0],
        nonfinite=guard.nonfinite,
    )


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
    """Solve dy/dt = field(t, y, args) from t0 to t1 (either direction) for each sample; traceable.

    Args:
        field: the right-hand side for one sample.
        y0, args: pytrees with a leading batch axis.
        t0, t1: the ends.
        options: how to integrate.
        frames: times between t0 and t1 at which `path` (batch, frames, ...) has the states, or
            their number, equally spaced from t0.

    Returns:
        A Solution that must be checked with `require_success`: a failed sample has `success` False.
    """
    import diffrax  # a quarter of a second, which few programs need

    method = ODE_METHODS[options.solver]
    module, _, name = method.solver.rpartition(".")
    solver = getattr(importlib.import_module(module), name)()
    # The solver's own time goes from 0 to 1. diffrax would check the order of traced ends by a call
    # to Python, and programs with such calls are not kept in the compilation cache.
    length = t1 - t0
    ts = None
    if not isinstance(frames, int):
        ts = (frames - t0) / length
    elif frames:
        ts = jnp.linspace(0.0, 1.0, frames)

    def scaled(time: Float[Array, ""], y: Any, arg: Any) -> Any:
        return jax.tree.map(lambda slope: length * slope, field(t0 + length * time, y, arg))

    def solved(field: Callable[..., Any], y: Any, arg: Any) -> Solution:
        solution = solve(
            diffrax.ODETerm(field),
            solver,
            # The last two errors control the step, so that steps do not grow and shrink in turns:
            # along a network's ODE a third of all steps were rejected without.
            diffrax.PIDController(rtol=options.rtol, atol=options.atol, pcoeff=0.2, icoeff=0.6),
            y,
            arg,
            first_step=method.first_step,
            max_steps=options.max_steps,
            evaluations=method.evaluations,
            first_same_as_last=method.first_same_as_last,
            before=method.before,
            frames=ts,
        )
        return solution._replace(t_stopped=t0 + length * solution.t_stopped)

    if options.step_size_control == "per_sample":
        return jax.vmap(partial(solved, scaled))(y0, args)
    solution = solved(jax.vmap(scaled, in_axes=(None, 0, 0)), y0, args)
    batch = len(jax.tree.leaves(y0)[0])
    shared = jax.tree.map(
        lambda number: jnp.broadcast_to(number, batch),
        solution._replace(y=None, path=None),
    )
    path = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), solution.path)
    return shared._replace(y=solution.y, path=path)


def require_success(solution: Solution, name: str, options: Any) -> None:
    """Raise IntegrationError unless the solves of all samples succeeded.

    `name` is the name of the solve in messages; `options` has the limits max_steps, rtol and atol.
    Inside jit, nothing is known yet: there the states of failed samples are NaN.
    """
    if is_traced(solution):
        return
    failed, times = ~whole(solution.success), whole(solution.t_stopped)
    if not failed.any():
        return
    nonfinite = whole(solution.nonfinite)
    failed = nonfinite if nonfinite.any() else failed
    high, low = f"{np.max(times[failed]):.4g}", f"{np.min(times[failed]):.4g}"
    at = f"at t={high}" if low == high else f"between t={high} and t={low}"
    count = f"{name}: {failed.sum()} of {failed.size} samples"
    if nonfinite.any():
        raise IntegrationError(
            f"{count} became NaN or infinite {at}; check the network for NaN there"
        )
    raise IntegrationError(
        f"{count} did not reach the end within max_steps={options.max_steps} or became non-finite, "
        f"but stopped {at}; raise max_steps, loosen rtol={options.rtol} and atol={options.atol}, "
        "or check the network for NaN"
    )
