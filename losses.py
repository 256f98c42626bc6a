r"""One objective: the weighted Fisher divergence of model and data at all noise levels.

    E_t lambda(t) E || s(x_t, t) - grad log p_t(x_t) ||^2 + C,    x_t = alpha x_0 + sigma eps

Three estimators need no grad log p_t. They work for any network and any shape of data. In terms of
the predicted noise eps_hat = -sigma s, and without the factor lambda / sigma^2, they are

    denoising   || eps_hat - eps ||^2
    exact       || eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D
    sliced      || eps_hat ||^2 - 2 sigma v^T (d eps_hat / dx) v + D

in D dimensions, for random v with E v v^T = I (Vincent 2011 and Song et al. 2021, arXiv:2011.13456,
Eq. 7; Hyvarinen 2005; Song et al. 2019, arXiv:1905.07088, Eq. 8). E || eps ||^2 = D and, by Stein's
identity, E eps^T eps_hat(x_t) = sigma E tr(d eps_hat / dx). All three therefore have the same
expectation at each t, C included: the same scale, the same minimum, and the same meaning of weights
and times. With

    lambda = sigma^2   it is the squared error of the predicted noise (simple loss of DDPM, SMLD);
    lambda = g^2       it bounds the negative log-likelihood (arXiv:2101.09258, Theorem 1).

`objectives.times` has the distributions of the times, `objectives.weights` has other weights.

The exact and the sliced form see x_t but not eps, and distinguish x_t from its neighbors by the
slope of the network. Where the data lie on a surface, eps_hat has slopes of 1 / sigma across it.
These forms need the smoothness that noise gives: t_min well above 0.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from denoising import CONDITIONINGS, Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, pytree, sum_per_sample
from numerics.pixel_levels import PixelLevels
from numerics.traces import PROBES, exact_trace
from objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from objectives.distillation import ProgressiveDistillation
from objectives.ends import draw_noise
from objectives.maximum_likelihood import MaximumLikelihood
from objectives.mean_matching import MeanMatching
from objectives.times import TimeDistribution, Times, Uniform
from objectives.variational import DECODERS, VARIANCES, ChainBound
from objectives.weights import Sigma2, Weight
from sde_lib import SDE, OfLogSNR
from training.objective import Context, Losses, Objective

# From the sum over a sample's dimensions to its loss.
REDUCTIONS: dict[str, Callable[[int], float]] = {
    "mean": lambda dims: 1.0 / dims,
    "sum": lambda dims: 1.0,
    "half_sum": lambda dims: 0.5,
}


class Noise(NamedTuple):
    """The random numbers of a batch: one time and one noise per image."""

    t: Times
    eps: Batch


@dataclass(frozen=True, kw_only=True)
class NoiseObjective(Objective):
    """Base of the objectives: each image gets one random time and noise.

    Args:
        times: distribution of the times, one of `objectives.times`.
    """

    times: TimeDistribution = field(default_factory=Uniform)

    def init_state(self) -> Any:
        """Return the first state of the times."""
        return self.times.init_state()

    def draw(self, key: Key[Array, ""], model: Denoiser, x0: Batch, context: Context) -> Noise:
        """Draw one time and one noise per image."""
        time_key, noise_key = jax.random.split(key)
        t = self.times.draw(time_key, x0.shape[0], model.sde, context.state).astype(x0.dtype)
        return Noise(t, draw_noise(noise_key, model, x0, t))

    def weighted(
        self, drawn: Noise, losses: Float[Array, "batch"], model: Denoiser, context: Context
    ) -> Losses:
        """Return the losses divided by the density of their times, if that is wanted."""
        state = self.times.updated(context.state, drawn.t, losses)
        if self.times.divide_density:
            losses = losses / self.times.density(model.sde, drawn.t, context.state)
        return Losses(losses, state)


@dataclass(frozen=True, kw_only=True)
class FisherDivergence(NoiseObjective):
    """Base of the estimators: times, weight and reduction.

    Args:
        times: as in `NoiseObjective`.
        weight: lambda / sigma^2, one of `objectives.weights`.
        reduction: "mean" over a sample's dimensions, their "sum", or half of it: a name in
            REDUCTIONS. It scales the loss, and so the effect of gradient clipping.

    Raises:
        ValueError: for an unknown name.
    """

    weight: Weight = field(default_factory=Sigma2)
    reduction: str = "mean"

    def __post_init__(self) -> None:
        require_choice("reduction", self.reduction, REDUCTIONS)

    def evaluate(
        self, key: Key[Array, ""], drawn: Noise, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the weighted loss of each image at its time and noise."""
        t, eps = drawn
        probe_key = jax.random.fold_in(jax.random.split(key)[1], 0)
        weight = self.weight(model.sde, t) * REDUCTIONS[self.reduction](x0[0].size)
        x = model.sde.perturb(x0, t, eps)
        return weight * self.estimate(probe_key, model, x, t, eps)

    @abc.abstractmethod
    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return one number per sample, with the expectation E || eps_hat - eps ||^2.

        Args:
            key: for random directions.
            denoiser: gives eps_hat.
            x: x_t of shape (batch, ...).
            t: the times (batch,).
            eps: the noise in x.
        """


@dataclass(frozen=True, kw_only=True)
class ScoreMatching(FisherDivergence):
    """Weighted denoising score matching, with the fields of `FisherDivergence`."""

    takes_ends: ClassVar[bool] = True

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return || eps_hat - eps ||^2."""
        return sum_per_sample((denoiser.predict(x, t).eps - eps) ** 2)


@dataclass(frozen=True, kw_only=True)
class ExactScoreMatching(FisherDivergence):
    """Score matching by the exact trace, with the fields of `FisherDivergence`.

    It takes one directional derivative per dimension: for few dimensions.
    """

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return || eps_hat ||^2 - 2 sigma tr(d eps_hat / dx) + D."""
        predicted, jacobian = jax.linearize(lambda x: denoiser.predict(x, t).eps, x)
        trace = denoiser.sde.sigma(t) * exact_trace(jacobian, x)
        return sum_per_sample(predicted**2) - 2 * trace + x[0].size


@dataclass(frozen=True, kw_only=True)
class SlicedScoreMatching(FisherDivergence):
    """Sliced score matching, with one directional derivative per probe.

    Args:
        probes: number of random directions v per sample; the estimate is their average.
        directions: distribution of v, a name in `numerics.traces.PROBES`.
        variance_reduced: whether (v^T eps_hat)^2 is replaced by its expectation || eps_hat ||^2
            (SSM-VR of Song et al. 2019, Eq. 8, instead of their Eq. 7).

    The other fields are those of `FisherDivergence`.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    probes: int = 1
    directions: str = "rademacher"
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("probes", self.probes, "[1, inf)")
        require_choice("directions", self.directions, PROBES)

    def estimate(
        self, key: Key[Array, ""], denoiser: Denoiser, x: Batch, t: Times, eps: Batch
    ) -> Float[Array, "batch"]:
        """Return the mean of || eps_hat ||^2 - 2 sigma v^T (d eps_hat / dx) v + D over probes v."""
        predicted, jacobian = jax.linearize(lambda x: denoiser.predict(x, t).eps, x)

        def along(v: Batch) -> tuple[Times, Times]:
            return sum_per_sample(v * predicted) ** 2, sum_per_sample(v * jacobian(v))

        probes = PROBES[self.directions](key, self.probes, x)
        squares, traces = (jnp.mean(terms, axis=0) for terms in jax.vmap(along)(probes))
        if self.variance_reduced:
            squares = sum_per_sample(predicted**2)
        return squares - 2 * denoiser.sde.sigma(t) * traces + x[0].size


@dataclass(frozen=True, kw_only=True)
class VariationalBound(NoiseObjective):
    """The variational bound of a chain in bits/dim, without its prior's term: L_vlb.

    Ho et al. 2020, arXiv:2006.11239, Eq. 5-13; Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 4.
    Images must not be dequantized.

    Args:
        sde: the process.
        pixel_levels: the values of pixels.
        times: timesteps. Loss-aware ones make the mean of a batch vary
            less, since the terms differ by orders of magnitude.
        variance: the variance of the reverse steps: "learned" by the network, or fixed and "small"
            or "large". With a fixed one, the terms are weighted squared errors of the noise.
        decoder: the variance of p(x0 | x_t), a name in `objectives.variational.DECODERS`.
    """

    bounds_levels = True
    sde: SDE
    pixel_levels: PixelLevels
    variance: str = "learned"
    decoder: str = "chain"

    def __post_init__(self) -> None:
        own = [name for name, row in VARIANCES.items() if not row.needs]
        require_choice("variance", self.variance, own)
        require_choice("decoder", self.decoder, DECODERS)
        if self.times.num_timesteps is None:
            raise ValueError(
                "name='vlb' and 'hybrid' are bounds of a chain; choose config.times.name=timesteps "
                "or loss_aware, and a chain such as config.sde.name=ddpm"
            )

    @property
    def trains_variance(self) -> bool:
        """Whether the network's variance is trained."""
        return self.variance == "learned"

    @cached_property
    def _bound(self) -> ChainBound:
        assert self.times.num_timesteps is not None
        return ChainBound(
            sde=self.sde,
            num_timesteps=self.times.num_timesteps,
            variance=self.variance,
            decoder=self.decoder,
            pixel_levels=self.pixel_levels,
        )

    def evaluate(
        self, key: Key[Array, ""], drawn: Noise, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the bound of each image at its timestep and noise."""
        prediction = model.predict(model.sde.perturb(x0, *drawn), drawn.t)
        return self._bound.bits_per_dim(prediction, x0, *drawn)


@dataclass(frozen=True, kw_only=True)
class Hybrid(VariationalBound):
    """L_simple + coefficient L_vlb (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 16).

    The bound trains the variance alone: the predicted noise is trained by the first term.

    Args:
        coefficient: of the bound in bits/dim; 0.001 there.
        weight, reduction: of the first term, as in `FisherDivergence`.

    The other fields are those of `VariationalBound`.
    """

    coefficient: float = 0.001
    weight: Weight = field(default_factory=Sigma2)
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("coefficient", self.coefficient, "(0, inf)")
        require_choice("reduction", self.reduction, REDUCTIONS)
        if self.variance != "learned":
            raise ValueError(
                f"variance={self.variance!r}: name='hybrid' trains a learned variance; choose that,"
                " or name='denoising'"
            )

    def evaluate(
        self, key: Key[Array, ""], drawn: Noise, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return both terms of each image at its timestep and noise."""
        t, eps = drawn
        prediction = model.predict(model.sde.perturb(x0, t, eps), t)
        weight = self.weight(model.sde, t) * REDUCTIONS[self.reduction](x0[0].size)
        simple = weight * sum_per_sample((prediction.eps - eps) ** 2)
        x0_hat, eps_hat = jax.lax.stop_gradient((prediction.x0, prediction.eps))
        frozen = prediction._replace(x0=x0_hat, eps=eps_hat)
        return simple + self.coefficient * self._bound.bits_per_dim(frozen, x0, t, eps)


@dataclass(frozen=True, kw_only=True)
class LearnedSchedule(NoiseObjective):
    r"""The variational bound in continuous time, with the noise schedule that makes it vary least.

    Kingma et al. 2021, arXiv:2107.00630, Section 3 to 5, in bits/dim, with gamma = -log_snr:

        L = KL(q(x_1 | x0) || prior) + E[-log p(x0 | x_0)] + E_t l_t
        l_t = 1/2 gamma'(t) || eps_hat(x_t, gamma(t)) - eps ||^2

    L trains the network and both ends of gamma. Between the ends, gamma does not change L, only how
    much l_t varies (Section 5.1). So its interior eta is trained to minimize E l_t^2
    (Appendix I), by the chain rule from one evaluation of the network:

        d l_t^2 / d eta = 2 l_t (dl_t / dgamma dgamma / deta + dl_t / dgamma' dgamma' / deta)

    The decoder p(x0 | x_0) is q(x_0 | x0), normalized over the levels of each pixel (Section 3.3).
    Images must not be dequantized. Times end at t_min, which takes the place of 0.

    Args:
        times: uniform or stratified.
        pixel_levels: the values of pixels.
    """

    trains_process = True
    bounds_levels = True
    pixel_levels: PixelLevels

    def __post_init__(self) -> None:
        if not isinstance(self.times, Uniform):
            raise ValueError(
                "name='learned_schedule' learns which noise levels are drawn; choose "
                "config.times.name=stratified or uniform"
            )

    def evaluate(
        self, key: Key[Array, ""], drawn: Noise, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the bound of each image at its time and noise."""
        learned, frozen = model.sde.parameters(), jax.lax.stop_gradient(model.sde.parameters())
        ends = model.sde.with_parameters(learned | {"interior": frozen["interior"]})
        interior = model.sde.with_parameters(frozen | {"interior": learned["interior"]})
        to_bits = 1 / (x0[0].size * math.log(2))

        def diffusion(gamma: Times, speed: Times) -> Float[Array, "batch"]:
            at = replace(model, sde=NoiseLevels(levels=-gamma))
            error = at.predict(at.sde.perturb(x0, *drawn), drawn.t).eps - drawn.eps
            return 0.5 * (1 - self._t_min) * speed * sum_per_sample(error**2) * to_bits

        gamma, speed = _gamma(ends, drawn.t)
        along_gamma = (jnp.ones_like(gamma), jnp.zeros_like(speed))
        loss, by_gamma = jax.jvp(diffusion, (gamma, speed), along_gamma)
        by_gamma, by_speed = jax.lax.stop_gradient((by_gamma, loss / speed))
        gamma, speed = _gamma(interior, drawn.t)
        square = 2 * jax.lax.stop_gradient(loss) * (by_gamma * gamma + by_speed * speed)
        bound = loss + self._at_ends(key, ends, x0) * to_bits
        # Adds the gradient of the square, and nothing to the value.
        return bound + square - jax.lax.stop_gradient(square)

    def _at_ends(self, key: Key[Array, ""], sde: SDE, x0: Batch) -> Float[Array, "batch"]:
        """Return the terms of the prior and the decoder, in nats."""
        end, start = jnp.ones((), x0.dtype), jnp.asarray(self._t_min, x0.dtype)
        gap = 2 * sde.log_sigma(end)  # log sigma^2; the prior is N(0, I)
        prior = sum_per_sample((sde.alpha(end) * x0) ** 2) + x0[0].size * (jnp.expm1(gap) - gap)
        log_std = -sde.log_snr(start) / 2
        # `split` has taken the numbers 0 and 1 of this key.
        noise = jax.random.normal(jax.random.fold_in(key, 2), x0.shape, x0.dtype)
        noisy = x0 + jnp.exp(log_std) * noise
        surprise = -self.pixel_levels.log_posterior(x0, noisy, log_std)
        return 0.5 * prior + sum_per_sample(surprise)

    @property
    def _t_min(self) -> float:
        assert isinstance(self.times, Uniform)
        return self.times.t_min


@pytree()
@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseLevels(OfLogSNR):
    """One given log-SNR per image of a batch, whatever the time."""

    levels: Float[Array, "batch"]

    def log_snr(self, t: Times) -> Times:
        """Return the given ones."""
        return jnp.broadcast_to(self.levels, jnp.shape(t))


def sees_noise_alone(conditioning: str) -> bool:
    """Return whether a network's time input depends on the log-SNR alone, not on the time."""
    sde, times = NoiseLevels(levels=jnp.array([-2.0, 3.0])), jnp.array([0.25, 0.5])
    earlier, later = (CONDITIONINGS[conditioning](sde, t, 1000) for t in (times, 1 - times / 2))
    return bool(jnp.all(earlier == later))


def _gamma(sde: SDE, t: Times) -> tuple[Times, Times]:
    """Return gamma = -log_snr and its derivative by time."""
    return jax.jvp(lambda t: -sde.log_snr(t), (t,), (jnp.ones_like(t),))


# The objectives by name: the estimators, the bounds, the likelihood of an energy, those of networks
# for few steps, and that of the diffusion Schroedinger bridge.
LOSSES: dict[str, type[Objective]] = {
    "denoising": ScoreMatching,
    "exact": ExactScoreMatching,
    "sliced": SlicedScoreMatching,
    "vlb": VariationalBound,
    "hybrid": Hybrid,
    "learned_schedule": LearnedSchedule,
    "maximum_likelihood": MaximumLikelihood,
    "consistency_training": ConsistencyTraining,
    "consistency_distillation": ConsistencyDistillation,
    "progressive_distillation": ProgressiveDistillation,
    "mean_matching": MeanMatching,
}
