"""The images of an experiment, stored as gray levels."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8

from bounds.dequantization import Dequantized, Dequantizer
from data import batches, datasets, packing, readers
from data.batches import Stored, TrainingBatches
from data.datasets import ImageData
from data.dequantization import CENTERS, DEQUANTIZATIONS, HALF_STEP, Dequantization, centers
from data.fitting import Fit
from data.readers import Reader
from data.scaling import ImageScaler, Quantizer
from data.stored import Splits
from errors import ConfigError
from experiment.data import Data
from experiment.kinds import KINDS, Kind
from experiment.options import DataOptions
from files.paths import AnyPath, in_bucket
from numerics.pixel_levels import PixelLevels

_BLOCK = 256  # images that are in memory at a time, where their variances are taken


@dataclass(frozen=True)
class Images(Data):
    """Images, stored as gray levels."""

    options: DataOptions

    @property
    def kind(self) -> Kind:
        return KINDS["images"]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.options.image_size, self.options.image_size, self.options.channels

    @property
    def resize(self) -> str:
        return self.options.resize

    @property
    def scaler(self) -> ImageScaler:
        return ImageScaler(low=-1.0 if self.options.centered else 0.0, high=1.0)

    @property
    def quantizer(self) -> Quantizer:
        """The gray levels of the data."""
        return datasets.quantizer(self.options.name)

    @property
    def limits(self) -> tuple[float, float]:
        return self.scaler.low, self.scaler.high

    @property
    def log_det(self) -> float:
        return self.quantizer.log_det(self.size) + self.scaler.log_det(self.size)

    def _load(self) -> ImageData:
        options = self.options
        return datasets.load(
            options.name,
            data_dir=options.dir,
            image_size=options.image_size,
            channels=options.channels,
            resize=options.resize,
            memory_gb=options.memory_gb,
        )

    def open_splits(self) -> tuple[Reader, Splits, Fit]:
        """Return the reader, the splits before any image is read, and how images fit.

        Raises:
            As `data.datasets.load`.
        """
        options = self.options
        return datasets.open_splits(
            options.name,
            image_size=options.image_size,
            channels=options.channels,
            data_dir=options.dir,
            resize=options.resize,
        )

    def prepare(self, target: AnyPath | None, *, skip_damaged: bool) -> str:
        options = self.options
        if skip_damaged and target is None:
            raise ConfigError("--skip_damaged is for --target=FOLDER, which is not given")
        if target is not None and in_bucket(target):
            raise ConfigError(
                f"--target={str(target)!r} is in a bucket; give a folder of this machine, and copy "
                f"it by `gcloud storage cp --recursive FOLDER {target.parent}/`"
            )
        line = readers.prepare(options.name, data_dir=options.dir)
        if target is None:
            return line
        _, splits, fit = self.open_splits()
        return packing.pack(options.name, splits, fit, target, skip_damaged=skip_damaged)

    def training_batches(
        self, batch_size: int, seed: int, *, labels: bool, dequantization: str = ""
    ) -> TrainingBatches:
        return TrainingBatches(
            images=self.splits.train,
            labels=self.splits.train_labels if labels else None,
            batch_size=batch_size,
            seed=seed,
            random_flip=self.options.random_flip,
            dequantization=dequantization or self.options.dequantization,
            quantizer=self.quantizer,
            scaler=self.scaler,
            workers=self.options.workers,
        )

    @property
    def dequantization(self) -> Dequantization:
        return DEQUANTIZATIONS[self.options.dequantization]

    @property
    def dequantization_name(self) -> str:
        return self.options.dequantization

    @property
    def pixel_levels(self) -> PixelLevels:
        levels, low, high = self.quantizer.gray_levels, 0.0, 1.0
        if self.dequantization.at_t_min:
            low, high = 0.5 / levels, 1 - 0.5 / levels
        span = self.scaler.high - self.scaler.low
        return PixelLevels(
            gray_levels=levels, low=self.scaler.low + span * low, high=self.scaler.low + span * high
        )

    def batch(
        self,
        images: UInt8[Stored, "count h w c"],
        indices: Int[Array, "batch"],
        *,
        seed: int,
        draw: int,
        dequantization: str = "",
    ) -> Float[Array, "batch h w c"]:
        found = batches.test_batch(
            images,
            self.parallel.own_rows(indices),
            seed=seed,
            draw=draw,
            quantizer=self.quantizer,
            scaler=self.scaler,
            dequantization=dequantization or self.options.dequantization,
        )
        return self.parallel.put_batch(found)

    def noiseless(
        self, images: UInt8[Stored, "count h w c"], indices: Int[Array, "batch"]
    ) -> Float[Array, "batch h w c"]:
        """Return some images on the values of `pixel_levels`, split over the devices."""
        name = CENTERS if self.dequantization.at_t_min else "none"
        return self.batch(images, indices, seed=0, draw=0, dequantization=name)

    def dequantized(
        self,
        images: UInt8[Stored, "count h w c"],
        indices: Int[Array, "batch"],
        *,
        seed: int,
        draw: int,
        alpha: float = 1.0,
        sigma: float = 0.0,
        dequantizer: Dequantizer | None = None,
    ) -> Dequantized:
        how, rows = self.dequantization, self.parallel.own_rows(indices)
        stored, split = images[rows], self.parallel.put_batch
        uniforms = batches.test_noise(images, rows, seed=seed, draw=draw)
        if how.learned:
            if dequantizer is None:
                raise ValueError("dequantization='variational' needs the dequantizer of a run")
            middle = self.scaler.forward(centers(self.quantizer, stored))
            return dequantizer(split(middle), split(uniforms + np.float32(HALF_STEP)))
        span = self.scaler.high - self.scaler.low
        noise = how.noise(uniforms, self.quantizer.gray_levels * sigma / (alpha * span))
        x = self.scaler.forward(self.quantizer.dequantize(stored, noise.u.astype(np.float32)))
        if not how.at_t_min:
            return Dequantized(split(x), split(noise.log_q.astype(np.float32)))
        log_q = noise.log_q - self.size * math.log(alpha)  # the density of alpha x
        return Dequantized(split(np.float32(alpha) * x), split(log_q.astype(np.float32)))

    def from_unit_range(self, images: Float[Any, "..."]) -> Float[Any, "..."]:
        """Scale images in [0, 1] to the network's range; `decode` inverts this, to 0..255."""
        levels = self.quantizer.gray_levels
        if self.dequantization.in_bins:  # the middle of the bin
            images = (images * (levels - 1) + 0.5) / levels
        return self.scaler.forward(images)

    @property
    def bin_width(self) -> float:
        return (self.scaler.high - self.scaler.low) / self.quantizer.gray_levels

    def variances(self, count: int) -> Float[np.ndarray, "numbers"]:
        how, count = self.dequantization, min(count, len(self.splits.train))
        sums = np.zeros((2, *self.shape), np.int64)
        for first in range(0, count, _BLOCK):
            stored = self.splits.train[np.arange(first, min(first + _BLOCK, count))]
            stored = stored.astype(np.int64)
            sums += stored.sum(axis=0), (stored**2).sum(axis=0)
        variances = (count * sums[1] - sums[0] ** 2) / count**2
        bins = self.quantizer.gray_levels - (not how.in_bins)
        gray = (self.scaler.high - self.scaler.low) / bins
        return gray**2 * (variances.ravel() + how.noisy / 12)

    def encode(self, samples: UInt8[Any, "*count h w c"]) -> Float[Any, "*count h w c"]:
        """Return images in 0..255 in the network's range."""
        return self.from_unit_range(np.asarray(samples, np.float32) / 255)

    def decode(self, x: Float[Any, "*count h w c"]) -> UInt8[np.ndarray, "*count h w c"]:
        """Return images in 0..255, through the gray levels of the data."""
        unit = self.scaler.inverse(x)
        levels = self.quantizer.quantize(unit, dequantized=self.dequantization.in_bins)
        return self.quantizer.to_uint8(levels)

    def as_samples(self, stored: UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
        """Return stored images in 0..255."""
        return self.quantizer.to_uint8(stored)

    def in_unit_range(self, stored: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
        """Return stored images in [0, 1], as they are read back from a file of 256 levels."""
        return self.as_samples(stored).astype(np.float32) / 255

    @property
    def rounding(self) -> str:
        bins = "bin" if self.dequantization.in_bins else "nearest"
        return f"to the {bins} of {self.quantizer.gray_levels} levels, these to 0..255"

    @property
    def noise_unit(self) -> tuple[float, str]:
        return (self.scaler.high - self.scaler.low) / 255, "gray levels of 256 (rms)"


def as_images(data: Data, what: str = "this", remedy: str = "take images") -> Images:
    """Return data as what they are, if they are images.

    Raises:
        ConfigError: if they are not; `what` names what needs images.
    """
    if not isinstance(data, Images):
        data.kind.require_images(what, remedy)
    assert isinstance(data, Images)
    return data
