"""The kinds of data, a row of KINDS each: images, points, series.

A kind says what a row of the data is, in which unit its likelihood is reported, how samples are
shown, and which measurements suit it where a configuration names none.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from errors import ConfigError
from files.figures import point_pictures, series_pictures
from files.pictures import image_grid
from metrics.bits_per_dim import BITS, NATS, Unit
from models import kinds_of

Pictures = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is measured where a configuration leaves it open.

    Attributes:
        likelihood: its metric.
        features: features of an evaluation.
        thumbnails: features during training.
        of_samples: further metrics of an evaluation.
    """

    likelihood: str
    features: str
    thumbnails: str
    of_samples: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        """The values of the fields of a configuration, by section and name."""
        in_training = ("loss", "noise_levels"), (self.likelihood,), ("frechet", "weights")
        return {
            "eval": {
                "metrics": ("loss", self.likelihood, "frechet", *self.of_samples),
                "features": (self.features,),
            },
            "diagnostics": {
                "metrics": tuple(itertools.chain(*in_training)),
                "features": self.thumbnails,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of data.

    Attributes:
        name: its name in KINDS.
        one: what a row of the data is called.
        quantized: whether rows are stored as gray levels; otherwise, as floats in their own units.
        unit: the unit of likelihoods.
        pictures: from frames of samples to a picture (h, w, c) of each, all with the same axes.
        shown: samples that a picture shows.
        measurements: what is measured where a configuration leaves it open.
    """

    name: str
    one: str
    quantized: bool
    unit: Unit
    pictures: Pictures
    shown: int
    measurements: Measurements

    def is_among(self, names: Collection[str]) -> bool:
        """Return whether it is one of the kinds named, where none stands for all."""
        return not names or self.name in names

    def require_images(self, what: str, remedy: str) -> None:
        """Raise ConfigError unless the data are images, which `what` needs."""
        if not self.quantized:
            raise ConfigError(f"{what} is for images, and the data are {self.name}; {remedy}")


def _image_grids(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [image_grid(frame) for frame in frames]


_OF_ROWS = Measurements(
    likelihood=NATS.metric,
    features="raw",
    thumbnails="raw",
    of_samples=("sliced_wasserstein", "mmd"),
)

KINDS: dict[str, Kind] = {
    "images": Kind(
        name="images",
        one="image",
        quantized=True,
        unit=BITS,
        pictures=_image_grids,
        shown=100,
        measurements=Measurements(
            likelihood=BITS.metric, features="pixels", thumbnails="thumbnails"
        ),
    ),
    "points": Kind(
        name="points",
        one="point",
        quantized=False,
        unit=NATS,
        pictures=point_pictures,
        shown=10_000,
        measurements=_OF_ROWS,
    ),
    "series": Kind(
        name="series",
        one="series",
        quantized=False,
        unit=NATS,
        pictures=series_pictures,
        shown=16,
        measurements=_OF_ROWS,
    ),
}


def require_kind(section: str, network: Any, table: Mapping[str, Any], kind: Kind) -> None:
    """Raise ConfigError unless a network of a table, or its class, takes this kind of data.

    `section` is the section of the configuration that names it.
    """
    if kind.name in kinds_of(network):
        return
    row = network if isinstance(network, type) else type(network)
    name = next(name for name in table if table[name] is row)
    able = [name for name, row in table.items() if kind.name in kinds_of(row)]
    raise ConfigError(
        f"config.{section}.name={name!r} is a network for {' and '.join(kinds_of(network))}, and "
        f"the data are {kind.name}; choose {' or '.join(able)}"
    )
