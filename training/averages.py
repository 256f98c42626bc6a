"""Averages of the parameters over training, kept beside them.

    average <- average + (1 - rate) (params - average)

    MovingAverage    rate is constant, after a warm-up
    HalfLifeAverage  rate = 2^(-batch / h), h = min(half-life, ramp-up x images seen)
    PowerAverage     rate = (1 - 1/n)^(gamma + 1) at update n

Half-lives in images are those of EDM (Karras et al. 2022, arXiv:2206.00364). Power functions are
those of Karras et al. 2024 (arXiv:2312.02696), Section 3. From snapshots of two of them,
`training.post_hoc` computes the average of any length after training.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from errors import require_in
from training.post_hoc import LENGTHS, exponent_of


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """Exponential moving average of the parameters.

    Args:
        rate: weight of the old average.
        warmup: whether the rate at update n is min(rate, (1 + n) / (10 + n)), so that early
            averages follow the network rather than remember its initialization.

    Raises:
        ValueError: for a rate out of range.
    """

    rate: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        require_in("rate", self.rate, "[0, 1)")

    def update(self, average: Any, params: Any, step: Int[Array, ""]) -> Any:
        """Return the average after update number `step`, counted from 0."""
        rate = jnp.float32(self.rate)
        if self.warmup:
            rate = jnp.minimum(rate, (1.0 + step) / (10.0 + step))
        return _move(average, params, 1 - rate)


@dataclass(frozen=True, kw_only=True)
class HalfLifeAverage:
    """Exponential average that forgets half in a number of images, as EDM trains.

    Args:
        half_life_images: images after which an old value counts half.
        ramp_up: largest half-life as a fraction of the images seen so far, so that early averages
            follow the network; 0 for no limit.
        batch_size: images per update.

    Raises:
        ValueError: for a number out of range.
    """

    half_life_images: float
    ramp_up: float = 0.05
    batch_size: int = 128

    def __post_init__(self) -> None:
        require_in("half_life_images", self.half_life_images, "(0, inf)")
        require_in("ramp_up", self.ramp_up, "[0, inf)")

    @property
    def rate(self) -> float:
        """The weight of the old average once the half-life is full."""
        return 0.5 ** (self.batch_size / self.half_life_images)

    def update(self, average: Any, params: Any, step: Int[Array, ""]) -> Any:
        """Return the average after update number `step`."""
        half_life = jnp.asarray(self.half_life_images, float)
        if self.ramp_up:
            half_life = jnp.minimum(half_life, self.ramp_up * self.batch_size * _real(step))
        return _move(average, params, -jnp.expm1(-math.log(2) * self.batch_size / half_life))


ExponentialAverage = MovingAverage | HalfLifeAverage


@dataclass(frozen=True, kw_only=True)
class PowerAverage:
    """Average with weights proportional to a power of time (Karras et al. 2024, Eq. 1-2).

    After n updates, the parameters after update k have weight (k/n)^(g + 1) - ((k-1)/n)^(g + 1)
    with the exponent g. They do not depend on the initialization.

    Args:
        length: standard deviation of the weights as a fraction of training so far, sigma_rel.

    Raises:
        ValueError: for a length out of range.
    """

    length: float

    def __post_init__(self) -> None:
        require_in("length", self.length, LENGTHS)

    def update(self, average: Any, params: Any, step: Int[Array, ""]) -> Any:
        """Return the average after update number `step`."""
        # 1 - (1 - 1/n)^(g + 1), without loss of digits where n is large.
        log_rate = (exponent_of(self.length) + 1) * jnp.log1p(-1 / (_real(step) + 1))
        return _move(average, params, -jnp.expm1(log_rate))


Average = ExponentialAverage | PowerAverage


@dataclass(frozen=True, kw_only=True)
class MoreAverages:
    """The averages that training keeps beside the main one.

    Args:
        more_rates: rates of further exponential averages, each a `MovingAverage`.
        warmup: their warm-up.
        lengths: lengths of the power-function averages of which snapshots are stored.
        snapshot_every: steps between snapshots; 0 keeps neither snapshots nor these averages.

    Raises:
        ValueError: for a number out of range, or one that is given twice.
    """

    more_rates: tuple = ()
    warmup: bool = True
    lengths: tuple = (0.05, 0.1)
    snapshot_every: int = 0

    def __post_init__(self) -> None:
        for field, interval in (("more_rates", "[0, 1)"), ("lengths", LENGTHS)):
            values = getattr(self, field)
            for value in values:
                if type(value) not in (int, float):
                    raise ValueError(f"{field}={values!r} must be numbers")
                require_in(field, value, interval)
            if len(set(values)) < len(values):
                raise ValueError(f"{field}={values!r} has a number twice; give it once")
        require_in("snapshot_every", self.snapshot_every, "[0, inf)")
        if self.snapshot_every and not self.lengths:
            raise ValueError(
                f"snapshot_every={self.snapshot_every} stores nothing with lengths=(); give "
                "lengths, such as (0.05, 0.1)"
            )

    @cached_property
    def powers(self) -> Mapping[str, Average]:
        """The power-function averages by name, such as "length_0.05"."""
        lengths = self.lengths if self.snapshot_every else ()
        return {length_name(length): PowerAverage(length=length) for length in lengths}

    @cached_property
    def rates(self) -> Mapping[str, Average]:
        """The further exponential averages by name, such as "rate_0.999"."""
        return {
            f"rate_{rate}": MovingAverage(rate=rate, warmup=self.warmup) for rate in self.more_rates
        }

    def init(self, params: Any) -> dict[str, Any]:
        """Return the first averages: copies of the parameters, each with its own memory."""
        return {name: jax.tree.map(jnp.copy, params) for name in self._all}

    def update(self, averages: dict[str, Any], params: Any, step: Int[Array, ""]) -> dict[str, Any]:
        """Return all averages after update number `step`."""
        return {
            name: average.update(averages[name], params, step)
            for name, average in self._all.items()
        }

    @property
    def _all(self) -> dict[str, Average]:
        return {**self.rates, **self.powers}


def length_name(length: float) -> str:
    """Return the name of the power-function average of a length."""
    return f"length_{length}"


def _real(step: Int[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(step, jnp.result_type(float))


def _move(average: Any, params: Any, weight: Float[Array, ""]) -> Any:
    """Return the average moved toward the parameters by a fraction, in the average's precision."""
    return jax.tree.map(lambda a, p: a + weight.astype(a.dtype) * (p - a), average, params)
