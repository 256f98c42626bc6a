r"""The variational bound in continuous time, whose integrand is the training objective.

For data with a density (dequantized images) and any t_min > 0,

    -log p(x0) <= KL(q(x_1 | x0) || prior)
                  + 1/2 int_t_min^1 (g^2 / sigma^2) E ||eps - eps_hat||^2 dt
                  - E log p(x0 | x_t),  t = t_min

(Song et al. 2021, arXiv:2101.09258, Theorem 3 and Appendix B; Kingma et al. 2021, arXiv:2107.00630,
Section 4). Since g^2 / sigma^2 = -d log_snr / dt, this is an integral over the log-SNR. With times
whose log-SNR is uniform, it is a mean of squared errors without weights (Section 5.1 of the first).

The last step's p(x0 | x_t) is a Gaussian around the predicted x0, by Tweedie's formula, of variance
(sigma / alpha)^2. With x_t drawn from q(x_t | x0) it gives another bound,

    log p(x0) >= E[ log p_t(x_t) + log p(x0 | x_t) - log q(x_t | x0) ],
    log p(x0 | x_t) - log q(x_t | x0) = D log alpha + ||eps||^2 / 2 - ||eps - eps_hat||^2 / 2,

which turns log-densities of noisy data, such as those of the probability-flow ODE, into a bound on
those of x0. Small noise is hardly predictable, so that this difference varies much less than either
of its squares. Because E ||eps||^2 = D, the decoder's term of the bound is the entropy of
q(x_t | x0) minus this difference.

For pixels on discrete values, the same Gaussian gives the probability of each pixel's cell. Then no
density is needed (Kingma et al., Section 3.3, with another decoder).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bounds.discrete import prior_divergence, require_finite
from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import (
    Batch,
    fold_in_each,
    normal_like,
    require_batch,
    sample_indices,
    sample_keys,
    sum_per_sample,
)
from numerics.pixel_levels import PixelLevels
from objectives.times import log_snr_range, log_snr_speed, log_snr_times
from sde_lib import SDE

Uniforms = Float[Array, "times batch"]


def _log_snr(sde: SDE, u: Uniforms, t_min: float) -> tuple[Uniforms, Uniforms]:
    low, high = log_snr_range(sde, t_min, u.dtype)
    return log_snr_times(sde, u, t_min), jnp.broadcast_to(high - low, u.shape)


def _uniform(sde: SDE, u: Uniforms, t_min: float) -> tuple[Uniforms, Uniforms]:
    t = t_min + (1 - t_min) * u
    return t, (1 - t_min) * log_snr_speed(sde, t)


# Maps uniform numbers to times and weights. The mean of the weight times any function of t is then
# the integral of g^2 / sigma^2 times that function over [t_min, 1].
IMPORTANCE: dict[str, Callable[[SDE, Uniforms, float], tuple[Uniforms, Uniforms]]] = {
    "log_snr": _log_snr,
    "uniform": _uniform,
}


@dataclass(frozen=True, kw_only=True)
class ContinuousBoundOptions:
    """How the integral of the bound is estimated.

    Args:
        num_times: number of times per sample, an even number. One time is drawn from each of
            num_times equal strata.
        importance: the density of the times, a name in IMPORTANCE.
        t_min: where the integral ends and the last step to the data begins, in (0, 1).

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    num_times: int = 32
    importance: str = "log_snr"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_choice("importance", self.importance, IMPORTANCE)
        require_in("t_min", self.t_min, "(0, 1)")
        if self.num_times < 2 or self.num_times % 2:
            raise ValueError(f"num_times={self.num_times} must be an even number, at least 2")


class ContinuousBound(NamedTuple):
    """The bound on -log p(x0) of each sample in nats, its terms, and its cost.

    total = prior + diffusion + decoder. `error` is the standard error of `diffusion` over its draws
    of time and noise. It is computed from squared differences of neighboring strata, and is a
    little too large where the integrand slopes. `nfe` is the number of network evaluations per
    sample.
    """

    total: Float[Array, "batch"]
    prior: Float[Array, "batch"]
    diffusion: Float[Array, "batch"]
    decoder: Float[Array, "batch"]
    error: Float[Array, "batch"]
    nfe: int


class DecoderStep(NamedTuple):
    """Noisy x_t of each sample, and log p(x0 | x_t) - log q(x_t | x0) in nats."""

    x: Float[Array, "batch ..."]
    nats: Float[Array, "batch"]


def continuous_bound(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Float[Array, "batch *shape"],
    *,
    options: ContinuousBoundOptions,
    pixel_levels: PixelLevels | None = None,
    indices: Int[Array, "batch"] | None = None,
) -> ContinuousBound:
    """Estimate the bound on -log p(x0) in nats without bias, for x0 with a density.

    With `pixel_levels`, x0 are pixels on these values without noise, and the bound is that on their
    probability: the last step integrates its Gaussian over the cell of each pixel's value.

    Sample k depends on `key` and `indices[k]` (default k) alone.

    Raises:
        ValueError: if x0 has other values than `pixel_levels`.
        BoundError: if the network's output is NaN or infinite.
    """
    if pixel_levels is not None:
        pixel_levels.require(x0)
    x0 = require_batch(x0)
    denoiser.require_mean("a bound on the likelihood")
    indices = sample_indices(key, x0.shape, indices)
    t, drawn = _diffusion(key, denoiser, x0, indices, options)
    require_finite(drawn, t)
    diffusion = jnp.mean(drawn, axis=0)
    error = jnp.sqrt(jnp.sum((drawn[::2] - drawn[1::2]) ** 2, axis=0)) / options.num_times
    t_min = jnp.asarray(options.t_min, x0.dtype)
    if pixel_levels is not None:
        decoder = _level_decoder(key, denoiser, x0, t_min, indices, pixel_levels)
        require_finite(decoder[None], jnp.full((1, len(x0)), options.t_min))
    else:
        step = decoder_step(key, denoiser, x0, t_min=options.t_min, indices=indices)
        decoder = _entropy(denoiser.sde, options.t_min, x0) - step.nats
    prior = prior_divergence(denoiser.sde, x0)
    total = prior + diffusion + decoder
    return ContinuousBound(total, prior, diffusion, decoder, error, options.num_times + 1)


def decoder_step(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Float[Array, "batch *shape"],
    *,
    t_min: float = 1e-5,
    indices: Int[Array, "batch"] | None = None,
) -> DecoderStep:
    """Draw the step between t_min and the data: log p(x0) >= E[ log p_t_min(x) + nats ].

    `nats` is D log alpha + ||eps||^2 / 2 - ||eps - eps_hat||^2 / 2, one draw of the expectation,
    from one network evaluation. Sample k depends on `key` and `indices[k]` (default k) alone.

    Raises:
        BoundError: if the network's output is NaN or infinite.
    """
    x0 = require_batch(x0)
    indices = sample_indices(key, x0.shape, indices)
    t = jnp.asarray(t_min, x0.dtype)
    x, nats = _decoder_step(key, denoiser, x0, t, indices)
    require_finite(nats[None], jnp.broadcast_to(t, (1, len(x0))))
    return DecoderStep(x, nats)


def decoder_term(
    sde: SDE,
    x0: Float[Array, "batch *shape"],
    *,
    t_min: float,
    error: Float[Array, "batch"],
    noise: Float[Array, "batch"],
) -> Float[Array, "batch"]:
    """Return one draw of the bound's last term, E[-log p(x0 | x_t)] at t_min, in nats.

    Args:
        sde: the process.
        x0: the images.
        t_min: the time.
        error: ||eps - eps_hat||^2 of the draw.
        noise: ||eps||^2 of the draw.
    """
    nats = x0[0].size * sde.log_alpha(jnp.asarray(t_min, x0.dtype)) + 0.5 * (noise - error)
    return _entropy(sde, t_min, x0) - nats


def _entropy(sde: SDE, t_min: float, x0: Batch) -> Float[Array, ""]:
    """Return the entropy of q(x_t | x0) in nats."""
    log_sigma = sde.log_sigma(jnp.asarray(t_min, x0.dtype))
    return x0[0].size * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)


# Streams of a sample's random numbers; the noise of stratum i is stream _STRATA + i.
_DECODER, _TIMES, _STRATA = range(3)


@partial(jax.jit, static_argnames="options")
def _diffusion(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Batch,
    indices: Int[Array, "batch"],
    options: ContinuousBoundOptions,
) -> tuple[Uniforms, Uniforms]:
    """Return the drawn times, and weight ||eps - eps_hat||^2 / 2 there, whose mean is the integral.

    Where the network predicts little of the noise, the square varies like ||eps||^2, whose mean D
    is known. The control variate c (||eps||^2 - D) is therefore subtracted. Its factor c is the
    neighboring stratum's square / D, which is independent, so that the mean is unbiased.
    """
    keys, strata = sample_keys(key, indices), jnp.arange(options.num_times)
    offset = jax.vmap(
        lambda key: jax.random.uniform(key, (options.num_times,), x0.dtype), out_axes=1
    )(fold_in_each(keys, _TIMES))
    u = (strata[:, None] + offset) / options.num_times
    t, weight = IMPORTANCE[options.importance](denoiser.sde, u, options.t_min)

    def squares(row: tuple) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
        stratum, t = row
        eps = normal_like(fold_in_each(keys, _STRATA + stratum), x0)
        error = denoiser.predict(denoiser.sde.perturb(x0, t, eps), t).eps - eps
        return sum_per_sample(error**2), sum_per_sample(eps**2 - 1)

    errors, surplus = jax.lax.map(squares, (strata, t))
    # Each stratum uses the next one. Two strata that used each other would be correlated, and the
    # standard error, which is computed from their differences, would be too small.
    neighbors = jnp.concatenate([errors[1:], errors[-2:-1]])
    control = jnp.clip(neighbors / x0[0].size, 0, 1)
    return t, 0.5 * weight * (errors - control * surplus)


@jax.jit
def _decoder_step(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Batch,
    t: Float[Array, ""],
    indices: Int[Array, "batch"],
) -> tuple[Batch, Float[Array, "batch"]]:
    eps = normal_like(fold_in_each(sample_keys(key, indices), _DECODER), x0)
    x = denoiser.sde.perturb(x0, t, eps)
    error = denoiser.predict(x, t).eps - eps
    nats = x0[0].size * denoiser.sde.log_alpha(t)
    return x, nats + 0.5 * sum_per_sample(eps**2 - error**2)


@partial(jax.jit, static_argnames="pixel_levels")
def _level_decoder(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Batch,
    t: Float[Array, ""],
    indices: Int[Array, "batch"],
    pixel_levels: PixelLevels,
) -> Float[Array, "batch"]:
    """Return one draw of -log P(x0 | x_t) in nats, by Tweedie's variance (sigma / alpha)^2."""
    eps = normal_like(fold_in_each(sample_keys(key, indices), _DECODER), x0)
    predicted = denoiser.predict(denoiser.sde.perturb(x0, t, eps), t).x0
    log_std = -denoiser.sde.log_snr(t) / 2
    return -sum_per_sample(pixel_levels.log_prob(x0, predicted, log_std))
