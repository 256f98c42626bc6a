"""Compare two evaluations, if their numbers mean the same.

Numbers compare only if they were measured alike: on the same images, with the same extractor, the
same number of samples, and so on. The samplers may differ; they are what is compared.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from errors import ConfigError
from evaluation.metrics import METRICS
from evaluation.protocol import SAMPLER_FIELDS, Protocol
from files.arrays import open_arrays
from files.kinds import require_file
from files.paths import AnyPath, bucket_errors
from files.text import table

# Parts of the protocol whose differences the table lists.
_SHOWN = ("data.dequantization", "sde.", "denoiser.", "ema.", "average", "nfe", *SAMPLER_FIELDS)


def compare(first: AnyPath, second: AnyPath) -> str:
    """Return a table of the metrics that two results have in common, and of their samplers.

    Each is an `eval/<step>.json`, or a run's folder for the last one in it. Differences of bits/dim
    come with the standard error of the paired difference over the test images.

    Raises:
        ConfigError: for a file without results, and for numbers that were not measured alike.
    """
    files = [_file(path) for path in (first, second)]
    a, b = (_read(file) for file in files)
    common = [name for name in METRICS if name in a and name in b]
    if not common:
        raise ConfigError(f"{files[0]} and {files[1]} have no metric in common")
    ours, theirs = (_protocol(results) for results in (a, b))

    def values(name: str) -> tuple[Any, Any]:
        return ours.fields.get(name), theirs.fields.get(name)

    differing = dict.fromkeys(
        name for metric in common for name in ours.difference(theirs, *METRICS[metric].comparable)
    )
    if differing:
        phrases = ("{} was {!r}, is {!r}".format(name, *values(name)) for name in differing)
        raise ConfigError(
            f"{files[0]} and {files[1]} were not measured alike: {'; '.join(phrases)}. Evaluate "
            "one again with the settings of the other"
        )
    rows: list[tuple[str, ...]] = [("", str(files[0]), str(files[1]), "difference")]
    for metric in common:
        rows += _rows(metric, a[metric], b[metric], files)
    rows += [(name, *map(str, values(name)), "") for name in ours.difference(theirs, *_SHOWN)]
    return table(rows)


def _file(path: AnyPath) -> AnyPath:
    if not path.is_dir():
        return path
    found = [file for file in (path / "eval").glob("*.json") if file.stem.isdecimal()]
    if not found:
        raise ConfigError(f"{path} has no results yet; run --mode=eval there")
    return max(found, key=lambda file: int(file.stem))


def _read(file: AnyPath) -> dict:
    try:
        require_file(file, "it")
        with bucket_errors(file):
            content = file.read_text()
        results = json.loads(content)
        if not isinstance(results, dict) or "protocol" not in results:
            raise ValueError("it has no protocol")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} holds no results of --mode=eval ({error}); give an eval/<step>.json or the "
            "folder of a run"
        ) from error
    return results


def _protocol(results: dict[str, Any]) -> Protocol:
    """Return the protocol, with the network evaluations per sample as one more field."""
    samples = {"nfe": results["samples"]["nfe"]} if "samples" in results else {}
    return Protocol(results["protocol"] | samples)


def _rows(metric: str, a: dict, b: dict, files: list[AnyPath]) -> Iterator[tuple[str, ...]]:
    """Yield the numbers of a metric; a metric of samples has them for each kind of features."""
    if "mean" in a:
        error = _paired_error(metric, files)
        if metric == "loss" or error is None:
            error = math.hypot(a["over_images"] or 0, b["over_images"] or 0)
        yield metric, f"{a['mean']:.4f}", f"{b['mean']:.4f}", _difference(a, b, error)
        return
    for features in sorted(a.keys() & b.keys()):
        ours, theirs = a[features], b[features]
        if "mean" in ours and "std" in ours:
            yield _seeds_row(metric, ours, theirs)
            continue
        for name in sorted(ours.keys() & theirs.keys()):
            if all(isinstance(of[name], dict) and "mean" in of[name] for of in (ours, theirs)):
                yield _seeds_row(f"{metric} {name}, {features}", ours[name], theirs[name])


def _seeds_row(label: str, a: dict, b: dict) -> tuple[str, ...]:
    """Return the row of two means over sampling seeds."""
    return label, _spread(a), _spread(b), _difference(a, b, _seeds_error(a, b))


def _difference(a: dict, b: dict, error: float | None) -> str:
    text = f"{b['mean'] - a['mean']:+.4f}"
    return text if error is None else f"{text} +- {error:.4f}"


def _spread(value: dict) -> str:
    text = f"{value['mean']:.4f}"
    return text if value["std"] is None else f"{text} +- {value['std']:.4f}"


def _seeds_error(a: dict, b: dict) -> float | None:
    """Return the standard error of the difference of two means over seeds.

    Single seeds have standard errors of their own, or none.
    """
    if a["std"] is None or b["std"] is None:
        first, second = a.get("standard_error"), b.get("standard_error")
        return None if first is None or second is None else math.hypot(first, second)
    return math.sqrt(sum(v["std"] ** 2 / len(v["per_seed"]) for v in (a, b)))


def _paired_error(metric: str, files: list[AnyPath]) -> float | None:
    """Return the standard error of the paired difference over the same images."""
    values = []
    for file in files:
        if not file.with_suffix(".npz").exists():
            return None
        with open_arrays(file.with_suffix(".npz"), str(file.with_suffix(".npz"))) as arrays:
            if metric not in arrays:
                return None
            array = arrays[metric]
        # Images are the last axis; bits/dim by the ODE have probes after them.
        values.append(array.mean(axis=(0, 2)) if array.ndim == 3 else np.atleast_2d(array).mean(0))
    if values[0].shape != values[1].shape or len(values[0]) < 2:
        return None
    return float(np.std(values[1] - values[0], ddof=1) / math.sqrt(len(values[0])))
