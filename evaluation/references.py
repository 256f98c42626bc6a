"""Reference statistics, with which the features of samples are compared.

They come from a file that the user names, or are computed from the data and kept beside the run. A
file of ours says which images and which extractor it belongs to, and is refused for others. Files
of other projects cannot say; they are marked as unverified.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from errors import ConfigError
from experiment.data import Data
from experiment.experiment import Experiment
from files.paths import AnyPath
from files.writing import sha256_of
from jobs.cache import batches_of
from metrics import statistics_files
from metrics.features import Extractor
from metrics.frechet import Accumulator, Statistics, check_alike
from metrics.statistics_files import Provenance
from training.hosts import agreed


class Reference(NamedTuple):
    """Statistics, and their origin as the results state it."""

    statistics: Statistics
    origin: dict[str, Any]


def _images(data: Data, split: str) -> Any:
    """Return the stored rows of "train" or "test"."""
    return data.splits.train if split == "train" else data.splits.test


def _provenance(data: Data, split: str, extractor: Extractor) -> Provenance:
    """Return what identifies the statistics of these images by this extractor."""
    images = _images(data, split)
    return Provenance(
        dataset=Path(data.options.name).name,
        split=split,
        image_size=data.shape[0],
        resize=data.resize,
        count=len(images),
        fingerprint=data.splits.fingerprints[split],
        extractor=extractor.name,
        extractor_digest=extractor.digest,
    )


def statistics_file(data: Data, split: str, extractor: Extractor, folder: AnyPath) -> AnyPath:
    """Return the file in which a run keeps the statistics of a split."""
    return folder / f"{Path(data.options.name).stem.replace(':', '-')}-{split}-{extractor.name}.npz"


def compute_statistics(
    experiment: Experiment, split: str, extractor: Extractor, file: AnyPath
) -> Statistics:
    """Compute the statistics of all images of a split and write them to `file`.

    Raises:
        ConfigError: if the split has fewer than 2 images.
    """
    data = experiment.data
    images = _images(data, split)
    if len(images) < 2:
        raise ConfigError(
            f"config.data.name={data.options.name!r} has {len(images)} {split} image; statistics "
            "need 2"
        )

    def features(rows: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m features"]:
        return extractor(data.as_samples(images[rows])).features

    accumulator = Accumulator(len(images), groups=1)
    with tqdm(total=len(images), desc=f"{extractor.name} of {split}", dynamic_ncols=True) as bar:
        for rows in batches_of(len(images), experiment.evaluation.batch_size):
            accumulator.add(experiment.parallel.divided(rows, features))
            bar.update(len(rows))
    statistics = accumulator.statistics()
    statistics_files.save(file, statistics, _provenance(data, split, extractor))
    return statistics


def reference_of_split(
    experiment: Experiment, split: str, extractor: Extractor, folder: AnyPath
) -> Reference:
    """Return the statistics of a split: those in `folder` if they fit, or new ones."""
    file = statistics_file(experiment.data, split, extractor, folder)
    wanted = _provenance(experiment.data, split, extractor)
    origin = {"images": wanted.count, "fingerprint": wanted.fingerprint[:16]}
    # The hosts agree, since they compute together.
    if agreed(lambda: _holds(file, wanted)):
        return Reference(statistics_files.load(file)[0], origin)
    return Reference(compute_statistics(experiment, split, extractor, file), origin)


def _holds(file: AnyPath, wanted: Provenance) -> bool:
    """Return whether a file holds the statistics that are wanted, unharmed."""
    try:
        return statistics_files.load(file)[1] == wanted
    except (FileNotFoundError, ValueError):
        return False


def reference_of_file(experiment: Experiment, extractor: Extractor, file: Path) -> Reference:
    """Return the statistics that a user names, in the role of the training images.

    Raises:
        ConfigError: if they are damaged, or belong to other images or another extractor.
    """
    data = experiment.data
    try:
        statistics, given = statistics_files.load(file)
        zeros = np.zeros((1, *data.shape), data.splits.train.dtype)
        check_alike(statistics.mean.size, extractor(zeros).features.shape[1])
        if given is not None:
            statistics_files.check(given, _provenance(data, given.split, extractor))
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.eval.reference={str(file)!r}: {error}") from error
    origin = {
        "file": file.name,
        "sha256": sha256_of(file)[:16],
        "images": statistics.count,
        "verified": given is not None,
    }
    if given is not None:
        origin |= {"split": given.split, "fingerprint": given.fingerprint[:16]}
    return Reference(statistics, origin)
