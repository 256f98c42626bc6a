r"""DPM-Solver with adaptive steps, orders 12 and 23 (Lu et al. 2022, arXiv:2206.00927, Appendix C).

With lam = log(alpha / sigma) instead of time, a step of length h, from t to the time s of lam + h,
is made to a lower and to a higher order. Their difference, element by element, estimates the error

    E = root mean square of (x_high - x_low) / max(atol, rtol max(|x_low|, |x_previous|)),

where x_previous is the x_low of the last step taken. If E <= 1, the step is taken, to x_high;
in either case h <- safety h E^(-1 / order), up to the remainder (Jolicoeur-Martineau et al. 2021,
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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like, pytree, sample_indices, sample_keys
from numerics.clipping import Clipping
from numerics.ode import Solution
from probability_flow import VARIABLES
from sampling import Samples
from sde_lib import SDE
from solvers.adaptive import check_end, checked_samples, finished, frame_times, prior_states
from solvers.exponential import PREDICTIONS
from solvers.tables import combine

# order -> the stages of a step and its end, as parts of it: r1, or r1 and r2 of the paper, and 1.
_PARTS = {2: (1 / 2, 1.0), 3: (1 / 3, 2 / 3, 1.0)}


# Traced: other tolerances do not recompile.
@pytree(static=("order", "prediction", "final_step"))
@dataclass(frozen=True, kw_only=True)
class DPMAdaptive:
    """How the adaptive DPM-Solver chooses its steps.

    Args:
        order: 2 is DPM-Solver-12, of 2 network evaluations per step; 3 is DPM-Solver-23, of 3.
        rtol, atol: relative and absolute tolerance of a step's error; the paper's 0.0078 is one
            gray level of images in [-1, 1]. Below 1e-5 they gain nothing in float32.
        prediction: "x0" is DPM-Solver++, "eps" DPM-Solver.
        t_min: where sampling stops.
        final_step: the value returned there, "denoise" or "none" of `time_grids.FINAL_STEPS`.
        max_steps: limit of the steps that a sample tries, including rejected ones.
        first_step: length of the first step, in lam.
        safety: factor below 1 on the proposed step.
        max_growth: largest ratio of a step to the one before, above 1. Near t = 1 the prediction is
            nearly constant, so the error estimate is 0, and without a limit (inf, as in the papers)
            a step may cross the noise levels of the data.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    prediction: str = "x0"
    t_min: float = 1e-3
    final_step: str = "denoise"
    max_steps: int = 1000
    first_step: float = 0.05
    safety: float = 0.9
    max_growth: float = 2.0

    def __post_init__(self) -> None:
        require_choice("order", self.order, _PARTS)
        require_choice("prediction", self.prediction, PREDICTIONS)
        check_end(self.t_min, self.final_step)
        for name in ("rtol", "atol", "safety"):
            require_in(name, getattr(self, name), "(0, 1)")
        require_in("max_growth", self.max_growth, "(1, inf]")
        require_in("first_step", self.first_step, "(0, inf)")
        require_in("max_steps", self.max_steps, "[1, inf)")


def sample_adaptive(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    options: DPMAdaptive = DPMAdaptive(),
    indices: Int[Array, "batch"] | None = None,
    clipping: Clipping | None = None,
    frames: int | Sequence[float] = 0,
) -> Samples:
    """Draw samples of `shape` (batch, ...); sample k depends on `key` and `indices[k]` alone.

    Each sample has its own steps. The published code takes the largest error of the batch, so that
    a sample depends on the others. nfe is the count of the slowest sample: all samples are
    evaluated until it has finished. Inside jit, a sample whose solve fails is NaN in place of an
    error.

    Args:
        key: random key.
        denoiser: the network, perhaps guided.
        shape: (batch, ...).
        options: order, tolerances and end.
        indices: indices of the samples, by default 0, 1, ...
        clipping: keeps the predicted x0 in the range of the data.
        frames: number of snapshots in `trajectory`, equally spaced in log-SNR, including start and
            samples; or times between 1 and t_min. Inside a step they are interpolated. The one at
            t_min is the finished samples.

    Raises:
        ValueError: for a frame's time outside [t_min, 1].
        IntegrationError: if a sample becomes NaN or infinite, or does not arrive within max_steps.
        SamplingError: if the evaluation that denoises the samples is not finite.
    """
    if clipping is not None:
        denoiser = replace(denoiser, clipping=clipping)
    indices = sample_indices(key, shape, indices)
    times = frame_times(frames, denoiser.sde, options.t_min, VARIABLES["log_snr"][0])
    x, solution = _solve(key, denoiser, indices, times, shape[1:], options)
    return checked_samples(
        denoiser, x, solution, times, options, name="adaptive DPM-Solver", limits=options
    )


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

    def solve_one(x: Float[Array, "..."], entry: Any) -> Solution:
        return _solve_one(denoiser.index(entry), x[None], times.astype(x.dtype), options)

    solution = jax.vmap(solve_one)(prior, denoiser.batched_fields)
    return finished(denoiser, solution, times, options, VARIABLES["t"][0])


class _State(NamedTuple):
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
    """Solve from t = 1 to t_min, for a batch of one."""
    start, end = jnp.ones((), x.dtype), jnp.asarray(options.t_min, x.dtype)
    half_log_snr, half_log_snr_end = denoiser.sde.log_snr(start) / 2, denoiser.sde.log_snr(end) / 2

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (
            (state.half_log_snr < half_log_snr_end)
            & (state.steps < options.max_steps)
            & state.finite
        )

    def step(state: _State) -> _State:
        half_log_snrs = state.half_log_snr + state.h * jnp.array(_PARTS[options.order])
        times = denoiser.sde.time_of_log_snr(2 * half_log_snrs)
        # The last step arrives at the end exactly, whatever the rounding.
        last = state.h >= half_log_snr_end - state.half_log_snr
        half_log_snr = jnp.where(last, half_log_snr_end, half_log_snrs[-1])
        t = jnp.where(last, end, times[-1])
        high, low = _both_orders(denoiser, state, times.at[-1].set(t), options)
        scale = options.rtol * jnp.maximum(jnp.abs(low), jnp.abs(state.previous))
        error = jnp.sqrt(jnp.mean(((high - low) / jnp.maximum(options.atol, scale)) ** 2))
        error = jax.lax.stop_gradient(error)  # derivatives are of the state, at the steps taken
        path = _with_frames_between(denoiser.sde, state, high, t, frames)
        x, previous, t, half_log_snr, path = jax.tree.map(
            partial(jnp.where, error <= 1),
            (high, low, t, half_log_snr, path),
            (state.x, state.previous, state.t, state.half_log_snr, state.path),
        )
        factor = jnp.minimum(options.safety * error ** (-1 / options.order), options.max_growth)
        h = jnp.minimum(state.h * factor, half_log_snr_end - half_log_snr)
        return _State(x, previous, t, half_log_snr, h, state.steps + 1, jnp.isfinite(error), path)

    h = jnp.minimum(jnp.asarray(options.first_step, x.dtype), half_log_snr_end - half_log_snr)
    path = jnp.zeros((len(frames), *x.shape[1:]), x.dtype)
    state = _State(x, x, start, half_log_snr, h, jnp.asarray(0), jnp.asarray(True), path)
    state = jax.lax.while_loop(unfinished, step, state)
    success = state.half_log_snr >= half_log_snr_end
    return Solution(
        y=jnp.where(success, state.x[0], jnp.nan),
        evaluations=state.steps * options.order,
        success=success,
        path=state.path,
        t_stopped=state.t,
        nonfinite=~state.finite,
    )


def _with_frames_between(
    sde: SDE, state: _State, x: Batch, t: Float[Array, ""], frames: Float[Array, "frames"]
) -> Float[Array, "frames ..."]:
    """Return the path with the frames filled in that lie on the step to x at t.

    They are interpolated linearly in y = x / alpha and sigma / alpha, as if eps were constant.
    """
    frames = expand_like(frames, state.path)
    s_old, s_new, s = (jnp.exp(-sde.log_snr(time) / 2) for time in (state.t, t, frames))
    y_old, y_new = state.x / sde.alpha(state.t), x / sde.alpha(t)
    passed = sde.alpha(frames) * (y_old + (s_old - s) / (s_old - s_new) * (y_new - y_old))
    return jnp.where((t <= frames) & (frames <= state.t), passed, state.path)


def _both_orders(
    denoiser: Denoiser, state: _State, ends: Float[Array, "stages"], options: DPMAdaptive
) -> tuple[Batch, Batch]:
    """Return x at the end of a step to both orders; `ends` are the times of _PARTS."""
    weights, low = _weights(denoiser.sde, state, ends, options)
    times = jnp.append(state.t, ends)

    # A loop, so that the network is compiled once.
    def evaluate(number: Int[Array, ""], carry: tuple[Batch, Array]) -> tuple[Batch, Array]:
        x, terms = carry
        prediction = getattr(denoiser.predict(x, times[number]), options.prediction)
        terms = terms.at[1 + number].set(prediction)
        return combine(weights[number], *terms), terms

    terms = jnp.stack([state.x, *[jnp.zeros_like(state.x)] * options.order])
    high, terms = jax.lax.fori_loop(0, options.order, evaluate, (state.x, terms))
    return high, combine(low, *terms)


def _weights(
    sde: SDE, state: _State, ends: Float[Array, "stages"], options: DPMAdaptive
) -> tuple[Float[Array, "stages terms"], Float[Array, "terms"]]:
    """Return the weights of x, m_0, m_1, ... in the states, and in the lower order's result."""
    of_eps = options.prediction == "eps"
    log_scale, other = (sde.log_alpha, sde.sigma) if of_eps else (sde.log_sigma, sde.alpha)
    a, b = jnp.exp(log_scale(ends) - log_scale(state.t)), other(ends)
    parts = _PARTS[options.order]
    z = (state.h if of_eps else -state.h) * jnp.array(parts)
    constant_weight = b * jnp.expm1(z)
    # b phi(z). For small z, its cancellation is no larger than the rounding of b.
    phi = constant_weight / z - b

    x, *m = jnp.eye(1 + options.order)
    first = [a[number] * x - constant_weight[number] * m[0] for number in range(options.order)]
    slope = (m[1] - m[0]) / parts[0]
    second = first[-1] - constant_weight[-1] / 2 * slope
    if options.order == 2:
        return jnp.stack([first[0], second]), first[1]
    stage = first[1] - phi[1] * parts[1] * slope
    third = first[2] - phi[2] * (m[2] - m[0]) / parts[1]
    return jnp.stack([first[0], stage, third]), second
