r"""Points of the plane and short series from formulas, seeded, of any number.

The names are `points:NAME` and `series:NAME`. With u, v uniform on [0, 1), standard normal z, and
the angle a = 2 pi u,

    swiss_roll         r (cos b, sin b) / 15 + 0.02 z,   r = b = 1.5 pi (1 + 2 u)
    moons              (cos pi u, sin pi u), or (1 - cos pi u, 1/2 - sin pi u), + 0.08 z
    eight_gaussians    2 (cos k pi/4, sin k pi/4) + 0.2 z,   k = 0 .. 7
    checkerboard       uniform on the 8 dark squares of a board of 4 x 4 squares of side 1
    rings              R (cos a, sin a) + 0.02 z,   R = 1/4, 1/2, 3/4, 1

    waves              A w(f s + u) + 0.05 z,   s = 0, 1/32 .. 31/32, amplitude A in [1/2, 1],
                       frequency f in [1, 3], and w a sine, a triangle or a square wave

The moons, Gaussians, rings and waves have classes, which are equally likely: which moon, k, which
ring, which wave.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_CHECKERBOARD = 4  # squares along each side
_LENGTH = 32  # of a series

Random = np.random.Generator


class Drawn(NamedTuple):
    """Rows (n, ...) in float64, and their classes 0, 1, ...; None where there are none."""

    rows: Float[np.ndarray, "n ..."]
    labels: Int[np.ndarray, " n"] | None = None


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A distribution of points or series.

    Args:
        draw: draws rows, independent of each other, with a random generator.
        shape: (coordinates,) of points, (length, channels) of series.
        classes: number of classes; 0 for none.
    """

    draw: Callable[[Random, int], Drawn]
    shape: tuple[int, ...]
    classes: int = 0


def _swiss_roll(rng: Random, count: int) -> Drawn:
    angle = 1.5 * np.pi * (1 + 2 * rng.random(count))
    return Drawn((angle * _circle(angle)).T / 15 + 0.02 * rng.standard_normal((count, 2)))


def _moons(rng: Random, count: int) -> Drawn:
    labels, angle = rng.integers(0, 2, count), np.pi * rng.random(count)
    upper = _circle(angle)
    lower = np.stack([1 - upper[0], 0.5 - upper[1]])
    rows = np.where(labels, lower, upper).T
    return Drawn(rows + 0.08 * rng.standard_normal((count, 2)), labels)


def _eight_gaussians(rng: Random, count: int) -> Drawn:
    labels = rng.integers(0, 8, count)
    centers = 2 * _circle(labels * np.pi / 4).T
    return Drawn(centers + 0.2 * rng.standard_normal((count, 2)), labels)


def _checkerboard(rng: Random, count: int) -> Drawn:
    column = rng.integers(0, _CHECKERBOARD, count)
    row = 2 * rng.integers(0, _CHECKERBOARD // 2, count) + column % 2
    corner = np.stack([column, row], axis=1) - _CHECKERBOARD / 2
    return Drawn(corner + rng.random((count, 2)))


def _rings(rng: Random, count: int) -> Drawn:
    labels, angle = rng.integers(0, 4, count), 2 * np.pi * rng.random(count)
    rows = ((labels + 1) / 4 * _circle(angle)).T
    return Drawn(rows + 0.02 * rng.standard_normal((count, 2)), labels)


def _circle(angle: Float[np.ndarray, " n"]) -> Float[np.ndarray, "2 n"]:
    return np.stack([np.cos(angle), np.sin(angle)])


def _waves(rng: Random, count: int) -> Drawn:
    labels = rng.integers(0, 3, count)
    amplitude, frequency, phase = (
        rng.uniform(low, high, (count, 1)) for low, high in ((0.5, 1), (1, 3), (0, 1))
    )
    turns = (frequency * np.arange(_LENGTH) / _LENGTH + phase) % 1
    sine = np.sin(2 * np.pi * turns)
    waves = np.stack([sine, 4 * np.abs(turns - 0.5) - 1, np.where(turns < 0.5, 1.0, -1.0)])
    rows = amplitude * waves[labels, np.arange(count)]
    return Drawn((rows + 0.05 * rng.standard_normal((count, _LENGTH)))[..., None], labels)


# By the part of `config.data.name` after the colon, for each kind of data.
POINTS: dict[str, Generator] = {
    "swiss_roll": Generator(draw=_swiss_roll, shape=(2,)),
    "moons": Generator(draw=_moons, shape=(2,), classes=2),
    "eight_gaussians": Generator(draw=_eight_gaussians, shape=(2,), classes=8),
    "checkerboard": Generator(draw=_checkerboard, shape=(2,)),
    "rings": Generator(draw=_rings, shape=(2,), classes=4),
}
SERIES: dict[str, Generator] = {
    "waves": Generator(draw=_waves, shape=(_LENGTH, 1), classes=3),
}
