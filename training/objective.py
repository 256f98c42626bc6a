"""The interface between the training step and an objective.

An objective draws the random numbers of a batch, evaluates a loss per image with them, and may keep
a state of its own, such as the losses that it has seen at each noise level. The three are separate,
so that a batch can be evaluated in parts with the numbers of the whole.
"""

import abc
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array, Float, Int, Key


class Context(NamedTuple):
    """What a loss may depend on besides the network and the batch.

    Attributes:
        step: number of the training step, from 0.
        state: the objective's own state; () for its first one.
        teacher: the frozen network of a distillation or of a dequantizer, a Denoiser, or None.
    """

    step: int | Int[Array, ""] = 0
    state: Any = ()
    teacher: Any = None


FIRST = Context()


class Losses(NamedTuple):
    """The losses of a batch and the objective's new state; training minimizes their mean."""

    values: Float[Array, "batch"]
    state: Any


class Objective(abc.ABC):
    """Base of objectives.

    Attributes:
        parameterization: the one that the denoiser must have; None for any.
        samplers: names of the only samplers of what it trains; () if it trains scores at all times,
            as likelihoods and all other samplers need.
        takes_ends: whether a coupling may choose the other end of each image's path, instead of
            noise.
        simulates: whether it simulates its paths, of the teacher's process, and takes no pairs.
        trains_process: whether it trains a process that has parameters, as no other does.
        needs_energy: whether the network must be the gradient of an energy.
        bounds_levels: whether it bounds the probability of gray levels, and so has `pixel_levels`
            and takes images without noise.
        teacher: what `Context.teacher` is, such as RUN or RUN:STEP; "" for none.
    """

    parameterization: ClassVar[str | None] = None
    samplers: ClassVar[tuple[str, ...]] = ()
    takes_ends: ClassVar[bool] = False
    simulates: ClassVar[bool] = False
    trains_process: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    bounds_levels: ClassVar[bool] = False
    teacher: str = ""

    @property
    def first_time(self) -> float:
        """The first time that it trains, if it simulates its paths."""
        return 0.0

    @property
    def trains_variance(self) -> bool:
        """Whether a variance that the network predicts is trained."""
        return False

    def init_state(self) -> Any:
        """Return the objective's first state, a tree of arrays; () if it keeps none."""
        return ()

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], model: Any, x0: Array, context: Context) -> Any:
        """Draw the random numbers of a batch: arrays with one entry per image.

        Args:
            key: of the batch.
            model: the network, such as a Denoiser; most objectives use its process and `end` alone.
            x0: the images (batch, ...); only their shape and type are used.
            context: step, state and teacher.
        """

    @abc.abstractmethod
    def evaluate(
        self, key: Key[Array, ""], drawn: Any, model: Any, x0: Array, context: Context
    ) -> Float[Array, "batch"]:
        """Return the loss of each image with these random numbers; `key` is for further ones."""

    def weighted(
        self, drawn: Any, losses: Float[Array, "batch"], model: Any, context: Context
    ) -> Losses:
        """Return what training minimizes: the losses by their importance, and the new state."""
        return Losses(losses, context.state)

    def __call__(
        self, key: Key[Array, ""], model: Any, x0: Array, context: Context = FIRST
    ) -> Losses:
        """Return the losses of a batch (batch, ...), and the new state."""
        drawn = self.draw(key, model, x0, context)
        losses = self.evaluate(key, drawn, model, x0, context)
        return self.weighted(drawn, losses, model, context)
