r"""Variational dequantization: noise that is trained to bring out the density of a frozen model.

A flow maps uniform noise v to noise u = f(v; image) within the bins of an image's gray levels.
With bins of width c around their centers, x = center + c (u - 1/2), and

    log P(image) >= E_v [ log p(x) + D log c - log q(u | image) ]

(Ho et al. 2019, arXiv:1902.00275, Section 3.2). The flow maximizes it with the bound in continuous
time in the place of log p, as in Song et al. 2021 (arXiv:2101.09258, Section 5.2):

    -log p(x) <= KL(q(x_1 | x) || prior) + 1/2 E_t w(t) ||eps - eps_hat(x_t)||^2 + C,
    x_t = alpha x + sigma eps,

whose gradient reaches the flow through x. C is the entropy of the noise at t_min. The gradient of
the last step, from t_min to the data, is left out: so little noise is hardly predictable.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from errors import require_in
from numerics.arrays import Batch, pytree, sum_per_sample
from objectives.times import log_snr_range, log_snr_times, stratified
from sde_lib import SDE
from training.objective import Context, Objective


class Dequantized(NamedTuple):
    """Images with a density, in the network's range, and log q of each in nats.

    `log_q` is the density of x per bin, so that it is 0 for uniform noise:

        log P(image) >= E [ log p(x) + D log c - log_q ]   with bins of width c.
    """

    x: Float[Array, "batch ..."]
    log_q: Float[Array, "batch"]


@pytree(static=("bin_width",))
@dataclass(frozen=True, kw_only=True)
class Dequantizer:
    """A flow from uniform noise to noise within the bins of an image's gray levels.

    Args:
        network: maps (bin centers, uniform noise v) to (u, log |du / dv|), as
            `models.dequantizer.apply_dequantizer` does. It is already closed over its parameters.
        bin_width: c, the distance of gray levels in the network's range.
    """

    network: Callable[[Batch, Batch], tuple[Batch, Float[Array, "batch"]]]
    bin_width: float

    @jax.jit
    def __call__(self, centers: Batch, noise: Batch) -> Dequantized:
        """Return x = center + c (u - 1/2) and log q(u | image).

        Args:
            centers: of the gray levels' bins, in the network's range.
            noise: uniform numbers in (0, 1).
        """
        u, log_slope = self.network(centers, noise)
        return Dequantized(centers + self.bin_width * (u - 0.5), -log_slope)


@pytree()
@dataclass(frozen=True, kw_only=True)
class DequantizedModel:
    """A dequantizer in training, and the images' classes if the denoiser has some."""

    dequantizer: Dequantizer
    labels: Int[Array, "batch"] | None = None


class DequantizationNoise(NamedTuple):
    """Uniform noise, a time with its weight, and the process's noise, of each image."""

    uniforms: Batch
    t: Float[Array, "batch"]
    weight: Float[Array, "batch"]
    eps: Batch


@dataclass(frozen=True, kw_only=True)
class DequantizationBound(Objective):
    """The bound on -log2 P(image) per number, as a function of the dequantizer.

    The frozen denoiser is the teacher of the context.

    Args:
        t_min: the smallest time, in (0, 1). Times cover the log-SNR evenly.

    Raises:
        ValueError: for a number out of range.
    """

    teacher: ClassVar[str] = "the run itself"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_in("t_min", self.t_min, "(0, 1)")

    def draw(
        self, key: Key[Array, ""], model: DequantizedModel, x0: Batch, context: Context
    ) -> DequantizationNoise:
        """Draw one time and one noise of each kind per image; the times cover the batch evenly."""
        uniform_key, time_key, noise_key = jax.random.split(key, 3)
        tiny = float(jnp.finfo(x0.dtype).eps)
        uniforms = jax.random.uniform(uniform_key, x0.shape, x0.dtype, tiny, 1.0 - tiny)
        strata = stratified(time_key, len(x0), x0.dtype)
        t = log_snr_times(context.teacher.sde, strata, self.t_min)
        low, high = log_snr_range(context.teacher.sde, self.t_min, x0.dtype)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        return DequantizationNoise(uniforms, t, jnp.broadcast_to(high - low, t.shape), eps)

    def evaluate(
        self,
        key: Key[Array, ""],
        drawn: DequantizationNoise,
        model: DequantizedModel,
        x0: Batch,
        context: Context,
    ) -> Float[Array, "batch"]:
        """Return one draw of the bound of each image in bits/dim; x0 are the bins' centers."""
        uniforms, t, weight, eps = drawn
        denoiser, dims = context.teacher, x0[0].size
        if model.labels is not None:
            denoiser = dataclasses.replace(denoiser, labels=model.labels)
        x, log_q = model.dequantizer(x0, uniforms)
        error = denoiser.predict(denoiser.sde.perturb(x, t, eps), t).eps - eps
        t_min = jnp.asarray(self.t_min, x.dtype)
        # The entropy of x_t / alpha at t_min, and the bins' width.
        constant = 0.5 * math.log(2 * math.pi * math.e) - denoiser.sde.log_snr(t_min) / 2
        constant -= math.log(model.dequantizer.bin_width)
        nats = 0.5 * weight * sum_per_sample(error**2) + _prior_divergence(denoiser.sde, x)
        return (nats + log_q) / (dims * math.log(2)) + constant / math.log(2)


def _prior_divergence(sde: SDE, x: Batch) -> Float[Array, "batch"]:
    """Return `bounds.discrete.prior_divergence` at t = 1, within a program of JAX."""
    end = jnp.ones((), x.dtype)
    gap = 2 * (sde.log_sigma(end) - jnp.log(sde.prior_std))
    scale = sde.alpha(end) / sde.prior_std
    return 0.5 * (sum_per_sample((scale * x) ** 2) + x[0].size * (jnp.expm1(gap) - gap))
