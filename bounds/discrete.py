r"""Variational bound on the probability of an image, along any decreasing grid of times.

A chain t_1 = 1 > ... > t_n of noisy versions x_t of x0, each a step of the model before the next,

    -log p(x0) <= L_T + L_2 + ... + L_n + L_0                  (Ho et al. 2020, 2006.11239, Eq. 5)
    L_T = KL(q(x_T | x0) || prior)                             T = t_1
    L_i = E KL(q(x_s | x_t, x0) || p(x_s | x_t))               from t = t_(i-1) to s = t_i
    L_0 = -E log p(x0 | x_t)                                   t = t_n

With (a, b) the exact transition from s to t, q(x_s | x_t, x0) is a Gaussian with mean
(x_t - b^2 / sigma_t eps) / a and variance b^2 sigma_s^2 / sigma_t^2 (their Eq. 6-7, for any
process). p has the predicted eps, and a variance between that one ("small", v = 0) and b^2
("large", v = 1) in logarithms, with v "learned" by the network (Nichol and Dhariwal 2021,
arXiv:2102.09672, Eq. 15). So with d the error of the predicted eps, SNR = alpha^2 / sigma^2 and
delta = v log(sigma_t^2 / sigma_s^2),

    L_i = 1/2 E sum[ delta + exp(-delta) - 1 + exp(-delta) (SNR_s / SNR_t - 1) d^2 ].

p(x0 | x_t) is a Gaussian around the predicted x0, integrated over the cell of each pixel's level;
the cells of the lowest and the highest level are open (Ho et al., Eq. 13). x0 is not dequantized.
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

from denoising import Batch, Denoiser, Prediction
from errors import BoundError
from numerics.arrays import fold_in_each, in_float64, normal_like, sample_keys, sum_per_sample
from sde_lib import SDE


def _learned(prediction: Prediction) -> Batch:
    if prediction.variance is None:
        raise ValueError(
            "variance='learned' needs a network that answers one, with parameterization="
            "'eps_learned_variance'; choose small or large"
        )
    return prediction.variance


# v, how far p's variance is from the smallest to the largest in logarithms.
VARIANCES: dict[str, Callable[[Prediction], Batch | float]] = {
    "small": lambda prediction: 0.0,
    "large": lambda prediction: 1.0,
    "learned": _learned,
}
# Variances of p(x0 | x_t), as functions of log alpha and log sigma there and of the last step's
# log(1 - SNR_t / SNR_s): logarithms of the standard deviation for v = 0 and v = 1.
DECODERS: dict[str, Callable[[float, float, float], tuple[float, float]]] = {
    "chain": lambda log_alpha, log_sigma, shrink: (log_sigma + shrink / 2, log_sigma),
    "tweedie": lambda log_alpha, log_sigma, shrink: (log_sigma - log_alpha,) * 2,
}


@dataclass(frozen=True, kw_only=True)
class DiscreteBoundOptions:
    """What the reverse steps of the bound are.

    Args:
      variance: of p(x_s | x_t), a name in VARIANCES.
      decoder: the variance of p(x0 | x_t). "chain" is the published one: the rule for steps to
        clean data, where the small variance would be 0 and the last step's takes its place, for
        variance="large" too. "tweedie" is (sigma / alpha)^2, the better one for grids so fine that
        the last step's small variance is far below sigma^2 while sigma is a grey level or more.

    Raises:
      ValueError: for an unknown name.
    """

    variance: str = "small"
    decoder: str = "chain"

    def __post_init__(self) -> None:
        for field, table in (("variance", VARIANCES), ("decoder", DECODERS)):
            value = getattr(self, field)
            if value not in table:
                raise ValueError(
                    f"{field}={value!r} is unknown; choose one of: {', '.join(sorted(table))}"
                )


@dataclass(frozen=True, kw_only=True)
class PixelLevels:
    """The values that pixels take: so many `gray_levels`, evenly from `low` to `high`.

    Raises:
      ValueError: for fewer than 2 levels, or unless low < high.
    """

    gray_levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.gray_levels < 2:
            raise ValueError(f"gray_levels={self.gray_levels} must be at least 2")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low={self.low}, high={self.high}: low < high, both finite")

    @property
    def spacing(self) -> float:
        """The distance between neighbouring values."""
        return (self.high - self.low) / (self.gray_levels - 1)

    def log_prob(self, x0: Batch, mean: Batch, log_std: Float[Array, "..."]) -> Batch:
        """Log-probability of each pixel's cell under N(mean, exp(log_std)^2); exact in the tails.

        The published codes approximate the normal distribution function by a tanh and cut
        probabilities at 1e-12, which moves their bits/dim by a few thousandths at most.
        """
        half, centred = self.spacing / 2, x0 - mean
        std = jnp.exp(log_std)
        left = jnp.where(x0 < self.low + half, -jnp.inf, (centred - half) / std)
        right = jnp.where(x0 > self.high - half, jnp.inf, (centred + half) / std)
        # Mirrored into the left tail, where the logarithm of the distribution function is exact.
        mirrored = centred > 0
        low, high = jnp.where(mirrored, -right, left), jnp.where(mirrored, -left, right)
        top = log_ndtr(high)
        return top + jnp.log(-jnp.expm1(log_ndtr(low) - top))

    def require(self, x0: Batch) -> None:
        """Refuse values that are not on the pixel_levels."""
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
    """The bound on -log p(x0) of each image in nats, its terms, and what it cost.

    total = prior + terms.sum(axis=0) + decoder: L_T, L_i at the step to `times[1 + i]`, and L_0.
    terms and decoder are one draw of their expectations; nfe is per image.
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
    """The variational bound on -log p(x0) along `times`, one noise an image at every time.

    Sample k depends on `key` and `indices[k]` (default k) alone. The network is evaluated once at
    every time; the predicted x0 is clipped as the denoiser says, for published numbers to "range".

    Args:
      times: decreasing, two or more, as `time_grids.Schedule.of` gives them; of a chain its levels.
      pixel_levels: the values of x0's pixels, in the network's range.

    Raises:
      ValueError: for times that cannot be these, or x0 that is not on the pixel_levels.
      BoundError: if a term is NaN or infinite.
    """
    table, decoder = _tables(denoiser.sde, times, options)
    pixel_levels.require(x0)
    if indices is None:
        indices = jnp.arange(x0.shape[0])
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
    """KL(q(x_t | x0) || prior) in nats, of N(alpha x0, sigma^2) from N(0, prior_std^2).

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
    """Refuse terms that are not finite; the message names the latest time of one."""
    broken = ~np.isfinite(np.asarray(terms))
    if broken.any():
        raise BoundError(
            f"{broken.any(axis=0).sum()} of {broken.shape[1]} samples have a term of the bound that"
            f" is NaN or infinite, the first at t={np.asarray(times)[broken].max():.4g}; check the"
            " network's answer there"
        )


class _Step(NamedTuple):
    """Of the step from t: SNR_s / SNR_t - 1, and log(sigma_t^2 / sigma_s^2)."""

    t: Float[Array, "rows"]
    growth: Float[Array, "rows"]
    log_range: Float[Array, "rows"]


_BLOCK = 1024  # rows are padded to a multiple, so that one program serves any number of steps


def _tables(
    sde: SDE, times: Float[np.ndarray, "times"], options: DiscreteBoundOptions
) -> tuple[tuple[np.ndarray, ...], tuple[float, float]]:
    """The rows of a `_Step`, and the decoder's two logarithms of its standard deviation."""
    times = np.asarray(times, np.float64)
    if len(times) < 2 or not (np.all(np.diff(times) < 0) and times[-1] >= 0 and times[0] <= 1):
        raise ValueError(f"times={times}: give two or more in [0, 1], strictly decreasing")

    def logarithms(t: Array) -> tuple[Array, Array]:
        return sde.log_alpha(t), sde.log_sigma(t)

    log_alpha, log_sigma = in_float64(logarithms, times)
    if not np.isfinite(log_sigma[-1]):
        raise ValueError(
            f"times end at t={times[-1]}, where this process has no noise; end above 0"
        )
    gain = 2 * np.diff(log_alpha - log_sigma)  # log(SNR_s / SNR_t)
    shrink = math.log(-math.expm1(-gain[-1]))
    decoder = DECODERS[options.decoder](log_alpha[-1], log_sigma[-1], shrink)
    columns = (times, np.append(np.expm1(gain), 0), np.append(-2 * np.diff(log_sigma), 0))
    padding = (0, -len(times) % _BLOCK)
    return tuple(np.pad(column, padding) for column in columns), decoder


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
    """Row i < `steps` is the term of the step from time i, row `steps` is the decoder's."""
    keys = sample_keys(key, indices)
    fraction = VARIANCES[options.variance]
    # The published decoder of the fixed large variance has the small one.
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
    """The lowest level, the highest, and the largest distance of one from a whole number."""
    level = (x0 - pixel_levels.low) / pixel_levels.spacing
    return level.min(), level.max(), jnp.abs(level - jnp.round(level)).max()
