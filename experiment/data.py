"""The data of an experiment: as stored, as network inputs, in batches, and as users see them.

There are two: `experiment.images.Images`, and `experiment.rows.Rows` for points and series.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from bounds.dequantization import Dequantized, Dequantizer
from data.batches import TrainingBatches
from data.couplings import CoupledBatches, PairBatches
from data.datasets import ImageData
from data.dequantization import Dequantization
from data.rows import RowBatches, RowData
from data.scaling import ImageScaler, Standardizer
from errors import ConfigError
from experiment.kinds import Kind
from files.paths import AnyPath
from numerics.pixel_levels import PixelLevels
from training.parallel import DataParallel

Batches = TrainingBatches | RowBatches | CoupledBatches | PairBatches


@dataclass(frozen=True)
class Data(abc.ABC):
    """A data set, found at the first use of `splits` and read into memory if it fits.

    Its rows are stored as gray levels or as floats in their own units, and the network sees them in
    the range of `scaler`. Samples are shown to users as uint8 images, or in the units of the data.

    Attributes:
        options: the fields of config.data.
        parallel: how arrays are split over the devices.
    """

    options: Any
    parallel: DataParallel

    @property
    @abc.abstractmethod
    def kind(self) -> Kind:
        """What a row is, and how it is reported and shown."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of a row: (height, width, channels), (coordinates,) or (length, channels)."""

    @property
    def resize(self) -> str:
        """How images of another size are fitted; "none" where nothing is."""
        return "none"

    @property
    def size(self) -> int:
        """The numbers in a row."""
        return math.prod(self.shape)

    @property
    @abc.abstractmethod
    def scaler(self) -> ImageScaler | Standardizer:
        """The map to the network's range from [0, 1], or to mean 0 and deviation 1 of floats."""

    @property
    @abc.abstractmethod
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number of data in the network's range; maybe infinite."""

    @property
    def middle(self) -> float:
        """A number in the middle of the data, in the network's range."""
        low, high = self.limits
        return (low + high) / 2 if math.isfinite(high - low) else 0.0

    @property
    @abc.abstractmethod
    def log_det(self) -> float:
        """log |d x / d row| in nats, from stored rows to the network's range."""

    @cached_property
    def splits(self) -> ImageData | RowData:
        """The training and test rows with their labels; prints the notes on them once.

        Raises:
            ConfigError: if they are missing, do not fit the configuration, or cannot be read.
        """
        try:
            found = self._load()
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
        if self.parallel.leads:
            for note in found.notes:
                print(note)
        return found

    @abc.abstractmethod
    def _load(self) -> ImageData | RowData:
        """Read the data set; raise ValueError or OSError of one line if it cannot be read."""

    @abc.abstractmethod
    def prepare(self, target: AnyPath | None, *, skip_damaged: bool) -> str:
        """Prepare the data set where it needs that; return one line that says where it is.

        With `target`, write its images into that folder, as `data.packing.pack`; without those that
        cannot be read if `skip_damaged`.

        Raises:
            ConfigError: for a target that does not suit the data, or `skip_damaged` without one.
            As `data.readers.prepare` and `data.packing.pack`, for images.
        """

    @abc.abstractmethod
    def training_batches(
        self, batch_size: int, seed: int, *, labels: bool, dequantization: str = ""
    ) -> Batches:
        """Return the training stream; batch k depends on the seed and k alone.

        `dequantization` is a name in DEQUANTIZATIONS, by default config.data.dequantization.
        """

    @abc.abstractmethod
    def batch(
        self,
        images: Any,
        indices: Int[Array, "batch"],
        *,
        seed: int,
        draw: int,
        dequantization: str = "",
    ) -> Float[Array, "batch ..."]:
        """Return some rows as the network is trained on them, split over the devices.

        The noise of a row depends on the seed, its index and the draw alone. `dequantization` is
        a name in DEQUANTIZATIONS, by default config.data.dequantization.
        """

    @abc.abstractmethod
    def dequantized(
        self,
        images: Any,
        indices: Int[Array, "batch"],
        *,
        seed: int,
        draw: int,
        alpha: float = 1.0,
        sigma: float = 0.0,
        dequantizer: Dequantizer | None = None,
    ) -> Dequantized:
        """Return some rows with a density, split over the devices, and log q of their noise.

        Args:
            images, indices, seed, draw: as in `batch`.
            alpha, sigma: the coefficients of the process at its smallest time, for noise that is
                the process's own.
            dequantizer: the run's own, for config.data.dequantization=variational.

        Raises:
            ValueError: without the sigma or the dequantizer that config.data.dequantization needs.
        """

    @property
    @abc.abstractmethod
    def dequantization(self) -> Dequantization:
        """How gray levels become numbers; of floats, the row that adds nothing."""

    @property
    @abc.abstractmethod
    def dequantization_name(self) -> str:
        """The name of that row in config.data; "" for floats."""

    @property
    @abc.abstractmethod
    def pixel_levels(self) -> PixelLevels | None:
        """The values of pixels without noise, in the network's range; None for floats."""

    @property
    @abc.abstractmethod
    def bin_width(self) -> float:
        """The width of a gray level in the network's range; 0 of floats."""

    @property
    def finest_log_snr(self) -> float:
        """The log-SNR above which the noise is smaller than that of dequantization."""
        noisy = self.dequantization.noisy
        return float(np.log(12 / self.bin_width**2)) if noisy else math.inf

    @abc.abstractmethod
    def variances(self, count: int) -> Float[np.ndarray, "numbers"]:
        """Return the variance of every number of a row, over the first `count` training rows."""

    @abc.abstractmethod
    def encode(self, samples: Any) -> Float[Any, "..."]:
        """Return samples, as `decode` gives them, in the network's range."""

    @abc.abstractmethod
    def decode(self, x: Float[Any, "..."]) -> Shaped[np.ndarray, "..."]:
        """Return rows in the network's range as users see them: uint8, or in the data's units."""

    @abc.abstractmethod
    def as_samples(self, stored: Any) -> Shaped[np.ndarray, "..."]:
        """Return stored rows as `decode` gives samples."""

    @property
    @abc.abstractmethod
    def rounding(self) -> str:
        """How numbers of samples are rounded, in words."""

    @property
    @abc.abstractmethod
    def noise_unit(self) -> tuple[float, str]:
        """The unit of noise that is left in samples: its size in the network's range, its name."""

    def pictures(self, frames: Sequence[Any]) -> list[UInt8[np.ndarray, "h w c"]]:
        """Return a picture of each frame of samples, all with the same axes."""
        return self.kind.pictures([frame[: self.kind.shown] for frame in frames])

    def require_classes(
        self, labels: Int[np.ndarray, "count"] | None, num_classes: int, section: str
    ) -> None:
        """Raise ConfigError unless `labels` are classes 0 .. num_classes - 1.

        `section` is the section of the configuration that states the number of classes.
        """
        field, name = f"config.{section}.num_classes", self.options.name
        if labels is None and self.splits.train_labels is not None:
            raise ConfigError(
                f"{field}={num_classes}, but the test images of config.data.name={name!r} have no "
                "labels, as its training images have; give them labels, or leave out metrics of "
                "test images: config.eval.metrics"
            )
        if labels is None:
            remedy = f"set {field}=0" if section == "model" else "it cannot train a classifier"
            raise ConfigError(
                f"{field}={num_classes}, but config.data.name={name!r} has no labels; {remedy}"
            )
        low, high = labels.min(), labels.max()
        if not 0 <= low <= high < num_classes:
            # Negative labels fit no number of classes, and from 1 on one class would be empty.
            remedy = "number them from 0" if low else f"set it to {high + 1}"
            raise ConfigError(
                f"{field}={num_classes}, but the labels of config.data.name={name!r} are "
                f"{low}..{high}; {remedy}"
            )
