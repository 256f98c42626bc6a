"""Averages of any length from snapshots of a few, after training.

A power-function average at step t is the mean of the parameters with the density

    p(s) = (g + 1) s^g / t^(g + 1)    on 0 < s < t,

constant parameters between two steps. Its length, the standard deviation of p as a fraction of t,
is sigma_rel with sigma_rel^2 = (g + 1) / ((g + 2)^2 (g + 3)). A sum of stored averages is the mean
with the same sum of their densities. Its coefficients minimize the squared distance to the wanted
density, by inner products in closed form (Karras et al. 2024, arXiv:2312.02696, Section 3 and
Appendix C). Here they add up to 1, so that parameters that never moved stay as they are.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

LENGTHS = "[0.001, 0.28]"  # 0.2887 is the uniform average; longer ones prefer the first steps

Numbers = Float[np.ndarray, "..."] | float


class PowerFunction(NamedTuple):
    """The density of an average: the step at which it ends, and its relative length."""

    step: int
    length: float


class Fit(NamedTuple):
    """Coefficients of stored averages, and the relative error of the density that they make."""

    coefficients: Float[np.ndarray, "stored"]
    error: float


@functools.cache
def exponent_of(length: float) -> float:
    """Return the exponent g of a relative length: (g + 2)^2 (g + 3) = (g + 1) / length^2."""
    inverse = float(length) ** -2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6 * abs(root)))


def fit(stored: Sequence[PowerFunction], wanted: PowerFunction) -> Fit:
    """Return how to make an average of stored ones.

    Returns:
        The coefficients of the stored averages, which add up to 1. The error is the distance of
        their density from the wanted one over the norm of the latter. Where parameters fluctuate
        independently, it is the error of the average over the fluctuation left in it.
    """
    steps = np.array([each.step for each in stored], float)
    exponents = np.array([exponent_of(each.length) for each in stored])
    end, exponent = float(wanted.step), exponent_of(wanted.length)
    norms = np.sqrt(_inner(steps, exponents, steps, exponents))
    norm = np.sqrt(_inner(end, exponent, end, exponent))
    gram = _inner(steps[:, None], exponents[:, None], steps[None], exponents[None])
    gram /= norms[:, None] * norms[None]
    overlap = _inner(steps, exponents, end, exponent) / (norms * norm)
    # Unknowns are coefficients of densities of norm 1; `scale` makes them those of the averages.
    scale, count = norm / norms, len(stored)
    system = np.block([[gram, scale[:, None]], [scale[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(overlap, 1.0), rcond=1e-15)[0][:count]
    squared = 1 - 2 * solution @ overlap + solution @ gram @ solution
    return Fit(solution * scale, float(np.sqrt(max(squared, 0.0))))


def _inner(a_step: Numbers, a_exponent: Numbers, b_step: Numbers, b_exponent: Numbers) -> Any:
    """Return the integrals of products of two densities; the arguments broadcast."""
    first, last = np.minimum(a_step, b_step), np.maximum(a_step, b_step)
    of_later = np.where(a_step <= b_step, b_exponent, a_exponent)
    factor = (a_exponent + 1) * (b_exponent + 1) / (a_exponent + b_exponent + 1)
    return factor / last * (first / last) ** of_later
