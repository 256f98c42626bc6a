"""How good a checkpoint's samples are: distances of their features to those of the data.

Each metric is computed for every sampling seed and told as mean and standard deviation over them,
never as the best. Sample k of a seed is the same in any batch and after any restart, and so is
everything here; features are kept batch by batch until the evaluation is finished.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from denoising import Denoiser
from errors import ConfigError
from evaluation import references
from evaluation.references import Reference
from evaluation.report import WHAT_IS_JUDGED, Report
from experiment.experiment import Experiment
from jobs.cache import Arrays, Resumable
from metrics.features import Extractor
from metrics.frechet import Accumulator, frechet_distance, frechet_interval
from metrics.inception_score import inception_score
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import precision_recall


@dataclasses.dataclass(frozen=True)
class SampleSets:
    """The samples of a checkpoint, one set a seed, and what looks at them.

    `folder` is where statistics of the data are kept.
    """

    experiment: Experiment
    denoiser: Denoiser
    work: Resumable
    extractors: tuple[Extractor, ...]
    folder: Path

    @property
    def count(self) -> int:
        """Images in a set."""
        return self.experiment.config["eval"]["samples"]

    @property
    def seeds(self) -> list[int]:
        first = self.experiment.config["sampling"]["seed"]
        return [first + i for i in range(self.experiment.config["eval"]["sampling_seeds"])]

    @property
    def batch_size(self) -> int:
        return self.experiment.config["eval"]["batch_size"]

    def images(self, seed: int) -> Iterator[Arrays]:
        """Batches of `images` (uint8) with the network evaluations `nfe` of each."""
        name = self._samples(seed)
        return self.work.collect(name, self.count, self.batch_size, self._draw(seed))

    def extracted(self, extractor: Extractor, seed: int) -> Iterator[Arrays]:
        """Batches of `features`, and of `probabilities` from an extractor that has them."""

        def compute(indices: Int[np.ndarray, "batch"]) -> Arrays:
            drawn = self.work.keep(self._samples(seed), indices, self._draw(seed))
            return _arrays(extractor, drawn["images"])

        of = (*WHAT_IS_JUDGED, "sampling.", f"extractors.{extractor.name}")
        name = self.work.stamped(f"{extractor.name}-{seed}", *of)
        return self.work.collect(name, self.count, self.batch_size, compute)

    def features(self, extractor: Extractor, seed: int) -> Float[np.ndarray, "samples features"]:
        """Those of all samples of a seed at once."""
        return _joined(self.extracted(extractor, seed), self.count)

    def data_features(self, extractor: Extractor) -> Float[np.ndarray, "images features"]:
        """Those of as many training images as there are samples, evenly from all."""
        data = self.experiment.data
        count = min(self.count, len(data.train))
        chosen = np.linspace(0, len(data.train) - 1, count).astype(int)

        def compute(rows: Int[np.ndarray, "batch"]) -> Arrays:
            return _arrays(extractor, data.quantizer.to_uint8(data.train[chosen[rows]]))

        of = ("images.train", "eval.samples", f"extractors.{extractor.name}")
        name = self.work.stamped(f"{extractor.name}-train", *of)
        return _joined(self.work.collect(name, count, self.batch_size, compute), count)

    @cached_property
    def references(self) -> dict[str, dict[str, Reference]]:
        """Of each extractor, the statistics that its features are compared with."""
        file = self.experiment.config["eval"]["reference"]
        found = {}
        for extractor in self.extractors:
            if file:
                given = references.from_file(self.experiment, extractor, Path(file).expanduser())
                found[extractor.name] = {"reference": given}
            else:
                found[extractor.name] = {
                    split: references.find(self.experiment, split, extractor, self.folder)
                    for split in ("train", "test")
                }
        return found

    def _draw(self, seed: int) -> Callable[[np.ndarray], Arrays]:
        def draw(indices: Int[np.ndarray, "batch"]) -> Arrays:
            pictures = self.experiment.draw(self.denoiser, indices, seed=seed)
            return {"images": pictures.images, "nfe": np.full(len(indices), pictures.nfe)}

        return draw

    def _samples(self, seed: int) -> str:
        return self.work.stamped(f"samples-{seed}", *WHAT_IS_JUDGED, "sampling.")


def _arrays(extractor: Extractor, images: np.ndarray) -> Arrays:
    try:
        found = extractor(images)
    except ValueError as error:
        raise ConfigError(f"config.eval.features: {error}") from error
    return {name: array for name, array in found._asdict().items() if array is not None}


def _joined(parts: Iterator[Arrays], count: int) -> Float[np.ndarray, "count features"]:
    """All features, without a second copy of them on the way."""
    joined, filled = None, 0
    for part in parts:
        features = part["features"]
        if joined is None:
            joined = np.empty((count, features.shape[1]), features.dtype)
        joined[filled : filled + len(features)] = features
        filled += len(features)
    return joined


def _over_seeds(values: list[float]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "per_seed": [float(v) for v in values]}


# --- metrics ----------------------------------------------------------------------------------


def frechet(sets: SampleSets) -> Report:
    """Frechet distances to the training and the test images (or to the statistics of a file)."""
    summary = {}
    for extractor in sets.extractors:
        references = sets.references[extractor.name]
        # Groups, which tell the spread, of the first seed alone: at 2048 features they are 0.7 GB.
        first = _accumulated(sets, extractor, sets.seeds[0], groups=20)
        others = [
            _accumulated(sets, extractor, seed, groups=1).statistics() for seed in sets.seeds[1:]
        ]
        few = first.statistics().rank_deficient
        summary[extractor.name] = results = {}
        for name, given in references.items():
            spread = frechet_interval(first, given.statistics)
            distances = [frechet_distance(given.statistics, other) for other in others]
            results[f"to_{name}"] = _over_seeds([spread.distance, *distances]) | {
                # Of the first seed, from resampling its images.
                "interval": [spread.low, spread.high],
                "standard_error": spread.standard_error,
                "corrected": spread.corrected,
                "rank_deficient": few or given.statistics.rank_deficient,
                "reference": given.origin,
            }
        if len(references) == 2:
            train, test = (given.statistics for given in references.values())
            results["train_to_test"] = frechet_distance(train, test)
    return Report(summary, {})


def _accumulated(sets: SampleSets, extractor: Extractor, seed: int, *, groups: int) -> Accumulator:
    accumulator = Accumulator(sets.count, groups=groups)
    for part in sets.extracted(extractor, seed):
        accumulator.add(part["features"])
    return accumulator


def kid(sets: SampleSets) -> Report:
    """Kernel distances (KID) to as many training images."""

    def compute(samples: np.ndarray, data: np.ndarray) -> dict[str, Any]:
        return kernel_distance(samples, data)._asdict()

    return _against_data(sets, compute, ("mean",))


def precision_and_recall(sets: SampleSets) -> Report:
    """Improved precision and recall against as many training images."""

    def compute(samples: np.ndarray, data: np.ndarray) -> dict[str, Any]:
        return precision_recall(data, samples)._asdict()

    return _against_data(sets, compute, ("precision", "recall"))


def _against_data(
    sets: SampleSets,
    compute: Callable[[np.ndarray, np.ndarray], dict[str, Any]],
    names: tuple[str, ...],
) -> Report:
    """`names` of what is computed over the seeds, and all of it for the first seed."""
    summary = {}
    for extractor in sets.extractors:
        data = sets.data_features(extractor)
        found = [compute(sets.features(extractor, seed), data) for seed in sets.seeds]
        summary[extractor.name] = {
            **{name: _over_seeds([each[name] for each in found]) for name in names},
            **{name: value for name, value in found[0].items() if name not in names},
            "images": len(data),
        }
    return Report(summary, {})


def inception(sets: SampleSets) -> Report:
    """Inception Scores over 10 splits, by every extractor that is a classifier."""
    summary = {}
    for extractor in sets.extractors:
        found = []
        for seed in sets.seeds:
            parts = [part.get("probabilities") for part in sets.extracted(extractor, seed)]
            if parts[0] is None:
                break
            found.append(inception_score(np.concatenate(parts)))
        if found:
            summary[extractor.name] = _over_seeds([each.mean for each in found]) | {
                "over_splits": [each.std for each in found]
            }
    return Report(summary, {})
