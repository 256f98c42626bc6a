"""What a metric returns, and what it computes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluation.protocol import Protocol
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from files.paths import AnyPath
from files.plots import Panel, Strip
from jobs.cache import ResultCache
from metrics.features import Extractor


class Report(NamedTuple):
    """A metric's entry in the results, the numbers of single images behind it, and its plot."""

    summary: dict[str, Any]
    per_image: dict[str, np.ndarray]
    plot: Sequence[Panel | Strip] = ()


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one checkpoint.

    Attributes:
        experiment, checkpoint: what is evaluated.
        extractors: feature extractors of the samples; empty if no metric needs them.
        protocol: everything that the numbers depend on.
        cache: batches of unfinished work.
        statistics: folder of the statistics of the data.
    """

    experiment: Experiment
    checkpoint: Checkpoint
    extractors: tuple[Extractor, ...]
    protocol: Protocol
    cache: ResultCache
    statistics: AnyPath
