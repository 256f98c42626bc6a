"""What the tables of samplers on trained networks share: samples, their distance, and tables."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from runs import Line, Results

import scoresde as ss
from denoising import Denoiser
from evaluation.features import FEATURES
from evaluation.references import reference_of_split
from jobs.cache import batches_of
from jobs.workdir import Workdir
from metrics.frechet import Accumulator, Statistics, frechet_interval

KEYS = ("run", "row", "column", "samples")
BATCH = 250


class Run:
    """A trained network, and the Frechet distance of its samples to the training images.

    The distance is that of `--mode=eval` to all training images (docs/evaluation.md), by default of
    the first features that the run's configuration names. The 95% interval is over sets of samples.
    A network with classes draws them in turn.
    """

    def __init__(self, folder: Path, count: int, name: str = "", features: str = "") -> None:
        self.model, self.count = ss.load(folder), count
        self.name = name or type(self.model.denoiser.sde).__name__.removesuffix("SDE")
        experiment, workdir = self.model.experiment, Workdir(folder)
        features = features or experiment.evaluation.features[0]
        self._extractor = FEATURES[features].make(experiment, workdir)
        split = reference_of_split(experiment, "train", self._extractor, workdir.statistics)
        self._reference: Statistics = split.statistics

    def distance(self, rows: np.ndarray) -> Line:
        """Return the Frechet distance of images 0..255 and its interval."""
        drawn = Accumulator(len(rows))
        drawn.add(self._extractor(rows).features)
        found = frechet_interval(drawn, self._reference)
        return {"frechet": found.distance, "low": found.low, "high": found.high}

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """Return the classes that the features' classifier sees in images 0..255."""
        return self._extractor(rows).probabilities.argmax(axis=1)

    def floor(self, draws: int = 20) -> float:
        """Return the mean distance of as many training images, drawn with replacement.

        They have the classes of the samples, if the network has classes.
        """
        experiment, rng = self.model.experiment, np.random.default_rng(0)
        data, classes = experiment.data, experiment.model.num_classes
        images, labels = data.splits.train, data.splits.train_labels
        groups = [np.flatnonzero(labels == label) for label in range(classes)]
        groups = groups or [np.arange(len(images))]
        distances = []
        for _ in range(draws):
            chosen = [rng.choice(groups[k % len(groups)]) for k in range(self.count)]
            distances.append(self.distance(data.as_samples(images[np.array(chosen)]))["frechet"])
        return float(np.mean(distances))

    def measure(self, solver: Any, schedule: ss.Schedule) -> Line:
        """Draw the samples of a cell and return their distance; all begin with the same noise."""
        rows, nfe = self.draw(solver, schedule)
        return {**self.distance(rows), "nfe": nfe}

    def draw(
        self,
        solver: Any,
        schedule: ss.Schedule,
        adapt: Callable[[Denoiser], Denoiser] = lambda d: d,
    ) -> tuple[np.ndarray, float]:
        """Return samples as images 0..255, and the evaluations of each; `adapt` may guide them."""
        parts = []
        for indices in batches_of(self.count, BATCH):
            denoiser = self.model.denoiser
            if classes := self.model.experiment.model.num_classes:
                denoiser = replace(denoiser, labels=jnp.asarray(indices % classes))
            drawn = ss.sample(
                jax.random.key(0),
                adapt(denoiser),
                (len(indices), *self.model.shape),
                solver=solver,
                schedule=schedule,
                indices=jnp.asarray(indices),
            )
            parts.append(self.model.to_data(np.asarray(drawn.x)))
        return np.concatenate(parts), drawn.nfe


def fill(results: Results, run: Run, cells: Iterable[tuple[str, str, Any, ss.Schedule]]) -> None:
    """Measure the cells (row, column, solver, schedule) that the results do not have yet."""
    for row, column, solver, schedule in cells:
        key = {"run": run.name, "row": row, "column": column, "samples": run.count}
        if not results.has(**key):
            results.add({**key, **run.measure(solver, schedule)})


def markdown(
    results: Results, run: str, count: int, corner: str, rows: Iterable[str], columns: list[str]
) -> str:
    """Return the table of a run: distances with their 95% intervals, the best of a column bold."""
    rows = list(rows)
    found = {
        (line["row"], line["column"]): line
        for line in results.lines()
        if line["run"] == run and line["samples"] == count
    }
    best = {}
    for column in columns:
        distances = [line["frechet"] for (_, other), line in found.items() if other == column]
        best[column] = min(distances) if len(distances) > 1 else None
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        cells = [_cell(found.get((row, column)), best[column]) for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(line: Line | None, best: float | None) -> str:
    if line is None:
        return ""
    shown = f"{line['frechet']:.3f}"
    shown = f"**{shown}**" if line["frechet"] == best else shown
    return f"{shown} ({line['low']:.3f} to {line['high']:.3f})"
