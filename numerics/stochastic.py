"""Integration of many independent SDEs with additive noise at once, by diffrax.

dy = drift(t, y) dt + diffusion(t) dw from t = 0 to 1. The noise does not depend on the state, so
Ito's and Stratonovich's calculus agree, and strong order 1.5 costs two evaluations. Each sample has
its own Brownian path, a function of its key alone: a virtual Brownian tree (Li et al. 2020,
arXiv:2001.01328; Jelincic et al. 2024, arXiv:2405.06464) gives the increments of any interval
without storing the path. So every solver, step count and tolerance sees the same path, and refining
the steps refines the same sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from errors import require_choice, require_in
from numerics.ode import Solution, solve


class StochasticMethod(NamedTuple):
    """A stochastic Runge-Kutta method of diffrax.

    Attributes:
        solver: the name of its class.
        evaluations: evaluations of the drift per step.
        strong_order: strong order for additive noise.
        estimates_error: whether it estimates its error, as adaptive steps need.
    """

    solver: str
    evaluations: int
    strong_order: float
    estimates_error: bool


SDE_METHODS = {
    "euler": StochasticMethod("Euler", 1, 1.0, False),
    "sea": StochasticMethod("SEA", 1, 1.0, False),
    "heun": StochasticMethod("Heun", 2, 1.0, True),
    "sra1": StochasticMethod("SRA1", 2, 1.5, True),
    "shark": StochasticMethod("ShARK", 2, 1.5, True),
    "slowrk": StochasticMethod("SlowRK", 2, 1.5, False),
    "spark": StochasticMethod("SPaRK", 3, 1.5, True),
}

_FINEST = 2.0**-13  # the resolution of the Brownian tree
MOST_STEPS = 4096  # half of its number of intervals


@dataclass(frozen=True, kw_only=True)
class SDEOptions:
    """How to integrate an SDE.

    Args:
        solver: a name in SDE_METHODS.
        steps: number of equal steps; by default 100 where no tolerance is given.
        rtol, atol: relative and absolute tolerance of adaptive steps, instead of `steps`. Pathwise
            errors shrink slowly with the steps: 1e-2 is coarse, 1e-3 very tight.
        max_steps: limit of adaptive steps, including rejected ones.

    Raises:
        ValueError: for an unknown name, a number out of range, or fields that exclude each other.
    """

    solver: str = "sra1"
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 4096

    def __post_init__(self) -> None:
        require_choice("solver", self.solver, SDE_METHODS)
        if (self.rtol is None) != (self.atol is None):
            raise ValueError(
                f"rtol={self.rtol} and atol={self.atol} go together; "
                "give both for adaptive steps, neither for equal ones"
            )
        if self.adaptive:
            self._check_adaptive()
        require_in("steps", self.steps, f"[1, {MOST_STEPS}]")  # as far as the path is resolved
        require_in("max_steps", self.max_steps, "[1, inf)")

    def _check_adaptive(self) -> None:
        require_in("rtol", self.rtol, "(0, 1)")
        require_in("atol", self.atol, "(0, 1)")
        if self.steps is not None:
            raise ValueError(
                f"steps={self.steps} has no meaning beside rtol={self.rtol}; leave one of them out"
            )
        if not SDE_METHODS[self.solver].estimates_error:
            able = sorted(name for name, method in SDE_METHODS.items() if method.estimates_error)
            raise ValueError(
                f"solver={self.solver!r} does not estimate its error and cannot take rtol and "
                f"atol; give steps, or choose one of: {', '.join(able)}"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the steps follow a tolerance."""
        return self.rtol is not None

    @property
    def count(self) -> int:
        """The number of equal steps."""
        return 100 if self.steps is None else self.steps


def integrate_sde(
    drift: Callable[[Any, Any, Any], Any],
    diffusion: Callable[[Float[Array, ""]], Float[Array, ""]],
    y0: Float[Array, "batch ..."],
    args: Any,
    keys: Key[Array, "batch"],
    *,
    options: SDEOptions,
    frames: Float[Array, "frames"] | None = None,
) -> Solution:
    """Solve dy = drift(t, y, args) dt + diffusion(t) dw from 0 to 1; traceable.

    Args:
        drift: the drift of one sample.
        diffusion: the scale of the noise.
        y0, args: pytrees with a leading batch axis.
        keys: sample k draws its path from `keys[k]`.
        options: how to integrate.
        frames: increasing times at which `path` (batch, frames, ...) has the states. Equal steps
            are not cut for them, so each is the state after the nearest step; adaptive ones are.

    Returns:
        A Solution that must be checked with `require_success`.
    """
    import diffrax
    import lineax

    method = SDE_METHODS[options.solver]
    controller, first_step = _controller(options, method, frames)
    if frames is not None and not options.adaptive:
        frames = jnp.round(frames * options.count) / options.count

    def spread(t: Any, y: Any, arg: Any) -> Any:
        return lineax.DiagonalLinearOperator(jnp.full(y.shape, diffusion(t), y.dtype))

    def solved(y: Any, arg: Any, key: Key[Array, ""]) -> Solution:
        path = diffrax.VirtualBrownianTree(
            0.0,
            1.0,
            tol=_FINEST,
            shape=jax.ShapeDtypeStruct(y.shape, y.dtype),
            key=key,
            levy_area=diffrax.SpaceTimeLevyArea,
        )
        return solve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(spread, path)),
            getattr(diffrax, method.solver)(),
            controller,
            y,
            arg,
            first_step=first_step,
            max_steps=options.max_steps if options.adaptive else options.count,
            evaluations=method.evaluations,
            frames=frames,
        )

    return jax.vmap(solved)(y0, args, keys)


def _controller(
    options: SDEOptions, method: StochasticMethod, frames: Float[Array, "frames"] | None
) -> tuple[Any, float]:
    """Return diffrax's step-size controller, and the first step that is tried."""
    import diffrax

    if options.rtol is None or options.atol is None:
        return diffrax.ConstantStepSize(), 1 / options.count
    # Calmer than for ODEs, since the errors of neighboring steps differ by chance.
    # Steps finer than the Brownian path gain nothing, so the finest are always accepted.
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
