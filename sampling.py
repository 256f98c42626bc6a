r"""Sampling: the protocol, time grids, the one loop, and Predictor-Corrector kernels.

A grid of decreasing times 1 = t_0 > t_1 > ... > t_N = t_min is data. A kernel steps from t to s:
`step(keys, denoiser, carry, t, s) -> carry`. With (a, b) the exact transition of the process from
s to t, x_t = a x_s + b eps, the predictors are (Song et al. 2021, arXiv:2011.13456)

    Euler-Maruyama      x + reverse_drift (s - t) + churn g sqrt(t - s) z                (Eq. 6, 13)
    reverse diffusion   (2 - a) x + b^2 score + b z                              (App. E, Eq. 46)
    ancestral           (x + b^2 score) / a + std z                              (Eq. 4 and App. F)

and the correctors take, at time t, Langevin steps x + h score + sqrt(2 h) z (Algorithms 4 and 5).
Written in (a, b), each is defined for every linear process, on any grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from arrays import expand_like, fold_in_each, normal_like, sample_keys, sum_per_sample
from denoising import Denoiser
from sde_lib import SDE, reverse_drift

Batch = Float[Array, "batch ..."]
Keys = Key[Array, "batch"]
Scalar = Float[Array, ""]


class Step(NamedTuple):
    """A state x and its mean: x before the step's fresh noise was added."""

    x: Batch
    mean: Batch


class Samples(NamedTuple):
    """Samples in the network's range, what they cost, and the path if frames were asked for.

    nfe is the number of network evaluations an image; trajectory has shape (frames, batch, ...).
    """

    x: Batch
    nfe: int
    trajectory: np.ndarray | None


@runtime_checkable
class Kernel(Protocol):
    """One step of a solver; hashable, since it is static to jit."""

    @property
    def evaluations(self) -> int:
        """Network evaluations of one step."""

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        """From time t to the earlier time s; row k draws its noise from `keys[k]` alone."""


# --- time grids -------------------------------------------------------------------------------


def _uniform(sde: SDE, u: np.ndarray, t_min: float) -> np.ndarray:
    return 1 + (t_min - 1) * u


def _quadratic(sde: SDE, u: np.ndarray, t_min: float) -> np.ndarray:
    return (1 + (np.sqrt(t_min) - 1) * u) ** 2


def _log_snr(sde: SDE, u: np.ndarray, t_min: float) -> np.ndarray:
    low, high = np.asarray(sde.log_snr(jnp.array([1.0, t_min])), np.float64)
    inner = np.asarray(sde.time_of_log_snr(jnp.asarray(low + (high - low) * u[1:-1])), np.float64)
    return np.concatenate([[1.0], inner, [t_min]])


def _levels(sde: SDE, u: np.ndarray, t_min: float) -> np.ndarray:
    if not sde.sigma(jnp.zeros(())) > 0:
        raise ValueError("grid='levels' ends at t = 0, where this process has no noise")
    if len(u) < 3:
        raise ValueError(f"steps={len(u) - 1} must be at least 2 for grid='levels'")
    return np.append(np.linspace(1, 0, len(u) - 1), 0.0)


TIME_GRIDS: dict[str, Callable[[SDE, np.ndarray, float], np.ndarray]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
    "levels": _levels,
}


# What is returned at t_min: the last step's mean ("noise removal" of the published code), Tweedie's
# estimate of x0 (one more network evaluation), or the noisy state itself.
FINISHES = ("mean", "denoise", "sample")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Where a sampler walks and how it ends.

    Args:
      grid: spacing of the times, a name in TIME_GRIDS. "levels" is the grid of a chain of `steps`
        levels, i / (steps - 1) down to 0 whatever t_min; the last level comes twice, since there
        is a corrector's step at it too, and ends with finish="denoise".
      steps: number of steps from t = 1 to t_min.
      t_min: where sampling stops; Song et al. take 1e-3 for VP and sub-VP, 1e-5 for VE.
      finish: what is returned there, a name in FINISHES.

    Raises:
      ValueError: for an unknown name or a number out of range.
    """

    grid: str = "uniform"
    steps: int = 1000
    t_min: float = 1e-3
    finish: str = "mean"

    def __post_init__(self) -> None:
        for field, names in (("grid", sorted(TIME_GRIDS)), ("finish", FINISHES)):
            value = getattr(self, field)
            if value not in names:
                raise ValueError(f"{field}={value!r} is unknown; choose one of: {', '.join(names)}")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")

    def times(self, sde: SDE) -> np.ndarray:
        """`steps` + 1 strictly decreasing times from 1 to t_min, in float64; "levels" ends in 0, 0.

        Raises:
          ValueError: if steps are so many that neighbouring times coincide in float32, or the
            process has no such grid.
        """
        times = TIME_GRIDS[self.grid](sde, np.linspace(0, 1, self.steps + 1), self.t_min)
        distinct = times[:-1] if self.grid == "levels" else times
        if not np.all(np.diff(distinct.astype(np.float32)) < 0):
            raise ValueError(f"steps={self.steps}: times coincide on this grid; use fewer steps")
        return times


# --- predictors -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama:
    """Euler-Maruyama on the reverse SDE; churn 0 is Euler on the probability-flow ODE."""

    churn: float = 1.0
    evaluations = 1

    def __post_init__(self) -> None:
        if not 0 <= self.churn < float("inf"):
            raise ValueError(f"churn={self.churn} must be finite and at least 0")

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        sde, x = denoiser.sde, carry.x
        drift = reverse_drift(sde, denoiser.score(x, t), x, t, self.churn)
        mean = x + drift * (s - t)
        noise = self.churn * jnp.sqrt(sde.squared_diffusion(t) * (t - s))
        return Step(mean + noise * normal_like(keys, x), mean)


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion:
    """The forward step's own discretization, reversed: drift and noise of the exact transition."""

    evaluations = 1

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        scale, std = denoiser.sde.transition(s, t)
        mean = (2 - scale) * carry.x + std**2 * denoiser.score(carry.x, t)
        return Step(mean + std * normal_like(keys, carry.x), mean)


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Sampling from p(x_s | x_t): DDPM's sampler for VP, SMLD's for VE (App. F).

    variance "small" is the posterior's, b^2 sigma_s^2 / sigma_t^2; "large" is the transition's b^2
    (Ho et al. 2020, arXiv:2006.11239, Section 3.2). Song et al. use large for VP, small for VE.
    """

    variance: str = "small"
    evaluations = 1

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance={self.variance!r} is unknown; choose one of: large, small")

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        sde = denoiser.sde
        scale, std = sde.transition(s, t)
        mean = (carry.x + std**2 * denoiser.score(carry.x, t)) / scale
        if self.variance == "small":
            std = std * jnp.exp(sde.log_sigma(s) - sde.log_sigma(t))
        return Step(mean + std * normal_like(keys, carry.x), mean)


# --- correctors -------------------------------------------------------------------------------


def _check_corrector(snr: float, corrections: int) -> None:
    if not 0 < snr < float("inf"):
        raise ValueError(f"snr={snr} must be finite and above 0")
    if corrections < 1:
        raise ValueError(f"corrections={corrections} must be at least 1")


def _langevin_steps(
    keys: Keys,
    denoiser: Denoiser,
    carry: Step,
    t: Scalar,
    s: Scalar,
    corrections: int,
    step_size: Callable[[Batch, Batch], Array],
) -> Step:
    """`corrections` Langevin steps at time t, of size scale^2 step_size(score, noise)."""
    # The published step size carries the one-step alpha_i = 1 - beta_i, which is the squared
    # scale of the transition from s to t; it is 1 for VE.
    scale, _ = denoiser.sde.transition(s, t)

    def correct(i: Int[Array, ""], carry: Step) -> Step:
        noise = normal_like(fold_in_each(keys, i), carry.x)
        score = denoiser.score(carry.x, t)
        h = expand_like(scale**2 * step_size(score, noise), carry.x)
        mean = carry.x + h * score
        return Step(mean + jnp.sqrt(2 * h) * noise, mean)

    return jax.lax.fori_loop(0, corrections, correct, carry)


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """Langevin dynamics at a fixed signal-to-noise ratio (Algorithms 4 and 5).

    The step size is h = 2 scale^2 (snr |noise| / |score|)^2. norms "per_sample" takes each
    sample's own norms, so that a sample never depends on its batch; "batch" takes the batch's mean
    norms, as the paper does. With few dimensions use "batch": a single score can be near zero, and
    the step then huge.
    """

    snr: float = 0.16
    corrections: int = 1
    norms: str = "per_sample"

    def __post_init__(self) -> None:
        _check_corrector(self.snr, self.corrections)
        if self.norms not in ("per_sample", "batch"):
            raise ValueError(f"norms={self.norms!r} is unknown; choose one of: batch, per_sample")

    @property
    def evaluations(self) -> int:
        return self.corrections

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        def step_size(score: Batch, noise: Batch) -> Array:
            noise_norm, score_norm = (jnp.sqrt(sum_per_sample(a**2)) for a in (noise, score))
            if self.norms == "batch":
                noise_norm, score_norm = jnp.mean(noise_norm), jnp.mean(score_norm)
            return 2 * (self.snr * noise_norm / score_norm) ** 2

        return _langevin_steps(keys, denoiser, carry, t, s, self.corrections, step_size)


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin:
    """Annealed Langevin dynamics of NCSN (Song & Ermon 2019, arXiv:1907.05600, Algorithm 1).

    The step size is h = 2 scale^2 (snr sigma(t))^2: it follows the noise level, not the score.
    """

    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        _check_corrector(self.snr, self.corrections)

    @property
    def evaluations(self) -> int:
        return self.corrections

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        def step_size(score: Batch, noise: Batch) -> Array:
            return 2 * (self.snr * denoiser.sde.sigma(t)) ** 2

        return _langevin_steps(keys, denoiser, carry, t, s, self.corrections, step_size)


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """Algorithm 1 of Song et al., in the published code's order: correct at t, then predict s.

    Either may be None; with both None a step does nothing, and samples are the prior's.
    """

    predictor: Kernel | None
    corrector: Kernel | None = None

    @property
    def evaluations(self) -> int:
        return sum(kernel.evaluations for kernel in (self.corrector, self.predictor) if kernel)

    def step(self, keys: Keys, denoiser: Denoiser, carry: Step, t: Scalar, s: Scalar) -> Step:
        for role, kernel in enumerate((self.corrector, self.predictor)):
            if kernel:
                carry = kernel.step(fold_in_each(keys, role), denoiser, carry, t, s)
        return carry


PREDICTORS = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
}
CORRECTORS = {"langevin": Langevin, "annealed_langevin": AnnealedLangevin}


# --- the loop ---------------------------------------------------------------------------------


def sample(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    kernel: Kernel,
    schedule: Schedule,
    indices: Int[Array, "batch"] | None = None,
    frames: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Draw samples of `shape` (batch, ...) by running `kernel` along the times of `schedule`.

    The steps are one jitted `lax.scan`, called in equal chunks from Python: between chunks the
    progress is reported, snapshots are taken, and Ctrl-C works.

    Args:
      key: sample k depends on `key` and `indices[k]` (default k) alone.
      frames: at least so many snapshots in `trajectory`, where the steps divide evenly; 0 for none.
      progress: called with the number of steps just done.
    """
    if indices is None:
        indices = jnp.arange(shape[0])
    steps = schedule.steps
    chunk = _chunk_length(steps, max(frames, 10))
    keys, carry = _start(key, denoiser, indices, shape[1:])
    times = jnp.asarray(schedule.times(denoiser.sde), carry.x.dtype)
    trajectory = [np.asarray(carry.x)] if frames else None
    for first in range(0, steps, chunk):
        rows = slice(first, first + chunk)
        numbers = jnp.arange(first, first + chunk)
        carry = _advance(keys, denoiser, carry, numbers, times[:-1][rows], times[1:][rows], kernel)
        if progress is not None:
            jax.block_until_ready(carry)
            progress(chunk)
        if trajectory is not None:
            trajectory.append(np.asarray(carry.x))
    x, extra = _finish(denoiser, carry, times[-1], schedule.finish)
    if trajectory is not None:
        trajectory = np.stack([*trajectory[:-1], np.asarray(x)])
    return Samples(x, steps * kernel.evaluations + extra, trajectory)


def _chunk_length(steps: int, parts: int) -> int:
    """The largest divisor of `steps` that makes at least `parts` chunks, and not absurdly many.

    All chunks are equal, so that the loop compiles once; a prime number of steps is one chunk.
    """
    divisors = [d for d in range(1, steps // parts + 1) if steps % d == 0]
    return divisors[-1] if divisors and divisors[-1] * parts * 10 >= steps else steps


@partial(jax.jit, static_argnames="item_shape")
def _start(
    key: Key[Array, ""], denoiser: Denoiser, indices: Int[Array, "batch"], item_shape: tuple
) -> tuple[Keys, Step]:
    keys = sample_keys(key, indices)
    like = jnp.zeros((indices.shape[0], *item_shape))
    x = denoiser.sde.prior_sample(fold_in_each(keys, 0), like)
    return keys, Step(x, x)


@partial(jax.jit, static_argnames="kernel")
def _advance(
    keys: Keys,
    denoiser: Denoiser,
    carry: Step,
    numbers: Int[Array, "steps"],
    t: Float[Array, "steps"],
    s: Float[Array, "steps"],
    kernel: Any,
) -> Step:
    def body(carry: Step, inputs: tuple) -> tuple[Step, None]:
        number, t, s = inputs
        step_keys = fold_in_each(keys, 1 + number)  # 0 drew the prior
        return kernel.step(step_keys, denoiser, carry, t, s), None

    return jax.lax.scan(body, carry, (numbers, t, s))[0]


def _finish(denoiser: Denoiser, carry: Step, t: Scalar, finish: str) -> tuple[Batch, int]:
    if finish == "denoise":
        return _denoise(denoiser, carry.x, t), 1
    return (carry.mean if finish == "mean" else carry.x), 0


@jax.jit
def _denoise(denoiser: Denoiser, x: Batch, t: Scalar) -> Batch:
    return denoiser.predict(x, t).x0
