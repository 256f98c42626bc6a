"""Translate rows of one data set to another, in both directions, along the paths of a flow.

To the data, samples start at the inputs as the ends x1. From the data, the ODE encodes inputs x0 as
their ends.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from data.pictures import read_images
from data.streamed import Converted
from denoising import Denoiser
from errors import ConfigError
from experiment.data import Data
from experiment.experiment import Experiment
from experiment.images import Images
from experiment.sampler import Checkpoint, Conditioned
from experiment.tasks import Task
from files.figures import translation_picture
from files.pictures import image_grid
from jobs.cache import batches_of
from jobs.sample import TaskResult, TaskRun, draw_all

_ROWS, _COLUMNS = 8, 8  # pairs of images in a figure


class Translation:
    """A task `translate` with its inputs, which are read and checked at construction.

    Args:
        experiment: its sampler has the task.
        task: the task.
        count: number of samples; sample k translates input k modulo their number.

    Attributes:
        inputs: in the units of the data, or images in [0, 1].

    Raises:
        ConfigError: for inputs that are missing or of the wrong shape or range.
    """

    def __init__(self, experiment: Experiment, task: Task, count: int) -> None:
        self.experiment, self.task, self.count = experiment, task, count
        self.inputs = self._read_inputs()[:count]

    def _read_inputs(self) -> Float[np.ndarray, "n ..."]:
        ends = self.experiment.ends
        ends.check_rows()
        of = self.experiment.data if self.task.options.encodes else ends.given
        assert of is not None
        images = isinstance(of, Images)

        def test_rows() -> Any:
            stored = of.splits.test
            convert = of.in_unit_range if isinstance(of, Images) else np.asarray
            return Converted(stored, np.arange(len(stored)), convert)

        try:
            return read_images(
                self.task.input, of.shape, test_rows, in_range=images, convert=images
            )
        except ValueError as error:
            raise ConfigError(f"config.task.{error}") from error

    def run(self, checkpoint: Checkpoint) -> TaskResult:
        """Translate the inputs.

        Raises:
            SamplingError, IntegrationError: if a sample becomes NaN or infinite.
        """
        rows = np.arange(self.count) % len(self.inputs)
        x = self._in_range(self.inputs[rows])
        if self.task.options.encodes:
            samples = self._encode(checkpoint, x)
            summary = "translated from the data"
        else:
            samples, nfe, _ = draw_all(self.experiment, checkpoint, self.count, self.condition)
            summary = f"NFE {nfe}, translated to the data"
        inputs = self._shown(x)
        distance = float(np.mean(np.sum((self._numbers(samples) - self._numbers(inputs)) ** 2, 1)))
        summary += f", transport cost {distance:.4f} (mean squared distance)"
        return TaskResult(samples, {"input": inputs}, self._figure(inputs, samples), summary)

    def condition(self, denoiser: Denoiser, indices: Int[Array, "batch"]) -> Conditioned:
        """Condition a batch of samples on their inputs, the ends where they start."""
        parallel = self.experiment.parallel
        rows = parallel.fetch(indices) % len(self.inputs)
        x1 = parallel.split_rows(np.asarray(self._in_range(self.inputs[rows])))
        return Conditioned(denoiser, initial=x1)

    def _in_range(self, rows: Float[np.ndarray, "n ..."]) -> Float[Any, "n ..."]:
        """Return inputs in the network's range; those of a measurement are measured."""
        data, ends = self.experiment.data, self.experiment.ends
        x = data.from_unit_range(rows) if isinstance(data, Images) else data.encode(rows)
        measured = ends.operator is not None and not self.task.options.encodes
        return np.asarray(ends.degraded(jnp.asarray(x))) if measured else x

    def _encode(self, checkpoint: Checkpoint, x: Any) -> Shaped[np.ndarray, "n ..."]:
        experiment, parts = self.experiment, []
        sampler, parallel = experiment.sampler, experiment.parallel
        for rows in batches_of(len(x), experiment.evaluation.batch_size):
            placed = parallel.place(rows)
            denoiser = sampler.with_classes(checkpoint, placed)
            given = parallel.split_rows(np.asarray(x)[parallel.fetch(placed)])
            x1 = sampler.solve.encode(denoiser, given) / denoiser.sde.prior_std
            parts.append(parallel.fetch(x1)[: len(rows)])
        return self._other.decode(np.concatenate(parts))

    @property
    def _other(self) -> Data:
        return self.experiment.ends.other or self.experiment.data

    def _shown(self, x: Any) -> Shaped[np.ndarray, "n ..."]:
        """Return inputs as `decode` gives samples."""
        return (self.experiment.data if self.task.options.encodes else self._other).decode(x)

    def _numbers(self, rows: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
        """Return rows in their units, those of images in [0, 1]."""
        scale = 255.0 if rows.dtype == np.uint8 else 1.0
        return rows.reshape(len(rows), -1).astype(np.float64) / scale

    def _figure(self, inputs: Any, samples: Any) -> UInt8[np.ndarray, "h w c"]:
        """Return the inputs and their samples: beside each other, or points with their paths."""
        data = self.experiment.data
        if isinstance(data, Images):
            count = min(len(samples), _ROWS * _COLUMNS)
            pairs = np.stack([inputs[:count], samples[:count]], axis=1)
            return image_grid(_in_rows(pairs), columns=2 * min(count, _COLUMNS))
        if data.shape == (2,):
            return translation_picture(inputs, samples)
        return np.concatenate(data.pictures([inputs, samples]), axis=1)


def task_run(experiment: Experiment, task: Task, count: int) -> TaskRun | Translation:
    """Return a task with its inputs, read and checked.

    Raises:
        ConfigError: for inputs that do not fit.
    """
    return (Translation if task.options.translates else TaskRun)(experiment, task, count)


def _in_rows(pairs: Shaped[np.ndarray, "n two ..."]) -> Shaped[np.ndarray, "m ..."]:
    return pairs.reshape(-1, *pairs.shape[2:])
