"""Metrics against the length of the average: a table, and a figure."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.evaluate import evaluate, results_file
from evaluation.metrics import METRICS
from experiment.experiment import Experiment
from files.text import table
from files.writing import write_json
from jobs.averages import Reconstructed
from jobs.restore import load_checkpoint
from jobs.workdir import Workdir
from metrics.features import Extractor


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
    rows = []
    for average in averages:
        checkpoint = load_checkpoint(experiment, workdir, average.step, average.name)
        evaluate(experiment, checkpoint, workdir, extractors)
        results = json.loads(results_file(workdir, checkpoint).read_text())
        rows.append({"length": average.length, "error": average.error, **dict(_values(results))})
    names = list(rows[0])
    file = workdir.eval / "ema_lengths.json"
    write_json(file, {"step": averages[0].step, "lengths": rows})
    cells = [[f"{row[name]:.4g}" for name in names] for row in rows]
    return f"{table([tuple(names), *map(tuple, cells)])}\n{file}"


def _values(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics of an evaluation by the labels of its table."""
    for name, metric in METRICS.items():
        kinds = results.get(name, {})
        parts = {f", {kind}": {kind: kinds[kind]} for kind in kinds} if metric.of_samples else {}
        for suffix, part in (parts or ({"": kinds} if kinds else {})).items():
            for label, value, _ in metric.rows(part):
                if not label.startswith(" "):  # those are details of the row above
                    yield label + suffix, float(value)
