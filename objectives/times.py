r"""Distributions of the noise levels in training, by name.

A loss is a mean over random times, of density p(t) relative to uniform times:

    L = E_(t ~ p) lambda(t) l(t) / d(t)

With d = 1 the density is part of the objective: a time that is drawn more often counts more. EDM
and flow matching train so. With d = p the expectation is that of uniform times whatever p is, and p
changes the variance alone. Improved DDPM draws its times so, and likelihood weighting can.
`divide_density` chooses between the two.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from errors import require_in
from sde_lib import SDE

Times = Float[Array, "batch"]


def log_snr_range(sde: SDE, t_min: float, dtype: Any = float) -> Float[Array, "2"]:
    """Return the log-SNR at t = 1 and at t_min: the smallest and the largest one."""
    return sde.log_snr(jnp.array([1.0, t_min], dtype))


def log_snr_times(sde: SDE, u: Float[Array, "*batch"], t_min: float) -> Float[Array, "*batch"]:
    """Return the times in [t_min, 1] whose log-SNR is the fraction `u` of its range.

    If u is uniform on [0, 1], these times have the density
    (g^2 / sigma^2) / (log_snr(t_min) - log_snr(1)).
    """
    low, high = log_snr_range(sde, t_min, u.dtype)
    return jnp.clip(sde.time_of_log_snr(low + (high - low) * u), t_min, 1.0)


def log_snr_speed(sde: SDE, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return -d log_snr / dt = g^2 / sigma^2."""
    return sde.squared_diffusion(t) / sde.sigma(t) ** 2


def stratified(key: Key[Array, ""], batch: int, dtype: Any = float) -> Times:
    """Draw numbers (batch,), each uniform on [0, 1), that together cover it evenly.

    They share one offset, which lowers the variance of a batch's loss (Kingma et al. 2021,
    arXiv:2107.00630, appendix I.1).
    """
    offset = jax.random.uniform(key, (), dtype)
    return (offset + jnp.arange(batch) / batch).astype(dtype) % 1.0


class TimeDistribution(abc.ABC):
    """Base of the distributions of times.

    Attributes:
        num_timesteps: number of the times i / (num_timesteps - 1), i = 0, 1, ..., if only these are
            drawn; None for continuous times.
        divide_density: whether losses are divided by the density of the times.
    """

    num_timesteps: int | None = None
    divide_density: bool = False

    def init_state(self) -> Any:
        """Return the first state; () for a distribution that does not change."""
        return ()

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw the times (batch,) of a batch; `state` is () for the first state."""

    def density(self, sde: SDE, t: Times, state: Any = ()) -> Times | float:
        """Return the density of the times, relative to that of uniform times."""
        return 1.0

    def updated(self, state: Any, t: Times, losses: Float[Array, "batch"]) -> Any:
        """Return the state after a batch with these losses, before any division."""
        return state


@dataclass(frozen=True, kw_only=True)
class _Continuous(TimeDistribution):
    """Base of the distributions on [t_min, 1]."""

    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_in("t_min", self.t_min, "(0, 1)")


@dataclass(frozen=True, kw_only=True)
class _OfNormal(_Continuous):
    """Base of the distributions in which a function of the time is normal."""

    mean: float = 0.0
    std: float = 1.0
    divide_density: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("mean", self.mean, "(-inf, inf)")
        require_in("std", self.std, "(0, inf)")

    def normal_density(self, value: Times) -> Times:
        """Return the normal density of that function's values."""
        z = (value - self.mean) / self.std
        return jnp.exp(-(z**2) / 2) / (self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True, kw_only=True)
class Uniform(_Continuous):
    """Independent times, uniform on [t_min, 1].

    Args:
        t_min: the smallest time, in (0, 1); 1e-5 in Song et al. 2021 (arXiv:2011.13456).
    """

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw independent times."""
        return self.t_min + (1 - self.t_min) * jax.random.uniform(key, (batch,))


@dataclass(frozen=True, kw_only=True)
class Stratified(Uniform):
    """Uniform times that together cover [t_min, 1] evenly; fields as in `Uniform`."""

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw evenly spaced times with a random offset."""
        return self.t_min + (1 - self.t_min) * stratified(key, batch)


@dataclass(frozen=True, kw_only=True)
class Timesteps(TimeDistribution):
    """The times i / (num_timesteps - 1) of a chain, equally often, as SMLD and DDPM train.

    Args:
        num_timesteps: their number.
    """

    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw independent timesteps."""
        drawn = jax.random.randint(key, (batch,), 0, self.num_timesteps)
        return drawn / (self.num_timesteps - 1)


@dataclass(frozen=True, kw_only=True)
class LogSNR(_Continuous):
    """Times whose log-SNR is uniform and stratified (Kingma et al. 2021, arXiv:2107.00630).

    Args:
        t_min: the smallest time, in (0, 1).
        divide_density: keep the expectation of uniform times. It is on by default. With the weight
            g2 the variance is then smaller than that of uniform times, because all weights are
            equal (Song et al. 2021, arXiv:2101.09258, Section 5.1). Without it, weights are
            densities over the log-SNR, as in Kingma & Gao 2023 (arXiv:2303.00848).
    """

    divide_density: bool = True

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw times evenly spaced in log-SNR, with a random offset."""
        return log_snr_times(sde, stratified(key, batch), self.t_min)

    def density(self, sde: SDE, t: Times, state: Any = ()) -> Times:
        """Return (1 - t_min) (g^2 / sigma^2) / (log_snr(t_min) - log_snr(1))."""
        low, high = log_snr_range(sde, self.t_min)
        return (1 - self.t_min) * log_snr_speed(sde, t) / (high - low)


@dataclass(frozen=True, kw_only=True)
class LogNormal(_OfNormal):
    """Times at which log(sigma / alpha) is normal: EDM's choice (arXiv:2206.00364, Table 1).

    Noise levels outside the process's range are moved to its ends.

    Args:
        mean: mean of log(sigma / alpha), P_mean there. EDM's data lie in [-1, 1].
        std: standard deviation of log(sigma / alpha), P_std there.
        t_min: the smallest time, in (0, 1).
        divide_density: keep the expectation of uniform times; off in EDM.
    """

    mean: float = -1.2
    std: float = 1.2

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw independent times."""
        log_level = self.mean + self.std * jax.random.normal(key, (batch,))
        return jnp.clip(sde.time_of_log_snr(-2 * log_level), self.t_min, 1.0)

    def density(self, sde: SDE, t: Times, state: Any = ()) -> Times:
        """Return the density inside the range; the mass at its ends has none."""
        normal = self.normal_density(-sde.log_snr(t) / 2)
        return (1 - self.t_min) * normal * log_snr_speed(sde, t) / 2


@dataclass(frozen=True, kw_only=True)
class LogitNormal(_OfNormal):
    """Times whose logit is normal: more of the middle (Esser et al. 2024, 2403.03206, Eq. 19).

    Args:
        mean: mean of log(t / (1 - t)); above 0 for more noise.
        std: its standard deviation.
        t_min: the smallest time, in (0, 1); the distribution is squeezed into [t_min, 1].
        divide_density: keep the expectation of uniform times; off there.
    """

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw independent times."""
        u = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (batch,)))
        return self.t_min + (1 - self.t_min) * u

    def density(self, sde: SDE, t: Times, state: Any = ()) -> Times:
        """Return the density of the squeezed logit-normal distribution."""
        u = (t - self.t_min) / (1 - self.t_min)
        return self.normal_density(jnp.log(u) - jnp.log1p(-u)) / (u * (1 - u))


class LossHistory(NamedTuple):
    """The latest losses at each level, and how many there have been.

    `losses[i, count[i] % length]` is overwritten next.
    """

    losses: Float[Array, "levels length"]
    count: Int[Array, "levels"]


class _LossAware(TimeDistribution):
    """Times drawn in proportion to the root mean square of the latest losses at their level.

    The mean of losses divided by the density then varies least (Nichol & Dhariwal 2021,
    arXiv:2102.09672, Section 3.3). Until each level has its full history, all are equally likely.
    """

    levels: int
    history: int
    uniform: float

    def init_state(self) -> LossHistory:
        """Return an empty history."""
        return LossHistory(
            jnp.zeros((self.levels, self.history)), jnp.zeros(self.levels, jnp.int32)
        )

    def probabilities(self, state: Any) -> Float[Array, "levels"]:
        """Return the probability of each level."""
        if state == ():
            return jnp.full(self.levels, 1 / self.levels)
        size = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
        share = (1 - self.uniform) * size / jnp.sum(size) + self.uniform / self.levels
        return jnp.where(jnp.all(state.count >= self.history), share, 1 / self.levels)

    def density(self, sde: SDE, t: Times, state: Any = ()) -> Times:
        """Return the probability of the level, relative to that of uniform ones."""
        return self.levels * self.probabilities(state)[self._level(t)]

    def updated(self, state: Any, t: Times, losses: Float[Array, "batch"]) -> Any:
        """Return the history with the losses of a batch, in its order; without one, ()."""
        if state == ():  # an evaluation keeps none
            return ()
        level = self._level(t)
        same = level[:, None] == level[None, :]
        before = jnp.sum(jnp.tril(same, -1), axis=1)  # earlier ones of the batch at the same level
        after = jnp.sum(jnp.triu(same, 1), axis=1)
        slot = (state.count[level] + before) % self.history
        # If a batch has more of a level than the history holds, only the last ones are kept.
        level_or_none = jnp.where(after < self.history, level, self.levels)
        kept = jax.lax.stop_gradient(losses).astype(state.losses.dtype)
        written = state.losses.at[level_or_none, slot].set(kept, mode="drop")
        return LossHistory(written, state.count.at[level].add(1))

    @abc.abstractmethod
    def _level(self, t: Times) -> Int[Array, "batch"]:
        """Return the level of each time."""

    def _draw_levels(self, key: Key[Array, ""], batch: int, state: Any) -> Int[Array, "batch"]:
        ends = jnp.cumsum(self.probabilities(state))
        u = jax.random.uniform(key, (batch,)) * ends[-1]
        return jnp.minimum(jnp.searchsorted(ends, u, side="right"), self.levels - 1)


@dataclass(frozen=True, kw_only=True)
class LossAware(_LossAware):
    """Timesteps of a chain in proportion to their latest losses, as improved DDPM draws them.

    Args:
        num_timesteps: number of timesteps.
        history: latest losses that are kept for each.
        uniform: probability that is spread evenly over all timesteps.
        divide_density: keep the expectation of uniform timesteps.
    """

    num_timesteps: int = 1000
    history: int = 10
    uniform: float = 0.001
    divide_density: bool = True

    def __post_init__(self) -> None:
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        require_in("history", self.history, "[1, inf)")
        require_in("uniform", self.uniform, "(0, 1]")

    @property
    def levels(self) -> int:
        """The number of timesteps."""
        return self.num_timesteps

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw independent timesteps."""
        return self._draw_levels(key, batch, state) / (self.num_timesteps - 1)

    def _level(self, t: Times) -> Int[Array, "batch"]:
        return jnp.round(t * (self.num_timesteps - 1)).astype(jnp.int32)


@dataclass(frozen=True, kw_only=True)
class LossAwareBins(_LossAware):
    """Continuous times in proportion to the latest losses of their bin.

    Args:
        bins: number of bins of equal width in [t_min, 1].
        history: latest losses that are kept for each bin.
        uniform: probability that is spread evenly over all bins.
        t_min: the smallest time, in (0, 1).
        divide_density: keep the expectation of uniform times.
    """

    bins: int = 100
    history: int = 10
    uniform: float = 0.001
    t_min: float = 1e-5
    divide_density: bool = True

    def __post_init__(self) -> None:
        require_in("bins", self.bins, "[2, inf)")
        require_in("history", self.history, "[1, inf)")
        require_in("uniform", self.uniform, "(0, 1]")
        require_in("t_min", self.t_min, "(0, 1)")

    @property
    def levels(self) -> int:
        """The number of bins."""
        return self.bins

    def draw(self, key: Key[Array, ""], batch: int, sde: SDE, state: Any = ()) -> Times:
        """Draw independent times, uniform in their bins."""
        level_key, place_key = jax.random.split(key)
        level = self._draw_levels(level_key, batch, state)
        u = (level + jax.random.uniform(place_key, (batch,))) / self.bins
        return self.t_min + (1 - self.t_min) * u

    def _level(self, t: Times) -> Int[Array, "batch"]:
        u = (t - self.t_min) / (1 - self.t_min)
        return jnp.clip(jnp.floor(u * self.bins), 0, self.bins - 1).astype(jnp.int32)


TIMES: dict[str, type[TimeDistribution]] = {
    "uniform": Uniform,
    "stratified": Stratified,
    "timesteps": Timesteps,
    "log_snr": LogSNR,
    "log_normal": LogNormal,
    "logit_normal": LogitNormal,
    "loss_aware": LossAware,
    "loss_aware_bins": LossAwareBins,
}
