"""Stored gray levels, floats in [0, 1], and the range that the network sees.

A data set stores gray levels k in {0, ..., L - 1}. They become floats in two steps:

    dequantize   x = (k + u) / L,  u in [0, 1)     a density on [0, 1)^D
    normalize    x = k / (L - 1)                   the same levels without noise
    scale        y = low + (high - low) x          the range that the network sees

Uniform dequantization turns a log-density into a bound on the log-probability of the levels,

    log P(k) >= E_u[log p(x)] - D log L            (Theis et al. 2016, arXiv:1511.01844, 3.1)

whose last term is `Quantizer.log_det`. `data.dequantization` has other noise.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float, Float32, UInt8

from errors import require_in

# NumPy or JAX floats of any shape: what comes in decides what comes out.
Floats = TypeVar("Floats", Float[np.ndarray, "*shape"], Float[jax.Array, "*shape"])


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """The map between stored gray levels 0..L-1 (uint8) and floats in [0, 1].

    Args:
        gray_levels: L.

    Raises:
        ValueError: unless 2 <= gray_levels <= 256.
    """

    gray_levels: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.gray_levels <= 256:
            raise ValueError(
                f"gray_levels={self.gray_levels} does not fit uint8; choose a number in 2..256"
            )

    def normalize(self, stored: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Return k / (L - 1), in [0, 1].

        Raises:
            ValueError: unless `stored` holds stored levels.
        """
        self._check(stored)
        return stored / np.float32(self.gray_levels - 1)

    def dequantize(
        self, stored: UInt8[np.ndarray, "*shape"], noise: Float32[np.ndarray, "*shape"]
    ) -> Float32[np.ndarray, "*shape"]:
        """Return (k + u) / L, in [0, 1), for noise u in [0, 1).

        u should be a multiple of 2^-16, as in `data.batches`: then k + u is exact in float32 and
        stays in its bin. Finer noise may round up to the next level.

        Raises:
            ValueError: unless `stored` holds stored levels.
        """
        self._check(stored)
        x = stored + noise
        x /= self.gray_levels
        return x

    def _check(self, stored: UInt8[np.ndarray, "..."]) -> None:
        if stored.dtype != np.uint8 or (stored.size and stored.max() >= self.gray_levels):
            raise ValueError(
                f"stored levels are uint8 in 0..{self.gray_levels - 1}, got {stored.dtype} up to "
                f"{stored.max() if stored.size else 'nothing'}; give images before they are scaled"
            )

    def quantize(
        self,
        x: Float[np.ndarray, "*shape"] | Float[jax.Array, "*shape"],
        *,
        dequantized: bool = False,
    ) -> UInt8[np.ndarray, "*shape"]:
        """Return the levels of floats in [0, 1], clipping what lies outside.

        Args:
            x: the floats.
            dequantized: False takes the nearest level, round((L - 1) x), and inverts `normalize`.
                True takes the bin that holds x, floor(L x), and inverts `dequantize` exactly.

        Raises:
            ValueError: if x holds NaN.
        """
        values = np.asarray(x, np.float64)
        if np.isnan(values).any():
            raise ValueError(f"cannot quantize: {np.isnan(values).sum()} of {values.size} are NaN")
        if dequantized:
            # Half a step of u, which covers the float32 rounding of (k + u) / L.
            level = np.floor(values * self.gray_levels + 2**-17)
        else:
            level = np.rint(values * (self.gray_levels - 1))
        return np.clip(level, 0, self.gray_levels - 1).astype(np.uint8)

    def log_det(self, dims: int) -> float:
        """Return log |d dequantize(k) / dk| for `dims` numbers: -dims log L, in nats."""
        return -dims * math.log(self.gray_levels)

    def to_uint8(self, stored: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Return round(255 k / (L - 1)), in 0..255, for display."""
        return np.rint(stored * (255.0 / (self.gray_levels - 1))).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ImageScaler:
    """The affine map from [0, 1] to [low, high], the range that the network sees.

    VE processes use [0, 1], VP processes [-1, 1].

    Raises:
        ValueError: unless low < high, both finite.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low={self.low} and high={self.high} must be finite, low < high")

    def forward(self, x: Floats) -> Floats:
        """Return low + (high - low) x, of the type of x (NumPy or JAX)."""
        y = x * (self.high - self.low)
        y += self.low  # in place for NumPy, which fresh memory would slow by half
        return y

    def inverse(self, y: Floats) -> Floats:
        """Return (y - low) / (high - low), of the type of y (NumPy or JAX)."""
        return (y - self.low) / (self.high - self.low)

    def log_det(self, dims: int) -> float:
        """Return log |d forward / dx| for `dims` numbers: dims log(high - low), in nats."""
        return dims * math.log(self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Standardizer:
    """The affine map from numbers in the data's units to mean 0 and standard deviation 1.

    Each entry of the last axis has its own: a coordinate of points, a channel of series.

    Args:
        mean: by entry of the last axis.
        std: the same, above 0.

    Raises:
        ValueError: for lengths that differ, or numbers out of range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has length {len(self.mean)} and std {len(self.std)}; give a number of each "
                "per coordinate or channel"
            )
        for value in self.mean:
            require_in("mean", value, "(-inf, inf)")
        for value in self.std:
            require_in("std", value, "(0, inf)")

    def forward(self, x: Floats) -> Floats:
        """Return (x - mean) / std, of the type of x (NumPy or JAX)."""
        return (x - _along_last_axis(self.mean, x)) / _along_last_axis(self.std, x)

    def inverse(self, y: Floats) -> Floats:
        """Return mean + std y, of the type of y (NumPy or JAX)."""
        return y * _along_last_axis(self.std, y) + _along_last_axis(self.mean, y)

    def log_det(self, dims: int) -> float:
        """Return log |d forward / dx| for `dims` numbers: -sum log std, in nats."""
        return -dims / len(self.std) * sum(map(math.log, self.std))


def _along_last_axis(values: tuple[float, ...], x: Floats) -> np.ndarray:
    """Return values with the rank and the dtype of x."""
    return np.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
