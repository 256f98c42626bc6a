r"""From nats to bits/dim, with nothing hidden in a constant, and how far the mean can be trusted.

Images hold levels k in {0, ..., L - 1}. Uniform dequantization y = a (k + u) / L + b, u ~ U[0, 1),
turns a density of y into a lower bound on the probability of k (Theis et al. 2016,
arXiv:1511.01844, Section 3.1):

    bits/dim = -(E_u log p(y) + log |dy / dk|) / (D log 2)

where log |dy/dk| is the sum of the quantizer's and the scaler's log-determinants. With K draws of u
the mean of p(y), rather than that of log p(y), is a tighter bound (Burda et al. 2016,
arXiv:1509.00519):

    log P(k) >= E log (1 / K) sum_j p(y_j) + log |dy / dk| >= E_u log p(y) + log |dy / dk|
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


def bits_per_dim(
    nats: Float[np.ndarray, "..."], *, log_det: float, dims: int
) -> Float[np.ndarray, "..."]:
    """Bits/dim from the log-density of scaled, dequantized images.

    Args:
      nats: log p(y), any shape.
      log_det: log |dy / dk| in nats over all dimensions, for y the network's input and k levels.
      dims: number of dimensions of an image, height x width x channels.
    """
    return -(np.asarray(nats, np.float64) + log_det) / (dims * math.log(2))


def importance_weighted(nats: Float[np.ndarray, "draws images"]) -> Float[np.ndarray, "images"]:
    """log (1 / K) sum_j p(y_j) of each image, from log p(y_j) of K draws.

    A bound only if log p is exact: an estimate's noise, which exp makes positive on average, would
    be taken for probability.
    """
    nats = np.asarray(nats, np.float64)
    largest = nats.max(axis=0)
    return largest + np.log(np.exp(nats - largest).mean(axis=0))


class Estimate(NamedTuple):
    """A mean over images, draws and probes, and the standard errors that each leaves in it.

    over_images: of the mean over these images, as a sample of all images.
    over_draws: what other dequantizations would change, for these images.
    over_probes: what other trace probes would change; None if a single one cannot tell, and then
      over_draws has it too.
    An error that a single image or draw cannot tell is None as well.
    """

    mean: float
    over_images: float | None
    over_draws: float | None
    over_probes: float | None


def estimate(values: Float[np.ndarray, "draws images probes"], *, exact: bool = False) -> Estimate:
    """Mean and standard errors; `exact` says that values have no noise of probes.

    Draws and probes of different images are independent, so the variances within images add up:
    far steadier than the scatter of the few means over all images.
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
    return Estimate(float(values.mean()), *map(_plain, (over_images, over_draws, over_probes)))


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)
