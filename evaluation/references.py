"""What samples are compared with: statistics of the data's features, and the features themselves.

Statistics come from a file that a person names, or are computed from the images and kept beside the
run. A file of ours says which images and which extractor it is of, and is refused if those are not
the ones asked for; files of other projects cannot say, and are marked as unverified.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from errors import ConfigError
from experiment.experiment import Experiment
from files.writing import sha256_of
from jobs.cache import batches_of
from metrics import statistics_files
from metrics.features import Extractor
from metrics.frechet import Accumulator, Statistics, check_alike
from metrics.statistics_files import Provenance


class Reference(NamedTuple):
    """Statistics, and what the results say of them."""

    statistics: Statistics
    origin: dict[str, Any]


def stored_images(experiment: Experiment, split: str) -> UInt8[np.ndarray, "n h w c"]:
    """The stored levels of "train" or "test"."""
    return experiment.data.train if split == "train" else experiment.data.test


def provenance(experiment: Experiment, split: str, extractor: Extractor) -> Provenance:
    """What statistics of these images by this extractor are known by."""
    images, fields = stored_images(experiment, split), experiment.config["data"]
    return Provenance(
        dataset=Path(fields["name"]).name,
        split=split,
        image_size=fields["image_size"],
        resize=fields["resize"],
        count=len(images),
        fingerprint=statistics_files.fingerprint(images),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
    )


def file_name(experiment: Experiment, split: str, extractor: Extractor) -> str:
    """Where statistics are kept in a run's folder for them."""
    return f"{Path(experiment.config['data']['name']).stem}-{split}-{extractor.name}.npz"


def make(experiment: Experiment, split: str, extractor: Extractor, file: Path) -> Statistics:
    """Statistics of all images of a split, computed and written to `file`."""
    images, to_uint8 = stored_images(experiment, split), experiment.data.quantizer.to_uint8
    if len(images) < 2:
        name = experiment.config["data"]["name"]
        raise ConfigError(
            f"config.data.name={name!r} has {len(images)} {split} image; statistics need 2"
        )
    accumulator = Accumulator(len(images), groups=1)
    with tqdm(total=len(images), desc=f"{extractor.name} of {split}", dynamic_ncols=True) as bar:
        for rows in batches_of(len(images), experiment.config["eval"]["batch_size"]):
            accumulator.add(extractor(to_uint8(images[rows])).features)
            bar.update(len(rows))
    statistics = accumulator.statistics()
    statistics_files.save(file, statistics, provenance(experiment, split, extractor))
    return statistics


def find(experiment: Experiment, split: str, extractor: Extractor, folder: Path) -> Reference:
    """Statistics of a split: those kept in `folder` if they are of these images, or made now."""
    file = folder / file_name(experiment, split, extractor)
    wanted = provenance(experiment, split, extractor)
    origin = {"images": wanted.count, "fingerprint": wanted.fingerprint[:16]}
    try:
        statistics, given = statistics_files.load(file)
        if given == wanted:
            return Reference(statistics, origin)
    except (FileNotFoundError, ValueError):
        pass  # nothing there, or nothing of use: it is made from the images anyway
    return Reference(make(experiment, split, extractor, file), origin)


def from_file(experiment: Experiment, extractor: Extractor, file: Path) -> Reference:
    """Statistics that a person names, to stand for the training images.

    Raises:
      ConfigError: if they are damaged, or not of these images and this extractor.
    """
    try:
        statistics, given = statistics_files.load(file)
        black = np.zeros((1, *experiment.item_shape), np.uint8)
        check_alike(statistics.mean.size, extractor(black).features.shape[1])
        if given is not None:
            statistics_files.check(given, provenance(experiment, given.split, extractor))
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
