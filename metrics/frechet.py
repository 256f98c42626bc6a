r"""Frechet distance between two sets of features, each summarized by its mean and covariance.

    d^2 = || m_1 - m_2 ||^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

(Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500). Statistics stream in float64: no
matrix of all features is ever held.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

Extractor = Callable[[UInt8[np.ndarray, "batch h w c"]], Float[np.ndarray, "batch features"]]


def pixels(images: UInt8[np.ndarray, "batch h w c"]) -> Float[np.ndarray, "batch dims"]:
    """The pixels themselves, in [0, 1]: meaningful for tiny grey-level images, needs no network."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


EXTRACTORS: dict[str, Extractor] = {"pixels": pixels}


@dataclass(frozen=True)
class Statistics:
    """Count, mean and (unbiased) covariance of features."""

    count: int
    mean: Float[np.ndarray, "features"]
    covariance: Float[np.ndarray, "features features"]

    @classmethod
    def of(
        cls, batches: Iterable[UInt8[np.ndarray, "_ h w c"]], extractor: Extractor
    ) -> "Statistics":
        """Statistics of the features of images that come in batches of uint8.

        Raises:
          ValueError: for fewer than two images.
        """
        count, shift, total, outer = 0, None, 0.0, 0.0
        for batch in batches:
            features = np.asarray(extractor(batch), np.float64)
            # Shifted by the first batch's mean, sums of squares do not cancel.
            shift = features.mean(axis=0) if shift is None else shift
            centred = features - shift
            count += len(features)
            total = total + centred.sum(axis=0)
            outer = outer + centred.T @ centred
        if count < 2:
            raise ValueError(f"Frechet statistics need at least 2 images, got {count}")
        mean = total / count
        covariance = (outer - count * np.outer(mean, mean)) / (count - 1)
        return cls(count, shift + mean, covariance)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """d^2 between two Gaussians; 0 for equal ones, finite for singular covariances.

    Raises:
      ValueError: if the features differ in number.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features differ in number: {a.mean.size} and {b.mean.size}")
    # Tr (C_1 C_2)^{1/2} is the sum of the roots of the eigenvalues of the symmetric product
    # C_1^{1/2} C_2 C_1^{1/2}: faster and steadier than a matrix square root.
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    cross = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace_root = np.sqrt(np.clip(cross, 0, None)).sum()
    distance = (
        np.sum((a.mean - b.mean) ** 2)
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * trace_root
    )
    return float(max(distance, 0.0))
