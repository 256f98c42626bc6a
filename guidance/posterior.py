r"""Guidance by a function of the predicted image: any loss, or a measurement's likelihood.

With x0(x_t) the denoiser's prediction of the image, p(y | x_t) is approximated by a likelihood at
x0(x_t), and its gradient is taken through the network:

    LossGuidance   -scale grad_x loss(x0(x_t)), for any differentiable loss
    DPS            grad_x log N(y; A x0(x_t), v I) for y = A x_0 + noise
                   (Chung et al. 2023, arXiv:2209.14687, Eq. 16)
    PiGDM          grad_x log N(y; A x0(x_t), r_t^2 A A^T + noise^2 I)
                   (Song et al. 2023, "Pseudoinverse-guided diffusion models", OpenReview
                   9_gsMA8MRKQ, Eq. 7)
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from denoising import Denoiser, Prediction
from errors import require_choice, require_in
from guidance.base import Number, guide_through_network, require_measurement
from guidance.operators import LinearOperator
from numerics.arrays import Batch, expand_like, pytree, sum_per_sample
from sde_lib import Time


@pytree()
@dataclass(frozen=True, kw_only=True)
class LossGuidance:
    """The gradient of a loss of the predicted image, through the network.

    Args:
        loss: maps x0 (batch, ...), and each array of `data`, to the loss of each image (batch,). It
            is best given as `jax.tree_util.Partial(function, arrays)`: other arrays then need no
            new compilation.
        data: arrays with one entry per image, passed to the loss.
        scale: factor of the gradient, at least 0. With the loss -log p(y | x_0), 1 is DPS.

    Raises:
        ValueError: for a scale below 0.
    """

    loss: Callable[..., Float[Array, "batch"]]
    data: tuple[Array, ...] = ()
    scale: Number = 1.0
    batched_fields = ("data",)
    evaluations = 1

    def __post_init__(self) -> None:
        require_in("scale", self.scale, "[0, inf)")
        if callable(self.loss) and not isinstance(self.loss, Partial):
            object.__setattr__(self, "loss", Partial(self.loss))

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        def x0_gradient(x0: Batch) -> Batch:
            return -self.scale * jax.grad(lambda x0: jnp.sum(self.loss(x0, *self.data)))(x0)

        return guide_through_network(denoiser, x, t, x0_gradient)


DPS_VARIANCES = ("residual", "noise")


@pytree(static=("variance",))
@dataclass(frozen=True, kw_only=True)
class DPS:
    """Diffusion posterior sampling: the measurement's likelihood at the predicted image.

    The gradient is scale A^T (y - A x0) / v, backpropagated through the network.

    Args:
        operator: A.
        measurement: y of each image, of shape (batch, *operator.measurement_shape). For "residual",
            y must be in the range of A: see `operator.in_range`.
        noise: standard deviation of the measurement's noise.
        scale: factor of the gradient; 1 is the method itself.
        variance: v. "noise" is noise^2, as in the paper's derivation. For small noise this gradient
            is too stiff for any step; the paper then takes steps of constant length. "residual"
            also allows noise = 0. It is the maximum of noise^2, the mean square of y - A x0, and
            sigma^2 / (sigma^2 + alpha^2), the variance of x_0 given x_t if x_0 has unit variance.
            The last one assumes that A A^T is the identity; for smaller A A^T, increase the scale.
        count: how many numbers of y depend on x; by default `operator.count`.

    Raises:
        ValueError: for a measurement of the wrong shape, an unknown name, or numbers out of range.
    """

    operator: LinearOperator
    measurement: Batch
    noise: Number = 0.0
    scale: Number = 1.0
    variance: str = "residual"
    count: Array | None = None
    batched_fields = ("measurement",)
    evaluations = 1

    def __post_init__(self) -> None:
        require_choice("variance", self.variance, DPS_VARIANCES)
        require_in("scale", self.scale, "[0, inf)")
        require_in("noise", self.noise, "(0, inf)" if self.variance == "noise" else "[0, inf)")
        require_measurement(self.operator, self.measurement)
        if self.count is None:
            object.__setattr__(self, "count", self.operator.count)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        def x0_gradient(x0: Batch) -> Batch:
            residual = self.measurement - self.operator(x0)
            variance = jnp.full(len(x), self.noise**2, x.dtype)
            if self.variance == "residual":
                count = jnp.asarray(self.count, x.dtype)
                mean_square = sum_per_sample(residual**2) / count
                alpha, sigma = denoiser.sde.alpha(t), denoiser.sde.sigma(t)
                of_x0 = jnp.broadcast_to(sigma**2 / (sigma**2 + alpha**2), variance.shape)
                variance = jnp.maximum(jnp.maximum(variance, mean_square), of_x0)
            return self.scale * self.operator.adjoint(residual / expand_like(variance, residual))

        return guide_through_network(denoiser, x, t, x0_gradient)


@pytree()
@dataclass(frozen=True, kw_only=True)
class PiGDM:
    """Pseudoinverse-guided diffusion: DPS with the uncertainty of the predicted image.

    The likelihood of y is N(A x0, r^2 A A^T + noise^2 I). If data are N(., s^2 I), the variance of
    x_0 given x_t is r^2 = s^2 sigma^2 / (sigma^2 + s^2 alpha^2), and the method is exact.

    Args:
        operator: A.
        measurement: y of each image, of shape (batch, *operator.measurement_shape).
        noise: standard deviation of the measurement's noise; may be 0.
        scale: factor of the gradient; 1 is the method itself.
        data_std: s; 1 in the paper.

    Raises:
        ValueError: for a measurement of the wrong shape, or numbers out of range.
    """

    operator: LinearOperator
    measurement: Batch
    noise: Number = 0.0
    scale: Number = 1.0
    data_std: Number = 1.0
    batched_fields = ("measurement",)
    evaluations = 1

    def __post_init__(self) -> None:
        require_in("scale", self.scale, "[0, inf)")
        require_in("noise", self.noise, "[0, inf)")
        require_in("data_std", self.data_std, "(0, inf)")
        require_measurement(self.operator, self.measurement)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        alpha, sigma = denoiser.sde.alpha(t), denoiser.sde.sigma(t)
        spread = (self.data_std * sigma) ** 2 / (sigma**2 + (self.data_std * alpha) ** 2)

        def x0_gradient(x0: Batch) -> Batch:
            residual = self.measurement - self.operator(x0)
            solved = self.operator.solve(residual, spread, jnp.full_like(spread, self.noise**2))
            return self.scale * self.operator.adjoint(solved)

        return guide_through_network(denoiser, x, t, x0_gradient)
