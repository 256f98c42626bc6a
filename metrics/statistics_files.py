"""Files of reference statistics, with a record of the images and extractor behind them.

A file is an .npz without pickles:

    mu, sigma    mean and unbiased covariance, under the names that pytorch-fid and EDM read
    count        number of images
    provenance   JSON: {"format": 1, and the fields of `Provenance`}

Other projects' files are read too, without provenance: those of pytorch-fid and EDM with mu and
sigma, and those of score_sde with the features themselves (pool_3).
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from errors import FileError
from files.arrays import Arrays, open_arrays
from files.paths import AnyPath
from files.writing import write_file
from metrics.frechet import Accumulator, Statistics

_FORMAT = 1
_ROWS = 1024  # rows of features read at a time
_LARGEST = 4096  # features of an extractor; those in use have 2048 and fewer
_ASYMMETRY = 1e-5  # of a covariance, over its largest entry: what float32 leaves
_REMEDY = "write statistics anew with --mode=stats"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """The images and the extractor behind statistics.

    Attributes:
        dataset: name of the data set.
        split: train or test.
        image_size: height and width of the stored images.
        resize: the rule that gave them that size.
        count: their number.
        fingerprint: differs for other images, `data.datasets.ImageData.fingerprints`.
        extractor: name of the feature extractor.
        extractor_digest: differs between extractors of one name that compute other features.
    """

    dataset: str
    split: str
    image_size: int
    resize: str
    count: int
    fingerprint: str
    extractor: str
    extractor_digest: str


def check(given: Provenance, wanted: Provenance) -> None:
    """Raise ValueError, naming the first field that differs, unless the statistics fit."""
    for field in dataclasses.fields(Provenance):
        has, wants = getattr(given, field.name), getattr(wanted, field.name)
        if has != wants:
            raise ValueError(
                f"{field.name}={has!r} of the statistics is not {wants!r}, as needed here; "
                f"{_REMEDY}"
            )


def save(file: AnyPath, statistics: Statistics, provenance: Provenance) -> None:
    """Write the file, whole or not at all; equal statistics give equal bytes.

    Raises:
        ValueError: if statistics and provenance have different numbers of images.
    """
    if statistics.count != provenance.count:
        raise ValueError(
            f"count={provenance.count} of the provenance, but {statistics.count} of the statistics"
        )
    origin = json.dumps({"format": _FORMAT} | dataclasses.asdict(provenance))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # because np.savez would add .npz to a name
            np.savez(
                stream,
                mu=statistics.mean,
                sigma=statistics.covariance,
                count=np.array(statistics.count),
                provenance=np.array(origin),
            )

    write_file(file, write)


def load(file: AnyPath) -> tuple[Statistics, Provenance | None]:
    """Return the statistics in a file, and their provenance if it is one of ours.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is damaged, is a pickle, or holds no statistics.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file}: there are no statistics; {_REMEDY}")
    try:
        with open_arrays(file, str(file)) as arrays:
            if "pool_3" in arrays and "mu" not in arrays:
                return _statistics_of_features(arrays, "pool_3"), None
            if missing := {"mu", "sigma"} - set(arrays):
                found = ", ".join(map(repr, list(arrays)[:8])) or "nothing"
                raise ValueError(f"has no {' and '.join(sorted(missing))} among {found}")
            mean, covariance = _matrices(arrays)
            provenance = _provenance(str(arrays["provenance"])) if "provenance" in arrays else None
            count = int(arrays["count"]) if provenance else None
        if provenance and count != provenance.count:
            raise ValueError(f"counts {count} images, but its provenance says {provenance.count}")
        return _checked(count, mean, covariance), provenance
    except FileError as error:  # it has the file's name
        raise ValueError(f"{error}; {_REMEDY}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as statistics: {error}; {_REMEDY}") from error


def _matrices(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of floats, whose shapes are checked before they are read."""
    mean, covariance = arrays.header("mu"), arrays.header("sigma")
    if len(mean.shape) != 1 or not mean.shape[0] or covariance.shape != 2 * mean.shape:
        raise ValueError(f"has mu {mean.shape} and sigma {covariance.shape}")
    if mean.shape[0] > _LARGEST:
        raise ValueError(f"has {mean.shape[0]} features; at most {_LARGEST} are valid")
    if not mean.dtype.kind == covariance.dtype.kind == "f":
        raise ValueError(f"has mu of {mean.dtype} and sigma of {covariance.dtype}")
    return arrays["mu"], arrays["sigma"]


def _provenance(text: str) -> Provenance:
    values = json.loads(text)
    if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
        raise ValueError(f"its provenance is not of format {_FORMAT}: {text:.60}")
    types = {field.name: field.type for field in dataclasses.fields(Provenance)}
    names = values.keys() | types.keys()
    if wrong := sorted(name for name in names if type(values.get(name)) is not types.get(name)):
        raise ValueError(f"its provenance is wrong in {', '.join(wrong)}: {text:.200}")
    return Provenance(**values)


def _checked(count: int | None, mean: np.ndarray, covariance: np.ndarray) -> Statistics:
    """Return the statistics in float64; raise ValueError unless some features can have them."""
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("has NaN or infinite entries")
    if (covariance.diagonal() < 0).any():
        raise ValueError("has negative variances in sigma")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > _ASYMMETRY * np.abs(covariance).max():
        raise ValueError(f"sigma is not symmetric: entries differ by {asymmetry:.3g}")
    return Statistics(count, mean, (covariance + covariance.T) / 2)


def _statistics_of_features(arrays: Arrays, name: str) -> Statistics:
    """Return the statistics of an array (n, features) in an archive, read block by block."""
    shape, dtype, columns_first = arrays.header(name)
    if len(shape) != 2 or columns_first or dtype.kind != "f" or not 0 < shape[1] <= _LARGEST:
        raise ValueError(
            f"{name} is not a matrix of at most {_LARGEST} features row by row: {dtype} {shape}"
        )
    accumulator = Accumulator(shape[0], groups=1)
    for rows in arrays.rows(name, _ROWS):
        accumulator.add(rows)
    return accumulator.statistics()
