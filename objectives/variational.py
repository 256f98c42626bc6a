r"""The terms of the variational bound along a decreasing grid of times.

For the step from t to s, with (a, b) the exact transition from s to t, q(x_s | x_t, x0) is a
Gaussian with mean (x_t - b^2 / sigma_t eps) / a and variance b^2 sigma_s^2 / sigma_t^2 (Ho et al.
2020, arXiv:2006.11239, Eq. 6-7, for any process). In the model p, the predicted eps replaces eps.
The logarithm of p's variance lies between those of the same variance ("small", v = 0) and of b^2
("large", v = 1), with v constant or "learned" by the network (Nichol and Dhariwal 2021,
arXiv:2102.09672, Eq. 15). With d the error of the predicted eps, SNR = alpha^2 / sigma^2 and
delta = v log(sigma_t^2 / sigma_s^2), the divergence of q from p is

    L = 1/2 E sum[ delta + exp(-delta) - 1 + exp(-delta) (SNR_s / SNR_t - 1) d^2 ].

The optimal delta is log(1 + (SNR_s / SNR_t - 1) u), with the uncertainty u = E[d^2 | x_t] of the
predicted noise. Its mean at a time makes the variance "analytic" (Bao et al. 2022,
arXiv:2201.06503, Theorem 1), and its value for each x_t and pixel "diagonal" (Bao et al. 2022,
arXiv:2206.07309). See `objectives.uncertainty`.

The last term is -E log p(x0 | x_t). This p is a Gaussian around the predicted x0, integrated over
the cell of each pixel's level. The cells of the lowest and the highest level are unbounded (Ho et
al., Eq. 13).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from denoising import Prediction
from numerics.arrays import Batch, expand_like, in_float64, require_numbers, sum_per_sample
from numerics.pixel_levels import PixelLevels
from sde_lib import SDE


class Variance(NamedTuple):
    """A choice of the variance of p(x_s | x_t).

    Attributes:
        log_ratio: delta of the module docstring, from a prediction of x_t and from growth and
            log_range of `Steps`.
        fraction: v of the decoder, from the prediction at the last time. With the fixed large
            variance, and with the optimal ones, the published decoder has the small one.
        needs: what a checkpoint must come with for it, a field of `experiment.sampler.Checkpoint`;
            "" for nothing.
    """

    log_ratio: Callable[[Prediction, Any, Any], Any]
    fraction: Callable[[Prediction], Any] = lambda prediction: 0.0
    needs: str = ""


def learned_fraction(prediction: Prediction) -> Batch:
    """Return the learned variance of a prediction, as a fraction between the two fixed ones.

    Raises:
        ValueError: if the network predicts no variance.
    """
    if prediction.variance is None:
        raise ValueError(
            "variance='learned' needs a network that predicts variances, with "
            "config.denoiser.parameterization=eps_learned_variance; choose small or large"
        )
    return prediction.variance


def uncertainty_of(prediction: Prediction) -> Batch:
    """Return the uncertainty of a prediction.

    Raises:
        ValueError: if the denoiser has none.
    """
    if prediction.uncertainty is None:
        raise ValueError(
            "variance='analytic' and 'diagonal' need a denoiser with an uncertainty, such as "
            "objectives.uncertainty.MeasuredUncertainty; choose small or large"
        )
    return prediction.uncertainty


def _optimal(prediction: Prediction, growth: Any, log_range: Any) -> Batch:
    return jnp.log1p(growth * uncertainty_of(prediction))


VARIANCES = {
    "small": Variance(lambda prediction, growth, log_range: 0.0),
    "large": Variance(lambda prediction, growth, log_range: log_range),
    "learned": Variance(
        lambda prediction, growth, log_range: learned_fraction(prediction) * log_range,
        learned_fraction,
    ),
    "analytic": Variance(_optimal, needs="moments"),
    "diagonal": Variance(_optimal, needs="variance_head"),
}


# Logarithms of the standard deviation of p(x0 | x_t) for v = 0 and v = 1, as functions of
# log alpha and log sigma there, and of the last step's log(1 - SNR_t / SNR_s).
DECODERS: dict[str, Callable[[float, float, float], tuple[float, float]]] = {
    "chain": lambda log_alpha, log_sigma, shrink: (log_sigma + shrink / 2, log_sigma),
    "tweedie": lambda log_alpha, log_sigma, shrink: (log_sigma - log_alpha, log_sigma - log_alpha),
}


class Steps(NamedTuple):
    """Coefficients of the step from t to s: SNR_s / SNR_t - 1, and log(sigma_t^2 / sigma_s^2)."""

    t: Float[Any, "rows"]
    growth: Float[Any, "rows"]
    log_range: Float[Any, "rows"]


def bound_tables(
    sde: SDE, times: Float[np.ndarray, "times"], decoder: str
) -> tuple[Steps, tuple[float, float]]:
    """Return the steps from each time to the next, and the decoder's log-deviations for v = 0, 1.

    The last row is for the decoder, and has no step. All are in float64.

    Args:
        sde: the process.
        times: two or more decreasing times.
        decoder: a name in DECODERS.

    Raises:
        ValueError: for invalid times.
    """
    require_numbers(sde)
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
    ends = DECODERS[decoder](log_alpha[-1], log_sigma[-1], shrink)
    growth, log_range = np.append(np.expm1(gain), 0), np.append(-2 * np.diff(log_sigma), 0)
    return Steps(times, growth, log_range), ends


def step_divergence(
    prediction: Prediction, eps: Batch, growth: Array, log_range: Array, variance: str
) -> Batch:
    """Return a step's divergence in nats, per dimension, for one noise.

    Args:
        prediction: of x_t.
        eps: the noise in x_t.
        growth, log_range: of `Steps`, in shapes that broadcast against eps.
        variance: a name in VARIANCES.
    """
    delta = VARIANCES[variance].log_ratio(prediction, growth, log_range)
    squares = growth * (prediction.eps - eps) ** 2
    return 0.5 * (delta + jnp.expm1(-delta) + jnp.exp(-delta) * squares)


def decoder_surprise(
    prediction: Prediction,
    x0: Batch,
    ends: Float[Array, "2"],
    variance: str,
    pixel_levels: PixelLevels,
) -> Batch:
    """Return -log p(x0 | x_t) in nats, per dimension.

    Args:
        prediction: of x_t at the last time.
        x0: images on the pixel levels.
        ends: the decoder's log-deviations for v = 0 and v = 1.
        variance: a name in VARIANCES.
        pixel_levels: the values of x0's pixels.
    """
    fraction = VARIANCES[variance].fraction(prediction)
    low, high = ends
    return -pixel_levels.log_prob(x0, prediction.x0, low + fraction * (high - low))


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainBound:
    """The variational bound of a chain, estimated at one timestep per image.

    Args:
        sde: the process.
        num_timesteps: length of the chain, whose times are i / (num_timesteps - 1).
        variance: the variance of the reverse steps, a name in VARIANCES.
        decoder: the variance of p(x0 | x_t), a name in DECODERS.
        pixel_levels: the values of x0's pixels.

    Raises:
        ValueError: if the process has no noise at t = 0.
    """

    sde: SDE
    num_timesteps: int
    variance: str
    decoder: str
    pixel_levels: PixelLevels

    @cached_property
    def _tables(self) -> tuple[Steps, tuple[float, float]]:
        with jax.ensure_compile_time_eval():
            times = np.arange(self.num_timesteps)[::-1] / (self.num_timesteps - 1)
            return bound_tables(self.sde, times, self.decoder)

    def bits_per_dim(
        self, prediction: Prediction, x0: Batch, t: Float[Array, "batch"], eps: Batch
    ) -> Float[Array, "batch"]:
        """Return the bound of each image without its prior's term, in bits/dim.

        It is the term of one timestep, multiplied by their number. With times that are uniform over
        the timesteps, its expectation is the bound.

        Args:
            prediction: of x_t.
            x0: images on the pixel levels.
            t: times of timesteps.
            eps: the noise in x_t.
        """
        steps, ends = self._tables
        row = self.num_timesteps - 1 - jnp.round(t * (self.num_timesteps - 1)).astype(jnp.int32)
        growth, log_range = (
            expand_like(jnp.asarray(column, x0.dtype)[row], x0)
            for column in (steps.growth, steps.log_range)
        )
        last = expand_like(row == self.num_timesteps - 1, x0)
        divergence = step_divergence(prediction, eps, growth, log_range, self.variance)
        # Where another term is taken, the decoder must not give infinite gradients.
        near = prediction._replace(x0=jnp.where(last, prediction.x0, x0))
        decoder = jnp.asarray(ends, x0.dtype)
        surprise = decoder_surprise(near, x0, decoder, self.variance, self.pixel_levels)
        terms = sum_per_sample(jnp.where(last, surprise, divergence))
        return self.num_timesteps * terms / (x0[0].size * math.log(2))
