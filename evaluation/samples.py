"""Sample quality: distances between features of samples and features of the data.

Each metric is computed for every sampling seed and reported as mean and standard deviation over
them, never as the best. Sample k of a seed is the same in any batch and after any restart. Features
are kept batch by batch until the evaluation is finished.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from errors import ConfigError
from evaluation.protocol import MODEL_FIELDS, SAMPLER_FIELDS
from evaluation.references import Reference, reference_of_file, reference_of_split
from evaluation.report import Evaluation, Report
from files.copies import local_input
from jobs.cache import Arrays
from metrics.features import Extractor
from metrics.frechet import Accumulator, frechet_distance, frechet_interval
from metrics.inception_score import inception_score
from metrics.kernel_distance import kernel_distance
from metrics.mmd import mmd_squared
from metrics.precision_recall import precision_recall
from metrics.sliced_wasserstein import sliced_wasserstein


@dataclass(frozen=True)
class SampleSets:
    """The samples of an evaluation, one set per sampling seed, and their features."""

    evaluation: Evaluation

    @property
    def count(self) -> int:
        """Images per set."""
        return self.evaluation.experiment.evaluation.samples

    @property
    def seeds(self) -> list[int]:
        """The sampling seeds."""
        experiment = self.evaluation.experiment
        first = experiment.sampler.options.seed
        return [first + i for i in range(experiment.evaluation.sampling_seeds)]

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.evaluation.experiment.evaluation.batch_size

    def samples(self, seed: int) -> Iterator[Arrays]:
        """Yield batches of `samples` with their network evaluations `nfe`."""
        cache = self.evaluation.cache
        return cache.batches(self._key(seed), self.count, self.batch_size, self._draw(seed))

    def extracted(self, extractor: Extractor, seed: int) -> Iterator[Arrays]:
        """Yield batches of `features`, and of `probabilities` if the extractor has them."""
        evaluation = self.evaluation

        def compute(indices: Int[np.ndarray, "batch"]) -> Arrays:
            drawn = evaluation.cache.get_or_compute(self._key(seed), indices, self._draw(seed))
            return _arrays(extractor, drawn["samples"])

        depends_on = (*MODEL_FIELDS, *SAMPLER_FIELDS, f"extractors.{extractor.name}")
        key = evaluation.protocol.key(f"{extractor.name}-{seed}", *depends_on)
        return evaluation.cache.batches(key, self.count, self.batch_size, compute)

    def features(self, extractor: Extractor, seed: int) -> Float[np.ndarray, "samples features"]:
        """Return the features of all samples of a seed."""
        return _joined(self.extracted(extractor, seed), self.count)

    def data_features(
        self, extractor: Extractor, sets: int = 1
    ) -> Float[np.ndarray, "images features"]:
        """Return the features of training images, spread evenly over all.

        There are as many as samples, times `sets`, or all if there are fewer.
        """
        evaluation, data = self.evaluation, self.evaluation.experiment.data
        train = data.splits.train
        count = min(sets * self.count, len(train))
        chosen = np.linspace(0, len(train) - 1, count).astype(int)

        def features(rows: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m features"]:
            return extractor(data.as_samples(train[rows])).features

        def compute(rows: Int[np.ndarray, "batch"]) -> Arrays:
            return {"features": data.parallel.divided(chosen[rows], features)}

        depends_on = ("images.train", "eval.samples", f"extractors.{extractor.name}")
        name = f"{extractor.name}-train" + f"-{sets}" * (sets > 1)
        key = evaluation.protocol.key(name, *depends_on)
        return _joined(evaluation.cache.batches(key, count, self.batch_size, compute), count)

    @cached_property
    def references(self) -> dict[str, dict[str, Reference]]:
        """The statistics with which each extractor's features are compared.

        Raises:
            ConfigError: for a file of statistics that does not fit.
        """
        evaluation, experiment = self.evaluation, self.evaluation.experiment
        file, folder = experiment.evaluation.reference, evaluation.statistics
        found = {}
        for extractor in evaluation.extractors:
            if file:
                given = reference_of_file(experiment, extractor, local_input(file))
                found[extractor.name] = {"reference": given}
            else:
                found[extractor.name] = {
                    split: reference_of_split(experiment, split, extractor, folder)
                    for split in ("train", "test")
                }
        return found

    def _draw(self, seed: int) -> Callable[[np.ndarray], Arrays]:
        sampler, checkpoint = self.evaluation.experiment.sampler, self.evaluation.checkpoint

        def draw(indices: Int[np.ndarray, "batch"]) -> Arrays:
            drawn = sampler.draw(checkpoint, indices, seed=seed)
            return {"samples": drawn.samples, "nfe": np.full(len(indices), drawn.nfe)}

        return draw

    def _key(self, seed: int) -> str:
        return self.evaluation.protocol.key(f"samples-{seed}", *MODEL_FIELDS, *SAMPLER_FIELDS)


def _arrays(extractor: Extractor, images: np.ndarray) -> Arrays:
    try:
        found = extractor(images)
    except ValueError as error:
        raise ConfigError(f"config.eval.features: {error}") from error
    return {name: array for name, array in found._asdict().items() if array is not None}


def _joined(parts: Iterator[Arrays], count: int) -> Float[np.ndarray, "count features"]:
    """Join the features of all batches without a second copy of them."""
    first = next(parts)["features"]
    joined = np.empty((count, first.shape[1]), first.dtype)
    filled = 0
    for features in itertools.chain([first], (part["features"] for part in parts)):
        joined[filled : filled + len(features)] = features
        filled += len(features)
    return joined


def _over_seeds(values: list[float]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "per_seed": [float(v) for v in values]}


def frechet(sets: SampleSets) -> Report:
    """Compute Frechet distances to training and test images, or to the statistics of a file."""
    summary = {}
    for extractor in sets.evaluation.extractors:
        references = sets.references[extractor.name]
        # Groups give the interval. Only the first seed has them: 2048 features take 0.7 GB.
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
                # For the first seed, by resampling its images.
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
    """Compute kernel distances (KID) to as many training images."""

    def compute(samples: np.ndarray, data: np.ndarray) -> dict[str, Any]:
        return kernel_distance(samples, data)._asdict()

    return _against_data(sets, compute, ("mean",))


def sliced_wasserstein_distances(sets: SampleSets) -> Report:
    """Compute sliced Wasserstein distances to the data, beside that between two sets of data."""
    return _with_baseline(sets, sliced_wasserstein)


def mmd(sets: SampleSets) -> Report:
    """Compute MMD^2 to the data, beside that between two sets of data."""
    return _with_baseline(sets, mmd_squared)


def _with_baseline(sets: SampleSets, compute: Callable[[np.ndarray, np.ndarray], float]) -> Report:
    """Compare samples with half of some training data, and the other half with it too.

    Each half has as many rows as there are samples, or half of all.
    """
    summary = {}
    for extractor in sets.evaluation.extractors:
        data = sets.data_features(extractor, sets=2)
        first, second = data[0::2], data[1::2]
        values = [compute(sets.features(extractor, seed), first) for seed in sets.seeds]
        baseline = {"baseline": compute(second, first), "images": len(first)}
        summary[extractor.name] = _over_seeds(values) | baseline
    return Report(summary, {})


def precision_and_recall(sets: SampleSets) -> Report:
    """Compute improved precision and recall against as many training images."""

    def compute(samples: np.ndarray, data: np.ndarray) -> dict[str, Any]:
        return precision_recall(data, samples)._asdict()

    return _against_data(sets, compute, ("precision", "recall"))


def _against_data(
    sets: SampleSets,
    compute: Callable[[np.ndarray, np.ndarray], dict[str, Any]],
    names: tuple[str, ...],
) -> Report:
    """Summarize the values `names` over the seeds; take the other values from the first seed."""
    summary = {}
    for extractor in sets.evaluation.extractors:
        data = sets.data_features(extractor)
        found = [compute(sets.features(extractor, seed), data) for seed in sets.seeds]
        summary[extractor.name] = {
            **{name: _over_seeds([each[name] for each in found]) for name in names},
            **{name: value for name, value in found[0].items() if name not in names},
            "images": len(data),
        }
    return Report(summary, {})


def inception(sets: SampleSets) -> Report:
    """Compute Inception Scores over 10 splits, for every extractor with class probabilities."""
    summary = {}
    for extractor in sets.evaluation.extractors:
        found = []
        for seed in sets.seeds:
            parts = list(sets.extracted(extractor, seed))
            if "probabilities" not in parts[0]:
                break
            found.append(inception_score(np.concatenate([p["probabilities"] for p in parts])))
        if found:
            summary[extractor.name] = _over_seeds([each.mean for each in found]) | {
                "over_splits": [each.std for each in found]
            }
    return Report(summary, {})
