"""Shared parts of the adaptive samplers: ends, snapshots, and the check of a solve."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from denoising import Denoiser
from errors import SamplingError, require_choice, require_in
from numerics.arrays import (
    Batch,
    expand_like,
    fold_in_each,
    in_float64,
    is_traced,
    require_numbers,
    stack,
    whole,
)
from numerics.ode import Solution, require_success
from probability_flow import Coordinates
from sampling import Samples
from sde_lib import SDE
from time_grids import FINAL_STEPS


def check_end(t_min: float, final_step: str) -> None:
    """Raise ValueError for a t_min outside (0, 1) or an unknown final step.

    Every name in `time_grids.FINAL_STEPS` but "mean": adaptive steps have no mean without noise.
    """
    require_choice("final_step", final_step, set(FINAL_STEPS) - {"mean"})
    require_in("t_min", t_min, "(0, 1)")


def frame_times(
    frames: int | Sequence[float], sde: SDE, t_min: float, at: Coordinates
) -> np.ndarray:
    """Return the decreasing times of snapshots: as given, or a number equally spaced in value.

    Raises:
        ValueError: for a time outside [t_min, 1].
    """
    if isinstance(frames, int):
        if not frames:
            return np.zeros(0)
        require_numbers(sde)
        first, last = in_float64(partial(at.value, sde), np.array([1.0, t_min]))
        values = np.linspace(first, last, frames)
        inner = in_float64(partial(at.time, sde), values[1:-1])
        return np.concatenate([[1.0], inner, [t_min]])[:frames]
    for t in frames:
        if not t_min <= t <= 1:
            raise ValueError(f"frames: t={t} must lie between t_min={t_min} and 1")
    return np.array(sorted(set(frames), reverse=True), np.float64)


def prior_states(
    keys: Key[Array, "batch"], sde: SDE, item_shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """Draw the states at t = 1 from which samples with these keys start."""
    return sde.prior_sample(fold_in_each(keys, 0), jnp.zeros((keys.shape[0], *item_shape)))


def finished(
    denoiser: Denoiser,
    solution: Solution,
    times: Float[Array, "frames"],
    options: Any,
    at: Coordinates,
) -> tuple[Batch, Solution]:
    """Return the samples, and the solution with states as x and values as times."""
    x = solution.y * at.scale(denoiser.sde, jnp.asarray(options.t_min, solution.y.dtype))
    if options.final_step == "denoise":
        x = denoiser.predict(x, options.t_min).x0
    path = solution.path
    if path is not None:
        scale = at.scale(denoiser.sde, jnp.asarray(times, path.dtype))
        path = path * expand_like(scale, path[0])[None]
    t_stopped = at.time(denoiser.sde, solution.t_stopped)
    return x, solution._replace(y=None, path=path, t_stopped=t_stopped)


def checked_samples(
    denoiser: Denoiser,
    x: Batch,
    solution: Solution,
    times: np.ndarray,
    options: Any,
    *,
    name: str,
    limits: Any,
) -> Samples:
    """Return the samples of a solve, with snapshots at `times`.

    Args:
        denoiser: the network.
        x: the samples.
        solution: the solve, as `finished` returns it.
        times: the times of its path.
        options: have t_min and final_step.
        name: the name of the solve in messages.
        limits: have max_steps, rtol and atol.

    Raises:
        IntegrationError: if a sample's solve failed.
        SamplingError: if the evaluation that denoises the samples is not finite.
    """
    require_success(solution, name, limits)
    if not is_traced(x) and not jnp.isfinite(x).all():
        raise SamplingError(
            f"the last network evaluation, which denoises the samples at t={options.t_min}, "
            "is not finite; check the network for NaN there"
        )
    nfe = (solution.slowest + (options.final_step == "denoise")) * denoiser.evaluations
    if not len(times):
        return Samples(x, nfe)
    path = whole(solution.path)
    frames = [path[:, number] for number in range(len(times))]
    if times[-1] == options.t_min:
        frames[-1] = whole(x)
    return Samples(x, nfe, stack(frames), times)
