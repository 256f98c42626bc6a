r"""Conditional questions to a denoiser: classes, measurements, losses, known pixels.

By Bayes' rule the score of p_t(x_t | y) is the model's, and a gradient,

    grad log p(x_t | y) = grad log p(x_t) + grad_x log p(y | x_t),

so that what answers one question answers all (Song et al. 2021, arXiv:2011.13456, Section 5 and
Appendix I). With x0(x_t) the denoiser's prediction, a guidance adds for grad log p(y | x_t)

    ClassifierGuidance       scale grad_x log p(y | x_t) of a classifier of noisy images
                             (Dhariwal & Nichol 2021, arXiv:2105.05233, Section 4)
    ClassifierFreeGuidance   (scale - 1) times the difference of the scores with and without y
                             (Ho & Salimans 2022, arXiv:2207.12598, Eq. 6)
    LossGuidance             -scale grad_x loss(x0(x_t)), for any differentiable loss
    DPS                      grad_x log N(y; A x0(x_t), v I) for y = A x_0 + noise
                             (Chung et al. 2023, arXiv:2209.14687, Eq. 16)
    PiGDM                    grad_x log N(y; A x0(x_t), r_t^2 A A^T + noise^2 I)
                             (Song et al. 2023, "Pseudoinverse-guided diffusion models", Eq. 7)

and works with every sampler. A Projection needs no gradient: between the steps of a sampler it
replaces A x_t by a draw of what the process makes of y, A x_t = alpha y + sigma A z, which is
inpainting and colorization as in Appendix I.2 and I.3, and Song et al. 2022 (arXiv:2111.08005) for
other measurements. All but the first two approximate; benchmarks/results/posterior.md says how far
off they are where the posterior is known.

Noise, measurements and losses are in the range of the network's images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from denoising import Batch, Denoiser, Prediction
from guidance.base import Number, _check, _check_measurement, _guided_through
from guidance.operators import LinearOperator
from numerics.arrays import expand_like, pytree, sum_per_sample
from sde_lib import Time

# --- classes ----------------------------------------------------------------------------------


# --- functions of the predicted image ---------------------------------------------------------


@pytree()
@dataclass(frozen=True, kw_only=True)
class LossGuidance:
    """The gradient of any loss of the predicted image, through the network.

    Args:
      loss: maps x0 (batch, ...), and each of `data`, to the loss of each image (batch,); best as
        `jax.tree_util.Partial(function, arrays)`, so that other arrays need no new compilation.
      data: what the loss knows of each image, arrays with an entry for each.
      scale: a loss of -log p(y | x_0) and the scale 1 are DPS.
    """

    loss: Callable[..., Float[Array, "batch"]]
    data: tuple[Array, ...] = ()
    scale: Number = 1.0
    batched_fields = ("data",)
    evaluations = 1

    def __post_init__(self) -> None:
        _check("scale", self.scale)
        if callable(self.loss) and not isinstance(self.loss, Partial):
            object.__setattr__(self, "loss", Partial(self.loss))

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        def pull(x0: Batch) -> Batch:
            return -self.scale * jax.grad(lambda x0: jnp.sum(self.loss(x0, *self.data)))(x0)

        return _guided_through(denoiser, x, t, pull)


DPS_VARIANCES = ("residual", "noise")


@pytree(static=("variance",))
@dataclass(frozen=True, kw_only=True)
class DPS:
    """Diffusion posterior sampling: the likelihood of the measurement, at the predicted image.

    The gradient is scale A^T (y - A x0) / v, pulled back through the network.

    Args:
      operator, measurement: A, and y of each image; of what `operator.in_range` leaves out of y,
        "residual" should know nothing.
      noise: standard deviation of the measurement's noise.
      scale: the method's own is 1.
      count: of the numbers in y that depend on x; by default the operator's own.
      variance: "noise" takes v = noise^2, as the paper's derivation; where noise is small the
        gradient is too stiff for any step, which the paper meets by a step of constant length.
        "residual" takes for v the greatest of that, the mean square of y - A x0, and sigma^2 /
        (sigma^2 + alpha^2), the variance that x_0 of unit variance still has, as if A A^T were
        the identity: where it is less, a larger scale makes up for it. It takes noise = 0 too.

    Raises:
      ValueError: for a measurement of the wrong shape, or numbers out of range.
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
        _check("scale", self.scale)
        _check("noise", self.noise, above=self.variance == "noise")
        _check_measurement(self.operator, self.measurement)
        if self.variance not in DPS_VARIANCES:
            raise ValueError(
                f"variance={self.variance!r} is unknown; choose one of: {', '.join(DPS_VARIANCES)}"
            )
        if self.count is None:
            object.__setattr__(self, "count", self.operator.count)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        def pull(x0: Batch) -> Batch:
            residual = self.measurement - self.operator(x0)
            variance = jnp.full(len(x), self.noise**2, x.dtype)
            if self.variance == "residual":
                mean_square = sum_per_sample(residual**2) / self.count.astype(x.dtype)
                alpha, sigma = denoiser.sde.alpha(t), denoiser.sde.sigma(t)
                left = jnp.broadcast_to(sigma**2 / (sigma**2 + alpha**2), variance.shape)
                variance = jnp.maximum(jnp.maximum(variance, mean_square), left)
            return self.scale * self.operator.adjoint(residual / expand_like(variance, residual))

        return _guided_through(denoiser, x, t, pull)


@pytree()
@dataclass(frozen=True, kw_only=True)
class PiGDM:
    """Pseudoinverse-guided diffusion: DPS that knows how uncertain the predicted image is.

    The likelihood of y is N(A x0, r^2 A A^T + noise^2 I), with r^2 = s^2 sigma^2 / (sigma^2 + s^2
    alpha^2) the variance that x_0 has given x_t, if data are N(., s^2 I): for these it is exact.

    Args:
      operator, measurement: A, and y of each image.
      noise: standard deviation of the measurement's noise; 0 is fine.
      scale: the method's own is 1.
      data_std: s. The paper takes 1.

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
        _check("scale", self.scale)
        _check("noise", self.noise)
        _check("data_std", self.data_std, above=True)
        _check_measurement(self.operator, self.measurement)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        alpha, sigma = denoiser.sde.alpha(t), denoiser.sde.sigma(t)
        spread = (self.data_std * sigma) ** 2 / (sigma**2 + (self.data_std * alpha) ** 2)

        def pull(x0: Batch) -> Batch:
            residual = self.measurement - self.operator(x0)
            solved = self.operator.solve(residual, spread, jnp.full_like(spread, self.noise**2))
            return self.scale * self.operator.adjoint(solved)

        return _guided_through(denoiser, x, t, pull)


# --- between the steps ------------------------------------------------------------------------
