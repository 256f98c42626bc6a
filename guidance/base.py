"""What guidances share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from denoising import Batch, Denoiser, Prediction
from guidance.operators import LinearOperator
from sde_lib import Time

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


def require_interval(name: str, interval: tuple) -> None:
    """Refuse what are not two increasing times between 0 and 1."""
    numbers = len(interval) == 2 and all(isinstance(t, int | float) for t in interval)
    if not numbers or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"{name}={interval} must be two increasing times between 0 and 1")


def _guided_through(
    denoiser: Denoiser, x: Batch, t: Time, pull: Callable[[Batch], Batch]
) -> Prediction:
    """The prediction guided by the gradient in x of a function of x0(x), where `pull` is that
    function's gradient in x0.
    """

    def predict(x: Batch) -> tuple[Batch, Prediction]:
        prediction = denoiser.predict(x, t)
        return prediction.x0, prediction

    x0, transpose, prediction = jax.vjp(predict, x, has_aux=True)
    (gradient,) = transpose(pull(x0))
    # Where there is hardly any signal, networks have gradients far too large.
    return denoiser.clipped(denoiser.guided(prediction, gradient, x, t), x, t)


def _check_measurement(operator: LinearOperator, measurement: Array) -> None:
    if jnp.shape(measurement)[1:] != operator.measurement_shape:
        raise ValueError(
            f"measurement has shape {jnp.shape(measurement)}; the operator measures images of "
            f"shape {operator.shape} as (batch, {', '.join(map(str, operator.measurement_shape))})"
        )
