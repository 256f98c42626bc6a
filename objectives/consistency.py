r"""Consistency models: one evaluation maps noise to data.

The probability-flow ODE in y = x / alpha and s = sigma / alpha is dy/ds = eps(y, s), for any
process. A consistency function f(x_t, t) returns the end of its path at the noise level sigma_min,
and is the identity there (Song et al. 2023, arXiv:2303.01469). So f is the same along a path:

    L = E 1 / (s_(i+1) - s_i) d(f(x_(i+1), t_(i+1)), stop_gradient f(x_i, t_i))
    d(a, b) = sqrt(|| a - b ||^2 + c^2) - c,    c = huber sqrt(D)

in D dimensions, with the same dropout in both terms, and no average of the parameters (Song &
Dhariwal 2023, arXiv:2310.14189, Table 1). Training takes x_i = alpha_i x0 + sigma_i eps with the x0
and eps of x_(i+1). Distillation takes one step of the ODE from x_(i+1) with a teacher's eps: Heun's
or Euler's.

The levels s_0 < ... < s_n are even in s^(1/rho), from sigma_min to s(1). Their number doubles in
training, from n = first_intervals to last_intervals. The interval i is drawn with the probability
that log s, a truncated normal variable, lies in it.
"""

import abc
import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like, in_float64, sum_per_sample
from sde_lib import SDE
from training.objective import Context, Objective

Levels = Float[Array, "batch"]
ODE_STEPS = ("euler", "heun")


class Interval(NamedTuple):
    """The random numbers of a batch: the two ends of an interval of noise, and the noise.

    Attributes:
        t, level: the end with more noise; its level is s = sigma / alpha.
        t_low, level_low: the end with less noise.
        eps: the noise (batch, ...).
    """

    t: Levels
    level: Levels
    t_low: Levels
    level_low: Levels
    eps: Batch


@dataclass(frozen=True, kw_only=True)
class _Consistency(Objective):
    """Base of both: levels, curriculum, weight and distance.

    Args:
        first_intervals: number of intervals of the noise at the first step.
        last_intervals: the largest number of intervals.
        rho: exponent of the levels; larger has shorter intervals at small noise.
        level_mean, level_std: of the normal variable log s.
        huber: c / sqrt(D) of the distance; smaller is nearer to the Euclidean norm.
        total_steps: training steps, over which the doublings are spread evenly.

    Raises:
        ValueError: for a number out of range.
    """

    first_intervals: int = 10
    last_intervals: int = 1280
    rho: float = 7.0
    level_mean: float = -1.1
    level_std: float = 2.0
    huber: float = 0.00054
    total_steps: int = 1000

    parameterization: ClassVar[str | None] = "consistency"
    samplers: ClassVar[tuple[str, ...]] = ("consistency",)

    def __post_init__(self) -> None:
        require_in("first_intervals", self.first_intervals, "[1, inf)")
        if not self.first_intervals <= self.last_intervals:
            raise ValueError(
                f"last_intervals={self.last_intervals} must be at least "
                f"first_intervals={self.first_intervals}"
            )
        require_in("rho", self.rho, "(0, inf)")
        require_in("level_mean", self.level_mean, "(-inf, inf)")
        require_in("level_std", self.level_std, "(0, inf)")
        require_in("huber", self.huber, "(0, inf)")

    def intervals(self, step: int | Int[Array, ""]) -> Int[Array, ""]:
        """Return the number of intervals at a training step (arXiv:2310.14189, Table 1: N - 1)."""
        doublings = math.log2(self.last_intervals // self.first_intervals)
        stage = max(math.floor(self.total_steps / (doublings + 1)), 1)
        done = jnp.minimum(jnp.asarray(step) // stage, math.ceil(doublings) + 1)
        return jnp.minimum(self.first_intervals * 2**done, self.last_intervals)

    def draw(self, key: Key[Array, ""], model: Denoiser, x0: Batch, context: Context) -> Interval:
        """Draw one interval and one noise per image."""
        level_key, noise_key = jax.random.split(key)
        largest = jnp.exp(-model.sde.log_snr(jnp.ones((), x0.dtype)) / 2)
        smallest = jnp.asarray(model.sigma_min, x0.dtype)
        low, high = ((jnp.log(s) - self.level_mean) / self.level_std for s in (smallest, largest))
        normal = jax.random.truncated_normal(level_key, low, high, (len(x0),), x0.dtype)
        drawn = jnp.exp(self.level_mean + self.level_std * normal)

        first, last = smallest ** (1 / self.rho), largest ** (1 / self.rho)
        count = self.intervals(context.step)
        position = (drawn ** (1 / self.rho) - first) / (last - first)
        index = jnp.clip(jnp.floor(position * count), 0, count - 1)
        low, high = ((first + (index + end) / count * (last - first)) ** self.rho for end in (0, 1))
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        return Interval(time_of(model.sde, high), high, time_of(model.sde, low), low, eps)

    def evaluate(
        self, key: Key[Array, ""], drawn: Interval, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the weighted distance of each image's two predictions."""
        x = model.sde.perturb(x0, drawn.t, drawn.eps)
        x_low = self.neighbor(drawn, model, x, x0, context)
        target = jax.lax.stop_gradient(model.predict(x_low, drawn.t_low).x0)
        difference = model.predict(x, drawn.t).x0 - target
        c = self.huber * math.sqrt(x0[0].size)
        distance = jnp.sqrt(sum_per_sample(difference**2) + c**2) - c
        return distance / (drawn.level - drawn.level_low)

    @abc.abstractmethod
    def neighbor(
        self, drawn: Interval, model: Denoiser, x: Batch, x0: Batch, context: Context
    ) -> Batch:
        """Return the state at `drawn.t_low` on the path through the state x at `drawn.t`."""


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(_Consistency):
    """Consistency training without a teacher, with the defaults of arXiv:2310.14189."""

    def neighbor(
        self, drawn: Interval, model: Denoiser, x: Batch, x0: Batch, context: Context
    ) -> Batch:
        """Return the same image with less of the same noise."""
        return model.sde.perturb(x0, drawn.t_low, drawn.eps)


@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(_Consistency):
    """Consistency distillation: the step to less noise is made by a teacher.

    By default the intervals are the 17 of arXiv:2303.01469 (N = 18 levels), throughout training.

    Args:
        teacher: RUN or RUN:STEP, the folder of the run whose network is the teacher.
        ode_step: "heun", two evaluations of the teacher; or "euler", one.

    The other fields are those of `ConsistencyTraining`.

    Raises:
        ValueError: without a teacher, for an unknown name or a number out of range.
    """

    teacher: str = ""
    ode_step: str = "heun"
    first_intervals: int = 17
    last_intervals: int = 17

    def __post_init__(self) -> None:
        super().__post_init__()
        require_teacher(self.teacher)
        require_choice("ode_step", self.ode_step, ODE_STEPS)

    def neighbor(
        self, drawn: Interval, model: Denoiser, x: Batch, x0: Batch, context: Context
    ) -> Batch:
        """Return the state after one step of the teacher's ODE."""
        teacher = dataclasses.replace(context.teacher, labels=model.labels)
        return ode_step(teacher, drawn, x, heun=self.ode_step == "heun")


def require_teacher(teacher: str) -> None:
    """Raise ValueError unless a teacher is given."""
    if not teacher:
        raise ValueError(
            "teacher='' is missing: distillation needs a trained run; give its folder, "
            "--config.loss.teacher=RUN or RUN:STEP"
        )


def require_level(sde: SDE, sigma_min: float) -> None:
    """Raise ValueError unless sigma_min is a noise level of the process."""
    smallest, largest = in_float64(lambda t: jnp.exp(-sde.log_snr(t) / 2), np.array([0.0, 1.0]))
    if not smallest <= sigma_min < largest:
        raise ValueError(
            f"sigma_min={sigma_min} is no noise level sigma / alpha of this process; give one from "
            f"{smallest:.4g} to {largest:.4g}, much nearer to the first"
        )


def time_of(sde: SDE, level: Levels) -> Levels:
    """Return the time, at most 1, at which sigma / alpha is `level`."""
    return jnp.minimum(sde.time_of_log_snr(-2 * jnp.log(level)), 1.0)


def ode_step(teacher: Denoiser, drawn: Interval, x: Batch, *, heun: bool) -> Batch:
    """Return the state at `drawn.t_low` after one step of dy/ds = eps from x at `drawn.t`."""
    alpha, alpha_low = (expand_like(teacher.sde.alpha(t), x) for t in (drawn.t, drawn.t_low))
    step = expand_like(drawn.level_low - drawn.level, x)
    y, slope = x / alpha, teacher.predict(x, drawn.t).eps
    if heun:
        end = alpha_low * (y + step * slope)
        slope = (slope + teacher.predict(end, drawn.t_low).eps) / 2
    return jax.lax.stop_gradient(alpha_low * (y + step * slope))
