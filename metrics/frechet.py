r"""Frechet distance between two sets of features, each summarized by its mean and covariance.

    d^2 = || m_1 - m_2 ||^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^{1/2})

(Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500). With C_1 = R R^T, the trace of the
root is the sum of the roots of the eigenvalues of the symmetric R^T C_2 R. This is faster and
steadier than a matrix square root, and singular covariances are no trouble. Features stream in
float64, and no matrix of all features is ever held.

The spread of d^2 over sets of samples comes from contiguous groups of images, of which only sums
are kept: by the jackknife that leaves out one group at a time, and by a bootstrap of its
pseudo-values (Efron & Tibshirani 1993, Sections 11.5 and 12.5).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from errors import require_in

_BLOCK = 256  # images whose features are multiplied at a time
_MAX_ENTRIES = 20 * 2048**2  # of all groups' outer products: 0.7 GB
_MIN_GROUPS = 5  # for a spread


def check_features(features: Float[np.ndarray, "n features"], *, first: int = 0) -> None:
    """Raise ValueError unless all features are finite; row 0 belongs to image `first`."""
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(
            f"features of {bad.sum()} of {len(features)} images are not finite, the first of image "
            f"{first + bad.argmax()}; check the images and the extractor's weights"
        )


def check_alike(a: int, b: int) -> None:
    """Raise ValueError unless two sets have the same number of features."""
    if a != b:
        raise ValueError(f"features differ in number: {a} and {b}; use one extractor for both sets")


@dataclass(frozen=True)
class Statistics:
    """Count, mean and (unbiased) covariance of features.

    The count is None for statistics from other projects' files, which do not hold it.
    """

    count: int | None
    mean: Float[np.ndarray, "features"]
    covariance: Float[np.ndarray, "features features"]

    @property
    def rank_deficient(self) -> bool:
        """Whether the covariance is singular for lack of images (count <= features).

        The distance is then finite, but much too large. False where the count is unknown.
        """
        return self.count is not None and self.count <= self.mean.size


class Accumulator:
    """Mean and covariance of the features of `total` images, added in batches, in order.

    The images fall into contiguous groups of nearly equal size, whose sums and outer products are
    kept. The result is the same, bit for bit, for every division into batches.

    Args:
        total: number of images that will be added, at least 2.
        groups: number of groups for `frechet_interval`; 1 if only the statistics are wanted. It is
            reduced to the number of images, and to at least 5 where the groups' outer products
            would need over 0.7 GB (20 groups of more than 2048 features).

    Raises:
        ValueError: for total < 2 or groups < 1.
    """

    def __init__(self, total: int, *, groups: int = 20) -> None:
        if total < 2:
            raise ValueError(f"total={total} images are too few; statistics need at least 2")
        require_in("groups", groups, "[1, inf)")
        self.total, self.count, self.groups = total, 0, min(groups, total)
        self._block: np.ndarray | None = None  # features that are not multiplied yet

    def add(self, features: Float[np.ndarray, "batch features"]) -> None:
        """Add the features of the next images.

        Raises:
            ValueError: for features that are not finite or differ in number from those before, and
                for more than `total` images. Then nothing is added.
        """
        check_features(features, first=self.count)
        if self.count + len(features) > self.total:
            raise _wrong_count(self.total, self.count + len(features))
        if self._block is None:
            self._block = self._allocate(features.shape[1])
        block = self._block
        check_alike(block.shape[1], features.shape[1])
        self.count += len(features)
        while len(features):
            # Only whole blocks are multiplied, and their edges do not depend on the batches.
            group, rows = self._blocks[0]
            part = features[: rows - self._filled]
            block[self._filled : self._filled + len(part)] = part
            self._filled, features = self._filled + len(part), features[len(part) :]
            if self._filled == rows:
                self._multiply(group, block[:rows])
                self._filled = 0
                del self._blocks[0]

    def statistics(self, *, without: int | None = None) -> Statistics:
        """Return the statistics of all images, or of all except one group's.

        Raises:
            ValueError: unless `total` images were added.
        """
        if self.count != self.total:
            raise _wrong_count(self.total, self.count)
        kept = np.arange(self.groups) != without
        count = int(self._counts[kept].sum())
        mean = self._sums[kept].sum(axis=0) / count
        # Multiplied by 0 and 1, because indexing would copy the matrices.
        covariance = np.tensordot(kept.astype(np.float64), self._outer, axes=1)
        covariance -= count * np.outer(mean, mean)
        covariance /= count - 1
        return Statistics(count, self._shift + mean, covariance)

    def _allocate(self, features: int) -> Float[np.ndarray, "rows features"]:
        """Make the groups and their sums, and return the block of features to fill."""
        self.groups = min(self.groups, max(_MIN_GROUPS, _MAX_ENTRIES // features**2))
        edges = np.arange(self.groups + 1) * self.total // self.groups
        self._counts = np.diff(edges)
        self._blocks = [
            (group, min(_BLOCK, int(count) - first))
            for group, count in enumerate(self._counts)
            for first in range(0, count, _BLOCK)
        ]
        self._filled = 0
        self._shift: np.ndarray | None = None
        self._sums = np.zeros((self.groups, features))
        self._outer = np.zeros((self.groups, features, features))
        return np.empty((_BLOCK, features))

    def _multiply(self, group: int, block: Float[np.ndarray, "rows features"]) -> None:
        # Shifted by the first block's mean, sums of squares do not cancel.
        self._shift = block.mean(axis=0) if self._shift is None else self._shift
        block -= self._shift
        self._sums[group] += block.sum(axis=0)
        self._outer[group] += block.T @ block


def _wrong_count(total: int, got: int) -> ValueError:
    return ValueError(f"total={total} images were announced, got {got}; add each image once")


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return d^2 between two Gaussians: 0 for equal ones, finite for singular covariances.

    Raises:
        ValueError: if the features differ in number.
    """
    if a.rank_deficient:  # the other's root may be cheaper
        a, b = b, a
    return _distance(a, _root(a.covariance), b)


class Interval(NamedTuple):
    """A Frechet distance, its standard error and its 95% interval over sets of samples.

    `corrected` is the distance minus its bias; None where images are too few to estimate it.
    """

    distance: float
    corrected: float | None
    standard_error: float
    low: float
    high: float


def frechet_interval(
    drawn: Accumulator, reference: Statistics, *, replicates: int = 1000, seed: int = 0
) -> Interval:
    """Return d^2 of samples to a fixed reference, with its spread over sets of samples.

    With G groups and d_g^2 the distance without group g, the pseudo-values p_g = G d^2 - (G - 1)
    d_g^2 behave as independent values whose mean is d^2 minus its bias of order 1 / count, and

        standard error s = std(p_g) / sqrt(G),
        interval = [d^2 - s t_{0.975}, d^2 - s t_{0.025}]

    where t_q are quantiles of (mean(p*) - mean(p)) / s(p*) over sets p* of G pseudo-values drawn
    with replacement. Distances of groups drawn with replacement would be simpler. But a draw that
    repeats groups has fewer different images and so more bias: where images are few for the number
    of features, its spread is several times too large.

    The interval covers the mean d^2 of other samples of the same number, bias included, so
    `corrected` is not its center. It ignores the reference's sampling error. Twenty groups estimate
    s within about 16%; where samples are as good as the reference's, s is up to sqrt(2) too large.

    Args:
        drawn: the samples' features.
        reference: statistics of the reference.
        replicates: number of sets p*, which are cheap.
        seed: decides the sets p*.

    Raises:
        ValueError: for fewer than 5 groups or 100 replicates, and as `frechet_distance`.
    """
    groups = drawn.groups
    if groups < _MIN_GROUPS or replicates < 100:
        raise ValueError(
            f"groups={groups} and replicates={replicates}: an interval needs at least 5 and 100"
        )
    root, statistics = _root(reference.covariance), drawn.statistics()
    distance = _distance(reference, root, statistics)
    others = [_distance(reference, root, drawn.statistics(without=g)) for g in range(groups)]
    pseudo = groups * distance - (groups - 1) * np.array(others)
    error = pseudo.std(ddof=1) / math.sqrt(groups)
    sets = pseudo[np.random.default_rng(seed).integers(0, groups, (replicates, groups))]
    errors = sets.std(axis=1, ddof=1) / math.sqrt(groups)
    t = sets.mean(axis=1) - pseudo.mean()
    np.divide(t, errors, out=t, where=errors > 0)  # 0 / 0 where all groups are equal
    low, high = distance - error * np.quantile(t, (0.975, 0.025))
    too_few = drawn.total * (groups - 1) <= groups * statistics.mean.size
    return Interval(
        distance,
        None if too_few else float(pseudo.mean()),
        float(error),
        max(float(low), 0.0),
        float(high),
    )


def _root(covariance: Float[np.ndarray, "features features"]) -> np.ndarray:
    """Return R with R R^T = covariance, by Cholesky (20 times cheaper) where possible."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # singular up to rounding
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.clip(values, 0, None))


def _distance(a: Statistics, root: Float[np.ndarray, "features features"], b: Statistics) -> float:
    """Return d^2, given the root of a's covariance."""
    check_alike(a.mean.size, b.mean.size)
    cross = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    distance = (
        np.sum((a.mean - b.mean) ** 2)
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    )
    return float(max(distance, 0.0))
