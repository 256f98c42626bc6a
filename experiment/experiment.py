"""An Experiment: all that a configuration describes, ready to train, sample and be evaluated."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from bounds.continuous import ContinuousBoundOptions
from bounds.discrete import DiscreteBoundOptions
from data import batches, datasets
from data.batches import TrainingBatches
from data.datasets import ImageData
from data.scaling import ImageScaler
from denoising import Clipping, Denoiser
from errors import ConfigError
from experiment.tasks import Task
from guidance.classifier import Classifier, CrossEntropy
from likelihood import LikelihoodOptions
from losses import FisherDivergence
from numerics.ode import ODEOptions
from sampling import Samples
from solvers.moments import EpsMoments
from training.parallel import DataParallel
from training.step import Trainer

# The uses of randomness, each with a base key of its own.
_STREAMS = (
    "init",
    "training",
    "sampling",
    "loss",
    "likelihood",
    "moments",
    "truncation",
    "discrete_bound",
    "continuous_bound",
    "measurement",
)


class Pictures(NamedTuple):
    """Samples as uint8 images in 0..255, network evaluations an image, snapshots of the paths."""

    images: UInt8[np.ndarray, "count height width channels"]
    nfe: int
    trajectory: UInt8[np.ndarray, "frames count height width channels"] | None


@contextmanager
def _steps_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of the steps of one batch, where they take long enough to want one."""
    with tqdm(desc="steps", leave=False, delay=5, dynamic_ncols=True) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        yield show


@dataclass(frozen=True)
class Experiment:
    """Built and checked by `builders.build`; nothing of it is computed before it is used.

    Attributes:
      config: the resolved configuration, a plain nested dict.
      item_shape: (height, width, channels) of an image.
      network: the raw Flax module.
      denoiser: (params, dropout key or None) -> Denoiser.
      trainer: makes training states.
      sampler: (key, denoiser, shape, *, indices, frames) -> Samples; with `progress` too, unless
        it is adaptive.
      evaluations: network evaluations an image of `sampler`; None where it is adaptive.
      with_moments: moments -> sampler, of a solver that needs those of its network; otherwise None.
      labels: the classes of the samples in turn; empty for what config.sampling.label says.
      sample_classes: number of classes of which samples are drawn; 0 if none are told apart.
      guided: (denoiser, labels) -> denoiser, guided towards the classes; or None.
      with_classifier: classifier -> guided, of guidance that needs a trained one; otherwise None.
      task: what is to be done with pictures; None for plain samples.
      likelihood, ode: how log-likelihoods are computed.
      discrete_bound: its options, the times of its chain, and how predictions are clipped.
      continuous_bound: its options.
      classes: number of classes of a class-conditional network; 0 for any other.
      classifier: makes the experiment that trains the classifier of noisy images, whose `denoiser`
        makes a Classifier; that one has none.
    """

    config: dict
    parallel: DataParallel
    item_shape: tuple[int, int, int]
    scaler: ImageScaler
    loss: FisherDivergence | CrossEntropy
    network: Any
    denoiser: Callable[..., Denoiser | Classifier]
    trainer: Trainer
    sampler: Callable[..., Samples]
    evaluations: int | None
    with_moments: Callable[[EpsMoments], Callable[..., Samples]] | None
    labels: tuple[int, ...]
    sample_classes: int
    guided: Callable[[Denoiser, Array], Denoiser] | None
    with_classifier: Callable[[Classifier], Callable] | None
    task: Task | None
    likelihood: LikelihoodOptions
    ode: ODEOptions
    discrete_bound: tuple[DiscreteBoundOptions, np.ndarray, Clipping]
    continuous_bound: ContinuousBoundOptions
    classes: int
    classifier: "Callable[[], Experiment] | None"

    @cached_property
    def data(self) -> ImageData:
        """The data set, read into memory at the first use.

        Raises:
          ConfigError: if it is missing, does not fit the configuration, or cannot be read.
        """
        fields = self.config["data"]
        try:
            return datasets.load(
                fields["name"],
                data_dir=fields["dir"],
                image_size=fields["image_size"],
                channels=fields["channels"],
                resize=fields["resize"],
            )
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error

    def training_batches(self) -> TrainingBatches:
        """The training stream: batch k is a function of the seed and k alone.

        Raises:
          ConfigError: as `data`, and if a class-conditional network finds no classes in it.
        """
        fields = self.config["data"]
        self._check_labels(self.data.train_labels)
        return TrainingBatches(
            images=self.data.train,
            labels=self.data.train_labels if self.classes else None,
            batch_size=self.config["training"]["batch_size"],
            seed=self.config["seed"],
            random_flip=fields["random_flip"],
            dequantize=fields["dequantize"],
            quantizer=self.data.quantizer,
            scaler=self.scaler,
        )

    def key(self, seed: int, stream: str) -> Key[Array, ""]:
        """The base key of one use of randomness."""
        return jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))

    def place(self, indices: Int[np.ndarray, "count"]) -> Int[Array, "padded"]:
        """Indices split over the devices; the last is repeated until they divide."""
        padded = np.pad(indices, (0, -len(indices) % self.parallel.devices), mode="edge")
        return self.parallel.split_rows(padded)

    def test_batch(
        self, indices: Int[Array, "batch"], draw: int, *, dequantize: bool = True
    ) -> Float[Array, "batch h w c"]:
        """Test images as the network sees them, split over the devices.

        The dequantization noise of an image depends on its index and the draw alone.
        """
        images = batches.test_batch(
            self.data.test,
            self.parallel.fetch(indices),
            seed=self.config["eval"]["seed"],
            draw=draw,
            quantizer=self.data.quantizer,
            scaler=self.scaler,
            dequantize=dequantize,
        )
        return self.parallel.split_rows(images)

    def draw(
        self,
        denoiser: Denoiser,
        indices: Int[np.ndarray, "count"],
        *,
        frames: int = 0,
        seed: int | None = None,
        condition: Callable[[Denoiser, Int[Array, "batch"]], Denoiser] | None = None,
        source: Callable[[Int[Array, "batch"]], Float[Array, "batch h w c"]] | None = None,
    ) -> Pictures:
        """The samples of these numbers; each depends on the seed and its number alone.

        The seed is by default the configuration's. `condition` tells the denoiser what is known of
        the samples of some numbers; `source` gives the images at which they start.

        Raises:
          SamplingError: if any becomes NaN or infinite.
        """
        placed = self.place(indices)
        denoiser = self.of_classes(denoiser, placed)
        if condition is not None:
            denoiser = condition(denoiser, placed)
        key = self.key(self.config["sampling"]["seed"] if seed is None else seed, "sampling")
        shape = (placed.shape[0], *self.item_shape)
        options: dict[str, Any] = {"indices": placed, "frames": frames}
        if source is not None:
            options["source"] = source(placed)
        with _steps_bar() as progress:
            if self.evaluations is not None:  # an adaptive sampler does not know how far it is
                options["progress"] = progress
            samples = self.sampler(key, denoiser, shape, **options)
        images = self.pictures(self.parallel.fetch(samples.x)[: len(indices)])
        trajectory = samples.trajectory
        if trajectory is not None:
            trajectory = np.stack([self.pictures(frame[: len(indices)]) for frame in trajectory])
        return Pictures(images, samples.nfe, trajectory)

    def of_classes(self, denoiser: Denoiser, numbers: Int[Array, "batch"]) -> Denoiser:
        """The denoiser of the samples of these numbers: it knows their classes, or is guided to
        them, as config.sampling says."""
        if not self.sample_classes:
            return denoiser
        label = self.config["sampling"]["label"]
        if self.labels:
            labels = jnp.asarray(self.labels, numbers.dtype)[numbers % len(self.labels)]
        else:
            labels = numbers % self.sample_classes if label < 0 else jnp.full_like(numbers, label)
        if self.classes:
            denoiser = dataclasses.replace(denoiser, labels=labels)
        return self.guided(denoiser, labels) if self.guided else denoiser

    def with_labels(
        self,
        denoiser: Denoiser,
        indices: Int[Array, "batch"],
        labels: Int[np.ndarray, "count"] | None,
    ) -> Denoiser:
        """The denoiser of these images: it knows their classes if the network asks for classes."""
        if not self.classes:
            return denoiser
        self._check_labels(labels)
        chosen = labels[self.parallel.fetch(indices)]
        return dataclasses.replace(denoiser, labels=self.parallel.split_rows(chosen))

    def _check_labels(self, labels: Int[np.ndarray, "count"] | None) -> None:
        name = self.config["data"]["name"]
        # What trains a classifier is no experiment that has one.
        classifies = self.classifier is None
        field = f"config.{'classifier' if classifies else 'model'}.num_classes"
        if self.classes and labels is None:
            remedy = "no classifier can be trained on it" if classifies else f"set {field}=0"
            raise ConfigError(
                f"{field}={self.classes}, but config.data.name={name!r} has no labels; {remedy}"
            )
        if self.classes and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ConfigError(
                f"{field}={self.classes}, but the labels of config.data.name={name!r} are "
                f"{labels.min()}..{labels.max()}; set it to {labels.max() + 1}"
            )

    def of_pictures(self, pictures: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """From images in [0, 1] to the network's range; `pictures` brings their levels back."""
        levels = datasets.quantizer(self.config["data"]["name"]).gray_levels
        if self.config["data"]["dequantize"]:  # the middle of the bin
            pictures = (pictures * (levels - 1) + 0.5) / levels
        return self.scaler.forward(pictures)

    def pictures(self, x: Float[Any, "count height width channels"]) -> UInt8[np.ndarray, "..."]:
        """From the network's range to 0..255, through the data's own grey levels."""
        quantizer = datasets.quantizer(self.config["data"]["name"])
        dequantized = self.config["data"]["dequantize"]
        levels = quantizer.quantize(self.scaler.inverse(x), dequantized=dequantized)
        return quantizer.to_uint8(levels)
