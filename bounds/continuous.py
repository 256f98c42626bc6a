r"""The variational bound in continuous time, whose integrand is the training objective.

For data with a density (dequantized images), at any t_min > 0,

    -log p(x0) <= KL(q(x_1 | x0) || prior)
                  + 1/2 int_t_min^1 (g^2 / sigma^2) E ||eps - eps_hat||^2 dt
                  - E log p(x0 | x_t),  t = t_min

(Song et al. 2021, arXiv:2101.09258, Theorem 3 and Appendix B; Kingma et al. 2021, arXiv:2107.00630,
Section 4). Since g^2 / sigma^2 = -d log_snr / dt, the integral is one over the log-SNR, and times
whose log-SNR is uniform leave the squared error alone to be averaged (Section 5.1 of the first).

The last step's p(x0 | x_t) is a Gaussian around the predicted x0, by Tweedie's formula, of variance
(sigma / alpha)^2. With x_t drawn from q(x_t | x0) it is a bound of its own,

    log p(x0) >= E[ log p_t(x_t) + log p(x0 | x_t) - log q(x_t | x0) ],
    log p(x0 | x_t) - log q(x_t | x0) = D log alpha + ||eps||^2 / 2 - ||eps - eps_hat||^2 / 2,

which makes log-densities of noisy data, as the probability-flow ODE has them, some of x0. Small
noise is hardly predictable, so this difference varies much less than either of its squares; and
because E ||eps||^2 = D, the decoder's term of the bound is the entropy of q(x_t | x0) less it.
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
from denoising import Batch, Denoiser
from numerics.arrays import fold_in_each, normal_like, sample_keys, sum_per_sample
from sde_lib import SDE

Uniforms = Float[Array, "times batch"]


def _log_snr(sde: SDE, u: Uniforms, t_min: float) -> tuple[Uniforms, Uniforms]:
    low, high = sde.log_snr(jnp.array([1.0, t_min], u.dtype))
    t = jnp.clip(sde.time_of_log_snr(low + (high - low) * u), t_min, 1.0)
    return t, jnp.broadcast_to(high - low, u.shape)


def _uniform(sde: SDE, u: Uniforms, t_min: float) -> tuple[Uniforms, Uniforms]:
    t = t_min + (1 - t_min) * u
    return t, (1 - t_min) * sde.squared_diffusion(t) / sde.sigma(t) ** 2


# From uniform numbers to times and weights, such that the mean of weight times a function of t is
# the integral of g^2 / sigma^2 times that function over [t_min, 1].
IMPORTANCE: dict[str, Callable[[SDE, Uniforms, float], tuple[Uniforms, Uniforms]]] = {
    "log_snr": _log_snr,
    "uniform": _uniform,
}


@dataclass(frozen=True, kw_only=True)
class ContinuousBoundOptions:
    """How the bound's integral is estimated.

    Args:
      num_times: times drawn for each sample, one in each of so many equal strata; even.
      importance: the density of the times, a name in IMPORTANCE.
      t_min: where the integral ends and the last step to the data begins.

    Raises:
      ValueError: for an unknown name or a number out of range.
    """

    num_times: int = 32
    importance: str = "log_snr"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCE:
            raise ValueError(
                f"importance={self.importance!r} is unknown; choose one of: "
                f"{', '.join(sorted(IMPORTANCE))}"
            )
        if self.num_times < 2 or self.num_times % 2:
            raise ValueError(f"num_times={self.num_times} must be an even number, at least 2")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")


class ContinuousBound(NamedTuple):
    """The bound on -log p(x0) of each sample in nats, its terms, and what it cost.

    total = prior + diffusion + decoder. `error` is the standard error of diffusion over its draws
    of time and noise: the sum of squared differences of neighbouring strata, which is the variance
    or, where the integrand slopes, a little more. nfe is per sample.
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
    indices: Int[Array, "batch"] | None = None,
) -> ContinuousBound:
    """An unbiased estimate of the bound on -log p(x0) in nats, for x0 that has a density.

    Sample k depends on `key` and `indices[k]` (default k) alone.

    Raises:
      BoundError: if the network's answer is NaN or infinite.
    """
    if indices is None:
        indices = jnp.arange(x0.shape[0])
    t, drawn = _diffusion(key, denoiser, x0, indices, options)
    require_finite(drawn, t)
    diffusion = jnp.mean(drawn, axis=0)
    error = jnp.sqrt(jnp.sum((drawn[::2] - drawn[1::2]) ** 2, axis=0)) / options.num_times
    step = decoder_step(key, denoiser, x0, t_min=options.t_min, indices=indices)
    log_sigma = denoiser.sde.log_sigma(jnp.asarray(options.t_min, x0.dtype))
    entropy = x0[0].size * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
    decoder = entropy - step.nats
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
    """The step between t_min and the data: log p(x0) >= E[ log p_t_min(x) + nats ].

    `nats` is D log alpha + ||eps||^2 / 2 - ||eps - eps_hat||^2 / 2, one draw of the expectation,
    from one network evaluation. Sample k depends on `key` and `indices[k]` (default k) alone.

    Raises:
      BoundError: if the network's answer is NaN or infinite.
    """
    if indices is None:
        indices = jnp.arange(x0.shape[0])
    t = jnp.asarray(t_min, x0.dtype)
    x, nats = _decoder_step(key, denoiser, x0, t, indices)
    require_finite(nats[None], jnp.broadcast_to(t, (1, len(x0))))
    return DecoderStep(x, nats)


# Streams of a sample's random numbers; stratum i has the noise of stream _STRATA + i.
_DECODER, _TIMES, _STRATA = range(3)


@partial(jax.jit, static_argnames="options")
def _diffusion(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Batch,
    indices: Int[Array, "batch"],
    options: ContinuousBoundOptions,
) -> tuple[Uniforms, Uniforms]:
    """The times drawn, and weight ||eps - eps_hat||^2 / 2 there, whose mean is the integral.

    Where little of the noise is predicted the square varies as ||eps||^2 does, whose mean D is
    known: c (||eps||^2 - D) is taken off, with c the neighbouring stratum's square / D, which is
    independent, so that nothing is biased.
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
    # The next one, not its pair's other: terms of a pair that used each other would be correlated,
    # and the standard error, made of their differences, too small.
    neighbours = jnp.concatenate([errors[1:], errors[-2:-1]])
    control = jnp.clip(neighbours / x0[0].size, 0, 1)
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
