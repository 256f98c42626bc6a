"""Metrics against the length of the average: a table, and a figure."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from evaluation.evaluate import evaluate, results_file
from evaluation.metrics import METRICS
from experiment.experiment import Experiment
from files.plots import Panel, Series, write_plot
from files.text import table
from files.writing import write_json
from jobs.averages import Reconstructed
from jobs.restore import load_checkpoint
from jobs.workdir import Workdir
from metrics.features import Extractor
from training.hosts import agreed


class Value(NamedTuple):
    """A number of an evaluation: its metric, its name, its value and its standard error."""

    metric: str
    name: str
    value: float
    error: float | None


def compare_lengths(
    experiment: Experiment,
    workdir: Workdir,
    averages: Sequence[Reconstructed],
    extractors: tuple[Extractor, ...],
) -> str:
    """Evaluate averages; write `ema_lengths.json` and `.png`; return a table with a row for each.

    Raises:
        as `evaluate`.
    """
    found = []
    for average in averages:
        checkpoint = load_checkpoint(experiment, workdir, average.step, average.name)
        evaluate(experiment, checkpoint, workdir, extractors)
        file = results_file(workdir, checkpoint)
        results = agreed(lambda file=file: json.loads(file.read_text()))
        found.append(list(values_of(results)))
    rows = [
        {
            "length": average.length,
            "relative_error": average.error,
            **{v.name: {"value": v.value, "standard_error": v.error} for v in values},
        }
        for average, values in zip(averages, found, strict=True)
    ]
    file, step = workdir.eval / "ema_lengths.json", averages[0].step
    write_json(file, {"step": step, "averages": rows})
    lengths = [average.length for average in averages]
    write_plot(file.with_suffix(".png"), _panels(lengths, found), title=f"step {step}")
    shown = [("length", *(value.name for value in found[0]))]
    for length, values in zip(lengths, found, strict=True):
        shown.append((str(length), *(f"{value.value:.4f}" for value in values)))
    return f"{table(shown)}\n{file}"


def values_of(results: dict[str, Any]) -> Iterator[Value]:
    """Yield the numbers of an evaluation, those of samples for each kind of features."""
    for metric in METRICS:
        if metric in results:
            yield from _means(metric, metric, results[metric])


def _means(metric: str, name: str, found: dict[str, Any]) -> Iterator[Value]:
    if isinstance(found.get("mean"), float):
        error = found.get("standard_error", found.get("over_images"))
        yield Value(metric, name, found["mean"], error)
        return
    for key, part in found.items():
        if isinstance(part, dict):
            yield from _means(metric, name if key == "mean" else f"{name} {key}", part)


def _panels(lengths: Sequence[float], found: Sequence[Sequence[Value]]) -> list[Panel]:
    """Return a panel for each metric, with a line for each of its numbers."""
    panels = {value.metric: [] for value in found[0]}
    for same in zip(*found, strict=True):
        errors = [each.error for each in same if each.error is not None]
        series = Series(
            label=same[0].name,
            x=lengths,
            y=[each.value for each in same],
            error=errors if len(errors) == len(lengths) else None,
        )
        panels[same[0].metric].append(series)
    return [
        Panel(title=metric, x_label="length of the average, sigma_rel", series=series)
        for metric, series in panels.items()
    ]
