r"""The variational bound on the probability of an image, along any decreasing grid of times.

The model is a chain of steps between noisy versions x_t of x0, at times t_1 = 1 > ... > t_n. Then

    -log p(x0) <= L_T + L_2 + ... + L_n + L_0                  (Ho et al. 2020, 2006.11239, Eq. 5)
    L_T = KL(q(x_T | x0) || prior)                             T = t_1
    L_i = E KL(q(x_s | x_t, x0) || p(x_s | x_t))               from t = t_(i-1) to s = t_i
    L_0 = -E log p(x0 | x_t)                                   t = t_n

With (a, b) the exact transition from s to t, q(x_s | x_t, x0) is a Gaussian with mean
(x_t - b^2 / sigma_t eps) / a and variance b^2 sigma_s^2 / sigma_t^2 (their Eq. 6-7, for any
process). In p, the predicted eps replaces eps. The logarithm of p's variance lies between those of
the same variance ("small", v = 0) and of b^2 ("large", v = 1), with v constant or "learned" by the
network (Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 15). With d the error of the predicted eps,
SNR = alpha^2 / sigma^2 and delta = v log(sigma_t^2 / sigma_s^2),

    L_i = 1/2 E sum[ delta + exp(-delta) - 1 + exp(-delta) (SNR_s / SNR_t - 1) d^2 ].

p(x0 | x_t) is a Gaussian around the predicted x0, integrated over the cell of each pixel's level.
The cells of the lowest and the highest level are unbounded (Ho et al., Eq. 13). x0 is not
dequantized.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser, Prediction, learned_fraction
from errors import BoundError, require_choice, require_in
from numerics.arrays import (
    Batch,
    fold_in_each,
    in_float64,
    normal_like,
    pad_to_block,
    require_batch,
    sample_indices,
    sample_keys,
    sum_per_sample,
)
from sde_lib import SDE

# v, the position of log variance between the smallest (0) and the largest (1).
VARIANCES: dict[str, Callable[[Prediction], Batch | float]] = {
    "small": lambda prediction: 0.0,
    "large": lambda prediction: 1.0,
    "learned": learned_fraction,
}
# Logarithms of the standard deviation of p(x0 | x_t) for v = 0 and v = 1, as functions of
# log alpha and log sigma there, and of the last step's log(1 - SNR_t / SNR_s).
DECODERS: dict[str, Callable[[float, float, float], tuple[float, float]]] = {
    "chain": lambda log_alpha, log_sigma, shrink: (log_sigma + shrink / 2, log_sigma),
    "tweedie": lambda log_alpha, log_sigma, shrink: (log_sigma - log_alpha, log_sigma - log_alpha),
}


@dataclass(frozen=True, kw_only=True)
class DiscreteBoundOptions:
    """Variances of the reverse steps of the bound.

    Args:
        variance: the variance of p(x_s | x_t), a name in VARIANCES.
        decoder: the variance of p(x0 | x_t), a name in DECODERS. "chain" is the published one. A
            step to clean data would have the small variance 0, which the small variance of the last
            step replaces, for variance="large" too. "tweedie" is (sigma / alpha)^2. It is better
            for fine grids, where the last step's small variance is far below sigma^2, if sigma is a
            gray level or more.

    Raises:
        ValueError: for an unknown name.
    """

    variance: str = "small"
    decoder: str = "chain"

    def __post_init__(self) -> None:
        require_choice("variance", self.variance, VARIANCES)
        require_choice("decoder", self.decoder, DECODERS)


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

    def require(self, x0: Batch) -> None:
        """Raise ValueError unless all values of `x0` are pixel levels."""
        low, high, off = (float(value) for value in _placement(x0, self))
        # Written so that NaN fails.
        if not (low > -0.5 and high < self.gray_levels - 0.5 and off < 0.01):
            raise ValueError(
                f"x0 spans {self.low + low * self.spacing:.4g} to "
                f"{self.low + high * self.spacing:.4g} and is up to {off:.2g} of their spacing off "
                f"the {self.gray_levels} pixel levels in [{self.low}, {self.high}]; give "
                "images without dequantization noise, in the network's range"
            )


class DiscreteBound(NamedTuple):
    """The bound on -log p(x0) of each image in nats, its terms, and its cost.

    total = prior + terms.sum(axis=0) + decoder: L_T, the terms L_i of the step to `times[1 + i]`,
    and L_0. `terms` and `decoder` are one draw of their expectations. `nfe` is the number of
    network evaluations per image.
    """

    total: Float[Array, "batch"]
    prior: Float[Array, "batch"]
    terms: Float[Array, "steps batch"]
    decoder: Float[Array, "batch"]
    nfe: int


def discrete_bound(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Float[Array, "batch *shape"],
    *,
    times: Float[np.ndarray, "times"],
    pixel_levels: PixelLevels,
    options: DiscreteBoundOptions,
    indices: Int[Array, "batch"] | None = None,
) -> DiscreteBound:
    """Draw the variational bound on -log p(x0) along `times`, with one noise per image and time.

    Sample k depends on `key` and `indices[k]` (default k) alone. The network is evaluated once per
    time. The denoiser's clipping applies to the predicted x0; published numbers need clip="range".

    Args:
        key: for the noise.
        denoiser: the model.
        x0: images on the pixel levels, without dequantization noise.
        times: two or more decreasing times, as `time_grids.Schedule.of` returns them; for a chain,
            the times of its timesteps.
        pixel_levels: the values of x0's pixels, in the network's range.
        options: variances of the steps.
        indices: sample indices.

    Raises:
        ValueError: for invalid times, or for an x0 with other values.
        BoundError: if a term is NaN or infinite.
    """
    table, decoder = _tables(denoiser.sde, times, options)
    pixel_levels.require(x0)
    x0 = require_batch(x0)
    indices = sample_indices(key, x0.shape, indices)
    table = _Step(*(jnp.asarray(column, x0.dtype) for column in table))
    decoder = jnp.asarray(decoder, x0.dtype)
    steps = len(times) - 1
    found = _terms(key, denoiser, x0, indices, table, decoder, steps, options, pixel_levels)
    require_finite(found[: steps + 1], np.broadcast_to(times[:, None], (steps + 1, len(x0))))
    prior = prior_divergence(denoiser.sde, x0, float(times[0]))
    total = prior + jnp.sum(found, axis=0)
    return DiscreteBound(total, prior, found[:steps], found[steps], steps + 1)


def prior_divergence(
    sde: SDE, x0: Float[Array, "batch *shape"], t: float = 1.0
) -> Float[Array, "batch"]:
    """Return KL(q(x_t | x0) || prior) in nats, of N(alpha x0, sigma^2) from N(0, prior_std^2).

    1/2 sum[ sigma^2 / prior_std^2 - 1 - log(sigma^2 / prior_std^2) + alpha^2 x0^2 / prior_std^2 ]
    """
    log_alpha, log_sigma = in_float64(lambda t: (sde.log_alpha(t), sde.log_sigma(t)), t)
    log_prior = math.log(sde.prior_std)
    gap = 2 * (float(log_sigma) - log_prior)
    scale = math.exp(float(log_alpha) - log_prior)
    return 0.5 * (sum_per_sample((scale * x0) ** 2) + x0[0].size * (math.expm1(gap) - gap))


def require_finite(
    terms: Float[Array, "terms batch"], times: Float[np.ndarray | Array, "terms batch"]
) -> None:
    """Raise BoundError unless all terms are finite; the message names the latest time."""
    bad = ~np.isfinite(np.asarray(terms))
    if bad.any():
        raise BoundError(
            f"{bad.any(axis=0).sum()} of {bad.shape[1]} samples have a term of the bound that is "
            f"NaN or infinite, the first at t={np.asarray(times)[bad].max():.4g}; check the "
            "network's output there"
        )


class _Step(NamedTuple):
    """Coefficients of the step from t to s: SNR_s / SNR_t - 1, and log(sigma_t^2 / sigma_s^2)."""

    t: Float[Array, "rows"]
    growth: Float[Array, "rows"]
    log_range: Float[Array, "rows"]


def _tables(
    sde: SDE, times: Float[np.ndarray, "times"], options: DiscreteBoundOptions
) -> tuple[tuple[np.ndarray, ...], tuple[float, float]]:
    """Return the columns of a `_Step`, and the decoder's log-deviations for v = 0 and 1."""
    times = np.asarray(times, np.float64)
    if len(times) < 2 or not (np.all(np.diff(times) < 0) and times[-1] >= 0 and times[0] <= 1):
        raise ValueError(f"times={times} must be two or more in [0, 1], strictly decreasing")

    def logarithms(t: Array) -> tuple[Array, Array]:
        return sde.log_alpha(t), sde.log_sigma(t)

    log_alpha, log_sigma = in_float64(logarithms, times)
    if not np.isfinite(log_sigma[-1]):
        raise ValueError(
            f"times end at t={times[-1]}, where this process has no noise; end them above 0"
        )
    gain = 2 * np.diff(log_alpha - log_sigma)  # log(SNR_s / SNR_t)
    shrink = math.log(-math.expm1(-gain[-1]))
    decoder = DECODERS[options.decoder](log_alpha[-1], log_sigma[-1], shrink)
    columns = (times, np.append(np.expm1(gain), 0), np.append(-2 * np.diff(log_sigma), 0))
    return tuple(pad_to_block(column) for column in columns), decoder


@partial(jax.jit, static_argnames=("options", "pixel_levels"))
def _terms(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Batch,
    indices: Int[Array, "batch"],
    table: _Step,
    decoder: Float[Array, "2"],
    steps: int | Int[Array, ""],
    options: DiscreteBoundOptions,
    pixel_levels: PixelLevels,
) -> Float[Array, "rows batch"]:
    """Return the terms: row i < `steps` for the step from time i, row `steps` for the decoder."""
    keys = sample_keys(key, indices)
    fraction = VARIANCES[options.variance]
    # With the fixed large variance, the published decoder has the small one.
    decoder_fraction = VARIANCES["small" if options.variance == "large" else options.variance]

    def body(i: Int[Array, ""], terms: Float[Array, "rows batch"]) -> Float[Array, "rows batch"]:
        eps = normal_like(fold_in_each(keys, i), x0)
        t = table.t[i]
        prediction = denoiser.predict(denoiser.sde.perturb(x0, t, eps), t)

        def divergence() -> Batch:
            delta = fraction(prediction) * table.log_range[i]
            squares = table.growth[i] * (prediction.eps - eps) ** 2
            return 0.5 * (delta + jnp.expm1(-delta) + jnp.exp(-delta) * squares)

        def surprise() -> Batch:
            low, high = decoder
            log_std = low + decoder_fraction(prediction) * (high - low)
            return -pixel_levels.log_prob(x0, prediction.x0, log_std)

        return terms.at[i].set(sum_per_sample(jax.lax.cond(i == steps, surprise, divergence)))

    empty = jnp.zeros((table.t.shape[0], x0.shape[0]), x0.dtype)
    return jax.lax.fori_loop(0, steps + 1, body, empty)


@partial(jax.jit, static_argnames="pixel_levels")
def _placement(x0: Batch, pixel_levels: PixelLevels) -> tuple[Array, Array, Array]:
    """Return the lowest level, the highest, and the largest distance from a whole number."""
    level = (x0 - pixel_levels.low) / pixel_levels.spacing
    return level.min(), level.max(), jnp.abs(level - jnp.round(level)).max()
