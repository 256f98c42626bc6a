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

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from arrays import expand_like, normal_like, sum_per_sample
from classification import Classifier
from denoising import Batch, Clipping, Denoiser, Prediction
from linear_operators import LinearOperator
from pytrees import pytree
from sde_lib import SDE, Time

Number = float | Float[Array, ""]


def guide(denoiser: Denoiser, *guidances: Any) -> Denoiser:
    """The denoiser with more guidances, which are applied in this order, after those it has."""
    return dataclasses.replace(denoiser, guidances=(*denoiser.guidances, *guidances))


def _check(name: str, value: Any, *, above: bool = False) -> None:
    """Refuse a Python number that is negative or not finite; `above` says that 0 is refused too.

    Traced numbers, of a guidance that jit has taken apart, were looked at when it was made.
    """
    if isinstance(value, int | float) and not (value > 0 if above else value >= 0):
        raise ValueError(f"{name}={value} must be {'above' if above else 'at least'} 0")
    if isinstance(value, int | float) and not value < float("inf"):
        raise ValueError(f"{name}={value} must be finite")


def check_interval(name: str, interval: tuple) -> None:
    """Refuse what are not two increasing times between 0 and 1."""
    numbers = len(interval) == 2 and all(isinstance(t, int | float) for t in interval)
    if not numbers or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"{name}={interval} must be two increasing times between 0 and 1")


# --- classes ----------------------------------------------------------------------------------


@pytree()
@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """The gradient of a classifier of noisy images, added after clipping, if there is any.

    Args:
      classifier: answers at every noise level of the denoiser's process.
      labels: the class of each image, 0 .. classes - 1.
      scale: 1 samples from p(x | y); more sharpens p(y | x) to its power.
    """

    classifier: Classifier
    labels: Int[Array, "batch"]
    scale: Number = 1.0
    per_image = ("labels",)
    evaluations = 1

    def __post_init__(self) -> None:
        _check("scale", self.scale)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        classifier = dataclasses.replace(self.classifier, labels=self.labels)
        gradient = jax.grad(lambda x: jnp.sum(classifier.log_prob(x, t)))(x)
        return denoiser.guided(denoiser.predict(x, t), self.scale * gradient, x, t)


@pytree(static=("interval",))
@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """A class-conditional network, exaggerated.

    eps = eps(none) + scale (eps(y) - eps(none)), where `denoiser.labels` has the classes y.

    Args:
      none: the label that tells the network no class.
      scale: 0 forgets the class, 1 is the network as trained, more exaggerates (the paper's w + 1).
      interval: times (first, last) between which it exaggerates; elsewhere the network is asked
        once, for the class (Kynkaanniemi et al. 2024, arXiv:2404.07724).

    Raises:
      ValueError: for numbers out of range; when called, for a denoiser without labels.
    """

    none: int | Int[Array, ""]
    scale: Number = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    per_image = ()
    evaluations = 2

    def __post_init__(self) -> None:
        _check("scale", self.scale)
        check_interval("interval", self.interval)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        if denoiser.labels is None:
            raise ValueError(
                "labels=None: classifier-free guidance needs a class-conditional network and the "
                "class of each image"
            )

        def exaggerated() -> Prediction:
            pairs = jnp.stack([denoiser.labels, jnp.full_like(denoiser.labels, self.none)])
            # Exaggeration leaves the range of data, so that clipping comes after it.
            free = dataclasses.replace(denoiser, clipping=Clipping())
            both = jax.vmap(lambda y: dataclasses.replace(free, labels=y).predict(x, t))(pairs)

            def away(pair: Float[Array, "2 batch ..."]) -> Batch:
                of_class, of_none = pair
                return of_none + self.scale * (of_class - of_none)

            of_class = jax.tree.map(lambda pair: pair[0], both)
            told = of_class._replace(x0=away(both.x0), eps=away(both.eps))
            return denoiser.clipped(told, x, t)

        if self.interval == (0.0, 1.0):
            return exaggerated()
        first, last = self.interval
        inside = (first <= t) & (t <= last)
        if t.ndim == 0:
            return jax.lax.cond(inside, exaggerated, lambda: denoiser.predict(x, t))
        return jax.tree.map(
            lambda a, b: jnp.where(expand_like(inside, a), a, b),
            exaggerated(),
            denoiser.predict(x, t),
        )


# --- functions of the predicted image ---------------------------------------------------------


def _guided_through(
    denoiser: Denoiser, x: Batch, t: Time, pull: Callable[[Batch], Batch]
) -> Prediction:
    """The prediction guided by the gradient in x of a function of x0(x), where `pull` is that
    function's gradient in x0."""

    def predict(x: Batch) -> tuple[Batch, Prediction]:
        prediction = denoiser.predict(x, t)
        return prediction.x0, prediction

    x0, transpose, prediction = jax.vjp(predict, x, has_aux=True)
    (gradient,) = transpose(pull(x0))
    # Where there is hardly any signal, networks have gradients far too large.
    return denoiser.clipped(denoiser.guided(prediction, gradient, x, t), x, t)


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
    per_image = ("data",)
    evaluations = 1

    def __post_init__(self) -> None:
        _check("scale", self.scale)
        if callable(self.loss) and not isinstance(self.loss, Partial):
            object.__setattr__(self, "loss", Partial(self.loss))

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        def pull(x0: Batch) -> Batch:
            return -self.scale * jax.grad(lambda x0: jnp.sum(self.loss(x0, *self.data)))(x0)

        return _guided_through(denoiser, x, t, pull)


def _check_measurement(operator: LinearOperator, measurement: Array) -> None:
    if jnp.shape(measurement)[1:] != operator.measured:
        raise ValueError(
            f"measurement has shape {jnp.shape(measurement)}; the operator measures images of "
            f"shape {operator.shape} as (batch, {', '.join(map(str, operator.measured))})"
        )


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
    per_image = ("measurement",)
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
    per_image = ("measurement",)
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


@pytree()
@dataclass(frozen=True, kw_only=True)
class Projection:
    """Holds A x_t to what the process makes of the measurement y = A x_0.

    x_t  <-  x_t + strength A^+ (alpha y + sigma A z - A x_t), z fresh and normal; the samples are
    x_0  <-  x_0 + strength A^+ (y - A x_0). With strength 1 they agree with y exactly.

    Args:
      operator, measurement: A, and y of each image.
      strength: how far towards it, above 0 to 1; less than 1 forgives noise in y (lambda of Song
        et al. 2022, Eq. 9).

    Raises:
      ValueError: for a measurement of the wrong shape, or a strength out of range.
    """

    operator: LinearOperator
    measurement: Batch
    strength: Number = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.strength, int | float) and not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength} must lie above 0, up to 1")
        _check_measurement(self.operator, self.measurement)

    def project(self, keys: Key[Array, "batch"], sde: SDE, x: Batch, t: Time) -> Batch:
        noised = sde.perturb(jnp.zeros_like(x), t, normal_like(keys, x))
        alpha = expand_like(sde.alpha(t), self.measurement)
        return self._towards(alpha * self.measurement + self.operator(noised), x)

    def finish(self, x0: Batch) -> Batch:
        return self._towards(self.measurement, x0)

    def _towards(self, target: Batch, x: Batch) -> Batch:
        return x + self.strength * self.operator.pseudo_inverse(target - self.operator(x))
