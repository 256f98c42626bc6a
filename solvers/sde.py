r"""Sampling by the reverse SDE with a diffrax solver for additive noise.

dx = [f x - (1 + churn^2) / 2 g^2 score] dt + churn g dw, backwards from t = 1 to t_min, has the
marginals of the process for any churn > 0 (Song et al. 2021, arXiv:2011.13456, Eq. 6 and 13). It is
integrated in lam = log(alpha / sigma), half the log-SNR, where g^2 |dt| = 2 sigma^2 dlam, and for
u = x / norm, norm^2 = alpha^2 + sigma^2. With phi the angle whose tangent is sigma / alpha,

    du = [sin cos (sin x0 - cos eps) - churn^2 sin eps] dlam + churn sqrt(2) sin dw.

All coefficients are bounded by 2 and do not depend on the process: noise is forgotten at the rate 1
to 1 + churn^2 per unit of lam, at every noise level. In t, the rates of VP grow like 1 / t, and
equal steps are either too long near t_min or too many elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from numerics.arrays import Batch, fold_in_each, sample_indices, sample_keys
from numerics.clipping import Clipping
from numerics.ode import Solution
from numerics.stochastic import SDEOptions, integrate_sde
from probability_flow import Coordinates, half_log_snr, norm, time_of_half_log_snr
from sampling import Samples
from solvers.adaptive import check_end, checked_samples, finished, frame_times, prior_states

COORDINATES = Coordinates(half_log_snr, time_of_half_log_snr, norm)


@dataclass(frozen=True, kw_only=True)
class ReverseSDE:
    """Which reverse SDE is solved, and where its sampler stops.

    Args:
        churn: amount of fresh noise, above 0; 1 is Anderson's reverse-time SDE, and 0 would be the
            probability-flow ODE.
        t_min: where sampling stops.
        final_step: the value returned there, "denoise" or "none" of `time_grids.FINAL_STEPS`.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    churn: float = 1.0
    t_min: float = 1e-3
    final_step: str = "denoise"

    def __post_init__(self) -> None:
        check_end(self.t_min, self.final_step)
        if not 0 < self.churn < math.inf:
            raise ValueError(
                f"churn={self.churn} must be finite and above 0; without noise choose name=ode"
            )


def sample_sde(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: ReverseSDE = ReverseSDE(),
    solving: SDEOptions = SDEOptions(),
    indices: Int[Array, "batch"] | None = None,
    clipping: Clipping | None = None,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    Its start and its Brownian path are the same for every method, churn, step count and tolerance.
    nfe is the count of the slowest sample: all samples are evaluated until it has finished. Inside
    jit, a sample whose solve fails is NaN in place of an error.

    Args:
        key: random key.
        denoiser: the network, perhaps guided.
        shape: (batch, ...).
        options: the SDE and its end.
        solving: method, steps and tolerances.
        indices: indices of the samples, by default 0, 1, ...
        clipping: keeps the predicted x0 in the range of the data.
        frames: number of snapshots in `trajectory`, equally spaced in log-SNR, including start and
            samples; or times between 1 and t_min (after the nearest of equal steps). The one at
            t_min is the finished samples.

    Raises:
        ValueError: for a frame's time outside [t_min, 1].
        IntegrationError: if a sample's solve fails.
        SamplingError: if the evaluation that denoises the samples is not finite.
    """
    if clipping is not None:
        denoiser = replace(denoiser, clipping=clipping)
    indices = sample_indices(key, shape, indices)
    times = frame_times(frames, denoiser.sde, options.t_min, COORDINATES)
    x, solution = _solve(key, denoiser, indices, times, shape[1:], options, solving)
    return checked_samples(
        denoiser, x, solution, times, options, name="reverse SDE sampler", limits=solving
    )


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

    # The solver's own time goes from 0 to 1, so that dlam = length dtime.
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
    solution = solution._replace(t_stopped=first + length * solution.t_stopped)
    return finished(denoiser, solution, times, options, COORDINATES)


def _sin_cos(half_log_snr: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return sigma / norm and alpha / norm."""
    return jnp.sqrt(jax.nn.sigmoid(-2 * half_log_snr)), jnp.sqrt(jax.nn.sigmoid(2 * half_log_snr))
