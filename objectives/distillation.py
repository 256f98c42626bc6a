r"""Progressive distillation: a student takes in one step what its teacher takes in two.

The student samples by DDIM in n steps along a grid, the teacher in 2 n steps along a grid twice as
fine (Salimans & Ho 2022, arXiv:2202.00512, Algorithm 2). From x_t, two steps of the teacher lead to
x_u at the student's next time u. One step of the student leads there if it predicts

    x0 = (x_u - (sigma_u / sigma_t) x_t) / (alpha_u - (sigma_u / sigma_t) alpha_t)

which is the target of the student. The squared error has one of `objectives.weights`: "v" is their
SNR + 1, "truncated_snr" their max(SNR, 1). A student is the teacher of the next, with half the
steps.

Both grids end at t_min. So the student is sampled on its own grid, with final_step="none".
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, sum_per_sample
from objectives.consistency import require_teacher
from objectives.times import Times
from objectives.weights import TruncatedSNR, Weight
from sde_lib import SDE
from time_grids import TIME_GRIDS, Schedule
from training.objective import Context, Objective


class Noise(NamedTuple):
    """The random numbers of a batch: the step of the student, its times, and the noise.

    Attributes:
        t, middle, end: the times before, between and after the teacher's two steps.
        eps: the noise in x_t (batch, ...).
    """

    t: Times
    middle: Times
    end: Times
    eps: Batch


@dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Objective):
    """One round of progressive distillation.

    Args:
        teacher: RUN or RUN:STEP, the folder of the run whose network is the teacher.
        student_steps: number of DDIM steps of the student; the teacher takes twice as many.
        grid: spacing of the times, a name in `time_grids.TIME_GRIDS`.
        t_min: the end of the grid, as `Schedule.t_min`.
        weight: one of `objectives.weights` that counts pure noise, such as TruncatedSNR.

    Raises:
        ValueError: without a teacher, for an unknown name or a number out of range.
    """

    teacher: str = ""
    student_steps: int = 8
    grid: str = "uniform"
    t_min: float = 1e-3
    weight: Weight = dataclasses.field(default_factory=TruncatedSNR)

    samplers: ClassVar[tuple[str, ...]] = ("ddim",)

    def __post_init__(self) -> None:
        require_teacher(self.teacher)
        require_in("student_steps", self.student_steps, "[1, inf)")
        require_choice("grid", self.grid, TIME_GRIDS)
        require_in("t_min", self.t_min, "(0, 1)")

    @property
    def schedule(self) -> Schedule:
        """The schedule on which the student is sampled, by DDIM."""
        return Schedule(
            grid=self.grid, steps=self.student_steps, t_min=self.t_min, final_step="none"
        )

    def teacher_times(self, sde: SDE) -> Float[np.ndarray, "times"]:
        """Return the times of the teacher; every second one is a time of the student.

        Raises:
            ValueError: if the process has no such grid, or the student's is not part of it.
        """
        with jax.ensure_compile_time_eval():
            fine = dataclasses.replace(self.schedule, steps=2 * self.student_steps).of(sde)
            coarse = self.schedule.of(sde)
        if not np.allclose(fine[::2], coarse, rtol=1e-6):
            raise ValueError(
                f"grid={self.grid!r} with {2 * self.student_steps} steps has other times than with "
                f"{self.student_steps}; choose another, such as uniform or log_snr"
            )
        return fine

    def draw(self, key: Key[Array, ""], model: Denoiser, x0: Batch, context: Context) -> Noise:
        """Draw one step of the student and one noise per image."""
        step_key, noise_key = jax.random.split(key)
        index = 2 * jax.random.randint(step_key, (len(x0),), 0, self.student_steps)
        times = jnp.asarray(self.teacher_times(model.sde), x0.dtype)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        return Noise(times[index], times[index + 1], times[index + 2], eps)

    def evaluate(
        self, key: Key[Array, ""], drawn: Noise, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the weighted squared error of each image's x0, a mean over its dimensions."""
        x = model.sde.perturb(x0, drawn.t, drawn.eps)
        teacher = dataclasses.replace(context.teacher, labels=model.labels)
        target = two_steps_target(teacher, x, drawn)
        error = sum_per_sample((model.predict(x, drawn.t).x0 - target) ** 2) / x0[0].size
        snr = jnp.exp(model.sde.log_snr(drawn.t))
        return self.weight(model.sde, drawn.t) * snr * error


def two_steps_target(teacher: Denoiser, x: Batch, drawn: Noise) -> Batch:
    """Return the x0 with which one DDIM step ends where two of the teacher do."""
    state = x
    for start, end in ((drawn.t, drawn.middle), (drawn.middle, drawn.end)):
        prediction = teacher.predict(state, start)
        state = teacher.sde.perturb(prediction.x0, end, prediction.eps)
    alpha, sigma = teacher.coefficients(x, drawn.t)
    alpha_end, sigma_end = teacher.coefficients(x, drawn.end)
    ratio = sigma_end / sigma
    return jax.lax.stop_gradient((state - ratio * x) / (alpha_end - ratio * alpha))
