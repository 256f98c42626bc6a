"""Sampling by the probability-flow ODE with adaptive steps.

Integrating the ODE (`probability_flow.py`) from prior noise at t = 1 down to t_min gives samples
without further randomness: the same seed and sample index give the same image, within the
tolerance. The ODE is invertible. Integrated upwards it encodes an image as its latent x_1, which
decodes to the image again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from errors import require_choice
from numerics.arrays import Batch, expand_like, require_batch, sample_indices, sample_keys
from numerics.clipping import Clipping
from numerics.ode import ODEOptions, Solution, integrate, require_success
from probability_flow import VARIABLES
from sampling import Samples
from sde_lib import SDE
from solvers.adaptive import check_end, checked_samples, finished, frame_times, prior_states

_NAME = "probability-flow ODE"


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """Where the ODE sampler stops, and in which variable it integrates.

    Args:
        t_min: where sampling stops.
        final_step: the value returned there, "denoise" or "none" of `time_grids.FINAL_STEPS`. Where
            Song et al. take one more step of reverse diffusion without noise, "denoise" is
            Tweedie's estimate, which leaves no noise.
        ode_variable: the variable of integration, a name in `probability_flow.VARIABLES`.

    Raises:
        ValueError: for an unknown name or t_min outside (0, 1).
    """

    t_min: float = 1e-3
    final_step: str = "denoise"
    ode_variable: str = "t"

    def __post_init__(self) -> None:
        check_end(self.t_min, self.final_step)
        require_choice("ode_variable", self.ode_variable, VARIABLES)


def sample_ode(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: FlowOptions = FlowOptions(),
    ode: ODEOptions = ODEOptions(),
    indices: Int[Array, "batch"] | None = None,
    initial: Batch | None = None,
    clipping: Clipping | None = None,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    nfe is the count of the slowest sample: all samples are evaluated until it has finished. Inside
    jit, a sample whose solve fails is NaN in place of an error.

    Args:
        key: random key.
        denoiser: the network, perhaps guided.
        shape: (batch, ...).
        options: end and variable of the integration.
        ode: method and tolerances.
        indices: indices of the samples, by default 0, 1, ...
        initial: as in `sampling.sample`.
        clipping: keeps the predicted x0 in the range of the data.
        frames: number of snapshots in `trajectory`, equally spaced in the variable, including start
            and samples; or times between 1 and t_min. The one at t_min is the finished samples.

    Raises:
        ValueError: for a frame's time outside [t_min, 1].
        IntegrationError: if a sample's solve fails.
        SamplingError: if the evaluation that denoises the samples is not finite.
    """
    if clipping is not None:
        denoiser = replace(denoiser, clipping=clipping)
    indices = sample_indices(key, shape, indices)
    if initial is None:
        latent = _latent(key, denoiser.sde, indices, shape[1:])
    else:
        latent = denoiser.sde.prior_std * initial
    return decode(denoiser, latent, options=options, ode=ode, frames=frames)


def decode(
    denoiser: Denoiser,
    latent: Batch,
    *,
    options: FlowOptions = FlowOptions(),
    ode: ODEOptions = ODEOptions(),
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Decode latents x_1 (batch, ...) to samples; the rest as in `sample_ode`."""
    at, _ = VARIABLES[options.ode_variable]
    times = frame_times(frames, denoiser.sde, options.t_min, at)
    x, solution = _solve(denoiser, require_batch(latent), times, options, ode)
    return checked_samples(denoiser, x, solution, times, options, name=_NAME, limits=ode)


def encode(
    denoiser: Denoiser,
    x: Batch,
    *,
    options: FlowOptions = FlowOptions(),
    ode: ODEOptions = ODEOptions(),
) -> Samples:
    """Encode images (batch, ...) as latents x_1; images are taken as states at t_min.

    `decode` with final_step="none" gives the images back, within the tolerance.

    Raises:
        IntegrationError: if an image's solve fails.
    """
    latent, solution = _encode(denoiser, require_batch(x), options, ode)
    require_success(solution, _NAME, ode)
    return Samples(latent, solution.slowest)


def interpolate(
    a: Float[Array, "*shape"], b: Float[Array, "*shape"], fractions: Float[Array, "n"]
) -> Float[Array, "n *shape"]:
    """Interpolate latents on the great circle from a to b.

    (sin((1 - f) w) a + sin(f w) b) / sin(w), with w the angle between a and b (Shoemake 1985).
    Unlike on a straight line, the latents between have the length of draws from the prior.
    """
    cosine = jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    f = expand_like(jnp.asarray(fractions), a[None])
    # sin(f w) / sin(w) by sinc, so that equal latents are no special case.
    a_share, b_share = (share * jnp.sinc(share * angle / jnp.pi) for share in (1 - f, f))
    return (a_share * a[None] + b_share * b[None]) / jnp.sinc(angle / jnp.pi)


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
    at, _ = VARIABLES[options.ode_variable]
    solution = _integrate(denoiser, latent, (1.0, options.t_min), times, options, ode)
    return finished(denoiser, solution, times, options, at)


@partial(jax.jit, static_argnames=("options",))
def _encode(
    denoiser: Denoiser, x: Batch, options: FlowOptions, ode: ODEOptions
) -> tuple[Batch, Solution]:
    at, _ = VARIABLES[options.ode_variable]
    solution = _integrate(denoiser, x, (options.t_min, 1.0), jnp.zeros(0), options, ode)
    latent = solution.y * at.scale(denoiser.sde, jnp.asarray(1.0, x.dtype))
    t_stopped = at.time(denoiser.sde, solution.t_stopped)
    return latent, solution._replace(y=None, t_stopped=t_stopped)


def _integrate(
    denoiser: Denoiser,
    x: Batch,
    ends: tuple[float, float],
    times: Float[Array, "frames"],
    options: FlowOptions,
    ode: ODEOptions,
) -> Solution:
    """Integrate the ODE from one time to another, in its variable."""
    sde, (at, derivative) = denoiser.sde, VARIABLES[options.ode_variable]

    def velocity(
        value: Float[Array, ""], state: Float[Array, "..."], entry: Any
    ) -> Float[Array, "..."]:
        return derivative(denoiser.index(entry), state[None], value)[0]

    first, last = (at.value(sde, jnp.asarray(t, x.dtype)) for t in ends)
    values = at.value(sde, jnp.asarray(times, x.dtype))
    inside = jnp.clip(values, jnp.minimum(first, last), jnp.maximum(first, last))
    return integrate(
        velocity,
        x / at.scale(sde, jnp.asarray(ends[0], x.dtype)),
        denoiser.batched_fields,
        t0=first,
        t1=last,
        options=ode,
        frames=inside if len(times) else 0,
    )
