"""One training step: the state, the optimizer chain, the moving average, and their jitted update.

    loss    L(params) = mean over the batch of losses(key, denoiser(params), x0)
    params  <- params + Adam(clip(grad L))
    ema     <- ema + (1 - rate) (params - ema)

Randomness is `fold_in(base key, step)`. The state keeps no key, so a run resumed at step k equals
the run that never stopped, bit for bit.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from errors import require_choice, require_in
from training.objective import FIRST, Context, Objective
from training.parallel import DataParallel


class TrainState(NamedTuple):
    """All that training changes; checkpoints hold it whole.

    `objective` is the objective's own state, () if it keeps none.
    """

    step: Int[Array, ""]
    params: Any
    ema_params: Any
    opt_state: Any
    objective: Any


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam with linear warm-up, optional decay, and clipping of the global gradient norm.

    Args:
        lr: learning rate after warm-up.
        warmup: steps over which the rate grows from 0 to `lr`.
        decay: "constant", or "cosine" from `lr` to 0 at the last step of training.
        grad_clip: largest global gradient norm; 0 for no clipping.
        beta1: decay rate of the gradient's mean (Kingma & Ba 2015, arXiv:1412.6980).
        beta2: decay rate of its mean square.
        eps: added to the root of the mean square.
    """

    lr: float = 2e-4
    warmup: int = 5000
    decay: str = "constant"
    grad_clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        require_in("lr", self.lr, "(0, inf)")
        require_in("eps", self.eps, "(0, inf)")
        require_in("warmup", self.warmup, "[0, inf]")
        require_in("grad_clip", self.grad_clip, "[0, inf]")
        require_in("beta1", self.beta1, "[0, 1)")
        require_in("beta2", self.beta2, "[0, 1)")
        require_choice("decay", self.decay, ("constant", "cosine"))

    def chain(self, total_steps: int) -> optax.GradientTransformation:
        """Return the optax chain; a cosine decay ends at `total_steps`."""
        if self.decay == "cosine":
            rate = optax.warmup_cosine_decay_schedule(
                0.0, self.lr, self.warmup, max(total_steps, self.warmup + 1)
            )
        elif self.warmup:
            rate = optax.linear_schedule(0.0, self.lr, self.warmup)
        else:  # a schedule too, so that a run may change its warm-up and keep its state
            rate = optax.constant_schedule(self.lr)
        clip = optax.clip_by_global_norm(self.grad_clip) if self.grad_clip else optax.identity()
        return optax.chain(clip, optax.adam(rate, b1=self.beta1, b2=self.beta2, eps=self.eps))


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Exponential moving average of the parameters, used for sampling and evaluation.

    Args:
        rate: weight of the old average.
        warmup: whether the rate at update n is min(rate, (1 + n) / (10 + n)), so that early
            averages follow the network rather than remember its initialization.
    """

    rate: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        require_in("rate", self.rate, "[0, 1)")

    def update(self, average: Any, params: Any, step: Int[Array, ""]) -> Any:
        """Return the average after update number `step`."""
        rate = jnp.float32(self.rate)
        if self.warmup:
            rate = jnp.minimum(rate, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda a, p: a + (1 - rate).astype(a.dtype) * (p - a), average, params)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The first training state, and the step from one state to the next.

    Args:
        init: parameters from a key.
        denoiser: a Denoiser from (parameters, dropout key or None).
        loss: the objective, such as one of losses.LOSSES.
        optimizer: an optax transformation.
        average: the moving average of the parameters.
        parallel: the devices.
        classes: number of classes of a class-conditional network, 0 for an unconditional one.
        label_dropout: probability of replacing a label by the null class, index `classes`.
    """

    init: Callable[[Key[Array, ""]], Any]
    denoiser: Callable[[Any, Key[Array, ""] | None], Any]
    loss: Objective
    optimizer: optax.GradientTransformation
    average: MovingAverage
    parallel: DataParallel
    classes: int = 0
    label_dropout: float = 0.1

    def init_state(self, key: Key[Array, ""]) -> TrainState:
        """Return a fresh state, made on the devices."""
        return jax.jit(self._init_state, out_shardings=self.parallel.replicated)(key)

    def state_from_params(self, params: Any, ema_params: Any, step: int) -> TrainState:
        """Return a state of parameters that were trained elsewhere, with a fresh optimizer."""

        def make(params: Any, ema_params: Any) -> TrainState:
            opt_state = self.optimizer.init(params)
            objective = self.loss.init_state()
            return TrainState(jnp.int32(step), params, ema_params, opt_state, objective)

        return jax.jit(make, out_shardings=self.parallel.replicated)(params, ema_params)

    def abstract_state(self) -> TrainState:
        """Return the state's shapes and shardings, without computing anything."""
        return self.parallel.abstract(jax.eval_shape(self._init_state, jax.random.key(0)))

    def compiled_step(self) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """Return the jitted `step`, with labels if there are classes; it consumes the state."""
        replicated, split = self.parallel.replicated, self.parallel.split
        return jax.jit(
            self.step,
            in_shardings=(replicated, replicated, split, *([split] if self.classes else [])),
            out_shardings=(replicated, replicated),
            donate_argnums=1,
        )

    def step(
        self,
        base_key: Key[Array, ""],
        state: TrainState,
        batch: Float[Array, "batch ..."],
        labels: Int[Array, "batch"] | None = None,
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """Update the state on a batch; the scalars are the batch's loss and the gradient's norm."""
        key = jax.random.fold_in(base_key, state.step)
        context = Context(step=state.step, state=state.objective)
        gradient = jax.value_and_grad(self.objective, has_aux=True)
        (loss, objective), grads = gradient(state.params, key, batch, labels, context)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = self.average.update(state.ema_params, params, state.step)
        scalars = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, ema_params, opt_state, objective), scalars

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
        denoiser = self.denoiser(params, dropout_key)
        if labels is not None:
            label_key = jax.random.fold_in(dropout_key, 0)
            dropped = jax.random.bernoulli(label_key, self.label_dropout, labels.shape)
            labels = jnp.where(dropped, self.classes, labels)
            denoiser = dataclasses.replace(denoiser, labels=labels)
        losses = self.loss(loss_key, denoiser, batch, context)
        return jnp.mean(losses.values), losses.state

    def _init_state(self, key: Key[Array, ""]) -> TrainState:
        params = self.init(key)
        # The average has its own buffer, because a donated state must not hold one twice.
        ema_params = jax.tree.map(jnp.copy, params)
        opt_state, objective = self.optimizer.init(params), self.loss.init_state()
        return TrainState(jnp.int32(0), params, ema_params, opt_state, objective)
