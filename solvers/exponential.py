r"""Exact solution of the linear part of a step, which all exponential integrators share.

With lam = log(alpha / sigma), half the log-SNR, h = lam_s - lam_t, and tau from 0 to h, a step from
t to s along the probability-flow ODE is exactly, in terms of the predicted eps or x0,

    x_s = alpha_s / alpha_t x_t - sigma_s int exp(h - tau) eps dtau        (2206.00927, Eq. 3.4)
    x_s = sigma_s / sigma_t x_t + alpha_s int exp(tau - h) x0 dtau         (2211.01095, Prop. 4.1)

and along a reverse SDE whose noise has the variance eta g^2 dt, with e = 1 + eta,

    x_s = alpha_s / alpha_t x_t - e sigma_s int exp(h - tau) eps dtau
          + sigma_s sqrt(eta (exp(2 h) - 1)) z
    x_s = exp(-eta h) sigma_s / sigma_t x_t + e alpha_s int exp(e (tau - h)) x0 dtau
          + sigma_s sqrt(1 - exp(-2 eta h)) z,

for eta = 1 as in version 2 of 2211.01095.

(Lu et al. 2022). DPM-Solver, UniPC and DEIS replace the prediction by a polynomial.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from solvers.tables import Coefficients, LinearCombination

PREDICTIONS = ("eps", "x0")


def _gauss_rule(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return (nodes + 1) / 2, weights / 2


# Nodes of the integrals over a step, as fractions of h; exact to rounding for any h below 40.
FRACTIONS, _FRACTION_WEIGHTS = _gauss_rule(32)


class ExponentialStep(NamedTuple):
    """A step from t to s: x_s = scale x_t + gain int exp(rate (h - tau)) p dtau + noise z."""

    h: Any
    scale: Any
    gain: Any
    rate: Any
    noise: Any

    @property
    def constant_weight(self) -> Any:
        """The weight of a constant prediction."""
        return self.gain * np.expm1(self.rate * self.h) / self.rate

    def weights(self, points: np.ndarray, at: np.ndarray) -> Float[np.ndarray, "points"]:
        """Return the weights of predictions at `points` that integrate the polynomial through them.

        `at` is FRACTIONS of the step, in the variable of `points`.
        """
        kernel = self.gain * self.h * np.exp(self.rate * self.h * (1 - FRACTIONS))
        return _lagrange(points, at) @ (_FRACTION_WEIGHTS * kernel)


def _lagrange(points: np.ndarray, at: np.ndarray) -> Float[np.ndarray, "points places"]:
    """Evaluate the polynomials that are 1 at one of `points` and 0 at the others."""
    polynomials = []
    for number, point in enumerate(points):
        others = np.delete(points, number)[:, None]
        polynomials.append(np.prod((at - others) / (point - others), axis=0))
    return np.stack(polynomials)


def exponential_step(
    start: Coefficients, end: Coefficients, prediction: str, eta: float = 0.0
) -> ExponentialStep:
    """Return the step between two times; eta = 0 is the ODE, and 1 the reverse SDE."""
    h = end.half_log_snr - start.half_log_snr
    if prediction == "eps":
        noise = end.sigma * np.sqrt(eta * np.expm1(2 * h)) if eta else 0.0
        return ExponentialStep(h, end.alpha / start.alpha, -(1 + eta) * end.sigma, 1.0, noise)
    noise = end.sigma * np.sqrt(-np.expm1(-2 * eta * h)) if eta else 0.0
    scale = np.exp(-eta * h) * (end.sigma / start.sigma)
    return ExponentialStep(h, scale, (1 + eta) * end.alpha, -(1 + eta), noise)


def polynomial_integral(
    step: ExponentialStep,
    half_log_snr: np.ndarray,
    predictions: list[LinearCombination],
    b: Any,
    start: int = 0,
) -> LinearCombination:
    """Return gain times the integral of the polynomial through predictions at `half_log_snr`.

    A line p_0 + tau slope has the integral constant_weight p_0 + b (h / 2) slope. DPM-Solver takes
    b = constant_weight; UniPC has a second choice. The step begins at half_log_snr[start].
    """
    if len(half_log_snr) == 1:
        return step.constant_weight * predictions[0]
    if len(half_log_snr) == 2:
        slope = (predictions[0] - predictions[1]) / (half_log_snr[0] - half_log_snr[1])
        return step.constant_weight * predictions[start] + b * step.h / 2 * slope
    nodes = half_log_snr[start] + step.h * FRACTIONS
    return step.weights(half_log_snr, nodes) @ np.stack(predictions)


def step_orders(steps: int, order: int, *, rising: bool, falling: bool) -> list[int]:
    """Return the order of each step: `order`, rising from 1 at first, falling to 1 at the end.

    Raises:
        ValueError: if there are too few steps for that.
    """
    if steps < order and (rising or falling):
        raise ValueError(
            f"order={order} needs at least {order} steps, the grid has {steps}; give more steps or "
            f"order={steps}"
        )
    up = [number + 1 if rising else order for number in range(steps)]
    down = [steps - number if falling else order for number in range(steps)]
    return [min(order, *both) for both in zip(up, down, strict=True)]
