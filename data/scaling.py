"""Value ranges."""

import math
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Float32, UInt8

# NumPy or JAX floats of any shape.
Floats = Float[np.ndarray, "*shape"] | Float[jax.Array, "*shape"]


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Stored levels 0..levels-1 (uint8) to and from floats in [0, 1].

    Raises ValueError unless 2 <= levels <= 256.
    """

    gray_levels: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.gray_levels <= 256:
            raise ValueError(
                f"Quantizer.gray_levels={self.gray_levels}: levels are uint8, choose 2..256"
            )

    def normalize(self, stored: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """k / (levels - 1), in [0, 1]. Raises ValueError for what are not stored levels."""
        self._check(stored)
        return stored / np.float32(self.gray_levels - 1)

    def dequantize(
        self, stored: UInt8[np.ndarray, "*shape"], noise: Float32[np.ndarray, "*shape"]
    ) -> Float32[np.ndarray, "*shape"]:
        """(k + u) / levels, in [0, 1), for noise u in [0, 1).

        u should be a multiple of 2^-16, as this module draws it: then k + u is exact in float32
        and stays in its bin. Finer noise may round up to the next level. Raises ValueError for what
        are not stored levels.
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

    def quantize(self, x: Floats, *, dequantized: bool = False) -> UInt8[np.ndarray, "*shape"]:
        """Levels of floats in [0, 1]; what lies outside is clipped. Raises ValueError on NaN.

        By default the nearest level, round((levels - 1) x), the inverse of `normalize`. With
        `dequantized` the bin that holds x, floor(levels x), the exact inverse of `dequantize`.
        """
        values = np.asarray(x, np.float64)
        if np.isnan(values).any():
            raise ValueError(f"cannot quantize: {np.isnan(values).sum()} of {values.size} are NaN")
        if dequantized:
            # Half a step of u, which covers the float32 rounding of (k + u) / levels.
            level = np.floor(values * self.gray_levels + 2**-17)
        else:
            level = np.rint(values * (self.gray_levels - 1))
        return np.clip(level, 0, self.gray_levels - 1).astype(np.uint8)

    def log_det(self, dims: int) -> float:
        """log |d dequantize(k) / dk| of an image of `dims` numbers: -dims log(levels), in nats."""
        return -dims * math.log(self.gray_levels)

    def to_uint8(self, stored: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """round(255 k / (levels - 1)): 0..255, for pictures."""
        return np.rint(stored * (255.0 / (self.gray_levels - 1))).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ImageScaler:
    """The affine map from [0, 1] to [low, high], the range that the network sees.

    VE processes use [0, 1], VP processes [-1, 1]. Raises ValueError unless low < high, both finite.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"ImageScaler needs finite low < high, got [{self.low}, {self.high}]")

    def forward(self, x: Floats) -> Floats:
        """low + (high - low) x, of the type of x (NumPy or JAX)."""
        y = x * (self.high - self.low)
        y += self.low  # in place for NumPy, which fresh memory would slow by half
        return y

    def inverse(self, y: Floats) -> Floats:
        """(y - low) / (high - low), of the type of y (NumPy or JAX)."""
        return (y - self.low) / (self.high - self.low)

    def log_det(self, dims: int) -> float:
        """log |d forward / dx| of an image of `dims` numbers: dims log(high - low), in nats."""
        return dims * math.log(self.high - self.low)
