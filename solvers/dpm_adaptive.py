r"""DPM-Solver with adaptive steps, orders 12 and 23 (Lu et al. 2022, arXiv:2206.00927, Appendix C).

With lam = log(alpha / sigma) in place of time, a step of length h, from t to the time s of lam + h,
is made to a lower and to a higher order. Their difference, element by element, tells the error

    E = root mean square of (x_high - x_low) / max(atol, rtol max(|x_low|, |x_previous|)),

where x_previous is the x_low of the last step taken. If E <= 1, the step is taken, to x_high;
in either case h <- safety h E^(-1 / order), up to what is left (Jolicoeur-Martineau et al. 2021,
arXiv:2105.14080). Orders 1 and 2 share their evaluations, and so do 2 and 3: with stages at the
parts r of the step, where x is x_r and the prediction m_r,

    x_r      = a_r x - b_r (exp(k r) - 1) m_0                               order 1, and 1st stage
    12:      x_r - b_r (exp(k r) - 1) / 2 (m_r1 - m_0) / r1, r = 1, r1 = 1/2         order 2
    23:      x_r - b_r (exp(k r) - 1) / 2 (m_r1 - m_0) / r1, r = 1, r1 = 1/3         order 2
             x_r - b_r phi(k r) (m_r1 - m_0) r / r1,  r = r2 = 2/3                   2nd stage
             x_r - b_r phi(k r) (m_r2 - m_0) / r2,    r = 1                          order 3

and phi(z) = (exp(z) - 1) / z - 1. For m = eps, a_r = alpha_r / alpha_t, b = sigma and k = h; for
m = x0 (DPM-Solver++, arXiv:2211.01095) alpha and sigma change places, and k = -h.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from denoising import Denoiser
from numerics.arrays import expand_like, pytree, sample_keys
from numerics.ode import Solution, require_success
from probability_flow import VARIABLES, Batch
from sampling import Samples, refuse_projection
from sde_lib import SDE
from solvers.adaptive import check_end, collected, frame_times, prior_states
from solvers.exponential import PREDICTIONS, require_choice
from solvers.tables import combine

# order -> the stages of a step and its end, as parts of it: r1, or r1 and r2 of the paper, and 1.
_PARTS = {2: (1 / 2, 1.0), 3: (1 / 3, 2 / 3, 1.0)}


# Traced, so that other tolerances are no other program.
@pytree(static=("order", "prediction", "finish"))
@dataclass(frozen=True, kw_only=True)
class DPMAdaptive:
    """How to choose the steps.

    Args:
      order: 2 is DPM-Solver-12, of 2 network evaluations a step; 3 is DPM-Solver-23, of 3.
      rtol, atol: relative and absolute tolerance of a step's error; the paper's 0.0078 is a grey
        level of images in [-1, 1]. Below 1e-5 they gain nothing in float32.
      prediction: "x0" is DPM-Solver++, "eps" DPM-Solver.
      t_min: where sampling stops.
      finish: what is returned there: "denoise" is Tweedie's estimate of x0 (one more evaluation),
        "sample" the state itself.
      max_steps: the most steps a sample may try, refused ones included.
      h_init: length of the first step, in lam.
      safety: by so much a step is shorter than the error asks for, between 0 and 1.
      growth: at most so many times longer than the step before, above 1. The papers know no such
        limit (inf), and then step over the data's own noise levels in one: where noise is all
        there is, the prediction hardly changes, and the error seen is 0.

    Raises:
      ValueError: for an unknown name or a number out of range.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    prediction: str = "x0"
    t_min: float = 1e-3
    finish: str = "denoise"
    max_steps: int = 1000
    h_init: float = 0.05
    safety: float = 0.9
    growth: float = 2.0

    def __post_init__(self) -> None:
        require_choice("order", self.order, tuple(_PARTS))
        require_choice("prediction", self.prediction, PREDICTIONS)
        check_end(self.t_min, self.finish, "dpm_adaptive")
        for name in ("rtol", "atol", "safety"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if not self.growth > 1:
            raise ValueError(f"growth={self.growth} must be above 1")
        if not 0 < self.h_init < math.inf:
            raise ValueError(f"h_init={self.h_init} must be finite and above 0")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")


def sample_adaptive(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: DPMAdaptive,
    indices: Int[Array, "batch"] | None = None,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    Each sample has steps of its own: the published code takes the largest error of the batch, ours
    a sample's, so that it does not depend on the others. nfe is the slowest sample's count: all are
    evaluated until it has finished.

    Args:
      frames: so many snapshots in `trajectory`, equally spaced in log-SNR, the start and the
        samples among them; or the times from 1 to t_min at which they are taken. Inside a step
        they are interpolated. The one at t_min is the finished samples.

    Raises:
      ValueError: for a frame's time outside [t_min, 1].
      IntegrationError: if a sample becomes NaN or infinite, or does not arrive within max_steps.
      SamplingError: if the evaluation that denoises the samples is not finite.
    """
    if indices is None:
        indices = jnp.arange(shape[0])
    refuse_projection(denoiser, "dpm_adaptive")
    in_log_snr, _ = VARIABLES["log_snr"]
    times = frame_times(frames, denoiser.sde, options.t_min, in_log_snr)
    x, solution = _solve(key, denoiser, indices, times, shape[1:], options)
    require_success(
        solution.success,
        "adaptive DPM-Solver",
        options,
        times=solution.reached,
        broken=solution.broken,
    )
    return collected(denoiser, x, solution, times, options)


@partial(jax.jit, static_argnames="item_shape")
def _solve(
    key: Key[Array, ""],
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    times: Float[Array, "frames"],
    item_shape: tuple[int, ...],
    options: DPMAdaptive,
) -> tuple[Batch, Solution]:
    prior = prior_states(sample_keys(key, indices), denoiser.sde, item_shape)

    def of_one(x: Float[Array, "..."], entry: Any) -> Solution:
        return _solve_one(denoiser.index(entry), x[None], times.astype(x.dtype), options)

    solution = jax.vmap(of_one)(prior, denoiser.batched_fields)
    denoise = options.finish == "denoise"
    x = denoiser.predict(solution.y, options.t_min).x0 if denoise else solution.y
    return x, solution._replace(y=None)


class _Walk(NamedTuple):
    """A sample at time t, where log(alpha / sigma) is `half_log_snr`; h is the next step size."""

    x: Batch
    previous: Batch  # the lower order's x of the last step taken
    t: Array
    half_log_snr: Array
    h: Array
    steps: Array  # tried so far
    finite: Array
    path: Array  # the frames passed so far


def _solve_one(
    denoiser: Denoiser, x: Batch, frames: Float[Array, "frames"], options: DPMAdaptive
) -> Solution:
    """From t = 1 to t_min, for a batch of one."""
    start, end = jnp.ones((), x.dtype), jnp.asarray(options.t_min, x.dtype)
    half_log_snr, half_log_snr_end = denoiser.sde.log_snr(start) / 2, denoiser.sde.log_snr(end) / 2

    def on_the_way(walk: _Walk) -> Bool[Array, ""]:
        return (
            (walk.half_log_snr < half_log_snr_end) & (walk.steps < options.max_steps) & walk.finite
        )

    def step(walk: _Walk) -> _Walk:
        half_log_snrs = walk.half_log_snr + walk.h * jnp.array(_PARTS[options.order])
        times = denoiser.sde.time_of_log_snr(2 * half_log_snrs)
        # The last step arrives at the end itself, whatever the rounding.
        last = walk.h >= half_log_snr_end - walk.half_log_snr
        half_log_snr, t = (
            jnp.where(last, half_log_snr_end, half_log_snrs[-1]),
            jnp.where(last, end, times[-1]),
        )
        high, low = _both_orders(denoiser, walk, times.at[-1].set(t), options)
        scale = options.rtol * jnp.maximum(jnp.abs(low), jnp.abs(walk.previous))
        error = jnp.sqrt(jnp.mean(((high - low) / jnp.maximum(options.atol, scale)) ** 2))
        path = _with_frames_between(denoiser.sde, walk, high, t, frames)
        x, previous, t, half_log_snr, path = jax.tree.map(
            partial(jnp.where, error <= 1),
            (high, low, t, half_log_snr, path),
            (walk.x, walk.previous, walk.t, walk.half_log_snr, walk.path),
        )
        factor = jnp.minimum(options.safety * error ** (-1 / options.order), options.growth)
        h = jnp.minimum(walk.h * factor, half_log_snr_end - half_log_snr)
        return _Walk(x, previous, t, half_log_snr, h, walk.steps + 1, jnp.isfinite(error), path)

    h = jnp.minimum(jnp.asarray(options.h_init, x.dtype), half_log_snr_end - half_log_snr)
    path = jnp.zeros((len(frames), *x.shape[1:]), x.dtype)
    walk = _Walk(x, x, start, half_log_snr, h, jnp.asarray(0), jnp.asarray(True), path)
    walk = jax.lax.while_loop(on_the_way, step, walk)
    return Solution(
        y=walk.x[0],
        evaluations=walk.steps * options.order,
        success=walk.half_log_snr >= half_log_snr_end,
        path=walk.path,
        reached=walk.t,
        broken=~walk.finite,
    )


def _with_frames_between(
    sde: SDE, walk: _Walk, x: Batch, t: Float[Array, ""], frames: Float[Array, "frames"]
) -> Float[Array, "frames ..."]:
    """The path with those frames filled in that lie on the step to x at t.

    On a line in y = x / alpha and sigma / alpha, as if eps did not change.
    """
    frames = expand_like(frames, walk.path)
    s_old, s_new, s = (jnp.exp(-sde.log_snr(time) / 2) for time in (walk.t, t, frames))
    y_old, y_new = walk.x / sde.alpha(walk.t), x / sde.alpha(t)
    passed = sde.alpha(frames) * (y_old + (s_old - s) / (s_old - s_new) * (y_new - y_old))
    return jnp.where((t <= frames) & (frames <= walk.t), passed, walk.path)


def _both_orders(
    denoiser: Denoiser, walk: _Walk, ends: Float[Array, "stages"], options: DPMAdaptive
) -> tuple[Batch, Batch]:
    """x at the step's end to the higher and to the lower order; `ends` are the times of _PARTS."""
    rows, low = _weights(denoiser.sde, walk, ends, options)
    times = jnp.append(walk.t, ends)

    # A loop, so that the network is compiled once.
    def evaluate(number: Int[Array, ""], carry: tuple[Batch, Array]) -> tuple[Batch, Array]:
        x, terms = carry
        prediction = getattr(denoiser.predict(x, times[number]), options.prediction)
        terms = terms.at[1 + number].set(prediction)
        return combine(rows[number], *terms), terms

    terms = jnp.stack([walk.x, *[jnp.zeros_like(walk.x)] * options.order])
    high, terms = jax.lax.fori_loop(0, options.order, evaluate, (walk.x, terms))
    return high, combine(low, *terms)


def _weights(
    sde: SDE, walk: _Walk, ends: Float[Array, "stages"], options: DPMAdaptive
) -> tuple[Float[Array, "stages terms"], Float[Array, "terms"]]:
    """Weights of x, m_0, m_1, ...: of the state after each evaluation, and of the lower order's."""
    of_eps = options.prediction == "eps"
    log_scale, other = (sde.log_alpha, sde.sigma) if of_eps else (sde.log_sigma, sde.alpha)
    a, b = jnp.exp(log_scale(ends) - log_scale(walk.t)), other(ends)
    parts = _PARTS[options.order]
    z = (walk.h if of_eps else -walk.h) * jnp.array(parts)
    whole = b * jnp.expm1(z)
    phi = whole / z - b  # b phi(z); its cancellation for small z is no larger than b's rounding

    x, *m = jnp.eye(1 + options.order)
    first = [a[number] * x - whole[number] * m[0] for number in range(options.order)]
    slope = (m[1] - m[0]) / parts[0]
    second = first[-1] - whole[-1] / 2 * slope
    if options.order == 2:
        return jnp.stack([first[0], second]), first[1]
    stage = first[1] - phi[1] * parts[1] * slope
    third = first[2] - phi[2] * (m[2] - m[0]) / parts[1]
    return jnp.stack([first[0], stage, third]), second
