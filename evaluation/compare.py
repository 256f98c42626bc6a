"""Two evaluations side by side, if their numbers mean the same.

Numbers compare only if they were measured alike: on the same images, with the same extractor and
count of samples, and so on. How the samples were made may differ; that is what is compared.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from errors import ConfigError
from files.text import table
from jobs.workdir import flatten

_CLASSES = ("model.num_classes",)
_TEST = ("images.test", *_CLASSES)
_SAMPLES = ("images.", "eval.samples", "eval.features", "extractors.", "reference", *_CLASSES)
# What must be equal for a metric's numbers to compare.
_ALIKE = {
    "loss": (*_TEST, "loss.", "sde.", "eval.loss_repeats"),
    "bits_per_dim": (*_TEST, "likelihood.", "eval.dequantizations"),
    "continuous_bound": (*_TEST, "continuous_bound.", "eval.dequantizations"),
    "discrete_bound": (*_TEST, "discrete_bound."),
    "frechet": _SAMPLES,
    "kid": _SAMPLES,
    "precision_recall": _SAMPLES,
    "inception_score": _SAMPLES,
}


def compare(first: Path, second: Path) -> str:
    """A table of what two results of --mode=eval have in common, and of how their samplers differ.

    Each is an `eval/<step>.json`, or a run's folder for the last one in it. Differences of bits/dim
    come with the standard error of the paired difference over the test images.

    Raises:
      ConfigError: for a file that is no result, and for numbers that were not measured alike.
    """
    files = [_file(path) for path in (first, second)]
    a, b = (_read(file) for file in files)
    common = [name for name in _ALIKE if name in a and name in b]
    if not common:
        raise ConfigError(f"{files[0]} and {files[1]} have no metric in common")
    protocols = [_protocol(results) for results in (a, b)]
    wrong = {
        name: f"{name} was {protocols[0].get(name)!r}, is {protocols[1].get(name)!r}"
        for metric in common
        for name in sorted(protocols[0].keys() | protocols[1].keys())
        if name.startswith(_ALIKE[metric]) and protocols[0].get(name) != protocols[1].get(name)
    }
    if wrong:
        raise ConfigError(
            f"{files[0]} and {files[1]} were not measured alike: {'; '.join(wrong.values())}. "
            "Evaluate one again as the other was"
        )
    rows = [("", str(files[0]), str(files[1]), "difference")]
    for metric in common:
        rows += _rows(metric, a[metric], b[metric], files)
    rows += [
        (name, str(protocols[0].get(name)), str(protocols[1].get(name)), "")
        for name in sorted(protocols[0].keys() | protocols[1].keys())
        if name.startswith(("sde.", "denoiser.", "ema.", "sampling.", "nfe"))
        and protocols[0].get(name) != protocols[1].get(name)
    ]
    return table(rows)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [file for file in (path / "eval").glob("*.json") if file.stem.isdecimal()]
    if not found:
        raise ConfigError(f"{path} has no results yet; run --mode=eval there")
    return max(found, key=lambda file: int(file.stem))


def _read(file: Path) -> dict:
    try:
        results = json.loads(file.read_text())
        if not isinstance(results, dict) or "protocol" not in results:
            raise ValueError("it has no protocol")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is no result of --mode=eval ({error}); give an eval/<step>.json or the folder "
            "of a run"
        ) from error
    return results


def _protocol(results: dict) -> dict[str, Any]:
    """All fields by dotted name, and the network evaluations of a sample."""
    flat = flatten(results["protocol"])
    if "samples" in results:
        flat["nfe"] = results["samples"]["nfe"]
    return flat


def _rows(metric: str, a: dict, b: dict, files: list[Path]) -> Iterator[tuple[str, ...]]:
    """The numbers of a metric, those of samples for every kind of features."""
    if "mean" in a:
        error = _paired_error(metric, files)
        if metric == "loss" or error is None:
            error = math.hypot(a["over_images"] or 0, b["over_images"] or 0)
        yield metric, f"{a['mean']:.4f}", f"{b['mean']:.4f}", _difference(a, b, error)
        return
    for features in sorted(a.keys() & b.keys()):
        pairs = (a[features], b[features])
        if metric == "inception_score":
            yield metric, *map(_spread, pairs), _difference(*pairs, _over_seeds(*pairs))
            continue
        for name in sorted(pairs[0].keys() & pairs[1].keys()):
            values = [pair[name] for pair in pairs]
            if all(isinstance(value, dict) and "mean" in value for value in values):
                label = f"{metric} {name}, {features}"
                yield label, *map(_spread, values), _difference(*values, _over_seeds(*values))


def _difference(a: dict, b: dict, error: float | None) -> str:
    text = f"{b['mean'] - a['mean']:+.4f}"
    return text if error is None else f"{text} +- {error:.4f}"


def _spread(value: dict) -> str:
    text = f"{value['mean']:.4f}"
    return text if value["std"] is None else f"{text} +- {value['std']:.4f}"


def _over_seeds(a: dict, b: dict) -> float | None:
    """Standard error of the difference of two means over seeds, or of what single seeds tell."""
    if a["std"] is None or b["std"] is None:
        errors = [v.get("standard_error") for v in (a, b)]
        return None if None in errors else math.hypot(*errors)
    return math.sqrt(sum(v["std"] ** 2 / len(v["per_seed"]) for v in (a, b)))


def _paired_error(metric: str, files: list[Path]) -> float | None:
    """Standard error over images of the difference of two means over the same images."""
    values = []
    for file in files:
        if not file.with_suffix(".npz").exists():
            return None
        with np.load(file.with_suffix(".npz")) as arrays:
            if metric not in arrays:
                return None
            array = arrays[metric]
        # Images are the last axis, but of the flow's numbers, where probes are.
        values.append(array.mean(axis=(0, 2)) if array.ndim == 3 else np.atleast_2d(array).mean(0))
    if values[0].shape != values[1].shape or len(values[0]) < 2:
        return None
    return float(np.std(values[1] - values[0], ddof=1) / math.sqrt(len(values[0])))
