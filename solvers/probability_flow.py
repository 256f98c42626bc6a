r"""Sampling by the probability-flow ODE with an adaptive diffrax solver.

dx/dt = f x - g^2 score / 2 has the marginals of the SDE (Song et al. 2021, arXiv:2011.13456,
Eq. 13), so integrating it from prior noise at t = 1 down to t_min gives samples without further
randomness; the same seed and sample number give the same image to within the tolerance.

The same curve in other variables, with lam = log(alpha / sigma) half the log-SNR and phi the angle
whose tangent is sigma / alpha:

    t          dx/dt   = f x - g^2 score / 2
    log_snr    dy/dlam = -exp(-lam) eps              y = x / alpha        (arXiv:2010.02502, Eq. 14)
    angle      du/dphi = cos(phi) eps - sin(phi) x0  u = x / norm         (arXiv:2202.00512, App. D)

with norm^2 = alpha^2 + sigma^2. The last two do not know the process's own clock, so that all
processes cost the same. In the angle the state keeps its scale, so that one atol suits every noise
level, and no noise level is so long that steps grow over what follows: it needs the fewest
evaluations at loose tolerances.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from arrays import expand_like, fold_in_each, in_float64, sample_keys
from denoising import Denoiser
from ode import ODEOptions, Solution, integrate, require_success
from sampling import Batch, Samples, SamplingError
from sde_lib import SDE, Time

# What is returned at t_min: Tweedie's estimate of x0 (one more evaluation), or the state itself.
FINISHES = ("denoise", "sample")


# --- variables --------------------------------------------------------------------------------


class Coordinates(NamedTuple):
    """What is integrated in: a value for t and back, and x = scale(t) times the state."""

    value: Callable[[SDE, Time], Time]
    time: Callable[[SDE, Time], Time]
    scale: Callable[[SDE, Time], Time]


def norm(sde: SDE, t: Time) -> Time:
    """sqrt(alpha^2 + sigma^2), nearly the size of x_t if the data's is 1."""
    return jnp.exp(0.5 * jnp.logaddexp(2 * sde.log_alpha(t), 2 * sde.log_sigma(t)))


def lam(sde: SDE, t: Time) -> Time:
    """log(alpha / sigma)."""
    return sde.log_snr(t) / 2


def time_of_lam(sde: SDE, lam: Time) -> Time:
    """The time at which log(alpha / sigma) is lam."""
    return sde.time_of_log_snr(2 * lam)


def _lam_velocity(denoiser: Denoiser, y: Batch, lam: Time) -> Batch:
    t = time_of_lam(denoiser.sde, lam)
    return -jnp.exp(-lam) * denoiser.predict(denoiser.sde.alpha(t) * y, t).eps


def _angle(sde: SDE, t: Time) -> Time:
    return jnp.arctan2(sde.sigma(t), sde.alpha(t))


def _time_of_angle(sde: SDE, phi: Time) -> Time:
    return time_of_lam(sde, -jnp.log(jnp.tan(phi)))


def _angle_velocity(denoiser: Denoiser, u: Batch, phi: Time) -> Batch:
    t = _time_of_angle(denoiser.sde, phi)
    prediction = denoiser.predict(norm(denoiser.sde, t) * u, t)
    return jnp.cos(phi) * prediction.eps - jnp.sin(phi) * prediction.x0


# name -> coordinates, and (denoiser, states, value) -> the states' derivative
VARIABLES: dict[str, tuple[Coordinates, Callable[[Denoiser, Batch, Time], Batch]]] = {
    "t": (
        Coordinates(lambda sde, t: t, lambda sde, t: t, lambda sde, t: jnp.ones_like(t)),
        lambda denoiser, x, t: denoiser.flow(x, t),
    ),
    "log_snr": (Coordinates(lam, time_of_lam, lambda sde, t: sde.alpha(t)), _lam_velocity),
    "angle": (Coordinates(_angle, _time_of_angle, norm), _angle_velocity),
}


# --- sampling ---------------------------------------------------------------------------------


def check_end(t_min: float, finish: str, sampler: str) -> None:
    """Refuse a t_min outside (0, 1) and an unknown finish."""
    if finish not in FINISHES:
        raise ValueError(
            f"finish={finish!r} is not defined for the {sampler} sampler; "
            f"choose one of: {', '.join(FINISHES)}"
        )
    if not 0 < t_min < 1:
        raise ValueError(f"t_min={t_min} must lie between 0 and 1")


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
        if self.variable not in VARIABLES:
            raise ValueError(
                f"variable={self.variable!r} is unknown; "
                f"choose one of: {', '.join(sorted(VARIABLES))}"
            )


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
    times = frame_times(frames, denoiser.sde, options.t_min, VARIABLES[options.variable][0])
    x, solution = _solve(key, denoiser, indices, times, shape[1:], options, ode)
    require_success(
        solution.success,
        "probability-flow ODE sampler",
        ode,
        times=solution.reached,
        broken=solution.broken,
    )
    return collected(x, solution, times, options)


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


def collected(x: Batch, solution: Solution, times: np.ndarray, options: Any) -> Samples:
    """The answer of a sampler whose solves have succeeded."""
    if not jnp.isfinite(x).all():
        raise SamplingError(
            f"the last network evaluation, which denoises the samples at t={options.t_min}, "
            "is not finite; check the network for NaN there"
        )
    nfe = int(solution.evaluations.max()) + (options.finish == "denoise")
    if not len(times):
        return Samples(x, nfe)
    trajectory = np.moveaxis(np.asarray(solution.path), 1, 0).copy()
    if times[-1] == options.t_min:
        trajectory[-1] = x
    return Samples(x, nfe, trajectory, times)


@partial(jax.jit, static_argnames=("item_shape", "options", "ode"))
def _solve(
    key: Key[Array, ""],
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    times: Float[Array, "frames"],
    item_shape: tuple[int, ...],
    options: FlowOptions,
    ode: ODEOptions,
) -> tuple[Batch, Solution]:
    sde, (at, derivative) = denoiser.sde, VARIABLES[options.variable]

    def velocity(
        value: Float[Array, ""], state: Float[Array, "..."], label: Int[Array, ""] | None
    ) -> Float[Array, "..."]:
        return derivative(denoiser.of_one(label), state[None], value)[0]

    x = prior_states(sample_keys(key, indices), sde, item_shape)
    first, last = (at.value(sde, jnp.asarray(t, x.dtype)) for t in (1.0, options.t_min))
    values = at.value(sde, jnp.asarray(times, x.dtype))
    solution = integrate(
        velocity,
        x / at.scale(sde, jnp.asarray(1.0, x.dtype)),
        denoiser.labels,
        t0=first,
        t1=last,
        options=ode,
        frames=jnp.clip(values, jnp.minimum(first, last), jnp.maximum(first, last))
        if len(times)
        else 0,
    )
    return finished(denoiser, solution, times, options, at)
