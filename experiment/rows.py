"""Points and series of an experiment: rows of floats, standardized for the network."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32, Int

from bounds.dequantization import Dequantized, Dequantizer
from data.dequantization import DEQUANTIZATIONS, Dequantization
from data.rows import RowBatches, RowData, load_rows, shape_of, standardizer_of
from data.scaling import Standardizer
from experiment.data import Data
from experiment.kinds import KINDS, Kind
from experiment.options import RowOptions
from files.paths import AnyPath
from numerics.pixel_levels import PixelLevels


@dataclass(frozen=True)
class Rows(Data):
    """Points or series, in their own units.

    The shape, and mean and standard deviation for the network, are those of the options, or else of
    the data.
    """

    options: RowOptions

    @property
    def kind(self) -> Kind:
        return KINDS[self.options.kind]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        options = self.options
        return options.shape or shape_of(options.name, options.kind)

    @cached_property
    def scaler(self) -> Standardizer:
        options, entries = self.options, self.shape[-1]
        if options.mean and options.std:
            found = Standardizer(mean=options.mean, std=options.std)
        else:
            of_rows = standardizer_of(options.name, self._rows.train)
            found = Standardizer(mean=options.mean or of_rows.mean, std=options.std or of_rows.std)
        if len(found.mean) != entries:
            raise ValueError(
                f"mean and std have length {len(found.mean)}, and name={options.name!r} has "
                f"{entries} coordinates or channels; give a number for each, or leave them out"
            )
        return found

    @property
    def limits(self) -> tuple[float, float]:
        return -np.inf, np.inf

    @property
    def log_det(self) -> float:
        return self.scaler.log_det(self.size)

    @property
    def _rows(self) -> RowData:
        found = self.splits
        assert isinstance(found, RowData)
        return found

    def _load(self) -> RowData:
        options = self.options
        found = load_rows(options.name, options.kind, samples=options.samples, seed=options.seed)
        if found.train.shape[1:] != self.shape:
            raise ValueError(
                f"config.data.name={options.name!r} has rows of shape {found.train.shape[1:]}, but "
                f"config.data.shape={self.shape}; leave the shape out"
            )
        return found

    def prepare(self, target: AnyPath | None, *, skip_damaged: bool) -> str:
        if target is not None or skip_damaged:
            self.kind.require_images("--target", "leave it out: rows are held in memory")
        return f"config.data.name={self.options.name!r} needs no preparation"

    def training_batches(
        self, batch_size: int, seed: int, *, labels: bool, dequantization: str = ""
    ) -> RowBatches:
        return RowBatches(
            rows=self._rows.train,
            labels=self._rows.train_labels if labels else None,
            batch_size=batch_size,
            seed=seed,
            scaler=self.scaler,
        )

    def batch(
        self,
        images: Float32[np.ndarray, "count ..."],
        indices: Int[Array, "batch"],
        *,
        seed: int,
        draw: int,
        dequantization: str = "",
    ) -> Float[Array, "batch ..."]:
        """Return some rows, standardized and split over the devices; nothing is random."""
        rows = images[self.parallel.own_rows(indices)]
        return self.parallel.put_batch(self.scaler.forward(rows))

    def dequantized(
        self,
        images: Float32[np.ndarray, "count ..."],
        indices: Int[Array, "batch"],
        *,
        seed: int,
        draw: int,
        alpha: float = 1.0,
        sigma: float = 0.0,
        dequantizer: Dequantizer | None = None,
    ) -> Dequantized:
        """Return some rows, which have a density as they are: log q is 0."""
        x = self.batch(images, indices, seed=seed, draw=draw)
        return Dequantized(x, self.parallel.split_rows(np.zeros(len(x), np.float32)))

    @property
    def dequantization(self) -> Dequantization:
        return DEQUANTIZATIONS["none"]

    @property
    def dequantization_name(self) -> str:
        return ""

    @property
    def pixel_levels(self) -> PixelLevels | None:
        return None

    @property
    def bin_width(self) -> float:
        return 0.0

    def variances(self, count: int) -> Float[np.ndarray, "numbers"]:
        rows = self.scaler.forward(self._rows.train[:count].astype(np.float64))
        return rows.var(axis=0).ravel()

    def encode(self, samples: Float[Any, "..."]) -> Float[Any, "..."]:
        """Return rows in the data's units, standardized."""
        return self.scaler.forward(np.asarray(samples, np.float32))

    def decode(self, x: Float[Any, "..."]) -> Float32[np.ndarray, "..."]:
        """Return rows in the data's units."""
        return self.scaler.inverse(np.asarray(x, np.float32))

    def as_samples(self, stored: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Return stored rows, which are in the data's units."""
        return stored

    @property
    def rounding(self) -> str:
        return "none"

    @property
    def noise_unit(self) -> tuple[float, str]:
        return 1.0, "standard deviations of the data (rms)"
