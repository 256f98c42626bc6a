r"""Guidance: a denoiser conditioned on y, made from a denoiser and a gradient.

By Bayes' rule the score of p_t(x_t | y) is the model's score plus a gradient,

    grad log p(x_t | y) = grad log p(x_t) + grad_x log p(y | x_t).

One unconditional model therefore serves every condition (Song et al. 2021, arXiv:2011.13456,
Section 5 and Appendix I). Each guidance is a dataclass that adds its own term for the gradient. It
takes a denoiser and returns predictions of one, and so works with every sampler:

    classifier.py        gradient of a classifier of noisy images
    classifier_free.py   difference of the scores with and without the class
    autoguidance.py      difference of the scores of a network and of a worse one
    posterior.py         gradient of a loss or of a measurement's likelihood, at the predicted x0
    text.py              gradient of the distance to texts, seen by a perceptor such as CLIP

projection.py needs no gradient: it replaces the known part of x_t between the steps of a sampler.
operators.py has the linear measurements y = A x_0. Classifier and classifier-free guidance are
exact with exact networks; the others approximate, except PiGDM for Gaussian data.
benchmarks/results/posterior.md has their errors where the posterior is known.

Noise, measurements and losses are in the range of the network's images.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from denoising import Denoiser, Guidance, Prediction
from guidance.operators import LinearOperator
from numerics.arrays import Batch, expand_like
from sde_lib import Time

Number = float | Float[Array, ""]


def guide(denoiser: Denoiser, *guidances: Guidance) -> Denoiser:
    """Return a denoiser with more guidances.

    Args:
        denoiser: stays as it is.
        guidances: applied in this order, after those that the denoiser already has.
    """
    return dataclasses.replace(denoiser, guidances=(*denoiser.guidances, *guidances))


def require_interval(name: str, interval: tuple) -> None:
    """Raise ValueError unless `interval` is a pair of increasing times in [0, 1]."""
    numbers = len(interval) == 2 and all(isinstance(t, int | float) for t in interval)
    if not numbers or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"{name}={interval} must be two increasing times between 0 and 1")


def inside_interval(
    interval: tuple[float, float],
    denoiser: Denoiser,
    x: Batch,
    t: Time,
    guide: Callable[[Denoiser, Batch, Time], Prediction],
) -> Prediction:
    """Return the guided prediction at times within `interval`, and the plain one at others."""
    if interval == (0.0, 1.0):
        return guide(denoiser, x, t)
    first, last = interval
    inside = (first <= t) & (t <= last)
    if t.ndim == 0:
        return jax.lax.cond(inside, lambda: guide(denoiser, x, t), lambda: denoiser.predict(x, t))
    return jax.tree.map(
        lambda guided, plain: jnp.where(expand_like(inside, guided), guided, plain),
        guide(denoiser, x, t),
        denoiser.predict(x, t),
    )


def require_measurement(operator: LinearOperator, measurement: Array) -> None:
    """Raise ValueError unless `measurement` has the shape (batch, *operator.measurement_shape)."""
    if jnp.shape(measurement)[1:] != operator.measurement_shape:
        expected = ", ".join(map(str, operator.measurement_shape))
        raise ValueError(
            f"measurement has shape {jnp.shape(measurement)}; the operator maps images of shape "
            f"{operator.shape} to measurements of shape (batch, {expected})"
        )


def guide_through_network(
    denoiser: Denoiser, x: Batch, t: Time, x0_gradient: Callable[[Batch], Batch]
) -> Prediction:
    """Return the prediction guided by the gradient in x of a function of x0(x).

    Args:
        denoiser: gives x0(x), at one evaluation of the network and its transpose.
        x: x_t of shape (batch, ...).
        t: the time, of shape () or (batch,).
        x0_gradient: maps x0 to the gradient of the function in x0.
    """

    def predict(x: Batch) -> tuple[Batch, Prediction]:
        prediction = denoiser.predict(x, t)
        return prediction.x0, prediction

    x0, transpose, prediction = jax.vjp(predict, x, has_aux=True)
    (gradient,) = transpose(x0_gradient(x0))
    # At high noise levels, gradients of networks are far too large.
    return denoiser.clipped(denoiser.guided(prediction, gradient, x, t), x, t)
