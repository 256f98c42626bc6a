"""One training step: the state, and its jitted update.

    loss    L(params) = mean over the batch of losses(key, denoiser(params), x0)
    params  <- params + optimizer(grad L)
    averages of the parameters follow (`training.averages`)

Randomness is `fold_in(base key, step)`. The state keeps no key, so a run resumed at step k equals
the run that never stopped, bit for bit.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from training.accumulation import accumulated_gradient
from training.averages import ExponentialAverage, MoreAverages
from training.objective import FIRST, Context, Objective
from training.optimizers import Optimizer
from training.parallel import DataParallel
from training.sharding import Sharding

# From a key and a batch to the augmented batch and its labels (batch, n).
Augment = Callable[
    [Key[Array, ""], Float[Array, "batch ..."]],
    tuple[Float[Array, "batch ..."], Float[Array, "batch augment"]],
]


_TINY = float(jnp.finfo(jnp.float32).tiny)  # a norm of 0 is no division by 0
# Jitted, so that the norms of a step share one trace.
_norm = jax.jit(optax.tree.norm)


class TrainState(NamedTuple):
    """All that training changes; checkpoints hold it whole.

    `objective` is the objective's own state, () if it keeps none. `ema_params` is the main average
    of the parameters; `averages` holds further ones by name.
    """

    step: Int[Array, ""]
    params: Any
    ema_params: Any
    opt_state: Any
    objective: Any
    averages: dict[str, Any]


class Parameters(NamedTuple):
    """The part of a training state that every run with the same network has."""

    params: Any
    ema_params: Any


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The first training state, and the step from one state to the next.

    Args:
        init: parameters from a key.
        denoiser: a Denoiser from (parameters, dropout key or None).
        loss: the objective, such as one of losses.LOSSES.
        optimizer: the update rule with its learning rate.
        average: the main average of the parameters, for sampling and evaluation.
        more_averages: what is kept beside it.
        parallel: the devices.
        sharding: how they divide the state.
        classes: number of classes of a class-conditional network, 0 for an unconditional one.
        label_dropout: probability of replacing a label by the null class, index `classes`.
        image: the small images for an upsampler, from the batch; None for any other network.
        augment: transforms the batch, and gives the labels for the denoiser; None for none.
        coupled: whether batches are pairs (batch, 2, ...) of an image and the end of its path.
        accumulate: number of parts whose gradients are added up, to save memory.
    """

    init: Callable[[Key[Array, ""]], Any]
    denoiser: Callable[[Any, Key[Array, ""] | None], Any]
    loss: Objective
    optimizer: Optimizer
    average: ExponentialAverage
    parallel: DataParallel
    classes: int = 0
    label_dropout: float = 0.1
    image: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]] | None = None
    augment: Augment | None = None
    coupled: bool = False
    accumulate: int = 1
    more_averages: MoreAverages = field(default_factory=MoreAverages)
    sharding: Sharding = field(default_factory=Sharding)

    def init_state(self, key: Key[Array, ""]) -> TrainState:
        """Return a fresh state, made on the devices."""
        return self._jitted_init(key)

    @cached_property
    def _jitted_init(self) -> Callable[[Key[Array, ""]], TrainState]:
        # Made once, so that its shapes and its program share one trace of the network.
        return jax.jit(
            self._init_state,
            out_shardings=self._state_sharding,
            compiler_options=self.parallel.once,
        )

    def state_from_params(self, params: Any, ema_params: Any, step: int) -> TrainState:
        """Return a state of parameters that were trained elsewhere, with a fresh optimizer."""

        def make(params: Any, ema_params: Any) -> TrainState:
            return self._first_state(jnp.int32(step), params, ema_params)

        return jax.jit(make, out_shardings=self._state_sharding)(params, ema_params)

    def abstract_state(self) -> TrainState:
        """Return the state's shapes and shardings, without computing anything."""
        return self.sharding.abstract(self._shapes, self.parallel)

    def abstract_parameters(self) -> Parameters:
        """Return the same of the parameters alone."""
        state = self.abstract_state()
        return Parameters(state.params, state.ema_params)

    def compiled_step(self) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """Return the jitted `step`, with labels if there are classes; it consumes the state.

        With a teacher it takes all arguments, perhaps None for the labels.
        """
        return self._compiled(self.step, self.parallel.split)

    def compiled_steps(self) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """Return the jitted `steps`, likewise."""
        return self._compiled(self.steps, self.parallel.split_second)

    def _compiled(self, function: Callable, batch: Any) -> Callable:
        replicated, state = self.parallel.replicated, self._state_sharding
        count = 5 if self.loss.teacher else 4 if self.classes else 3
        return jax.jit(
            function,
            in_shardings=(replicated, state, batch, batch, None)[:count],  # a teacher has its own
            out_shardings=(state, replicated),
            donate_argnums=1,
        )

    def steps(
        self,
        base_key: Key[Array, ""],
        state: TrainState,
        batches: Float[Array, "steps batch ..."],
        labels: Int[Array, "steps batch"] | None = None,
        teacher: Any = None,
    ) -> tuple[TrainState, dict[str, Float[Array, "steps"]]]:
        """Update the state on one batch after the other; the scalars are those of each step."""

        def one(state: TrainState, given: Any) -> tuple[TrainState, dict[str, Array]]:
            batch, classes = given
            return self.step(base_key, state, batch, classes, teacher)

        return jax.lax.scan(one, state, (batches, labels))

    def step(
        self,
        base_key: Key[Array, ""],
        state: TrainState,
        batch: Float[Array, "batch ..."],
        labels: Int[Array, "batch"] | None = None,
        teacher: Any = None,
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """Update the state on a batch; `teacher` is the frozen Denoiser of a distillation.

        The scalars are the batch's loss, the norm of its gradient before clipping, the learning
        rate of the update, and the norm of the update over that of the new parameters.
        """
        key = jax.random.fold_in(base_key, state.step)
        context = Context(step=state.step, state=state.objective, teacher=teacher)
        (loss, objective), grads = self.gradient(state.params, key, batch, labels, context)
        rate = self.optimizer.current_rate(state.opt_state)
        params, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        averaged = self.optimizer.evaluation_params(opt_state, params)
        ema_params = self.average.update(state.ema_params, averaged, state.step)
        averages = self.more_averages.update(state.averages, averaged, state.step)
        change = _norm(optax.tree.sub(params, state.params))
        ratio = change / jnp.maximum(_norm(params), _TINY)
        scalars = {
            "loss": loss,
            "grad_norm": _norm(grads),
            "lr": rate,
            # Where norms overflow, all is update; the next loss then says what is wrong.
            "update_ratio": jnp.nan_to_num(ratio, nan=1.0),
        }
        return TrainState(
            state.step + 1, params, ema_params, opt_state, objective, averages
        ), scalars

    def gradient(
        self,
        params: Any,
        key: Key[Array, ""],
        batch: Float[Array, "batch ..."],
        labels: Int[Array, "batch"] | None,
        context: Context,
    ) -> tuple[tuple[Float[Array, ""], Any], Any]:
        """Return the batch's mean loss with the loss's state, and the gradient."""
        if self.accumulate == 1:
            gradient = jax.value_and_grad(self.objective, has_aux=True)
            return gradient(params, key, batch, labels, context)
        loss_key, dropout_key = jax.random.split(key)
        batch, conditions = self._conditions(key, batch, labels)

        def network(params: Any, part: Int[Array, ""], conditions: Any) -> Any:
            # Counted from 1: number 0 is the key of the labels.
            return self._network(params, jax.random.fold_in(dropout_key, part + 1), conditions)

        losses, gradient = accumulated_gradient(
            params,
            loss=self.loss,
            network=network,
            key=loss_key,
            batch=batch,
            conditions=conditions,
            context=context,
            parts=self.accumulate,
            parallel=self.parallel,
        )
        return (jnp.mean(losses.values), losses.state), gradient

    def objective(
        self,
        params: Any,
        key: Key[Array, ""],
        batch: Float[Array, "batch ..."],
        labels: Int[Array, "batch"] | None = None,
        context: Context = FIRST,
    ) -> tuple[Float[Array, ""], Any]:
        """Return the batch's mean loss, as a function of the parameters, and the loss's state."""
        loss_key, dropout_key = jax.random.split(key)
        batch, conditions = self._conditions(key, batch, labels)
        network = self._network(params, dropout_key, conditions)
        losses = self.loss(loss_key, network, batch, context)
        return jnp.mean(losses.values), losses.state

    def _conditions(
        self, key: Key[Array, ""], batch: Float[Array, "batch ..."], labels: Any
    ) -> tuple[Float[Array, "batch ..."], dict[str, Array]]:
        """Return the batch, augmented, and the denoiser's fields that describe its images.

        Some labels are replaced by the null class.
        """
        conditions = {}
        if self.coupled:
            batch, conditions["end"] = batch[:, 0], batch[:, 1]
        if labels is not None:
            label_key = jax.random.fold_in(jax.random.split(key)[1], 0)
            dropped = jax.random.bernoulli(label_key, self.label_dropout, labels.shape)
            conditions["labels"] = jnp.where(dropped, self.classes, labels)
        if self.augment is not None:
            # `split` has taken the numbers 0 and 1 of this key.
            augment_key = jax.random.fold_in(key, 2)
            batch, conditions["augment_labels"] = self.augment(augment_key, batch)
        if self.image is not None:
            conditions["image"] = self.image(batch)
        return batch, conditions

    def with_image(self, denoiser: Any, batch: Float[Array, "batch ..."]) -> Any:
        """Return the denoiser of a batch; that of an upsampler has its small images."""
        return dataclasses.replace(denoiser, image=self.image(batch)) if self.image else denoiser

    def _network(self, params: Any, dropout_key: Key[Array, ""], conditions: Any) -> Any:
        network = self.denoiser(params, dropout_key)
        return dataclasses.replace(network, **conditions) if conditions else network

    @cached_property
    def _shapes(self) -> TrainState:
        # A divided state needs its shapes before its program can be made.
        init = self._init_state if self.sharding.divides else self._jitted_init
        return jax.eval_shape(init, jax.random.key(0))

    @property
    def _state_sharding(self) -> Any:
        """The sharding of each leaf of a state, or one for all."""
        if not self.sharding.divides:
            return self.parallel.replicated
        return self.sharding.of(self._shapes, self.parallel)

    def _init_state(self, key: Key[Array, ""]) -> TrainState:
        params = self.init(key)
        # The average has its own buffer, because a donated state must not hold one twice.
        return self._first_state(jnp.int32(0), params, jax.tree.map(jnp.copy, params))

    def _first_state(self, step: Int[Array, ""], params: Any, ema_params: Any) -> TrainState:
        """Return a state in which averages start from `ema_params`."""
        return TrainState(
            step=step,
            params=params,
            ema_params=ema_params,
            opt_state=self.optimizer.init(params),
            objective=self.loss.init_state(),
            averages=self.more_averages.init(ema_params),
        )
