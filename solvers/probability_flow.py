"""Sampling by the probability-flow ODE with an adaptive diffrax solver.

dx/dt = f x - g^2 score / 2 has the marginals of the SDE (Song et al. 2021, arXiv:2011.13456,
Eq. 13), so integrating it from prior noise at t = 1 down to t_min gives samples without further
randomness; the same seed and sample number give the same image to within the tolerance.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from arrays import fold_in_each, sample_keys
from denoising import Denoiser
from ode import ODEOptions, integrate, require_success
from sampling import Samples

# What is returned at t_min: Tweedie's estimate of x0 (one more evaluation), or the state itself.
FINISHES = ("denoise", "sample")


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """Where the ODE sampler stops and what it returns there, a name in FINISHES."""

    t_min: float = 1e-3
    finish: str = "denoise"

    def __post_init__(self) -> None:
        if self.finish not in FINISHES:
            raise ValueError(
                f"finish={self.finish!r} is not defined for the ode sampler; "
                f"choose one of: {', '.join(FINISHES)}"
            )
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")


def sample_ode(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: FlowOptions,
    ode: ODEOptions,
    indices: Int[Array, "batch"] | None = None,
    frames: int = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    nfe is the slowest sample's count: all samples are evaluated until it has finished. With
    `frames`, that many snapshots are kept.

    Raises:
      IntegrationError: if a sample's solve fails.
    """
    if indices is None:
        indices = jnp.arange(shape[0])
    x, evaluations, success, path = _solve(key, denoiser, indices, shape[1:], options, ode, frames)
    require_success(success, "probability-flow ODE sampler", ode)
    nfe = int(evaluations.max()) + (options.finish == "denoise")
    trajectory = None
    if frames:
        path = np.moveaxis(np.asarray(path), 1, 0)
        trajectory = np.concatenate([path[:-1], np.asarray(x)[None]])
    return Samples(x, nfe, trajectory)


@partial(jax.jit, static_argnames=("item_shape", "options", "ode", "frames"))
def _solve(
    key: Key[Array, ""],
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    item_shape: tuple[int, ...],
    options: FlowOptions,
    ode: ODEOptions,
    frames: int,
) -> tuple[Float[Array, "batch ..."], Int[Array, "batch"], Bool[Array, "batch"], Array | None]:
    def velocity(
        t: Float[Array, ""], x: Float[Array, "..."], label: Int[Array, ""] | None
    ) -> Float[Array, "..."]:
        return denoiser.of_one(label).flow(x[None], t)[0]

    keys = fold_in_each(sample_keys(key, indices), 0)
    prior = denoiser.sde.prior_sample(keys, jnp.zeros((indices.shape[0], *item_shape)))
    t_min = options.t_min
    solution = integrate(
        velocity, prior, denoiser.labels, t0=1.0, t1=t_min, options=ode, frames=frames
    )
    denoise = options.finish == "denoise"
    x = denoiser.predict(solution.y, t_min).x0 if denoise else solution.y
    return x, solution.evaluations, solution.success, solution.path
