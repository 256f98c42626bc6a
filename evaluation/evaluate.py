"""Evaluate a checkpoint: its likelihood and its samples, stopped and continued at will.

The results go into one JSON file with the protocol that made them. Numbers of single images go into
an .npz beside it, and samples into a .png.
"""

import json
import time
from typing import Any

import numpy as np

from bounds.dequantization import Dequantizer
from errors import ConfigError
from evaluation.features import make_extractors
from evaluation.metrics import METRICS, check_options, compute_metric
from evaluation.protocol import Protocol, protocol_of
from evaluation.report import Evaluation
from evaluation.samples import SampleSets
from evaluation.table import samples_row
from experiment.experiment import Experiment
from experiment.few_steps import require_scores
from experiment.sampler import Checkpoint
from files.buckets import move
from files.locks import locked
from files.paths import AnyPath
from files.pictures import write_png
from files.plots import write_plot
from files.text import table
from files.writing import make_folder, write_json, write_npz
from jobs.cache import ResultCache
from jobs.restore import load_dequantizer
from jobs.workdir import Workdir
from metrics.features import Extractor
from training.hosts import agreed, require_same


def extractors_of(experiment: Experiment, workdir: Workdir) -> tuple[Extractor, ...]:
    """Return the feature extractors that the metrics need; likelihoods need none.

    Raises:
        ConfigError: for options that do not fit together, or weights that are neither at hand nor
            to be had.
    """
    check_options(experiment.evaluation, experiment.data.kind)
    _check_scores(experiment)
    _check_energy(experiment)
    needed = any(METRICS[name].of_samples for name in experiment.evaluation.metrics)
    return make_extractors(experiment, workdir) if needed else ()


def dequantizer_of(experiment: Experiment, workdir: Workdir) -> Dequantizer | None:
    """Return the run's dequantizer if its likelihoods need one.

    Raises:
        ConfigError: if there is none yet.
        WorkdirError: if it was trained for another configuration.
    """
    needed = any(METRICS[name].dequantizes for name in experiment.evaluation.metrics)
    if not (needed and experiment.data.dequantization.learned):
        return None
    return load_dequantizer(experiment, workdir)


def needs_of(experiment: Experiment) -> frozenset[str]:
    """Return what a checkpoint must come with, for the sampler and for the metrics."""
    of_chain = any(METRICS[name].of_chain for name in experiment.evaluation.metrics)
    bound = experiment.likelihood.discrete_bound.options.needs if of_chain else frozenset()
    return experiment.sampler.needs | bound


def _check_scores(experiment: Experiment) -> None:
    """Raise ConfigError for metrics of likelihoods, where the objective trains no scores."""
    names = experiment.evaluation.metrics
    kept = tuple(n for n in names if METRICS[n].of_samples or METRICS[n].of_energy)
    if kept != names:
        what = f"config.eval.metrics={names!r}: {min(set(names) - set(kept))}"
        remedy = f"give config.eval.metrics={kept or ('frechet',)!r}"
        require_scores(experiment, what, remedy)


def _check_energy(experiment: Experiment) -> None:
    """Raise ConfigError for a metric of energies, where the network is no gradient of one."""
    names = experiment.evaluation.metrics
    wrong = [name for name in names if METRICS[name].of_energy]
    if wrong and not experiment.model.options.energy:
        raise ConfigError(
            f"config.eval.metrics={names!r}: {wrong[0]} needs a network that is trained with "
            "config.denoiser.energy=True; leave it out"
        )


def evaluate(
    experiment: Experiment,
    checkpoint: Checkpoint,
    workdir: Workdir,
    extractors: tuple[Extractor, ...],
) -> str:
    """Evaluate one checkpoint; write `<step>.json`, `.npz` and `.png`; return a small table.

    Of another average than the main one, the name of the files has that of the average too.

    A finished evaluation with the same protocol is not repeated. One with another protocol is kept
    under another name.

    Raises:
        ConfigError: for too few images or a reference that does not fit, before any computation.
        EvaluationError, IntegrationError, BoundError, SamplingError: for numbers not finite.
        WorkdirError: if another process evaluates this checkpoint.
    """
    protocol = protocol_of(experiment, checkpoint, extractors)
    require_same("the data or the checkpoint", protocol.fields)
    file = results_file(workdir, checkpoint)
    folder = workdir.eval / f"{checkpoint.name}.partial"
    make_folder(folder)
    lock = workdir.eval / f".{checkpoint.name}.lock"
    with locked(lock, folder, leads=experiment.parallel.leads):
        cache = ResultCache(folder)
        results = agreed(lambda: _finished_results(file, protocol))
        if results is None:
            evaluation = Evaluation(
                experiment, checkpoint, extractors, protocol, cache, workdir.statistics
            )
            results = _compute(evaluation, file)
        cache.remove()
    return f"{summary(results)}\n{file}"


def results_file(workdir: Workdir, checkpoint: Checkpoint) -> AnyPath:
    """Return the file of a checkpoint's results."""
    return workdir.eval / f"{checkpoint.name}.json"


def _compute(evaluation: Evaluation, file: AnyPath) -> dict[str, Any]:
    start = time.perf_counter()
    sets = SampleSets(evaluation)
    names = evaluation.experiment.evaluation.metrics
    _check_image_counts(evaluation.experiment)
    if "frechet" in names:
        _ = sets.references  # a reference that does not fit is an error now
    protocol = evaluation.protocol.tree
    results: dict[str, Any] = {"step": evaluation.checkpoint.step, "protocol": protocol}
    per_image = {}
    for name in names:
        report = compute_metric(name, evaluation, sets)
        results[name] = report.summary
        per_image |= report.per_image
        if report.plot:
            place = file.with_name(f"{file.stem}_{name}.png")
            write_plot(place, report.plot, title=f"step {evaluation.checkpoint.step}")
    if per_image:
        write_npz(file.with_suffix(".npz"), per_image, compress=True)
    if any(METRICS[name].of_samples for name in names):
        results["samples"] = _describe_samples(sets, file.with_suffix(".png"))
    results["seconds"] = round(time.perf_counter() - start, 1)  # since the last start
    write_json(file, results)
    return results


def _check_image_counts(experiment: Experiment) -> None:
    """Raise ConfigError for metrics that need more training images than there are."""
    count = len(experiment.data.splits.train)
    for name in experiment.evaluation.metrics:
        if count < METRICS[name].min_images:
            raise ConfigError(
                f"config.data.name={experiment.data.options.name!r} has {count} training images; "
                f"{name} needs {METRICS[name].min_images}; leave it out of config.eval.metrics"
            )


def _describe_samples(sets: SampleSets, figure: AnyPath) -> dict[str, Any]:
    """Write the figure of samples; return what the results say about them."""
    first, nfe = [], []
    for seed in sets.seeds:
        for part in sets.samples(seed):
            nfe.append(part["nfe"])
            if seed == sets.seeds[0]:
                first.append(part["samples"])
    data = sets.evaluation.experiment.data
    write_png(figure, *data.pictures([np.concatenate(first)]))
    return {
        "count": sets.count,
        "seeds": sets.seeds,
        "nfe": float(np.concatenate(nfe).mean()),  # of adaptive samplers, the slowest per batch
        "rounding": data.rounding,
        "parameters": sets.evaluation.checkpoint.average or "moving average",
    }


def _finished_results(file: AnyPath, protocol: Protocol) -> dict[str, Any] | None:
    """Return the results in a file if they have this protocol; otherwise rename the file."""
    if not file.exists():
        return None
    try:
        results = json.loads(file.read_text())
        if not protocol.difference(Protocol(results["protocol"])):
            print(f"{file} is finished; not repeated")
            return results
    except (ValueError, KeyError, TypeError, AttributeError):  # not results, or damaged ones
        pass
    number = 1
    while (kept := file.with_name(f"{file.stem}.{number}.json")).exists():
        number += 1
    print(f"{file} was made with another protocol; keeping it as {kept.name}")
    for suffix in (".npz", ".png", ".json"):
        if (old := file.with_suffix(suffix)).exists():
            move(old, kept.with_suffix(suffix))
    return None


def summary(results: dict[str, Any]) -> str:
    """Return the results as a table of name, value, and uncertainty."""
    rows = [(f"step {results['step']}", "value", "")]
    likelihoods = [name for name in METRICS if name in results and not METRICS[name].of_samples]
    of_samples = [name for name in METRICS if name in results and METRICS[name].of_samples]
    for name in likelihoods:
        rows += METRICS[name].rows(results[name])
    if of_samples:
        rows.append(samples_row(results["samples"]))
    for name in of_samples:
        rows += METRICS[name].rows(results[name])
    return table(rows)
