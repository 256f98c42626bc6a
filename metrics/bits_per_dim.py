r"""Bits/dim from nats, without hidden constants, and the standard errors of the mean.

Images hold gray levels k in {0, ..., L - 1}. Dequantization y = a (k + u) / L + b with u ~ q(u | k)
on [0, 1) turns a density of y into a lower bound on the probability of k (Theis et al. 2016,
arXiv:1511.01844, Section 3.1, and Ho et al. 2019, arXiv:1902.00275, Section 3.2):

    bits/dim = -(E_q [log p(y) - log q(u | k)] + log |dy / dk|) / (D log 2)

where log |dy/dk| is the sum of the quantizer's and the scaler's log-determinants, and log q = 0 for
uniform noise. With r = p(y) / q(u | k) and K draws of u, the mean of r instead of log r gives a
tighter bound (Burda et al. 2016, arXiv:1509.00519):

    log P(k) >= E log (1 / K) sum_j r_j + log |dy / dk| >= E log r + log |dy / dk|
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


def bits_per_dim(
    nats: Float[np.ndarray, "..."], *, log_det: float, dims: int
) -> Float[np.ndarray, "..."]:
    """Return bits/dim from the log-density of scaled, dequantized images.

    Args:
        nats: log p(y) - log q(u | k), any shape.
        log_det: log |dy / dk| in nats over all dimensions, for the network's input y and levels k.
        dims: dimensions per image, height x width x channels.
    """
    return -(np.asarray(nats, np.float64) + log_det) / (dims * math.log(2))


@dataclass(frozen=True)
class Unit:
    """A unit of likelihoods per dimension.

    Attributes:
        name: as it is printed.
        metric: the metric that reports it, a name in `evaluation.metrics.METRICS`.
        nats: nats in one of them.
    """

    name: str
    metric: str
    nats: float

    def per_dim(
        self, nats: Float[np.ndarray, "..."], *, log_det: float, dims: int
    ) -> Float[np.ndarray, "..."]:
        """Return -log p per dimension in this unit; the arguments are those of `bits_per_dim`."""
        return bits_per_dim(nats, log_det=log_det, dims=dims) * (math.log(2) / self.nats)

    def of(self, nats: float, dims: int) -> float:
        """Return nats per sample in this unit per dimension."""
        return nats / (dims * self.nats)


BITS = Unit("bits/dim", "bits_per_dim", math.log(2))
NATS = Unit("nats/dim", "nats_per_dim", 1.0)
UNITS = (BITS, NATS)


def importance_weighted(nats: Float[np.ndarray, "draws images"]) -> Float[np.ndarray, "images"]:
    """Return log (1 / K) sum_j r_j per image, from log r_j = log p(y_j) - log q(u_j) of K draws.

    This is a bound only if log p is exact: exp turns an estimate's noise into probability.
    """
    nats = np.asarray(nats, np.float64)
    largest = nats.max(axis=0)
    return largest + np.log(np.exp(nats - largest).mean(axis=0))


class Estimate(NamedTuple):
    """A mean over images, draws and probes, and its standard errors.

    An error is None where there is a single image, draw or probe.

    Attributes:
        mean: over all values.
        over_images: error from having these images, a sample of all images.
        over_draws: error from the dequantization noise, for these images. It includes over_probes
            where that is None.
        over_probes: error from the trace probes, for these images.
    """

    mean: float
    over_images: float | None
    over_draws: float | None
    over_probes: float | None


def estimate(values: Float[np.ndarray, "draws images probes"], *, exact: bool = False) -> Estimate:
    """Return the mean and its standard errors.

    Draws and probes are independent between images, so the variances within images add up. Their
    sum is far steadier than the scatter of the few means over all images.

    Args:
        values: for instance in bits/dim.
        exact: whether the values are free of probe noise.
    """
    values = np.asarray(values, np.float64)
    draws, images, probes = values.shape
    by_draw = values.mean(axis=2)
    by_image = by_draw.mean(axis=0)
    over_images = over_draws = over_probes = None
    if images > 1:
        over_images = by_image.std(ddof=1) / math.sqrt(images)
    if exact:
        over_probes = 0.0
    elif probes > 1:
        within = values.var(axis=2, ddof=1).sum() / probes
        over_probes = math.sqrt(within) / (draws * images)
    if draws > 1:
        both = by_draw.var(axis=0, ddof=1).sum() / (draws * images**2)
        over_draws = math.sqrt(max(both - (over_probes or 0.0) ** 2, 0.0))
    return Estimate(float(values.mean()), *map(_to_float, (over_images, over_draws, over_probes)))


def _to_float(value: float | None) -> float | None:
    return None if value is None else float(value)
