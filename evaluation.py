"""Judging a checkpoint: test loss, bits/dim and Frechet distance, stopped and resumed at will.

Work is cut into batches; the result of each is a file in `eval/<step>.partial`, written whole, and
every number belongs to an image's index, not to its batch. So an evaluation that was killed goes on
where it stopped, and ends with the same numbers.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

import input_pipeline
from arrays import sample_keys
from denoising import Denoiser
from experiment import Experiment
from metrics.bits_per_dim import bits_per_dim, estimate
from metrics.frechet import EXTRACTORS, Statistics, frechet_distance
from reporting import image_grid, table, write_file, write_json, write_png
from workdir import differences


def evaluate(experiment: Experiment, denoiser: Denoiser, step: int, folder: Path) -> str:
    """Evaluate one checkpoint; writes `<step>.json` and `<step>.png`, and returns a small table.

    A finished evaluation with the same protocol is not repeated, one with another protocol is kept
    under another name.
    """
    protocol = _protocol(experiment)
    file = folder / f"{step}.json"
    results = _finished(file, protocol)
    if results is None:
        partial = _Partial(folder / f"{step}.partial", protocol)
        start = time.perf_counter()
        results = {"step": step, "protocol": protocol}
        for name in experiment.config["eval"]["metrics"]:
            results[name] = _METRICS[name](experiment, denoiser, partial)
        results["seconds"] = round(time.perf_counter() - start, 1)
        images = _samples(experiment, denoiser, partial, min(100, protocol["eval"]["samples"]))
        write_png(file.with_suffix(".png"), image_grid(images))
        write_json(file, results)
        partial.remove()
    return f"{_summary(results)}\n{file}"


def batches_of(count: int, batch_size: int) -> list[Int[np.ndarray, "batch"]]:
    """0, ..., count - 1 in equal batches (the last may be shorter) of at most `batch_size`."""
    parts = -(-count // batch_size)
    size = -(-count // parts)
    return [np.arange(first, min(first + size, count)) for first in range(0, count, size)]


# --- files ------------------------------------------------------------------------------------


def _protocol(experiment: Experiment) -> dict:
    """All that the numbers depend on beside the checkpoint, as it reads back from JSON."""
    parts = {name: experiment.config[name] for name in ("data", "likelihood", "sampling", "eval")}
    protocol = json.loads(json.dumps({**parts, "loss": experiment.config["loss"]}))
    del protocol["eval"]["checkpoints"], protocol["data"]["dir"]
    return protocol


def _finished(file: Path, protocol: dict) -> dict | None:
    if not file.exists():
        return None
    results = json.loads(file.read_text())
    if not differences(results["protocol"], protocol):
        print(f"{file} is finished; not repeated")
        return results
    number = 1
    while (kept := file.with_name(f"{file.stem}.{number}.json")).exists():
        number += 1
    print(f"{file} was made with another protocol; keeping it as {kept.name}")
    file.rename(kept)
    return None


class _Partial:
    """The folder of an unfinished evaluation; one with another protocol is started afresh."""

    def __init__(self, folder: Path, protocol: dict) -> None:
        self._folder = folder
        stamp = folder / "protocol.json"
        if not stamp.exists() or differences(json.loads(stamp.read_text()), protocol):
            self.remove()
            write_json(stamp, protocol)

    def remove(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def collect(
        self,
        name: str,
        count: int,
        batch_size: int,
        compute: Callable[[Int[np.ndarray, "batch"]], np.ndarray],
    ) -> Iterator[np.ndarray]:
        """`compute` of each batch of indices below `count`, from its file where it has one."""
        with tqdm(total=count, desc=name, dynamic_ncols=True, mininterval=0.5) as bar:
            for indices in batches_of(count, batch_size):
                file = self._folder / f"{name}-{indices[0]}-{indices[-1]}.npy"
                if not file.exists():
                    values = compute(indices)
                    write_file(file, lambda temporary, values=values: np.save(temporary, values))
                yield np.load(file)
                bar.update(len(indices))


# --- metrics ----------------------------------------------------------------------------------


def _test_batch(experiment: Experiment, indices: Int[Array, "batch"], draw: int) -> Array:
    """Dequantized test images; the noise of an image depends on its index and the draw alone."""
    images = input_pipeline.test_batch(
        experiment.data.test,
        experiment.layout.fetch(indices),
        seed=experiment.config["eval"]["seed"],
        draw=draw,
        quantizer=experiment.data.quantizer,
        scaler=experiment.scaler,
    )
    return experiment.layout.split_rows(images)


def _test_loss(experiment: Experiment, denoiser: Denoiser, partial: _Partial) -> dict:
    """The training objective on the test images, with the averaged parameters."""
    settings = experiment.config["eval"]
    base = experiment.key(settings["seed"], "loss")

    @jax.jit
    def losses(key: Array, denoiser: Denoiser, x: Array, indices: Array) -> Float[Array, "batch"]:
        # One sample a call of the loss: its time and noise depend on its own key alone.
        keys = sample_keys(key, indices)
        return jax.vmap(
            lambda key, x, label: experiment.loss(key, denoiser.of_one(label), x[None])[0]
        )(keys, x, denoiser.labels)

    def compute(indices: np.ndarray) -> np.ndarray:
        placed = experiment.place(indices)
        labelled = experiment.with_labels(denoiser, placed, experiment.data.test_labels)
        values = [
            losses(
                jax.random.fold_in(base, repeat),
                labelled,
                _test_batch(experiment, placed, repeat),
                placed,
            )
            for repeat in range(settings["loss_repeats"])
        ]
        return np.stack([experiment.layout.fetch(v)[: len(indices)] for v in values])

    parts = partial.collect("loss", len(experiment.data.test), settings["batch_size"], compute)
    values = np.concatenate(list(parts), axis=1)
    return estimate(values)._asdict()


def _bits_per_dim(experiment: Experiment, denoiser: Denoiser, partial: _Partial) -> dict:
    """Bits/dim of the test images by the probability-flow ODE, over dequantization draws."""
    settings, test = experiment.config["eval"], experiment.data.test
    base = experiment.key(settings["seed"], "likelihood")
    draws = []
    for draw in range(settings["dequantizations"]):
        key = jax.random.fold_in(base, draw)

        def compute(indices: np.ndarray, key: Array = key, draw: int = draw) -> np.ndarray:
            placed = experiment.place(indices)
            x = _test_batch(experiment, placed, draw)
            labelled = experiment.with_labels(denoiser, placed, experiment.data.test_labels)
            result = experiment.log_prob(key, labelled, x, indices=placed)
            nats = experiment.layout.fetch(result.nats)[: len(indices)]
            return np.stack([nats, np.full_like(nats, result.nfe)])

        parts = partial.collect(
            f"bits-per-dim-{draw + 1}", len(test), settings["batch_size"], compute
        )
        draws.append(np.concatenate(list(parts), axis=1))
    nats, evaluations = np.stack(draws, axis=1)
    dims = test[0].size
    log_det = experiment.data.quantizer.log_det(dims) + experiment.scaler.log_det(dims)
    values = bits_per_dim(nats, log_det=log_det, dims=dims)
    return {
        **estimate(values)._asdict(),
        "draws": len(draws),
        "images": len(test),
        "nfe": float(evaluations.mean()),
    }


def _samples(
    experiment: Experiment, denoiser: Denoiser, partial: _Partial, count: int
) -> np.ndarray:
    """The first `count` samples, uint8."""
    return np.concatenate(list(_sample_batches(experiment, denoiser, partial)))[:count]


def _sample_batches(
    experiment: Experiment, denoiser: Denoiser, partial: _Partial
) -> Iterator[np.ndarray]:
    settings = experiment.config["eval"]
    return partial.collect(
        "samples",
        settings["samples"],
        settings["batch_size"],
        lambda indices: experiment.draw(denoiser, indices).images,
    )


def _frechet(experiment: Experiment, denoiser: Denoiser, partial: _Partial) -> dict:
    """Frechet distance of the samples to the train and the test images, and between those two."""
    settings, data = experiment.config["eval"], experiment.data
    extractor = EXTRACTORS[settings["features"]]

    def statistics(images: np.ndarray) -> Statistics:
        parts = batches_of(len(images), settings["batch_size"])
        return Statistics.of((data.quantizer.to_uint8(images[p]) for p in parts), extractor)

    drawn = Statistics.of(_sample_batches(experiment, denoiser, partial), extractor)
    train, test = statistics(data.train), statistics(data.test)
    return {
        "to_train": frechet_distance(drawn, train),
        "to_test": frechet_distance(drawn, test),
        "train_to_test": frechet_distance(train, test),
        "features": settings["features"],
        "samples": settings["samples"],
        "nfe": experiment.evaluations,  # none where they are adaptive
    }


_METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "loss": _test_loss,
    "bits_per_dim": _bits_per_dim,
    "frechet": _frechet,
}


def _summary(results: dict) -> str:
    rows = [(f"step {results['step']}", "value", "")]
    if loss := results.get("loss"):
        rows.append(("test loss", f"{loss['mean']:.4f}", f"+- {loss['over_images']:.4f} (images)"))
    if bits := results.get("bits_per_dim"):
        errors = f"+- {bits['over_draws']:.4f} ({bits['draws']} draws)"
        errors += f" +- {bits['over_images']:.4f} ({bits['images']} images), NFE {bits['nfe']:.0f}"
        rows.append(("bits/dim", f"{bits['mean']:.4f}", errors))
    if distance := results.get("frechet"):
        note = f"{distance['samples']} samples, {distance['features']}"
        rows.append(("Frechet to train", f"{distance['to_train']:.4f}", note))
        rows.append(("Frechet to test", f"{distance['to_test']:.4f}", note))
        rows.append(("  train to test", f"{distance['train_to_test']:.4f}", "for scale"))
    return table(rows)
