"""The data of an experiment: images as integers, as network inputs, and in batches."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

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
from experiment.options import DataOptions
from files.paths import AnyPath, in_bucket
from objectives.variational import PixelLevels
from training.parallel import DataParallel


@dataclass(frozen=True)
class Data:
    """A data set, found at the first use of `images` and read into memory if it fits.

    Attributes:
        options: the fields of config.data.
        parallel: how arrays are split over the devices.
    """

    options: DataOptions
    parallel: DataParallel

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return self.options.image_size, self.options.image_size, self.options.channels

    @property
    def size(self) -> int:
        """The numbers in an image."""
        return math.prod(self.shape)

    @property
    def scaler(self) -> ImageScaler:
        """The map from [0, 1] to the network's range."""
        return ImageScaler(low=-1.0 if self.options.centered else 0.0, high=1.0)

    @property
    def quantizer(self) -> Quantizer:
        """The gray levels of the data."""
        return datasets.quantizer(self.options.name)

    @cached_property
    def images(self) -> ImageData:
        """The training and test images with their labels; prints the notes on them once.

        Raises:
            ConfigError: if they are missing, do not fit the configuration, or cannot be read.
        """
        options = self.options
        try:
            found = datasets.load(
                options.name,
                data_dir=options.dir,
                image_size=options.image_size,
                channels=options.channels,
                resize=options.resize,
                memory_gb=options.memory_gb,
            )
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
        if self.parallel.leads:
            for note in found.notes:
                print(note)
        return found

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
        """Prepare the data set where it needs that; return one line that says where it is.

        With `target`, write its images into that folder, as `data.packing.pack`.

        Raises:
            As `data.readers.prepare` and `data.packing.pack`.
        """
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
        """Return the training stream; batch k depends on the seed and k alone.

        `dequantization` is a name in DEQUANTIZATIONS, by default config.data.dequantization.
        """
        return TrainingBatches(
            images=self.images.train,
            labels=self.images.train_labels if labels else None,
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
        """How gray levels become numbers."""
        return DEQUANTIZATIONS[self.options.dequantization]

    @property
    def pixel_levels(self) -> PixelLevels:
        """The values of pixels without noise, in the network's range, for discrete decoders."""
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
        """Return some images as the network is trained on them, split over the devices.

        The noise of an image depends on the seed, its index and the draw alone. `dequantization` is
        a name in DEQUANTIZATIONS, by default config.data.dequantization.
        """
        found = batches.test_batch(
            images,
            self.parallel.fetch(indices),
            seed=seed,
            draw=draw,
            quantizer=self.quantizer,
            scaler=self.scaler,
            dequantization=dequantization or self.options.dequantization,
        )
        return self.parallel.split_rows(found)

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
        """Return some images with a density, split over the devices, and log q of their noise.

        Args:
            images, indices, seed, draw: as of `batch`.
            alpha, sigma: the coefficients of the process at its smallest time, for noise that is
                the process's own.
            dequantizer: the run's own, for config.data.dequantization=variational.

        Raises:
            ValueError: without the sigma or the dequantizer that config.data.dequantization needs.
        """
        how, rows = self.dequantization, self.parallel.fetch(indices)
        stored, split = images[rows], self.parallel.split_rows
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

    def require_classes(
        self, labels: Int[np.ndarray, "count"] | None, num_classes: int, section: str
    ) -> None:
        """Raise ConfigError unless `labels` are classes 0 .. num_classes - 1.

        `section` is the section of the configuration that states the number of classes.
        """
        field, name = f"config.{section}.num_classes", self.options.name
        if labels is None and self.images.train_labels is not None:
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

    def from_unit_range(self, images: Float[Any, "..."]) -> Float[Any, "..."]:
        """Scale images in [0, 1] to the network's range; `to_uint8` inverts this."""
        levels = self.quantizer.gray_levels
        if self.dequantization.in_bins:  # the middle of the bin
            images = (images * (levels - 1) + 0.5) / levels
        return self.scaler.forward(images)

    def to_uint8(self, x: Float[Any, "*count h w c"]) -> UInt8[np.ndarray, "*count h w c"]:
        """Convert from the network's range to 0..255, through the gray levels of the data."""
        unit = self.scaler.inverse(x)
        levels = self.quantizer.quantize(unit, dequantized=self.dequantization.in_bins)
        return self.quantizer.to_uint8(levels)
