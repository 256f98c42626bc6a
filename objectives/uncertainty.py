r"""The uncertainty of predicted noise, u = E[(eps_t - eps)^2 | x_t], which optimal variances need.

eps_t is the noise in x_t, and eps its prediction. The Gaussian p(x_s | x_t) of DDPM's chain closest
to the true reverse step has the variance (Bao et al. 2022, arXiv:2201.06503, Theorem 1)

    small (1 + (SNR_s / SNR_t - 1) u),

where "small" is the variance of q(x_s | x_t, x0). An uncertainty is a field of the Denoiser, which
gives it with each prediction. Data in an interval of half-width r have
u <= r^2 alpha^2 / sigma^2 (Theorem 2).

A **variance head** predicts u for each pixel of x_t. It is trained beside a frozen network (Bao et
al. 2022, arXiv:2206.07309) to predict the mean of a target given x_t:

    squared_noise   eps_t^2            u = mean - eps^2      (SN, Theorem 3)
    residual        (eps_t - eps)^2    u = mean              (NPR, Theorem 5)

The first holds for an exact eps, the second for any. The paper minimizes the squared error of the
head's mean m. Here it minimizes the negative log-likelihood of a Gaussian with the variance m,

    1/2 E[log m + target / m],

which is least for the same m. It weighs errors of log m, on which variances depend, alike at all
times, though u falls by orders of magnitude toward t = 1. With r = log(m / size), r is the output
of the head's network, and size(t) is 1 for SN and alpha^2 / (alpha^2 + sigma^2) for NPR, which is
the u of data with unit variance.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import CONDITIONINGS
from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like, pytree, sum_per_sample
from objectives.times import log_snr_times, stratified
from sde_lib import SDE, Time
from training.objective import Context, Objective

# How the times of steps are chosen: as the grid says, or along the path of least cost.
TIMESTEP_CHOICES = ("grid", "optimal")


@pytree()
@dataclass(frozen=True, kw_only=True)
class MeasuredUncertainty:
    """The mean uncertainty at each time, the same for all x_t and pixels.

    Args:
        half_log_snr: log(alpha / sigma) at some times, increasing.
        values: u there, with linear interpolation between them.
    """

    half_log_snr: Float[Array, "times"]
    values: Float[Array, "times"]

    def __call__(self, sde: SDE, x: Batch, t: Time, eps: Batch) -> Batch:
        """Return u at the times t (batch,), with axes of length 1 for those of x (batch, ...)."""
        found = jnp.interp(sde.log_snr(t) / 2, self.half_log_snr, self.values)
        return expand_like(found.astype(x.dtype), x)


class Target(NamedTuple):
    """What a variance head predicts the mean of, given x_t.

    Attributes:
        of: the target, from the true noise and the predicted one.
        size: of the target's mean, from the log-SNR.
        uncertainty: u, from the target's mean and the predicted noise.
    """

    of: Callable[[Batch, Batch], Batch]
    size: Callable[[Time], Time]
    uncertainty: Callable[[Batch, Batch], Batch]


TARGETS = {
    "squared_noise": Target(
        of=lambda true, eps: true**2,
        size=jnp.ones_like,
        uncertainty=lambda mean, eps: mean - eps**2,
    ),
    "residual": Target(
        of=lambda true, eps: (true - eps) ** 2,
        size=jax.nn.sigmoid,
        uncertainty=lambda mean, eps: mean,
    ),
}


@pytree(static=("target", "conditioning", "num_timesteps", "radius"))
@dataclass(frozen=True, kw_only=True)
class VarianceHead:
    """The uncertainty of each pixel of x_t, by a network of its own.

    Args:
        network: maps x_t over sqrt(alpha^2 + sigma^2), and a condition, to r of the module
            docstring, shaped like x_t. It is already closed over its parameters.
        target: a name in TARGETS.
        conditioning: a name in `denoising.CONDITIONINGS`.
        num_timesteps: length of the chain whose timesteps some conditionings count.
        radius: half the width of the interval of the data, which bounds the uncertainty.
    """

    network: Callable[[Batch, Time], Batch]
    target: str = "residual"
    conditioning: str = "log_snr"
    num_timesteps: int = 1000
    radius: float = math.inf

    def __call__(self, sde: SDE, x: Batch, t: Time, eps: Batch) -> Batch:
        """Return u at x_t with the times t (batch,) and the predicted noise eps."""
        log_snr = expand_like(sde.log_snr(t), x)
        row = TARGETS[self.target]
        mean = row.size(log_snr) * jnp.exp(self.log_mean(sde, x, t))
        return jnp.clip(row.uncertainty(mean, eps), 0.0, self.radius**2 * jnp.exp(log_snr))

    def log_mean(self, sde: SDE, x: Batch, t: Time) -> Batch:
        """Return r, the logarithm of the target's mean over its size."""
        scale = expand_like(jnp.hypot(sde.alpha(t), sde.sigma(t)), x)
        return self.network(x / scale, CONDITIONINGS[self.conditioning](sde, t, self.num_timesteps))


@pytree()
@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A variance head in training, and the images' classes if the denoiser has some."""

    head: VarianceHead
    labels: Int[Array, "batch"] | None = None


class HeadNoise(NamedTuple):
    """A time and the noise of each image."""

    t: Float[Array, "batch"]
    eps: Batch


@dataclass(frozen=True, kw_only=True)
class VarianceHeadLoss(Objective):
    """The objective of the module docstring, a mean over pixels and over times even in log-SNR.

    The frozen denoiser is the teacher of the context.

    Args:
        target: a name in TARGETS.
        t_min: the smallest time, in (0, 1).

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    teacher: ClassVar[str] = "the run itself"
    target: str = "residual"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_choice("target", self.target, TARGETS)
        require_in("t_min", self.t_min, "(0, 1)")

    def draw(
        self, key: Key[Array, ""], model: TrainedHead, x0: Batch, context: Context
    ) -> HeadNoise:
        """Draw one time and one noise per image; the times cover the batch evenly."""
        time_key, noise_key = jax.random.split(key)
        strata = stratified(time_key, len(x0), x0.dtype)
        t = log_snr_times(context.teacher.sde, strata, self.t_min)
        return HeadNoise(t, jax.random.normal(noise_key, x0.shape, x0.dtype))

    def evaluate(
        self,
        key: Key[Array, ""],
        drawn: HeadNoise,
        model: TrainedHead,
        x0: Batch,
        context: Context,
    ) -> Float[Array, "batch"]:
        """Return the loss of each image at its time and noise, in nats per dimension."""
        denoiser, (t, eps) = context.teacher, drawn
        if model.labels is not None:
            denoiser = dataclasses.replace(denoiser, labels=model.labels)
        sde, row = denoiser.sde, TARGETS[self.target]
        x = sde.perturb(x0, t, eps)
        size = row.size(expand_like(sde.log_snr(t), x))
        target = row.of(eps, denoiser.predict(x, t).eps) / size
        log_mean = model.head.log_mean(sde, x, t)
        return 0.5 * sum_per_sample(log_mean + target * jnp.exp(-log_mean)) / x0[0].size
