"""Arrays of the test images, computed batch by batch, and what their reports share."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from denoising import Denoiser
from evaluation.protocol import MODEL_FIELDS
from evaluation.report import Evaluation
from experiment.experiment import Experiment, with_data_labels
from jobs.cache import Arrays
from metrics import bits_per_dim as bits


class Batch(NamedTuple):
    """Indices of test images, split over the devices, and the denoiser with their classes."""

    indices: Int[Array, "batch"]
    denoiser: Denoiser


def in_batches(
    evaluation: Evaluation,
    name: str,
    compute: Callable[[Batch], dict[str, Array]],
    *,
    depends_on: tuple[str, ...],
    chosen: Int[np.ndarray, "images"] | None = None,
    denoiser: Denoiser | None = None,
) -> Arrays:
    """Compute arrays for the test images, batch by batch, with the seconds per image.

    Args:
        evaluation: what is evaluated.
        name: names the cached batches.
        compute: arrays of a batch.
        depends_on: parts of the protocol that they depend on, besides network and images.
        chosen: indices of the images; by default all.
        denoiser: by default that of the checkpoint.
    """
    experiment, images = evaluation.experiment, evaluation.experiment.data.splits
    denoiser = evaluation.checkpoint.denoiser if denoiser is None else denoiser
    chosen = np.arange(len(images.test)) if chosen is None else chosen

    def computed(rows: Int[np.ndarray, "batch"]) -> Arrays:
        start = time.perf_counter()
        indices = experiment.parallel.place(chosen[rows])
        labeled = with_data_labels(experiment, denoiser, indices, images.test_labels)
        arrays = {
            key: experiment.parallel.fetch(value)[: len(rows)]
            for key, value in compute(Batch(indices, labeled)).items()
        }
        seconds = (time.perf_counter() - start) / len(rows)
        return arrays | {"seconds": np.full(len(rows), seconds)}

    key = evaluation.protocol.key(name, *MODEL_FIELDS, "eval.seed", *depends_on)
    batch_size = experiment.evaluation.batch_size
    return evaluation.cache.concatenate(key, len(chosen), batch_size, computed)


def nats_to_units(experiment: Experiment) -> float:
    """Return the factor from nats per row to the data's unit, per dimension."""
    return experiment.data.kind.unit.of(1.0, experiment.data.size)


def facts(experiment: Experiment) -> dict[str, str]:
    """Return the unit of likelihoods, and what the rows of the data are."""
    kind = experiment.data.kind
    return {"unit": kind.unit.name, "rows": kind.name}


def seconds_of(parts: list[Arrays]) -> float:
    """Return the seconds that all images took."""
    return round(float(sum(part["seconds"].sum() for part in parts)), 1)


def mean(values: np.ndarray) -> float:
    """Return the mean, summed in float64."""
    return float(np.mean(values, dtype=np.float64))


def mean_and_error(values: Float[np.ndarray, "images"]) -> dict[str, float | None]:
    """Return the mean over images and its standard error."""
    estimate = bits.estimate(values[None, :, None])
    return {"mean": estimate.mean, "standard_error": estimate.over_images}
