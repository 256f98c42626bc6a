"""Gray levels as numbers in the network's range, and their probabilities given noisy pixels."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Float

from errors import require_in
from numerics.arrays import Batch, is_traced


@dataclass(frozen=True, kw_only=True)
class PixelLevels:
    """The values of pixels: `gray_levels` values, evenly spaced from `low` to `high`.

    Raises:
        ValueError: for fewer than 2 levels, or unless low < high.
    """

    gray_levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require_in("gray_levels", self.gray_levels, "[2, inf)")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"low={self.low}, high={self.high} must be finite, and low must be below high"
            )

    @property
    def spacing(self) -> float:
        """The distance between neighboring values."""
        return (self.high - self.low) / (self.gray_levels - 1)

    def log_prob(self, x0: Batch, mean: Batch, log_std: Float[Array, "..."]) -> Batch:
        """Return log-probabilities in nats of the pixels' cells under N(mean, exp(log_std)^2).

        They are exact in the tails. The published codes approximate the normal distribution
        function by a tanh and clip probabilities at 1e-12, which changes their bits/dim by a few
        thousandths at most.
        """
        half, centered = self.spacing / 2, x0 - mean
        std = jnp.exp(log_std)
        left = jnp.where(x0 < self.low + half, -jnp.inf, (centered - half) / std)
        right = jnp.where(x0 > self.high - half, jnp.inf, (centered + half) / std)
        # Mirrored into the left tail, where the logarithm of the distribution function is exact.
        mirrored = centered > 0
        low, high = jnp.where(mirrored, -right, left), jnp.where(mirrored, -left, right)
        top = log_ndtr(high)
        return top + jnp.log(-jnp.expm1(log_ndtr(low) - top))

    def log_posterior(self, x0: Batch, noisy: Batch, log_std: Float[Array, "..."]) -> Batch:
        """Return log-probabilities in nats of the pixels' levels, given noisy ones.

        Each is the density of x0 + exp(log_std) eps at the noisy pixel, normalized over the levels:
        the decoder of Kingma et al. 2021 (arXiv:2107.00630, Section 3.3). In memory, this takes an
        image per level.
        """
        levels = self._values(x0.dtype)
        precision = jnp.exp(-2 * log_std)
        distances = noisy[..., None] - levels.reshape((1,) * noisy.ndim + (-1,))
        others = -0.5 * precision * distances**2
        return -0.5 * precision * (noisy - x0) ** 2 - logsumexp(others, axis=-1)

    def posterior_mean(
        self,
        logits: Float[Array, "batch ... wide"],
        x: Float[Array, "batch ... channels"],
        alpha: Float[Array, "..."],
        sigma: Float[Array, "..."],
    ) -> Float[Array, "batch ... channels"]:
        """Return the mean of x0 given x = alpha x0 + sigma eps, pixel by pixel.

        Args:
            logits: log-probabilities of the levels before x was seen, up to a constant, for each
                channel in turn: wide = channels gray_levels.
            x: noisy pixels.
            alpha, sigma: as of the process, in shapes that broadcast against x.
        """
        levels = self._values(x.dtype).reshape((1,) * x.ndim + (-1,))
        logits = logits.reshape(*x.shape, self.gray_levels)
        distances = (x[..., None] - alpha[..., None] * levels) / sigma[..., None]
        return jnp.sum(jax.nn.softmax(logits - 0.5 * distances**2) * levels, axis=-1)

    def _values(self, dtype: Any) -> Float[Array, "levels"]:
        return self.low + self.spacing * jnp.arange(self.gray_levels, dtype=dtype)

    def require(self, x0: Batch) -> None:
        """Raise ValueError unless `x0` holds pixel levels alone; inside jit, nothing is known."""
        placement = _placement(x0, self)
        if is_traced(placement):
            return
        low, high, off = (float(value) for value in placement)
        # Written so that NaN fails.
        if not (low > -0.5 and high < self.gray_levels - 0.5 and off < 0.01):
            raise ValueError(
                f"x0 spans {self.low + low * self.spacing:.4g} to "
                f"{self.low + high * self.spacing:.4g} and is up to {off:.2g} of their spacing off "
                f"the {self.gray_levels} pixel levels in [{self.low}, {self.high}]; give "
                "images without dequantization noise, in the network's range"
            )


@partial(jax.jit, static_argnames="pixel_levels")
def _placement(x0: Batch, pixel_levels: PixelLevels) -> tuple[Array, Array, Array]:
    """Return the lowest level, the highest, and the largest distance from a whole number."""
    level = (x0 - pixel_levels.low) / pixel_levels.spacing
    return level.min(), level.max(), jnp.abs(level - jnp.round(level)).max()
