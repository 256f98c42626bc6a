"""diffrax behind one function: integration of many independent SDEs with additive noise.

dy = drift(t, y) dt + diffusion(t) dw from t = 0 to 1, with noise that does not depend on the state,
so that Ito's and Stratonovich's calculus agree and strong order 1.5 costs two evaluations. Each
sample has a Brownian path of its own, a function of its key alone: a virtual Brownian tree (Li et
al. 2020, arXiv:2001.01328; Jelincic et al. 2024, arXiv:2405.06464) answers for any interval without
a memory. So every solver, step count and tolerance sees the same path, and refining the steps
refines the same sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, Key

from numerics.ode import Solution, Watched, all_finite


class StochasticMethod(NamedTuple):
    """A stochastic Runge-Kutta method of diffrax, with its evaluations of the drift in one step.

    strong_order: for additive noise.
    estimates_error: as the control of step sizes needs.
    """

    solver: type[diffrax.AbstractSolver]
    evaluations: int
    strong_order: float
    estimates_error: bool


SDE_SOLVERS = {
    "euler": StochasticMethod(diffrax.Euler, 1, 1.0, False),
    "sea": StochasticMethod(diffrax.SEA, 1, 1.0, False),
    "heun": StochasticMethod(diffrax.Heun, 2, 1.0, True),
    "sra1": StochasticMethod(diffrax.SRA1, 2, 1.5, True),
    "shark": StochasticMethod(diffrax.ShARK, 2, 1.5, True),
    "slowrk": StochasticMethod(diffrax.SlowRK, 2, 1.5, False),
    "spark": StochasticMethod(diffrax.SPaRK, 3, 1.5, True),
}

_FINEST = 2.0**-13  # what the Brownian tree resolves
MOST_STEPS = 4096  # of twice that


@dataclass(frozen=True, kw_only=True)
class SDEOptions:
    """How to integrate an SDE.

    Args:
      solver: a name in SDE_SOLVERS.
      steps: number of equal steps, by default 100 where no tolerance is given.
      rtol, atol: relative and absolute tolerance of adaptive steps, instead of `steps`. Pathwise
        errors shrink slowly with the steps: 1e-2 is much here, 1e-3 very tight.
      max_steps: limit of adaptive steps, rejected ones among them.
    """

    solver: str = "sra1"
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 4096

    def __post_init__(self) -> None:
        if self.solver not in SDE_SOLVERS:
            raise ValueError(
                f"solver={self.solver!r} is unknown; "
                f"choose one of: {', '.join(sorted(SDE_SOLVERS))}"
            )
        if (self.rtol is None) != (self.atol is None):
            raise ValueError(
                f"rtol={self.rtol} and atol={self.atol} go together; "
                "give both for adaptive steps, neither for equal ones"
            )
        if self.adaptive:
            self._check_adaptive()
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(
                f"steps={self.steps} must lie between 1 and {MOST_STEPS}, which is what the "
                "Brownian path resolves"
            )
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")

    def _check_adaptive(self) -> None:
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.steps is not None:
            raise ValueError(
                f"steps={self.steps} has no meaning beside rtol={self.rtol}; leave one of them out"
            )
        if not SDE_SOLVERS[self.solver].estimates_error:
            able = sorted(name for name, method in SDE_SOLVERS.items() if method.estimates_error)
            raise ValueError(
                f"solver={self.solver!r} does not estimate its error and cannot take rtol and "
                f"atol; give steps, or choose one of: {', '.join(able)}"
            )

    @property
    def adaptive(self) -> bool:
        return self.rtol is not None

    @property
    def count(self) -> int:
        """The number of equal steps."""
        return 100 if self.steps is None else self.steps


def integrate_sde(
    drift: Callable[[Float[Array, ""], Any, Any], Any],
    diffusion: Callable[[Float[Array, ""], Any], Float[Array, ""]],
    y0: Float[Array, "batch ..."],
    args: Any,
    keys: Key[Array, "batch"],
    *,
    options: SDEOptions,
    frames: Float[Array, "frames"] | None = None,
) -> Solution:
    """Solve dy = drift(t, y, args) dt + diffusion(t) dw from 0 to 1; sample k with `keys[k]`.

    `drift` sees one sample. With `frames`, increasing times, `path` holds the states there, shaped
    (batch, frames, ...): equal steps are not cut for them, so each is the state after the nearest
    step; adaptive ones are. Traceable; check a solution with `require_success`.
    """
    method = SDE_SOLVERS[options.solver]
    controller, first = _controller(options, method, frames)
    if frames is not None and not options.adaptive:
        frames = jnp.round(frames * options.count) / options.count
    ends = diffrax.SubSaveAt(t1=True)

    def solve(y: Any, arg: Any, key: Key[Array, ""]) -> Solution:
        path = diffrax.VirtualBrownianTree(
            0.0,
            1.0,
            tol=_FINEST,
            shape=jax.ShapeDtypeStruct(y.shape, y.dtype),
            key=key,
            levy_area=diffrax.SpaceTimeLevyArea,
        )

        def spread(t: Float[Array, ""], y: Any, arg: Any) -> lineax.AbstractLinearOperator:
            return lineax.DiagonalLinearOperator(jnp.full(y.shape, diffusion(t), y.dtype))

        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(spread, path)),
            method.solver(),
            t0=0.0,
            t1=1.0,
            dt0=first,
            y0=y,
            args=arg,
            stepsize_controller=Watched(controller),
            max_steps=options.max_steps if options.adaptive else options.count,
            saveat=diffrax.SaveAt(
                subs=[ends] if frames is None else [ends, diffrax.SubSaveAt(ts=frames)],
                controller_state=True,
            ),
            adjoint=diffrax.ForwardMode(),  # a plain loop: nothing here is differentiated
            throw=False,
        )
        end = solution.ys[0][0]
        return Solution(
            y=end,
            evaluations=solution.stats["num_steps"] * method.evaluations,
            success=(solution.result == diffrax.RESULTS.successful) & all_finite(end),
            path=None if frames is None else solution.ys[1],
            reached=solution.ts[0][0],
            broken=solution.controller_state.broken,
        )

    return jax.vmap(solve)(y0, args, keys)


def _controller(
    options: SDEOptions, method: StochasticMethod, frames: Float[Array, "frames"] | None
) -> tuple[diffrax.AbstractStepSizeController, float]:
    """The control of step sizes, and the first step that is tried."""
    if not options.adaptive:
        return diffrax.ConstantStepSize(), 1 / options.count
    # A calmer control than that of ODEs, since errors of neighbouring steps differ by chance.
    # Nothing is gained by steps finer than the Brownian path, so the finest are always accepted.
    controller = diffrax.PIDController(
        rtol=options.rtol,
        atol=options.atol,
        pcoeff=0.1,
        icoeff=0.3,
        error_order=method.strong_order + 0.5,
        dtmin=_FINEST,
    )
    if frames is not None:
        controller = diffrax.ClipStepSizeController(controller, step_ts=frames)
    return controller, 0.01
