"""What the adaptive samplers share."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from denoising import Denoiser
from errors import SamplingError
from numerics.arrays import expand_like, fold_in_each, in_float64
from numerics.ode import Solution
from probability_flow import Batch, Coordinates
from sampling import Samples
from sde_lib import SDE

# What is returned at t_min: Tweedie's estimate of x0 (one more evaluation), or the state itself.
FINISHES = ("denoise", "sample")


def check_end(t_min: float, finish: str, sampler: str) -> None:
    """Refuse a t_min outside (0, 1) and an unknown finish."""
    if finish not in FINISHES:
        raise ValueError(
            f"finish={finish!r} is not defined for the {sampler} sampler; "
            f"choose one of: {', '.join(FINISHES)}"
        )
    if not 0 < t_min < 1:
        raise ValueError(f"t_min={t_min} must lie between 0 and 1")


def frame_times(
    frames: int | Sequence[float], sde: SDE, t_min: float, at: Coordinates
) -> np.ndarray:
    """The decreasing times of snapshots: those given, or so many equally spaced in value."""
    if isinstance(frames, int):
        first, last = in_float64(partial(at.value, sde), np.array([1.0, t_min]))
        values = np.linspace(first, last, frames)
        inner = in_float64(partial(at.time, sde), values[1:-1])
        return np.concatenate([[1.0], inner, [t_min]])[:frames]
    for t in frames:
        if not t_min <= t <= 1:
            raise ValueError(f"frames: t={t} lies outside the sampler's way from 1 to {t_min}")
    return np.array(sorted(set(frames), reverse=True), np.float64)


def prior_states(
    keys: Key[Array, "batch"], sde: SDE, item_shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """The states at t = 1 that samples with these keys start from."""
    return sde.prior_sample(fold_in_each(keys, 0), jnp.zeros((keys.shape[0], *item_shape)))


def finished(
    denoiser: Denoiser,
    solution: Solution,
    times: Float[Array, "frames"],
    options: Any,
    at: Coordinates,
) -> tuple[Batch, Solution]:
    """The samples, and the solution with its states as x and its values as times."""
    x = solution.y * at.scale(denoiser.sde, jnp.asarray(options.t_min, solution.y.dtype))
    if options.finish == "denoise":
        x = denoiser.predict(x, options.t_min).x0
    path = solution.path
    if path is not None:
        scale = at.scale(denoiser.sde, jnp.asarray(times, path.dtype))
        path = path * expand_like(scale, path[0])[None]
    return x, solution._replace(y=None, path=path, reached=at.time(denoiser.sde, solution.reached))


def collected(
    denoiser: Denoiser, x: Batch, solution: Solution, times: np.ndarray, options: Any
) -> Samples:
    """The answer of a sampler whose solves have succeeded."""
    if not jnp.isfinite(x).all():
        raise SamplingError(
            f"the last network evaluation, which denoises the samples at t={options.t_min}, "
            "is not finite; check the network for NaN there"
        )
    nfe = int(solution.evaluations.max()) + (options.finish == "denoise")
    nfe *= denoiser.evaluations
    if not len(times):
        return Samples(x, nfe)
    trajectory = np.moveaxis(np.asarray(solution.path), 1, 0).copy()
    if times[-1] == options.t_min:
        trajectory[-1] = x
    return Samples(x, nfe, trajectory, times)
