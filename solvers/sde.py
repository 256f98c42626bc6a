r"""Sampling by the reverse SDE with a solver of diffrax for additive noise.

dx = [f x - (1 + churn^2) / 2 g^2 score] dt + churn g dw, backwards from t = 1 to t_min, has the
marginals of the process for any churn > 0 (Song et al. 2021, arXiv:2011.13456, Eq. 6 and 13). It is
integrated in lam = log(alpha / sigma), half the log-SNR, where g^2 |dt| = 2 sigma^2 dlam, and for
u = x / norm, norm^2 = alpha^2 + sigma^2. With phi the angle whose tangent is sigma / alpha,

    du = [sin cos (sin x0 - cos eps) - churn^2 sin eps] dlam + churn sqrt(2) sin dw,

in which all coefficients are bounded by 2 and no longer depend on the process: noise is forgotten
at the rate 1 to 1 + churn^2 a unit of lam, at every noise level. In t the rates of VP grow like
1 / t, and equal steps are either too long near t_min or too many elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from numerics.arrays import fold_in_each, sample_keys
from numerics.ode import Solution, require_success
from numerics.stochastic import SDEOptions, integrate_sde
from probability_flow import Batch, Coordinates, half_log_snr, norm, time_of_half_log_snr
from sampling import Samples, refuse_projection
from solvers.adaptive import check_end, collected, finished, frame_times, prior_states

COORDINATES = Coordinates(half_log_snr, time_of_half_log_snr, norm)


@dataclass(frozen=True, kw_only=True)
class ReverseSDE:
    """Which reverse SDE, where its sampler stops, and what it returns there.

    Args:
      churn: how much of the noise is fresh, above 0; 1 is Anderson's reverse-time SDE, and 0 would
        be the probability-flow ODE.
      t_min: where sampling stops.
      finish: what is returned there, "denoise" or "sample".
    """

    churn: float = 1.0
    t_min: float = 1e-3
    finish: str = "denoise"

    def __post_init__(self) -> None:
        check_end(self.t_min, self.finish, "sde")
        if not 0 < self.churn < math.inf:
            raise ValueError(
                f"churn={self.churn} must be finite and above 0; without noise take name=ode"
            )


def sample_sde(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: ReverseSDE,
    solving: SDEOptions,
    indices: Int[Array, "batch"] | None = None,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    Its start and its Brownian path are the same for every solver, churn, step count and tolerance.
    nfe is the slowest sample's count: all samples are evaluated until it has finished.

    Args:
      frames: so many snapshots in `trajectory`, equally spaced in the log-SNR, the start and the
        samples among them; or the times from 1 to t_min at which they are taken (after the nearest
        of equal steps). The one at t_min is the finished samples.

    Raises:
      ValueError: for a frame's time outside [t_min, 1].
      IntegrationError: if a sample's solve fails.
      SamplingError: if the evaluation that denoises the samples is not finite.
    """
    if indices is None:
        indices = jnp.arange(shape[0])
    refuse_projection(denoiser, "sde")
    times = frame_times(frames, denoiser.sde, options.t_min, COORDINATES)
    x, solution = _solve(key, denoiser, indices, times, shape[1:], options, solving)
    require_success(
        solution.success,
        "reverse SDE sampler",
        solving,
        times=solution.reached,
        broken=solution.broken,
    )
    return collected(denoiser, x, solution, times, options)


@partial(jax.jit, static_argnames=("item_shape", "options", "solving"))
def _solve(
    key: Key[Array, ""],
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    times: Float[Array, "frames"],
    item_shape: tuple[int, ...],
    options: ReverseSDE,
    solving: SDEOptions,
) -> tuple[Batch, Solution]:
    process, churn = denoiser.sde, options.churn
    keys = sample_keys(key, indices)
    x = prior_states(keys, process, item_shape)
    first, last = (half_log_snr(process, jnp.asarray(t, x.dtype)) for t in (1.0, options.t_min))
    length = last - first

    # The integration's own time goes from 0 to 1, so that dlam = length dtime.
    def drift(time: Float[Array, ""], u: Float[Array, "..."], entry: Any) -> Float[Array, "..."]:
        value = first + length * time
        t = time_of_half_log_snr(process, value)
        x0, eps, *_ = denoiser.index(entry).predict(norm(process, t) * u[None], t)
        sin, cos = _sin_cos(value)
        return length * (sin * cos * (sin * x0 - cos * eps) - churn**2 * sin * eps)[0]

    def diffusion(time: Float[Array, ""]) -> Float[Array, ""]:
        return churn * jnp.sqrt(2 * length) * _sin_cos(first + length * time)[0]

    marks = (half_log_snr(process, jnp.asarray(times, x.dtype)) - first) / length
    solution = integrate_sde(
        drift,
        diffusion,
        x / norm(process, jnp.asarray(1.0, x.dtype)),
        denoiser.batched_fields,
        fold_in_each(keys, 1),
        options=solving,
        frames=jnp.clip(marks, 0, 1) if len(times) else None,
    )
    solution = solution._replace(reached=first + length * solution.reached)
    return finished(denoiser, solution, times, options, COORDINATES)


def _sin_cos(half_log_snr: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """sigma / norm and alpha / norm."""
    return jnp.sqrt(jax.nn.sigmoid(-2 * half_log_snr)), jnp.sqrt(jax.nn.sigmoid(2 * half_log_snr))
