r"""From nats to bits/dim, with nothing hidden in a constant.

Images hold levels k in {0, ..., L - 1}. Uniform dequantization y = a (k + u) / L + b, u ~ U[0, 1),
turns a density of y into a lower bound on the probability of k (Theis et al. 2016,
arXiv:1511.01844, Section 3.1):

    bits/dim = -(E_u log p(y) + log |dy / dk|) / (D log 2)

where log |dy/dk| is the sum of the quantizer's and the scaler's log-determinants.
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


class Estimate(NamedTuple):
    """A mean over images and dequantization draws, with two standard errors.

    `over_images` is the error of the mean over the test images as a sample of all images;
    `over_draws` the one that the draws (dequantization noise and trace probes) leave in the mean.
    """

    mean: float
    over_images: float
    over_draws: float


def estimate(values: Float[np.ndarray, "draws images"]) -> Estimate:
    """Mean and standard errors; an error is NaN where a single row or column cannot tell it."""
    values = np.asarray(values, np.float64)
    return Estimate(
        float(values.mean()),
        _standard_error(values.mean(axis=0)),
        _standard_error(values.mean(axis=1)),
    )


def _standard_error(means: Float[np.ndarray, "n"]) -> float:
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
