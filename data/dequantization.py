r"""Dequantization: noise q(u | image) within the bins of the gray levels, by name.

Level k of L becomes the number x = (k + u) / L with noise u in (0, 1). Any such noise bounds the
probability of the levels by a density,

    log P(k) >= E_q [ log p(x) - D log L - log q(u | k) ]

(Theis et al. 2016, arXiv:1511.01844, Section 3.1; Ho et al. 2019, arXiv:1902.00275, Section 3.2).
For uniform noise, log q = 0. The gap is KL(q(u | k) || p(u | k)): noise that is distributed as the
model's own density within the bins loses nothing.

A diffusion model of the levels' centers has a Gaussian of standard deviation sigma / alpha around
each center at its smallest time. The truncated normal is that Gaussian within the bin,

    u = 1/2 + s w,  w ~ N(0, 1) given |w| < tau,    s = L sigma / (alpha range),  tau = 1 / (2 s)
    -E log q = log(s sqrt(2 pi e) Z) - tau phi(tau) / Z,    Z = Phi(tau) - Phi(-tau)

per number (Zheng et al. 2023, arXiv:2305.03935, Section 4). Training then adds no noise of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from data.scaling import Quantizer
from errors import require_in

Stored = UInt8[np.ndarray, "*batch h w c"]
Uniforms = Float[np.ndarray, "*batch h w c"]

# Uniform numbers are multiples of 2^-16; half a step moves them off 0 and leaves them below 1.
HALF_STEP = 2**-17


class Noise(NamedTuple):
    """Positions u in (0, 1) within the bins, and log q(u) of each image in nats."""

    u: Float[np.ndarray, "batch h w c"]
    log_q: Float[np.ndarray, "batch"]


@dataclass(frozen=True, kw_only=True)
class Dequantization:
    """A way to turn gray levels into numbers, in training and for likelihoods.

    Args:
        training: the images of training in [0, 1], from the quantizer, the stored levels and
            uniform noise in [0, 1), or None if not `noisy`.
        noisy: whether `training` uses its noise.
        noise: draws the noise of likelihoods from uniform noise and from sigma / alpha in gray
            levels.
        at_t_min: whether the noise is that of the process itself at its smallest time. Densities
            are then those of x_t at that time, and the images of bounds are bin centers.
        in_bins: whether x belongs to the bin that holds it; otherwise, to the nearest level.
        learned: whether a run's own dequantizer maps the uniform noise.
    """

    training: Callable[[Quantizer, Stored, Uniforms | None], Float[np.ndarray, "*batch h w c"]]
    noisy: bool
    noise: Callable[[Uniforms, float], Noise]
    at_t_min: bool = False
    in_bins: bool = True
    learned: bool = False


def _uniform_noise(uniforms: Uniforms, width: float) -> Noise:
    return Noise(uniforms, np.zeros(len(uniforms)))


def truncated_normal_noise(uniforms: Uniforms, width: float) -> Noise:
    """Return the truncated normal noise of uniform numbers in [0, 1), by inverting its CDF.

    Args:
        uniforms: multiples of 2^-16, as in `data.batches`.
        width: the standard deviation before truncation, in gray levels.

    Raises:
        ValueError: unless 0 < width < inf.
    """
    from scipy.special import ndtr, ndtri  # a tenth of a second, for this dequantization alone

    require_in("width", width, "(0, inf)")
    tau, log_mass = _bounds(width)
    # The lower half of each bin is computed, and the upper half is its mirror image: the normal
    # distribution function is accurate in its lower tail.
    v = np.asarray(uniforms, np.float64) + HALF_STEP
    half = np.minimum(v, 1 - v)
    w = ndtri(ndtr(-tau) + math.exp(log_mass) * half)
    w = np.where(v < 0.5, w, -w)
    log_density = -(w**2) / 2 - math.log(width * math.sqrt(2 * math.pi)) - log_mass
    return Noise(0.5 + width * w, log_density.reshape(len(w), -1).sum(axis=1))


def _bounds(width: float) -> tuple[float, float]:
    """Return tau, the largest |w|, and the logarithm of the normal distribution's mass within."""
    tau = 0.5 / width
    return tau, math.log(math.erf(tau / math.sqrt(2)))


def _levels(quantizer: Quantizer, stored: Stored, uniforms: Uniforms | None) -> np.ndarray:
    return quantizer.normalize(stored)


def _uniform(quantizer: Quantizer, stored: Stored, uniforms: Uniforms | None) -> np.ndarray:
    assert uniforms is not None
    return quantizer.dequantize(stored, uniforms)


def centers(quantizer: Quantizer, stored: Stored, uniforms: Uniforms | None = None) -> np.ndarray:
    """Return the centers (k + 1/2) / L of the levels' bins, in (0, 1)."""
    return quantizer.dequantize(stored, np.full(stored.shape, 0.5, np.float32))


DEQUANTIZATIONS: dict[str, Dequantization] = {
    # Likelihoods need a density; these images have one only for likelihoods.
    "none": Dequantization(training=_levels, noisy=False, noise=_uniform_noise, in_bins=False),
    "uniform": Dequantization(training=_uniform, noisy=True, noise=_uniform_noise),
    "truncated_normal": Dequantization(
        training=centers, noisy=False, noise=truncated_normal_noise, at_t_min=True
    ),
    # The dequantizer is trained after the model, which has seen uniform noise.
    "variational": Dequantization(
        training=_uniform, noisy=True, noise=_uniform_noise, learned=True
    ),
}
CENTERS = "truncated_normal"  # the row whose training images are bin centers without noise
