"""One training step: the state, the optimizer chain, the moving average, and their jitted update.

Randomness is `fold_in(base key, step)`: no key is kept in the state, so a run resumed at step k is
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

from training.parallel import DataParallel

# denoising.Denoiser is made from (parameters, dropout key); the loss is one of losses.LOSSES.
LossFunction = Callable[[Key[Array, ""], Any, Float[Array, "batch ..."]], Float[Array, "batch"]]


class TrainState(NamedTuple):
    """All that training changes; checkpoints hold it whole."""

    step: Int[Array, ""]
    params: Any
    ema_params: Any
    opt_state: Any


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam with linear warm-up, optional decay, and clipping of the global gradient norm.

    Args:
      lr: learning rate after warm-up.
      warmup: steps over which the rate grows from 0 to `lr`.
      decay: "constant", or "cosine" from `lr` to 0 at the last step of training.
      grad_clip: largest global gradient norm; 0 for no clipping.
      beta1, beta2, eps: Adam's (Kingma & Ba 2015, arXiv:1412.6980).
    """

    lr: float = 2e-4
    warmup: int = 5000
    decay: str = "constant"
    grad_clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and above 0")
        for name in ("warmup", "grad_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"decay={self.decay!r} is unknown; choose one of: constant, cosine")

    def chain(self, total_steps: int) -> optax.GradientTransformation:
        """The optax chain; `total_steps` is where a cosine decay ends."""
        if self.decay == "cosine":
            rate = optax.warmup_cosine_decay_schedule(
                0.0, self.lr, self.warmup, max(total_steps, self.warmup + 1)
            )
        else:
            rate = optax.linear_schedule(0.0, self.lr, self.warmup) if self.warmup else self.lr
        clip = optax.clip_by_global_norm(self.grad_clip) if self.grad_clip else optax.identity()
        return optax.chain(clip, optax.adam(rate, b1=self.beta1, b2=self.beta2, eps=self.eps))


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Exponential moving average of the parameters, which is what samples and is evaluated.

    With `warmup` the rate at update n is min(rate, (1 + n) / (10 + n)), so that early averages
    follow the network rather than remember its initialization.
    """

    rate: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate={self.rate} must lie in [0, 1)")

    def update(self, average: Any, params: Any, step: Int[Array, ""]) -> Any:
        rate = jnp.float32(self.rate)
        if self.warmup:
            rate = jnp.minimum(rate, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda a, p: a + (1 - rate).astype(a.dtype) * (p - a), average, params)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Makes the first state and the next one.

    Args:
      init: parameters from a key.
      denoiser: a Denoiser from (parameters, dropout key).
      loss: per-sample losses from (key, denoiser, batch).
      optimizer: an optax transformation.
      classes: number of classes of a network that is told them, 0 for one that is not.
      label_dropout: probability of telling it none instead, which is class number `classes`.
    """

    init: Callable[[Key[Array, ""]], Any]
    denoiser: Callable[[Any, Key[Array, ""]], Any]
    loss: LossFunction
    optimizer: optax.GradientTransformation
    average: MovingAverage
    parallel: DataParallel
    classes: int = 0
    label_dropout: float = 0.1

    def init_state(self, key: Key[Array, ""]) -> TrainState:
        """A fresh state, made on the devices."""
        return jax.jit(self._init_state, out_shardings=self.parallel.replicated)(key)

    def state_from_params(self, params: Any, ema_params: Any, step: int) -> TrainState:
        """A state of parameters that were trained elsewhere; the optimizer starts afresh."""

        def make(params: Any, ema_params: Any) -> TrainState:
            return TrainState(jnp.int32(step), params, ema_params, self.optimizer.init(params))

        return jax.jit(make, out_shardings=self.parallel.replicated)(params, ema_params)

    def abstract_state(self) -> TrainState:
        """The state's shapes and shardings, without computing anything."""
        return self.parallel.abstract(jax.eval_shape(self._init_state, jax.random.key(0)))

    def compiled_step(self) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """The jitted `step`, with labels if there are classes; it consumes the state."""
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
        """One update on a batch; the scalars are the batch's loss and the gradient's norm."""
        key = jax.random.fold_in(base_key, state.step)
        loss, grads = jax.value_and_grad(self.objective)(state.params, key, batch, labels)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = self.average.update(state.ema_params, params, state.step)
        scalars = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, ema_params, opt_state), scalars

    def objective(
        self,
        params: Any,
        key: Key[Array, ""],
        batch: Float[Array, "batch ..."],
        labels: Int[Array, "batch"] | None = None,
    ) -> Float[Array, ""]:
        """The batch's mean loss, whose gradient is taken."""
        loss_key, dropout_key = jax.random.split(key)
        denoiser = self.denoiser(params, dropout_key)
        if labels is not None:
            label_key = jax.random.fold_in(dropout_key, 0)
            dropped = jax.random.bernoulli(label_key, self.label_dropout, labels.shape)
            labels = jnp.where(dropped, self.classes, labels)
            denoiser = dataclasses.replace(denoiser, labels=labels)
        return jnp.mean(self.loss(loss_key, denoiser, batch))

    def _init_state(self, key: Key[Array, ""]) -> TrainState:
        params = self.init(key)
        # A buffer of its own for the average: a donated state must not hold one twice.
        ema_params = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.int32(0), params, ema_params, self.optimizer.init(params))
