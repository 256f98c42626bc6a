r"""Inception Score: confidence of a classifier per image, and variety of the classes.

    IS = exp( E_x KL( p(c | x) || p(c) ) ),    p(c) = E_x p(c | x)

over each of ten parts of the images (Salimans et al. 2016, arXiv:1606.03498, Section 4). It lies
between 1 and the number of classes, and needs no reference images.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class InceptionScore(NamedTuple):
    """Mean and (population) standard deviation over the parts, as published."""

    mean: float
    std: float


def inception_score(
    probabilities: Float[np.ndarray, "n classes"], *, splits: int = 10
) -> InceptionScore:
    """Return mean and standard deviation of the score over contiguous parts of nearly equal size.

    The standard deviation is that of the score of n / splits images, not a standard error of the
    mean. Few images have too low a score, which cannot exceed their number.

    Args:
        probabilities: of the classes given each image; rows are not negative and sum to 1.
        splits: number of parts.

    Raises:
        ValueError: for fewer images than splits, and rows that are not probabilities.
    """
    count = len(probabilities)
    if not 1 <= splits <= count:
        raise ValueError(f"splits={splits} must be in 1..{count}, the number of images")
    # NaN counts as wrong too. Sums have the rounding of float32 or half precision.
    wrong = ~(
        (probabilities >= 0).all(axis=1)
        & (np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) < 1e-2)
    )
    if wrong.any():
        raise ValueError(
            f"probabilities of {wrong.sum()} of {count} images are negative or do not sum to 1, "
            f"the first of image {wrong.argmax()}; give probabilities, not logits"
        )
    edges = np.arange(splits + 1) * count // splits
    scores = [
        _score(probabilities[first:last].astype(np.float64)) for first, last in pairwise(edges)
    ]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(conditional: Float[np.ndarray, "n classes"]) -> float:
    conditional /= conditional.sum(axis=1, keepdims=True)
    # The mean divergence is the entropy of the marginal less the mean entropy.
    return math.exp(_entropy(conditional.mean(axis=0, keepdims=True)) - _entropy(conditional))


def _entropy(probabilities: Float[np.ndarray, "n classes"]) -> float:
    """Return the mean over rows, in nats, with 0 log 0 = 0."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return float(-(probabilities * logs).sum(axis=1).mean())
