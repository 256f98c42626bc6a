r"""Optimizers by name.

An optimizer turns the gradient g_k of step k into a change of the parameters. For Adam (Kingma & Ba
2015, arXiv:1412.6980), with the gradient clipped to the global norm `grad_clip`,

    m <- beta1 m + (1 - beta1) g      v <- beta2 v + (1 - beta2) g^2
    params <- params - lr(k) m_hat / (sqrt(v_hat) + eps)

The learning rates lr(k) are in `training.schedules`.

Weight decay is decoupled: lr(k) weight_decay params is subtracted too (Loshchilov & Hutter 2019,
arXiv:1711.05101), from matrices alone or from everything that is trained.
"""

import abc
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import contrib

from errors import require_in
from training.schedules import Constant, LearningRate


def _decayed(params: Any, *, matrices_only: bool) -> Any:
    """Return for each parameter whether weight decay applies to it."""

    def decays(path: tuple, leaf: Any) -> bool:
        # The frequencies of `models.blocks.embeddings.FourierEmbedding` are never trained.
        trained = not path or getattr(path[-1], "key", None) != "frequencies"
        return trained and (leaf.ndim >= 2 or not matrices_only)

    return jax.tree_util.tree_map_with_path(decays, params)


@dataclass(frozen=True, kw_only=True)
class UpdateRule(abc.ABC):
    """Base of the optimizers.

    Args:
        grad_clip: largest global norm of the gradient; 0 for no clipping.
    """

    grad_clip: float = 1.0
    schedule_free = False

    def __post_init__(self) -> None:
        require_in("grad_clip", self.grad_clip, "[0, inf]")

    @abc.abstractmethod
    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return the optax transformation of clipped gradients at this learning rate."""

    def evaluation_params(self, state: Any, params: Any) -> Any:
        """Return the parameters that samples and averages are made of.

        Args:
            state: the state of `transformation`.
            params: the parameters that were trained.
        """
        return params


@dataclass(frozen=True, kw_only=True)
class _DecayingRule(UpdateRule):
    """Base of the optimizers with weight decay.

    Args:
        weight_decay: factor of the decay, itself multiplied by the learning rate.
        decay_matrices_only: decay parameters with two or more axes alone: neither biases nor the
            scales of normalizations.
    """

    weight_decay: float = 0.0
    decay_matrices_only: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("weight_decay", self.weight_decay, "[0, inf)")

    @property
    def mask(self) -> partial:
        """The function from parameters to whether each of them decays."""
        return partial(_decayed, matrices_only=self.decay_matrices_only)


@dataclass(frozen=True, kw_only=True)
class Adam(UpdateRule):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980).

    Args:
        beta1: decay rate of the gradient's mean.
        beta2: decay rate of its mean square.
        eps: added to the root of the mean square.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("beta1", self.beta1, "[0, 1)")
        require_in("beta2", self.beta2, "[0, 1)")
        require_in("eps", self.eps, "(0, inf)")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return Adam."""
        return optax.adam(rate, b1=self.beta1, b2=self.beta2, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class RAdam(Adam):
    """Adam with a variance that is rectified (Liu et al. 2020, arXiv:1908.03265); Adam's fields."""

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return rectified Adam."""
        return optax.radam(rate, b1=self.beta1, b2=self.beta2, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam, _DecayingRule):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Args:
        beta1, beta2, eps: as in `Adam`.
        weight_decay, decay_matrices_only: as in all optimizers with weight decay.
    """

    weight_decay: float = 0.01

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return AdamW."""
        return optax.adamw(
            rate,
            b1=self.beta1,
            b2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=self.mask,
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(AdamW):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682): averages instead of decay.

    Steps move z, gradients are taken at y = beta1 x + (1 - beta1) z, and samples are made with the
    weighted mean x of the z. The training state holds y and z, and x is computed from them. The
    moving average follows x, because x is the method's result: it smooths x further. With
    `config.ema.rate=0` samples are made with x itself, as published.

    Args:
        beta1: weight of x in y, above 0.
        beta2, eps, weight_decay, decay_matrices_only: as in `AdamW`.
        weight_lr_power: each z counts in x with the largest learning rate so far to this power.
    """

    weight_decay: float = 0.0
    weight_lr_power: float = 2.0
    schedule_free = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("beta1", self.beta1, "(0, 1)")
        require_in("weight_lr_power", self.weight_lr_power, "[0, inf)")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return AdamW without momentum, made schedule-free."""
        rule = optax.chain(
            optax.scale_by_rms(self.beta2, self.eps, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(self.weight_decay, self.mask),
            optax.scale_by_learning_rate(rate),
        )
        return contrib.schedule_free(rule, rate, self.beta1, self.weight_lr_power)

    def evaluation_params(self, state: Any, params: Any) -> Any:
        """Return x."""
        return contrib.schedule_free_eval_params(state, params)


@dataclass(frozen=True, kw_only=True)
class Lion(_DecayingRule):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    Its learning rate is usually 3 to 10 times smaller than Adam's, its weight decay as much larger.

    Args:
        beta1: weight of the momentum in the sign.
        beta2: decay rate of the momentum.
        weight_decay, decay_matrices_only: as in all optimizers with weight decay.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("beta1", self.beta1, "[0, 1)")
        require_in("beta2", self.beta2, "[0, 1)")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return Lion."""
        return optax.lion(
            rate,
            b1=self.beta1,
            b2=self.beta2,
            weight_decay=self.weight_decay,
            mask=self.mask,
        )


def _as_matrix(leaf: Any) -> contrib.MuonDimensionNumbers | None:
    """Return how Muon reads a parameter: inputs times outputs; None if it is no matrix."""
    if leaf.ndim < 2:
        return None
    return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)


@dataclass(frozen=True, kw_only=True)
class Muon(Adam, _DecayingRule):
    """Orthogonalized momentum for matrices (Jordan et al. 2024), and Adam for everything else.

    Kernels of convolutions are matrices too, (rows x columns x channels, features).

    Args:
        momentum: decay rate of the momentum of matrices.
        nesterov: whether to look a step ahead with it.
        ns_steps: steps of the Newton-Schulz iteration that orthogonalizes.
        update_rms: root mean square of a matrix's update at learning rate 1. 0.2 is that of Adam,
            so that both take the same rate (Liu et al. 2025, arXiv:2502.16982, Eq. 4). 0 scales by
            sqrt(max(1, outputs / inputs)) instead, as Jordan does, with rates near 0.02.
        beta1, beta2, eps: Adam's, for vectors.
        weight_decay, decay_matrices_only: as in all optimizers with weight decay.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    update_rms: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("momentum", self.momentum, "[0, 1)")
        require_in("ns_steps", self.ns_steps, "[1, 100]")
        require_in("update_rms", self.update_rms, "[0, inf)")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return Muon."""
        return contrib.muon(
            rate,
            beta=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            eps=self.eps,
            consistent_rms=self.update_rms or None,
            adam_b1=self.beta1,
            adam_b2=self.beta2,
            weight_decay=self.weight_decay,
            weight_decay_mask=self.mask,
            adam_weight_decay=0.0 if self.decay_matrices_only else self.weight_decay,
            muon_weight_dimension_numbers=partial(jax.tree.map, _as_matrix),
        )


@dataclass(frozen=True, kw_only=True)
class SGD(_DecayingRule):
    """Gradient descent with momentum.

    Args:
        momentum: decay rate of the sum of gradients; 0 for none.
        nesterov: whether to look a step ahead with it (Sutskever et al. 2013).
        weight_decay, decay_matrices_only: as in all optimizers with weight decay.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("momentum", self.momentum, "[0, 1)")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return gradient descent."""
        return optax.chain(
            optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity(),
            optax.add_decayed_weights(self.weight_decay, self.mask),
            optax.scale_by_learning_rate(rate),
        )


@dataclass(frozen=True, kw_only=True)
class Adafactor(_DecayingRule):
    """Adam's scaling from row and column means (Shazeer & Stern 2018, arXiv:1804.04235).

    A matrix of n x m numbers takes n + m numbers of memory instead of Adam's 2 n m.

    Args:
        momentum: decay rate of the mean update; 0 for none, which saves its memory.
        decay_rate: the mean squares of step k decay with the rate 1 - k^-decay_rate.
        min_dim_size_to_factor: smaller matrices keep all of their mean squares.
        multiply_by_parameter_scale: multiply the rate by the root mean square of each parameter.
        clipping_threshold: largest root mean square of an update before the learning rate.
        weight_decay, decay_matrices_only: as in all optimizers with weight decay.
    """

    momentum: float = 0.0
    decay_rate: float = 0.8
    min_dim_size_to_factor: int = 128
    multiply_by_parameter_scale: bool = False
    clipping_threshold: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("momentum", self.momentum, "[0, 1)")
        require_in("decay_rate", self.decay_rate, "(0, 1]")
        require_in("min_dim_size_to_factor", self.min_dim_size_to_factor, "[1, inf)")
        require_in("clipping_threshold", self.clipping_threshold, "(0, inf)")

    def transformation(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return Adafactor."""
        return optax.adafactor(
            rate,
            min_dim_size_to_factor=self.min_dim_size_to_factor,
            decay_rate=self.decay_rate,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            clipping_threshold=self.clipping_threshold,
            momentum=self.momentum or None,
            # optax subtracts it as it is, not times the learning rate.
            weight_decay_rate=lambda k: self.weight_decay * rate(k),
            weight_decay_mask=self.mask,
        )


OPTIMIZERS: dict[str, type[UpdateRule]] = {
    "adam": Adam,
    "adamw": AdamW,
    "radam": RAdam,
    "schedule_free_adamw": ScheduleFreeAdamW,
    "lion": Lion,
    "muon": Muon,
    "sgd": SGD,
    "adafactor": Adafactor,
}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An update rule with its learning rate, and clipping of the global gradient norm.

    Args:
        rule: one of OPTIMIZERS.
        learning_rate: one of SCHEDULES.
        steps: length of the training, for schedules that end with it.
        batch_size: images per step, for warm-up in images.

    Raises:
        ValueError: for a schedule-free rule with a schedule.
    """

    rule: UpdateRule = field(default_factory=Adam)
    learning_rate: LearningRate = field(default_factory=Constant)
    steps: int = 1
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.rule.schedule_free and self.learning_rate.decays:
            raise ValueError(
                "schedule must be 'constant' with a schedule-free optimizer, which averages its "
                "steps instead of decaying them; set config.optim.schedule='constant'"
            )

    @property
    def warmup_steps(self) -> float:
        """The steps of warm-up, whole or not."""
        return self.learning_rate.warmup_steps(self.batch_size)

    @cached_property
    def rate(self) -> optax.Schedule:
        """The learning rate as a function of the step, from 0."""
        return self.learning_rate.schedule(steps=self.steps, batch_size=self.batch_size)

    @cached_property
    def chain(self) -> optax.GradientTransformation:
        """The optax transformation: clipping, then the rule."""
        clip = self.rule.grad_clip
        return optax.chain(
            optax.clip_by_global_norm(clip) if clip else optax.identity(),
            self.rule.transformation(self.rate),
        )

    def init(self, params: Any) -> Any:
        """Return the first state of the optimizer."""
        return self.chain.init(params)

    def update(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Return the new parameters and the new state."""
        updates, state = self.chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def current_rate(self, state: Any) -> Float[Array, ""]:
        """Return the learning rate of the next update."""
        counts = optax.tree.get_all_with_path(state, "count")
        return jnp.asarray(self.rate(counts[0][1]), jnp.float32)

    def evaluation_params(self, state: Any, params: Any) -> Any:
        """Return the parameters that samples and averages are made of."""
        return self.rule.evaluation_params(state[1], params)
