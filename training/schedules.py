"""Learning rates as functions of the training step k = 0, 1, ..., by name.

Each is a schedule times the ramp min(k / warmup, 1). Warm-up is counted in steps or in images.
"""

import abc
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax

from errors import require_in


@dataclass(frozen=True, kw_only=True)
class LearningRate(abc.ABC):
    """Base of the schedules.

    Args:
        lr: learning rate after warm-up, and before any decay.
        warmup: steps over which the rate grows from 0 to `lr`. By default 5000, or as
            `warmup_images` says.
        warmup_images: images over which it grows, instead of steps: EDM takes 10 million (Karras et
            al. 2022, arXiv:2206.00364).

    Raises:
        ValueError: for a number out of range, or both `warmup` and `warmup_images`.
    """

    lr: float = 2e-4
    warmup: int | None = None
    warmup_images: float | None = None
    decays = True

    def __post_init__(self) -> None:
        require_in("lr", self.lr, "(0, inf)")
        require_in("warmup", self.warmup, "[0, inf]")
        require_in("warmup_images", self.warmup_images, "[0, inf]")
        if self.warmup is not None and self.warmup_images is not None:
            raise ValueError(
                f"warmup_images={self.warmup_images:g} and warmup={self.warmup}: give one of the "
                "two, and set the other to None"
            )
        if self.warmup is None and self.warmup_images is None:
            object.__setattr__(self, "warmup", 5000)

    def warmup_steps(self, batch_size: int) -> Any:
        """Return the steps of warm-up, whole or not."""
        # A float, where optax's annotations have an int; its formulas take either.
        return self.warmup if self.warmup_images is None else self.warmup_images / batch_size

    @abc.abstractmethod
    def schedule(self, *, steps: int, batch_size: int) -> optax.Schedule:
        """Return the learning rate as a function of the step, from 0.

        Args:
            steps: length of the training.
            batch_size: images per step.
        """


def _ramp(lr: float, warmup: Any) -> optax.Schedule:
    # A schedule without warm-up too, so that a run may change its warm-up and keep its state.
    return optax.linear_schedule(0.0, lr, warmup) if warmup else optax.constant_schedule(lr)


@dataclass(frozen=True, kw_only=True)
class Constant(LearningRate):
    """The same rate after warm-up; fields as in `LearningRate`."""

    decays = False

    def schedule(self, *, steps: int, batch_size: int) -> optax.Schedule:
        """Return lr min(k / warmup, 1)."""
        return _ramp(self.lr, self.warmup_steps(batch_size))


@dataclass(frozen=True, kw_only=True)
class Cosine(LearningRate):
    """Half a cosine from `lr` at the end of warm-up to 0 at the last step; fields likewise."""

    def schedule(self, *, steps: int, batch_size: int) -> optax.Schedule:
        """Return lr (1 + cos(pi (k - warmup) / (steps - warmup))) / 2."""
        warmup = self.warmup_steps(batch_size)
        return optax.warmup_cosine_decay_schedule(0.0, self.lr, warmup, max(steps, warmup + 1))


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(LearningRate):
    """Decay with the root of the step (Karras et al. 2024, arXiv:2312.02696, Eq. 67).

    Args:
        t_ref: the step from which the rate falls, 70000 there.

    The other fields are those of `LearningRate`.
    """

    t_ref: float = 70000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("t_ref", self.t_ref, "(0, inf)")

    def schedule(self, *, steps: int, batch_size: int) -> optax.Schedule:
        """Return lr min(k / warmup, 1) / sqrt(max(k / t_ref, 1))."""
        ramp = _ramp(self.lr, self.warmup_steps(batch_size))
        return lambda k: ramp(k) / jnp.sqrt(jnp.maximum(k / self.t_ref, 1))


SCHEDULES: dict[str, type[LearningRate]] = {
    "constant": Constant,
    "cosine": Cosine,
    "inverse_sqrt": InverseSqrt,
}
