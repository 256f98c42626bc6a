"""Judging a checkpoint: its likelihood and its samples, stopped and resumed at will.

Every metric is a row of one of two tables. The results go into one JSON file with the protocol that
made them, numbers of single images into an .npz and samples into a .png beside it.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from denoising import Denoiser
from errors import ConfigError
from evaluation import likelihoods, samples
from evaluation.report import Report
from evaluation.samples import SampleSets
from evaluation.table import summary
from experiment.experiment import Experiment
from files.pictures import image_grid, write_png
from files.writing import sha256_of, write_file, write_json
from jobs.cache import Resumable
from jobs.workdir import differences
from metrics.features import Extractor
from metrics.statistics_files import fingerprint
from numerics.arrays import digest

# Of the test images under the model; and of the model's samples.
OF_IMAGES: dict[str, Callable[[Experiment, Denoiser, Resumable], Report]] = {
    "loss": likelihoods.test_loss,
    "bits_per_dim": likelihoods.flow_bits,
    "continuous_bound": likelihoods.continuous_bound_bits,
    "discrete_bound": likelihoods.discrete_bound_bits,
}
OF_SAMPLES: dict[str, Callable[[SampleSets], Report]] = {
    "frechet": samples.frechet,
    "kid": samples.kid,
    "precision_recall": samples.precision_and_recall,
    "inception_score": samples.inception,
}
_FEWEST_IMAGES = {"kid": 4, "precision_recall": 4}
_PICTURE = 100  # samples that the picture shows


def evaluate(
    experiment: Experiment,
    denoiser: Denoiser,
    step: int,
    folder: Path,
    *,
    extractors: tuple[Extractor, ...],
    statistics: Path,
) -> str:
    """Evaluate one checkpoint; writes `<step>.json`, `.npz` and `.png`; returns a small table.

    A finished evaluation with the same protocol is not repeated, one with another protocol is kept
    under another name. Statistics of the data are looked for, and kept, in the folder `statistics`.

    Raises:
      ConfigError: for reference statistics that do not fit, before anything is computed.
    """
    protocol = _protocol(experiment, denoiser, extractors)
    file = folder / f"{step}.json"
    work = Resumable(folder / f"{step}.partial", protocol)
    results = _finished(file, protocol)
    if results is None:
        start = time.perf_counter()
        sets = SampleSets(experiment, denoiser, work, extractors, statistics)
        results = {"step": step, "protocol": protocol}
        per_image = {}
        chosen = protocol["eval"]["metrics"]
        _check_counts(experiment, chosen)
        if "frechet" in chosen:
            _ = sets.references  # what does not fit shows now
        for name in chosen:
            if name in OF_IMAGES:
                report = OF_IMAGES[name](experiment, denoiser, work)
            else:
                report = OF_SAMPLES[name](sets)
            results[name] = report.summary
            per_image |= report.per_image
        if per_image:
            write_file(
                file.with_suffix(".npz"), lambda path: np.savez_compressed(path, **per_image)
            )
        if set(chosen) & OF_SAMPLES.keys():
            results["samples"] = _of_samples(sets, file.with_suffix(".png"))
        results["seconds"] = round(time.perf_counter() - start, 1)  # since the last start
        write_json(file, results)
    work.remove()
    return f"{summary(results)}\n{file}"


def _check_counts(experiment: Experiment, chosen: Iterable[str]) -> None:
    """Refuse metrics that need more training images than there are."""
    name, count = experiment.config["data"]["name"], len(experiment.data.train)
    for metric in chosen:
        if count < (fewest := _FEWEST_IMAGES.get(metric, 0)):
            raise ConfigError(
                f"config.data.name={name!r} has {count} training images, too few for {metric}, "
                f"which needs {fewest}; leave it out of config.eval.metrics"
            )


def _of_samples(sets: SampleSets, file: Path) -> dict:
    """The picture, and what the results say of the samples."""
    first, nfe = [], []
    for seed in sets.seeds:
        for part in sets.images(seed):
            nfe.append(part["nfe"])
            if seed == sets.seeds[0]:
                first.append(part["images"][:_PICTURE])
    write_png(file, image_grid(np.concatenate(first)[:_PICTURE]))
    levels = sets.experiment.data.quantizer.gray_levels
    bins = "bin" if sets.experiment.config["data"]["dequantize"] else "nearest"
    return {
        "count": sets.count,
        "seeds": sets.seeds,
        "nfe": float(np.concatenate(nfe).mean()),  # where adaptive, the slowest of each batch
        "rounding": f"to the {bins} of {levels} levels, these to 0..255",
        "parameters": "moving average",
    }


# --- files ------------------------------------------------------------------------------------


def _protocol(
    experiment: Experiment, denoiser: Denoiser, extractors: tuple[Extractor, ...]
) -> dict:
    """All that the numbers depend on, as it reads back from JSON."""
    names = ("data", "sde", "denoiser", "ema", "loss", "sampling", "eval")
    bounds = ("likelihood", "continuous_bound", "discrete_bound")
    protocol = json.loads(json.dumps({name: experiment.config[name] for name in (*names, *bounds)}))
    # Where things lie and how long to try do not change numbers.
    for path in (
        ("data", "dir"),
        ("eval", "checkpoints"),
        ("eval", "inception_weights"),
        ("eval", "reference"),
        ("likelihood", "max_steps"),
        ("sampling", "max_steps"),
    ):
        del protocol[path[0]][path[1]]
    file, data = experiment.config["eval"]["reference"], experiment.data
    leaves = [leaf for leaf in jax.tree.leaves(denoiser.network) if isinstance(leaf, jax.Array)]
    params = experiment.parallel.fetch_tree(leaves)
    return protocol | {
        "checkpoint": digest(params),
        "model": {"num_classes": experiment.classes},
        "images": {
            name: {"count": len(images), "sha256": fingerprint(images)[:16]}
            for name, images in (("train", data.train), ("test", data.test))
        },
        "extractors": {extractor.name: extractor.digest for extractor in extractors},
        "reference": _digest_of(file) if file else None,
    }


def _digest_of(reference: str) -> str:
    try:
        return sha256_of(Path(reference).expanduser())[:16]
    except OSError as error:
        raise ConfigError(
            f"config.eval.reference={reference!r} cannot be read ({error.strerror}); write one "
            "with --mode=stats"
        ) from error


def _finished(file: Path, protocol: dict) -> dict | None:
    if not file.exists():
        return None
    try:
        results = json.loads(file.read_text())
        if not differences(results["protocol"], protocol):
            print(f"{file} is finished; not repeated")
            return results
    except (ValueError, KeyError, TypeError, AttributeError):  # no result, or a damaged one
        pass
    number = 1
    while (kept := file.with_name(f"{file.stem}.{number}.json")).exists():
        number += 1
    print(f"{file} was made with another protocol; keeping it as {kept.name}")
    for suffix in (".npz", ".png", ".json"):
        if (old := file.with_suffix(suffix)).exists():
            old.rename(kept.with_suffix(suffix))
    return None


# --- the table --------------------------------------------------------------------------------
