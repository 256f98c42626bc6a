"""Tasks with pictures: restored from measurements, repainted from strokes, encoded, interpolated.

What is known of sample k is that of picture k modulo their number, so that more samples than
pictures are several answers to each question.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from data.pictures import read_images
from denoising import Denoiser
from errors import ConfigError
from experiment.experiment import Experiment
from experiment.tasks import Task
from files.pictures import image_grid
from jobs.cache import batches_of
from numerics.arrays import normal_like, sample_keys
from solvers.ode import interpolate

Images = UInt8[np.ndarray, "_ height width channels"]


def draw_all(
    experiment: Experiment, denoiser: Denoiser, count: int, **options: Callable
) -> tuple[Images, int]:
    """Samples 0 .. count - 1, and the network evaluations of one: the most, where they differ.

    `options` are those of `Experiment.draw`.
    """
    parts, nfe = [], 0
    with tqdm(total=count, desc="sampling", dynamic_ncols=True, mininterval=0.5) as bar:
        for indices in batches_of(count, experiment.config["eval"]["batch_size"]):
            drawn = experiment.draw(denoiser, indices, **options)
            parts.append(drawn.images)
            nfe = max(nfe, drawn.nfe)
            bar.update(len(indices))
    return np.concatenate(parts), nfe


class Answers(NamedTuple):
    """Samples of a task, arrays to be kept beside them, a picture, and a line that tells of them.

    In a row of the picture, what was given comes first.
    """

    images: Images
    arrays: dict[str, np.ndarray]
    picture: UInt8[np.ndarray, "h w c"]
    told: str


class TaskRun:
    """A task on its pictures, which are read and checked when it is made.

    Raises:
      ConfigError: for pictures that are missing, or of the wrong shape or range.
    """

    def __init__(self, experiment: Experiment, task: Task) -> None:
        self.experiment, self.task = experiment, task
        measured = task.restoration is not None and task.restoration.measured
        shape = task.operator.measurement_shape if measured else experiment.item_shape
        try:
            given = read_images(
                task.input,
                shape,
                None if measured else self._test_images,
                in_range=task.name not in ("compressed_sensing", "mri") or not measured,
                convert=not measured,
            )
        except ValueError as error:
            raise ConfigError(f"config.sampling.{error}") from error
        if task.name == "interpolate" and len(given) != 2:
            raise ConfigError(
                f"config.sampling.input={task.input!r} are {len(given)} pictures; interpolate goes "
                "between two, such as a.png,b.png or test:0,test:1"
            )
        self.given, self.measured = given, measured

    def _test_images(self) -> Float[np.ndarray, "n h w c"]:
        data = self.experiment.data
        return data.quantizer.to_uint8(data.test).astype(np.float32) / 255

    def check_count(self, count: int) -> None:
        """Raise ConfigError unless so many samples leave no question without an answer."""
        least = {"reconstruct": 0, "interpolate": 2}.get(self.task.name, len(self.given))
        if count < least:
            raise ConfigError(
                f"--num_samples={count} are too few for config.sampling.input={self.task.input!r} "
                f"with task={self.task.name!r}; give at least {least}, or fewer pictures"
            )

    def answer(self, denoiser: Denoiser, count: int) -> Answers:
        """`count` samples of the task; of reconstruct, one of each picture.

        Raises:
          SamplingError, IntegrationError: if any becomes NaN or infinite.
        """
        if self.task.operator is not None:
            return self._restored(denoiser, count)
        if self.task.name == "stroke":
            images, nfe = draw_all(self.experiment, denoiser, count, **self.drawing)
            return Answers(images, {}, self._picture([self._given_images], images), f"NFE {nfe}")
        return self._coded(denoiser, count)

    @property
    def drawing(self) -> dict[str, Callable]:
        """What `Experiment.draw` is told of the pictures; nothing, where none is drawn."""
        task = self.task
        if task.operator is not None:

            def condition(denoiser: Denoiser, numbers: Int[Array, "batch"]) -> Denoiser:
                known = self._rows(self._measurement, numbers)
                return task.restoration.condition(denoiser, task.operator, known, self._noise)

            return {"condition": condition}
        if task.name == "stroke":
            source = self.experiment.of_pictures(self.given)
            return {"source": lambda numbers: self._rows(source, numbers)}
        return {}

    # --- restorations ---

    @cached_property
    def _measurement(self) -> Float[np.ndarray, "n ..."]:
        """y of each picture in the network's range, with its noise if it is measured here."""
        operator, experiment = self.task.operator, self.experiment
        if not self.measured:
            x = jnp.asarray(experiment.of_pictures(self.given))
            y = operator(x)
            if self._noise:
                key = experiment.key(experiment.config["sampling"]["seed"], "measurement")
                y += self._noise * normal_like(sample_keys(key, jnp.arange(len(x))), y)
        else:
            # Pictures become the network's images by u -> gain u + offset, and A is linear.
            offset = jnp.full((1, *operator.shape), self._ends[0])
            y = self._unit * jnp.asarray(self.given) + operator(offset)
        return np.asarray(operator.in_range(y))

    @property
    def _unit(self) -> float:
        """What 1 in a measurement of pictures in [0, 1] is in y."""
        gain = float(self._ends[1] - self._ends[0])
        # Grey levels are means over the channels, and A has sums over sqrt(channels).
        sums = self.task.name == "colorize"
        return gain * float(np.sqrt(self.experiment.item_shape[-1])) if sums else gain

    @property
    def _ends(self) -> Float[np.ndarray, "2"]:
        return self.experiment.of_pictures(np.array([0, 1], np.float32))

    @property
    def _noise(self) -> float:
        return self._unit * self.task.restoration.noise

    def _restored(self, denoiser: Denoiser, count: int) -> Answers:
        operator, y = self.task.operator, self._measurement
        images, nfe = draw_all(self.experiment, denoiser, count, **self.drawing)
        again = operator(jnp.asarray(self.experiment.of_pictures(images.astype(np.float32) / 255)))
        wanted = y[np.arange(count) % len(y)]
        off = np.asarray(again - wanted) / self._unit
        off = np.sqrt(np.sum(off**2) / (count * float(operator.count)))
        # What has the shape of an image is shown as it is, and all else as A^+ makes it.
        is_image = operator.measurement_shape == operator.shape
        seen = self.experiment.pictures(y if is_image else operator.pseudo_inverse(jnp.asarray(y)))
        columns = [seen] if self.measured else [self._given_images, seen]
        told = (
            f"NFE {nfe}, their measurements off by {off:.4f} "
            f"(root mean square, images in [0, 1]; noise {self.task.restoration.noise:g})"
        )
        return Answers(images, {"measurement": y}, self._picture(columns, images), told)

    # --- codes ---

    def _coded(self, denoiser: Denoiser, count: int) -> Answers:
        encode, decode = self.task.coder
        x = self.experiment.of_pictures(self.given)
        codes = self._through(encode, denoiser, x, np.arange(len(x)))
        if self.task.name == "reconstruct":
            path, classes = codes, np.arange(len(codes))
        else:  # the class on the way is the first picture's
            path = np.asarray(interpolate(*jnp.asarray(codes), jnp.linspace(0, 1, count)))
            classes = np.zeros(count, int)
        images = self.experiment.pictures(self._through(decode, denoiser, path, classes))
        arrays = {"latent": codes}
        if self.task.name == "interpolate":
            ends = self._given_images
            row = np.concatenate([ends[:1], images, ends[1:]])
            return Answers(images, arrays, image_grid(row, columns=len(row)), "between two codes")
        off = (images.astype(np.float32) - self._given_images) / 255
        told = f"off by {np.sqrt(np.mean(off**2)):.4f} (root mean square, images in [0, 1])"
        return Answers(images, arrays, self._picture([self._given_images], images), told)

    def _through(
        self,
        way: Callable[..., Array],
        denoiser: Denoiser,
        states: Float[np.ndarray, "n h w c"],
        numbers: Int[np.ndarray, "n"],
    ) -> Float[np.ndarray, "n h w c"]:
        """Images to codes, or back, batch by batch; `numbers` are the samples' of these classes."""
        experiment, parts = self.experiment, []
        for rows in batches_of(len(states), experiment.config["eval"]["batch_size"]):
            conditioned = experiment.of_classes(denoiser, experiment.place(numbers[rows]))
            answer = way(conditioned, self._rows(states, experiment.place(rows)))
            parts.append(experiment.layout.fetch(answer)[: len(rows)])
        return np.concatenate(parts)

    # --- what they share ---

    def _rows(self, array: Array | np.ndarray, numbers: Int[Array, "batch"]) -> Array:
        """Of each sample's picture, split over the devices as the samples are."""
        layout = self.experiment.layout
        return layout.split_rows(np.asarray(array)[layout.fetch(numbers) % len(array)])

    @property
    def _given_images(self) -> Images:
        return np.rint(self.given * 255).astype(np.uint8)

    def _picture(self, columns: list[Images], images: Images) -> UInt8[np.ndarray, "h w c"]:
        """What was given, a row each, and beside it the samples of it."""
        rows = min(len(columns[0]), len(images), _ROWS)
        width = min(len(images) // len(columns[0]), _COLUMNS) or 1
        shown = [
            np.concatenate([column[row : row + 1] for column in columns] + [samples[:width]])
            for row in range(rows)
            for samples in (images[row :: len(columns[0])],)
        ]
        return image_grid(np.concatenate(shown), columns=len(shown[0]))


_ROWS, _COLUMNS = 16, 8  # of what was given, and of samples, that a picture shows
