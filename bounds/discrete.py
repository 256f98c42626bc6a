r"""The variational bound on the probability of an image, along any decreasing grid of times.

The model is a chain of steps between noisy versions x_t of x0, at times t_1 = 1 > ... > t_n. Then

    -log p(x0) <= L_T + L_2 + ... + L_n + L_0                  (Ho et al. 2020, 2006.11239, Eq. 5)
    L_T = KL(q(x_T | x0) || prior)                             T = t_1
    L_i = E KL(q(x_s | x_t, x0) || p(x_s | x_t))               from t = t_(i-1) to s = t_i
    L_0 = -E log p(x0 | x_t)                                   t = t_n

`objectives.variational` has the terms. x0 is not dequantized.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser, Prediction
from errors import BoundError, require_choice
from numerics.arrays import (
    Batch,
    fold_in_each,
    in_float64,
    is_traced,
    normal_like,
    pad_to_block,
    require_batch,
    require_numbers,
    sample_indices,
    sample_keys,
    sum_per_sample,
    whole,
)
from numerics.pixel_levels import PixelLevels
from objectives.uncertainty import TIMESTEP_CHOICES
from objectives.variational import (
    DECODERS,
    VARIANCES,
    Steps,
    bound_tables,
    decoder_surprise,
    step_divergence,
)
from sde_lib import SDE


@dataclass(frozen=True, kw_only=True)
class DiscreteBoundOptions:
    """Variances of the reverse steps of the bound.

    Args:
        variance: the variance of p(x_s | x_t), a name in VARIANCES. Optimal ones need a denoiser
            with an `uncertainty`.
        timestep_choice: "grid" takes the given times; "optimal" takes as many steps along the path
            of least cost, `solvers.analytic_dpm.optimal_times`, from whoever gives the times.
        decoder: the variance of p(x0 | x_t), a name in DECODERS. "chain" is the published one. A
            step to clean data would have the small variance 0, which the small variance of the last
            step replaces, for variance="large" too. "tweedie" is (sigma / alpha)^2. It is better
            for fine grids, where the last step's small variance is far below sigma^2, if sigma is a
            gray level or more.

    Raises:
        ValueError: for an unknown name.
    """

    variance: str = "small"
    timestep_choice: str = "grid"
    decoder: str = "chain"

    def __post_init__(self) -> None:
        require_choice("variance", self.variance, VARIANCES)
        require_choice("timestep_choice", self.timestep_choice, TIMESTEP_CHOICES)
        require_choice("decoder", self.decoder, DECODERS)

    @property
    def needs(self) -> frozenset[str]:
        """What a checkpoint must come with, as in `objectives.variational.Variance.needs`."""
        optimal = "moments" if self.timestep_choice == "optimal" else ""
        return frozenset({VARIANCES[self.variance].needs, optimal} - {""})


class DiscreteBound(NamedTuple):
    """The bound on -log p(x0) of each image in nats, its terms, and its cost.

    total = prior + terms.sum(axis=0) + decoder: L_T, the terms L_i of the step to `times[1 + i]`,
    and L_0. `terms` and `decoder` are one draw of their expectations. `squares` are mean squared
    errors of the x0 that is predicted at each time, clipped to the range of pixels. `nfe` is the
    number of network evaluations per image.
    """

    total: Float[Array, "batch"]
    prior: Float[Array, "batch"]
    terms: Float[Array, "steps batch"]
    decoder: Float[Array, "batch"]
    squares: Float[Array, "times batch"]
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
    table, decoder = bound_tables(denoiser.sde, times, options.decoder)
    pixel_levels.require(x0)
    x0 = require_batch(x0)
    denoiser.require_mean("a bound on the likelihood")
    indices = sample_indices(key, x0.shape, indices)
    table = Steps(*(jnp.asarray(pad_to_block(column), x0.dtype) for column in table))
    decoder = jnp.asarray(decoder, x0.dtype)
    steps = len(times) - 1
    found, squares = _terms(
        key, denoiser, x0, indices, table, decoder, steps, options, pixel_levels
    )
    require_finite(found[: steps + 1], np.broadcast_to(times[:, None], (steps + 1, len(x0))))
    prior = prior_divergence(denoiser.sde, x0, float(times[0]))
    total = prior + jnp.sum(found, axis=0)
    squares = squares[: steps + 1] / x0[0].size
    return DiscreteBound(total, prior, found[:steps], found[steps], squares, steps + 1)


def received_images(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Float[Array, "batch *shape"],
    *,
    times: Float[np.ndarray, "times"],
    chosen: Int[np.ndarray, "chosen"],
    indices: Int[Array, "batch"] | None = None,
) -> Float[Array, "chosen batch *shape"]:
    """Return the x0 that a receiver predicts at some of the times: `times[chosen]`.

    These are the images behind `squares` of `discrete_bound`, with the same noises, before they are
    clipped. The other arguments are those of `discrete_bound`.
    """
    x0 = require_batch(x0)
    keys = sample_keys(key, sample_indices(key, x0.shape, indices))
    found = [
        _noisy_prediction(keys, denoiser, x0, jnp.asarray(i), jnp.asarray(times[i], x0.dtype))
        for i in chosen
    ]
    return jnp.stack([prediction.x0 for prediction, _ in found])


def prior_divergence(
    sde: SDE, x0: Float[Array, "batch *shape"], t: float = 1.0
) -> Float[Array, "batch"]:
    """Return KL(q(x_t | x0) || prior) in nats, of N(alpha x0, sigma^2) from N(0, prior_std^2).

    1/2 sum[ sigma^2 / prior_std^2 - 1 - log(sigma^2 / prior_std^2) + alpha^2 x0^2 / prior_std^2 ]
    """
    require_numbers(sde)
    log_alpha, log_sigma = in_float64(lambda t: (sde.log_alpha(t), sde.log_sigma(t)), t)
    log_prior = math.log(sde.prior_std)
    gap = 2 * (float(log_sigma) - log_prior)
    scale = math.exp(float(log_alpha) - log_prior)
    return _half_squares(x0, scale, math.prod(x0.shape[1:]) * (math.expm1(gap) - gap))


@jax.jit
def _half_squares(
    x0: Float[Array, "batch *shape"], scale: Float[Array, ""], rest: Float[Array, ""]
) -> Float[Array, "batch"]:
    """Return half of the sum of squares of each scaled sample and `rest`, in one program."""
    return 0.5 * (sum_per_sample((scale * x0) ** 2) + rest)


def require_finite(
    terms: Float[Array, "terms batch"], times: Float[np.ndarray | Array, "terms batch"]
) -> None:
    """Raise BoundError unless all terms are finite; the message names the latest time.

    Inside jit, nothing is known yet.
    """
    if is_traced(terms):
        return
    bad = ~np.isfinite(whole(terms))
    if bad.any():
        raise BoundError(
            f"{bad.any(axis=0).sum()} of {bad.shape[1]} samples have a term of the bound that is "
            f"NaN or infinite, the first at t={whole(times)[bad].max():.4g}; check the "
            "network's output there"
        )


@jax.jit
def _noisy_prediction(
    keys: Key[Array, "batch"],
    denoiser: Denoiser,
    x0: Batch,
    i: Int[Array, ""],
    t: Float[Array, ""],
) -> tuple[Prediction, Batch]:
    """Return what is predicted at time number i, t, and the noise there."""
    eps = normal_like(fold_in_each(keys, i), x0)
    return denoiser.predict(denoiser.sde.perturb(x0, t, eps), t), eps


@partial(jax.jit, static_argnames=("options", "pixel_levels"))
def _terms(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x0: Batch,
    indices: Int[Array, "batch"],
    table: Steps,
    decoder: Float[Array, "2"],
    steps: int | Int[Array, ""],
    options: DiscreteBoundOptions,
    pixel_levels: PixelLevels,
) -> tuple[Float[Array, "rows batch"], Float[Array, "rows batch"]]:
    """Return the terms, and the squared errors of x0 that is predicted at each time.

    Row i < `steps` is for the step from time i, row `steps` for the decoder.
    """
    keys = sample_keys(key, indices)

    def body(
        i: Int[Array, ""], found: tuple[Float[Array, "rows batch"], Float[Array, "rows batch"]]
    ) -> tuple[Float[Array, "rows batch"], Float[Array, "rows batch"]]:
        terms, squares = found
        prediction, eps = _noisy_prediction(keys, denoiser, x0, i, table.t[i])

        def divergence() -> Batch:
            growth, log_range = table.growth[i], table.log_range[i]
            return step_divergence(prediction, eps, growth, log_range, options.variance)

        def surprise() -> Batch:
            return decoder_surprise(prediction, x0, decoder, options.variance, pixel_levels)

        term = sum_per_sample(jax.lax.cond(i == steps, surprise, divergence))
        seen = jnp.clip(prediction.x0, pixel_levels.low, pixel_levels.high)
        square = sum_per_sample((seen - x0) ** 2)
        return terms.at[i].set(term), squares.at[i].set(square)

    empty = jnp.zeros((table.t.shape[0], x0.shape[0]), x0.dtype)
    return jax.lax.fori_loop(0, steps + 1, body, (empty, empty))
