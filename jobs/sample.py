"""Draw samples, plain or of a task: inverse problems, editing, latents.

Inputs are cycled: sample k is conditioned on input k modulo their number.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8
from tqdm import tqdm

from data.pictures import read_images
from data.streamed import Converted
from denoising import Denoiser
from errors import ConfigError
from experiment.experiment import Experiment
from experiment.images import Images, as_images
from experiment.randomness import base_key
from experiment.sampler import Checkpoint, Condition, Conditioned, Drawn, unconditioned
from experiment.tasks import InverseProblem, Measurement, Task
from files.paths import AnyPath
from files.pictures import image_grid, write_png
from files.writing import write_json, write_npz
from guidance.base import guide
from guidance.operators import LinearOperator
from jobs.cache import batches_of
from jobs.densities import draw_density
from jobs.processes import draw_processes
from models.blocks.resample import average_downsample
from numerics.arrays import normal_like, sample_keys
from solvers.ode import interpolate

Pictures = UInt8[np.ndarray, "_ height width channels"]
_ROWS, _COLUMNS = 16, 8  # inputs, and samples per input, that a figure shows


class AllDrawn(NamedTuple):
    """Samples, the most network evaluations of one, and arrays to save beside the samples."""

    samples: Shaped[np.ndarray, "count ..."]
    nfe: int
    arrays: dict[str, np.ndarray]

    @property
    def summary(self) -> str:
        """The network evaluations, and the mean acceptance rate of Metropolis steps."""
        found = self.arrays.get("acceptance")
        rate = "" if found is None else f", {found.mean():.0%} of the steps accepted"
        return f"NFE {self.nfe}{rate}"


class TaskResult(NamedTuple):
    """Samples, arrays to save beside them, a figure, and a one-line summary.

    In a row of the figure, the input comes first. Points of the plane have further pictures by
    name: of their processes, and of the density of an energy.
    """

    samples: Shaped[np.ndarray, "count ..."]
    arrays: dict[str, np.ndarray]
    figure: UInt8[np.ndarray, "h w c"]
    summary: str
    pictures: Mapping[str, UInt8[np.ndarray, "h w c"] | None] = MappingProxyType({})

    def write(self, folder: AnyPath, protocol: dict[str, Any]) -> None:
        """Write samples.npz, samples.png, protocol.json, and the further pictures.

        The samples are stored twice: as arr_0 too, the name that ADM's evaluator reads.
        """
        arrays = {"samples": self.samples, "arr_0": self.samples, **self.arrays}
        write_npz(folder / "samples.npz", arrays, compress=True)
        write_png(folder / "samples.png", self.figure)
        for name, picture in self.pictures.items():
            if picture is not None:
                write_png(folder / f"{name}.png", picture)
        write_json(folder / "protocol.json", protocol | {"result": self.summary})


def draw_all(
    experiment: Experiment,
    checkpoint: Checkpoint,
    count: int,
    condition: Condition = unconditioned,
) -> AllDrawn:
    """Draw samples 0 .. count - 1.

    Raises:
        SamplingError, IntegrationError: if a sample becomes NaN or infinite.
    """
    parts: list[Drawn] = []
    with tqdm(total=count, desc="sampling", dynamic_ncols=True, mininterval=0.5) as bar:
        for indices in batches_of(count, experiment.evaluation.batch_size):
            parts.append(experiment.sampler.draw(checkpoint, indices, condition=condition))
            bar.update(len(indices))
    rates = [part.acceptance for part in parts if part.acceptance is not None]
    arrays = {"acceptance": np.concatenate(rates)} if rates else {}
    samples = np.concatenate([part.samples for part in parts])
    return AllDrawn(samples, max(part.nfe for part in parts), arrays)


def draw_plain(experiment: Experiment, checkpoint: Checkpoint, count: int) -> TaskResult:
    """Draw samples without a task; raise as `draw_all`."""
    drawn = draw_all(experiment, checkpoint, count)
    (figure,) = experiment.data.pictures([drawn.samples])
    pictures = {
        "processes": draw_processes(experiment, checkpoint),
        "density": draw_density(experiment, checkpoint, drawn.samples),
    }
    return TaskResult(drawn.samples, drawn.arrays, figure, drawn.summary, pictures)


class TaskRun:
    """A task with its input images, which are read and checked at construction.

    Args:
        experiment: its sampler has the task.
        task: the task.
        count: number of samples to draw.

    Raises:
        ConfigError: for images that are missing, or of the wrong shape or range, or for fewer
            samples than images.
    """

    def __init__(self, experiment: Experiment, task: Task, count: int) -> None:
        self.experiment, self.task, self.count = experiment, task, count
        self.inputs = self._read_inputs()
        if task.options.interpolates and len(self.inputs) != 2:
            raise ConfigError(
                f"config.task.input={task.input!r} has {len(self.inputs)} images; interpolate "
                "takes two, such as a.png,b.png or test:0,test:1"
            )
        # A reconstruction gives one sample per image, whatever their number.
        reconstructs = task.options.encodes and not task.options.interpolates
        least = 0 if reconstructs else len(self.inputs)
        if count < least:
            raise ConfigError(
                f"--num_samples={count} is too small for config.task.input={task.input!r} with "
                f"name={task.name!r}; give at least {least}, or fewer images"
            )

    @property
    def _data(self) -> Images:
        return as_images(self.experiment.data)

    @property
    def _is_measurement(self) -> bool:
        problem = self.task.inverse_problem
        return problem is not None and problem.input_is_measurement

    def _read_inputs(self) -> Float[np.ndarray, "n ..."]:
        task, data = self.task, self._data
        shape, keeps_range = data.shape, True
        if self._is_measurement:
            shape, keeps_range = (
                self._operator.measurement_shape,
                self._measurement_options.keeps_range,
            )
        if task.options.upsamples:
            height, width, channels = data.shape
            shape = height // self._factor, width // self._factor, channels

        def convert(stored: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n ..."]:
            images = jnp.asarray(data.in_unit_range(stored))
            return np.asarray(average_downsample(images, self._factor))

        def test_images() -> Converted:
            return Converted(data.splits.test, np.arange(len(data.splits.test)), convert)

        try:
            return read_images(
                task.input,
                shape,
                None if self._is_measurement else test_images,
                in_range=keeps_range,
                convert=not self._is_measurement,
            )
        except ValueError as error:
            raise ConfigError(f"config.task.{error}") from error

    @property
    def _factor(self) -> int:
        """The factor between the sizes of samples and inputs."""
        return self.experiment.model.upsampling

    def run(self, checkpoint: Checkpoint) -> TaskResult:
        """Draw the samples of the task; a reconstruction gives one per input.

        Raises:
            SamplingError, IntegrationError: if a sample becomes NaN or infinite.
        """
        if self.task.inverse_problem is not None:
            return self._solve_inverse_problem(checkpoint)
        if self.task.options.interpolates:
            return self._interpolate(checkpoint)
        if self.task.options.encodes:
            return self._reconstruct(checkpoint)
        drawn = draw_all(self.experiment, checkpoint, self.count, self.condition)
        figure = self._figure([self._input_images], drawn.samples)
        return TaskResult(drawn.samples, drawn.arrays, figure, drawn.summary)

    def condition(self, denoiser: Denoiser, indices: Int[Array, "batch"]) -> Conditioned:
        """Condition a batch of samples on their inputs."""
        if self.task.inverse_problem is None:
            x = self._rows(self._data.from_unit_range(self.inputs), indices)
            if self.task.options.upsamples:
                return Conditioned(dataclasses.replace(denoiser, image=x))
            return Conditioned(denoiser, source=x)
        problem = self._problem
        measurement = self._rows(self._measurement, indices)
        guidance = problem.guidance(self._operator, measurement, self._noise)
        return Conditioned(
            denoiser if guidance is None else guide(denoiser, guidance),
            projection=problem.projection(self._operator, measurement),
        )

    @property
    def _problem(self) -> InverseProblem:
        assert self.task.inverse_problem is not None
        return self.task.inverse_problem

    @property
    def _operator(self) -> LinearOperator:
        assert self.task.operator is not None
        return self.task.operator

    @property
    def _measurement_options(self) -> Measurement:
        assert isinstance(self.task.options, Measurement)
        return self.task.options

    @cached_property
    def _measurement(self) -> Float[np.ndarray, "n ..."]:
        """y of each input in the network's range; noise is added where it is measured here."""
        operator, experiment = self._operator, self.experiment
        if self._is_measurement:
            # Images become network inputs by u -> gain u + offset, and A is linear.
            offset = jnp.full((1, *operator.shape), self._ends[0])
            y = self._unit * jnp.asarray(self.inputs) + operator(offset)
        else:
            x = jnp.asarray(self._data.from_unit_range(self.inputs))
            y = operator(x)
            if self._noise:
                key = base_key(experiment.sampler.options.seed, "measurement")
                y += self._noise * normal_like(sample_keys(key, jnp.arange(len(x))), y)
        return np.asarray(operator.in_range(y))

    @property
    def _unit(self) -> float:
        """The size in y of 1 in a measurement of images in [0, 1]."""
        gain = float(self._ends[1] - self._ends[0])
        return gain * self._measurement_options.unit(self._data.shape)

    @property
    def _ends(self) -> Float[np.ndarray, "2"]:
        return self._data.from_unit_range(np.array([0, 1], np.float32))

    @property
    def _noise(self) -> float:
        return self._unit * self._problem.noise

    def _solve_inverse_problem(self, checkpoint: Checkpoint) -> TaskResult:
        operator, y, data = self._operator, self._measurement, self._data
        images, nfe, _ = draw_all(self.experiment, checkpoint, self.count, self.condition)
        again = operator(jnp.asarray(data.encode(images)))
        wanted = y[np.arange(self.count) % len(y)]
        error = np.asarray(again - wanted) / self._unit
        error = np.sqrt(np.sum(error**2) / (self.count * float(operator.count)))
        # Measurements shaped like images are shown directly, others by the pseudo-inverse.
        is_image = operator.measurement_shape == operator.shape
        seen = data.decode(y if is_image else operator.pseudo_inverse(jnp.asarray(y)))
        columns = [seen] if self._is_measurement else [self._input_images, seen]
        summary = (
            f"NFE {nfe}, measurement error {error:.4f} "
            f"(root mean square, images in [0, 1]; noise {self._problem.noise:g})"
        )
        return TaskResult(images, {"measurement": y}, self._figure(columns, images), summary)

    def _reconstruct(self, checkpoint: Checkpoint) -> TaskResult:
        latents, inputs = self._latents(checkpoint), self._input_images
        images = self._decode(checkpoint, latents, np.arange(len(latents)))
        error = np.sqrt(np.mean(((images.astype(np.float32) - inputs) / 255) ** 2))
        summary = f"error {error:.4f} (root mean square, images in [0, 1])"
        return TaskResult(images, {"latent": latents}, self._figure([inputs], images), summary)

    def _interpolate(self, checkpoint: Checkpoint) -> TaskResult:
        latents, inputs = self._latents(checkpoint), self._input_images
        first, last = jnp.asarray(latents)
        between = np.asarray(interpolate(first, last, jnp.linspace(0, 1, self.count)))
        # All have the class of the first image.
        images = self._decode(checkpoint, between, np.zeros(self.count, int))
        row = np.concatenate([inputs[:1], images, inputs[1:]])
        figure = image_grid(row, columns=len(row))
        return TaskResult(images, {"latent": latents}, figure, "interpolated")

    def _latents(self, checkpoint: Checkpoint) -> Float[np.ndarray, "n h w c"]:
        x = self._data.from_unit_range(self.inputs)
        return self._map(self.experiment.sampler.solve.encode, checkpoint, x, np.arange(len(x)))

    def _decode(
        self,
        checkpoint: Checkpoint,
        latents: Float[np.ndarray, "n h w c"],
        classes: Int[np.ndarray, "n"],
    ) -> Pictures:
        decode = self.experiment.sampler.solve.decode
        return self._data.decode(self._map(decode, checkpoint, latents, classes))

    def _map(
        self,
        function: Callable[[Denoiser, Array], Array],
        checkpoint: Checkpoint,
        states: Float[np.ndarray, "n h w c"],
        classes: Int[np.ndarray, "n"],
    ) -> Float[np.ndarray, "n h w c"]:
        """Map images to latents, or back, batch by batch, with the classes of these samples."""
        sampler, parallel, parts = self.experiment.sampler, self.experiment.parallel, []
        for rows in batches_of(len(states), self.experiment.evaluation.batch_size):
            denoiser = sampler.with_classes(checkpoint, parallel.place(classes[rows]))
            mapped = function(denoiser, self._rows(states, parallel.place(rows)))
            parts.append(parallel.fetch(mapped)[: len(rows)])
        return np.concatenate(parts)

    def _rows(self, array: Array | np.ndarray, indices: Int[Array, "batch"]) -> Array:
        """Return the row of each sample's input, split over the devices as the samples are."""
        parallel = self.experiment.parallel
        return parallel.put_batch(np.asarray(array)[parallel.own_rows(indices) % len(array)])

    @property
    def _input_images(self) -> Pictures:
        """The inputs, in the size of the samples."""
        images = np.rint(self.inputs * 255).astype(np.uint8)
        return images.repeat(self._factor, axis=1).repeat(self._factor, axis=2)

    def _figure(self, columns: list[Pictures], images: Pictures) -> UInt8[np.ndarray, "h w c"]:
        """Return a row per input: what was given, then samples."""
        inputs = len(columns[0])
        rows = min(inputs, len(images), _ROWS)
        width = min(len(images) // inputs, _COLUMNS) or 1
        shown = []
        for row in range(rows):
            samples = images[row::inputs][:width]
            shown.append(np.concatenate([*(column[row : row + 1] for column in columns), samples]))
        return image_grid(np.concatenate(shown), columns=len(shown[0]))
