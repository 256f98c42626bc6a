"""diffrax behind one function: adaptive integration of many independent ODEs at once.

Each sample has its own step sizes (the solve is vmapped), so a sample's error never depends on
what else is in the batch. All samples run in lockstep until the slowest has finished.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# name -> (solver, network evaluations of one step, and before the first). All but Heun take the
# last stage of a step as the first of the next, so that one is needed to begin with.
SOLVERS = {
    "dopri5": (diffrax.Dopri5, 6, 1),
    "tsit5": (diffrax.Tsit5, 6, 1),
    "dopri8": (diffrax.Dopri8, 13, 1),
    "heun": (diffrax.Heun, 2, 0),
}


class IntegrationError(RuntimeError):
    """An ODE solve that did not reach its end; the message says why and what to change."""


@dataclass(frozen=True, kw_only=True)
class ODEOptions:
    """How to integrate: a solver of SOLVERS, relative and absolute tolerance, and a step limit.

    Tolerances below 1e-7 gain nothing in float32 and cost many steps.
    """

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(
                f"solver={self.solver!r} is unknown; choose one of: {', '.join(sorted(SOLVERS))}"
            )
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")


class Solution(NamedTuple):
    """The state at the end (and on the way, if asked), and what it took to get there."""

    y: Any
    evaluations: Int[Array, "batch"]
    success: Bool[Array, "batch"]
    path: Any


def integrate(
    field: Callable[[Float[Array, ""], Any, Any], Any],
    y0: Any,
    args: Any,
    *,
    t0: float,
    t1: float,
    options: ODEOptions,
    frames: int = 0,
) -> Solution:
    """Solve dy/dt = field(t, y, args) from t0 to t1 (either direction) for each sample.

    `field` sees one sample; `y0` and `args` are pytrees with a leading batch axis. With `frames`,
    `path` holds the state at that many equally spaced times, t0 first, shaped (batch, frames, ...).
    Traceable; a failed sample has `success` False, and must be checked with `require_success`.
    """
    solver, per_step, before = SOLVERS[options.solver]
    ts = jnp.linspace(t0, t1, frames) if frames else None

    def solve(y: Any, arg: Any) -> Solution:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver(),
            t0=t0,
            t1=t1,
            dt0=None,
            y0=y,
            args=arg,
            stepsize_controller=diffrax.PIDController(rtol=options.rtol, atol=options.atol),
            max_steps=options.max_steps,
            saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True), diffrax.SubSaveAt(ts=ts)])
            if frames
            else diffrax.SaveAt(t1=True),
            adjoint=diffrax.ForwardMode(),  # a plain loop: nothing here is differentiated
            throw=False,
        )
        end, path = solution.ys if frames else (solution.ys, None)
        end = jax.tree.map(lambda leaf: leaf[0], end)
        finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(end)]))
        success = (solution.result == diffrax.RESULTS.successful) & finite
        evaluations = solution.stats["num_steps"] * per_step + before
        return Solution(end, evaluations, success, path)

    return jax.vmap(solve)(y0, args)


def require_success(
    solution_success: Bool[Array, "batch"], where: str, options: ODEOptions
) -> None:
    """Raise IntegrationError unless every sample's solve succeeded."""
    failed = int((~solution_success).sum())
    if failed:
        raise IntegrationError(
            f"{where}: {failed} of {solution_success.size} samples did not reach the end within "
            f"max_steps={options.max_steps} or became non-finite; raise max_steps, loosen "
            f"rtol={options.rtol} and atol={options.atol}, or check the network for NaN"
        )
