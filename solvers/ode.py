"""Sampling by the probability-flow ODE with an adaptive diffrax solver.

Integrating the flow (flow.py) from prior noise at t = 1 down to t_min gives samples without further
randomness; the same seed and sample number give the same image to within the tolerance. The flow
goes both ways: up, it takes an image to its latent code x_1, of which it is made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from errors import require_choice
from numerics.arrays import expand_like, sample_keys
from numerics.ode import ODEOptions, Solution, integrate, require_success
from probability_flow import VARIABLES, Batch
from sampling import Samples, refuse_projection
from sde_lib import SDE
from solvers.adaptive import check_end, collected, finished, frame_times, prior_states


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """Where the ODE sampler stops, what it returns there, and in what it integrates.

    Args:
      t_min: where sampling stops.
      finish: what is returned there, a name in FINISHES.
      variable: what is integrated in, a name in VARIABLES.
    """

    t_min: float = 1e-3
    finish: str = "denoise"
    variable: str = "t"

    def __post_init__(self) -> None:
        check_end(self.t_min, self.finish, "ode")
        require_choice("variable", self.variable, VARIABLES)


def sample_ode(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: FlowOptions,
    ode: ODEOptions,
    indices: Int[Array, "batch"] | None = None,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    nfe is the slowest sample's count: all samples are evaluated until it has finished.

    Args:
      frames: so many snapshots in `trajectory`, equally spaced in the variable, the start and the
        samples among them; or the times from 1 to t_min at which they are taken. The one at t_min
        is the finished samples.

    Raises:
      ValueError: for a frame's time outside [t_min, 1].
      IntegrationError: if a sample's solve fails.
      SamplingError: if the evaluation that denoises the samples is not finite.
    """
    if indices is None:
        indices = jnp.arange(shape[0])
    latent = _latent(key, denoiser.sde, indices, shape[1:])
    return decode(denoiser, latent, options=options, ode=ode, frames=frames)


def decode(
    denoiser: Denoiser,
    latent: Batch,
    *,
    options: FlowOptions,
    ode: ODEOptions,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """The samples that the flow makes of latent codes x_1; all else as in `sample_ode`."""
    refuse_projection(denoiser, "ode")
    times = frame_times(frames, denoiser.sde, options.t_min, VARIABLES[options.variable][0])
    x, solution = _solve(denoiser, latent, times, options, ode)
    _require_success(solution, ode)
    return collected(denoiser, x, solution, times, options)


def encode(denoiser: Denoiser, x: Batch, *, options: FlowOptions, ode: ODEOptions) -> Samples:
    """The latent codes x_1 of images, which are taken as the flow's states at t_min.

    `decode` with finish "sample" gives the images back, to within the tolerance.

    Raises:
      IntegrationError: if an image's solve fails.
    """
    latent, solution = _encode(denoiser, x, options, ode)
    _require_success(solution, ode)
    return Samples(latent, int(solution.evaluations.max()))


def interpolate(
    a: Float[Array, "*shape"], b: Float[Array, "*shape"], fractions: Float[Array, "n"]
) -> Float[Array, "n *shape"]:
    """Latent codes on the great circle from a to b.

    (sin((1 - f) w) a + sin(f w) b) / sin(w), with w the angle between the two (Shoemake 1985).
    Unlike on a straight line, those between have the length that a prior's draws have.
    """
    cosine = jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    f = expand_like(jnp.asarray(fractions), a[None])
    # sin(f w) / sin(w) by sinc, so that equal codes are no special case.
    a_share, b_share = (share * jnp.sinc(share * angle / jnp.pi) for share in (1 - f, f))
    return (a_share * a[None] + b_share * b[None]) / jnp.sinc(angle / jnp.pi)


def _require_success(solution: Solution, ode: ODEOptions) -> None:
    require_success(
        solution.success,
        "probability-flow ODE",
        ode,
        times=solution.reached,
        broken=solution.broken,
    )


@partial(jax.jit, static_argnames=("item_shape",))
def _latent(
    key: Key[Array, ""], sde: SDE, indices: Int[Array, "batch"], item_shape: tuple[int, ...]
) -> Batch:
    return prior_states(sample_keys(key, indices), sde, item_shape)


@partial(jax.jit, static_argnames=("options",))
def _solve(
    denoiser: Denoiser,
    latent: Batch,
    times: Float[Array, "frames"],
    options: FlowOptions,
    ode: ODEOptions,
) -> tuple[Batch, Solution]:
    at, _ = VARIABLES[options.variable]
    solution = _walk(denoiser, latent, (1.0, options.t_min), times, options, ode)
    return finished(denoiser, solution, times, options, at)


@partial(jax.jit, static_argnames=("options",))
def _encode(
    denoiser: Denoiser, x: Batch, options: FlowOptions, ode: ODEOptions
) -> tuple[Batch, Solution]:
    at, _ = VARIABLES[options.variable]
    solution = _walk(denoiser, x, (options.t_min, 1.0), jnp.zeros(0), options, ode)
    latent = solution.y * at.scale(denoiser.sde, jnp.asarray(1.0, x.dtype))
    return latent, solution._replace(y=None, reached=at.time(denoiser.sde, solution.reached))


def _walk(
    denoiser: Denoiser,
    x: Batch,
    ends: tuple[float, float],
    times: Float[Array, "frames"],
    options: FlowOptions,
    ode: ODEOptions,
) -> Solution:
    """The flow's states from one time to another, in the variable that is integrated in."""
    sde, (at, derivative) = denoiser.sde, VARIABLES[options.variable]

    def velocity(
        value: Float[Array, ""], state: Float[Array, "..."], entry: Any
    ) -> Float[Array, "..."]:
        return derivative(denoiser.index(entry), state[None], value)[0]

    first, last = (at.value(sde, jnp.asarray(t, x.dtype)) for t in ends)
    values = at.value(sde, jnp.asarray(times, x.dtype))
    return integrate(
        velocity,
        x / at.scale(sde, jnp.asarray(ends[0], x.dtype)),
        denoiser.batched_fields,
        t0=first,
        t1=last,
        options=ode,
        frames=jnp.clip(values, jnp.minimum(first, last), jnp.maximum(first, last))
        if len(times)
        else 0,
    )
