"""Likelihood against steps, of the shipped network of MNIST: the ODE, and bounds.

    python benchmarks/likelihood_steps.py MNIST.npz
    python benchmarks/likelihood_steps.py MNIST.npz --images=1000
    python benchmarks/likelihood_steps.py MNIST.npz --first=1000 --images=10000 --batch=4
    python benchmarks/likelihood_steps.py --table

MNIST.npz has train_images and test_images. The first 100 of the latter are measured by
`ss.load("mnist_likelihood")`: by the ODE with the configuration's solver and a range of tolerances,
by the variational bound of chains with times even in log-SNR, and by the bound in continuous time.
Steps of a chain have the small variance, or the optimal one of Analytic-DPM, by moments of 200
training images at 50 times. Differences are to the ODE with the smallest tolerance, image by image.
With --images=1000, the next 900 are measured by the ODE with a tolerance of 1e-5 and by the bound
in continuous time, for an estimate of the ODE on all test images; with --first, only those from
there on. Results go to results/likelihood_steps.jsonl, a line for each hundred images, and what is
there is not repeated. With AVX2, 1e-6 takes about an hour of CPU time for a hundred images, and
1e-5 a quarter of one. With batches of 4, and a process with images of its own on each of two cores
(`taskset -c 0`, `taskset -c 1`), 1e-5 took ten minutes for a hundred images of each process.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from runs import ROOT, Results, markdown_table

import scoresde as ss
from bounds.continuous import continuous_bound
from bounds.discrete import DiscreteBoundOptions, discrete_bound
from objectives.variational import VARIANCES
from solvers.moments import moments_of, squared_noise

RESULTS = Results("likelihood_steps", ("name", "first"))
IMAGES, BATCH = 100, 50
TOLERANCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
STEPS = (10, 20, 50, 100, 250)
KEY = jax.random.key(0)

# From the model, test images and their indices to nats of each image, and evaluations.
Measure = Callable[[Any, np.ndarray, jax.Array], tuple[Any, Any]]


def by_ode(tolerance: float) -> Measure:
    """Return the measure by the ODE of images dequantized by the process's own noise."""

    def measure(model: Any, images: np.ndarray, indices: jax.Array) -> tuple[Any, Any]:
        experiment, denoiser = model.experiment, model.denoiser
        data, options = experiment.data, experiment.likelihood.options
        t_min = jnp.float32(options.t_min)
        alpha, sigma = (float(f(t_min)) for f in (denoiser.sde.alpha, denoiser.sde.sigma))
        x, log_q = data.dequantized(images, indices, seed=0, draw=0, alpha=alpha, sigma=sigma)
        ode = replace(experiment.likelihood.ode, rtol=tolerance, atol=tolerance)
        found = ss.log_prob(KEY, denoiser, x, indices=indices, options=options, ode=ode)
        return log_q - found.nats - data.log_det, found.nfe

    return measure


def with_moments(model: Any, images: np.ndarray) -> Any:
    """Return the model with the moments of its predicted noise, for analytic variances."""
    denoiser, parts = model.denoiser, []
    times = chain(49).of(denoiser.sde)
    for start in range(0, len(images), BATCH):
        indices = jnp.arange(start, start + BATCH)
        x = model.experiment.data.noiseless(images, indices)
        parts.append(np.asarray(squared_noise(KEY, denoiser, x, times, indices)))
    moments = moments_of(denoiser.sde, times, parts)
    return replace(model, checkpoint=replace(model.checkpoint, moments=moments))


def chain(steps: int) -> ss.Schedule:
    """Return the schedule of a chain."""
    return ss.Schedule(grid="log_snr", steps=steps, t_min=1e-5)


def by_chain(steps: int, variance: str) -> Measure:
    """Return the measure by the bound of a chain."""

    def measure(model: Any, images: np.ndarray, indices: jax.Array) -> tuple[Any, Any]:
        data, times = model.experiment.data, chain(steps).of(model.denoiser.sde)
        source = VARIANCES[variance].needs
        found = discrete_bound(
            KEY,
            model.checkpoint.with_uncertainty(source, times[:-1], data.limits),
            data.noiseless(images, indices),
            times=times,
            pixel_levels=data.pixel_levels,
            options=DiscreteBoundOptions(variance=variance),
            indices=indices,
        )
        return found.total, found.nfe

    return measure


def by_continuous_bound(model: Any, images: np.ndarray, indices: jax.Array) -> tuple[Any, Any]:
    """Measure by the bound in continuous time."""
    options = model.experiment.likelihood.continuous_bound
    found = continuous_bound(
        KEY,
        model.denoiser,
        model.experiment.data.noiseless(images, indices),
        options=options,
        pixel_levels=model.experiment.data.pixel_levels,
        indices=indices,
    )
    return found.total, found.nfe


MEASURES: dict[str, Measure] = {
    **{f"ODE, tolerance {tolerance:g}": by_ode(tolerance) for tolerance in TOLERANCES},
    **{f"chain of {steps} steps": by_chain(steps, "small") for steps in STEPS},
    **{f"{steps} steps, analytic variance": by_chain(steps, "analytic") for steps in STEPS},
    "bound in continuous time": by_continuous_bound,
}

BASELINE = next(iter(MEASURES))
ODE, BOUND = "ODE, tolerance 1e-05", "bound in continuous time"  # on more images, too


def bits_of(
    measure: Measure, model: Any, images: np.ndarray, first: int, batch: int
) -> tuple[np.ndarray, float]:
    """Return bits/dim of `IMAGES` images from the `first`, and the mean number of evaluations."""
    nats, evaluations = [], []
    for start in range(first, first + IMAGES, batch):
        found, nfe = measure(model, images, jnp.arange(start, start + batch))
        nats.append(np.asarray(found))
        evaluations.append(np.broadcast_to(nfe, batch))
    bits = np.concatenate(nats) / images[0].size / math.log(2)
    return bits, float(np.mean(evaluations))


def differences(name: str, other: str) -> np.ndarray:
    """Return bits/dim by one minus those by the other, of each image that has both."""
    bits, others = (
        {line["first"]: np.array(line["bits"]) for line in RESULTS.lines(name=measure)}
        for measure in (name, other)
    )
    return np.concatenate([bits[first] - others[first] for first in bits.keys() & others.keys()])


def _error(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def change(name: str, other: str) -> str:
    """Return the mean of `differences` with its standard error, and of how many images it is."""
    found = differences(name, other)
    return f"{found.mean():+.3f} ± {_error(found):.3f} on {len(found):,} images"


def rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table."""
    found = {line["name"]: line for line in RESULTS.lines(first=0)}
    if BASELINE not in found:
        return
    for name in filter(found.get, MEASURES):
        line = found[name]
        bits, difference = np.array(line["bits"]), differences(name, BASELINE)
        shown = f"{difference.mean():+.4f} ± {_error(difference):.4f}"
        yield name, f"{line['nfe']:.0f}", f"{bits.mean():.3f} ± {_error(bits):.3f}", shown


def table() -> str:
    """Return the table of what is measured."""
    head = ("by", "evaluations", "bits/dim", f"minus that of {BASELINE}")
    return markdown_table(head, rows())


def of_all_images() -> str:
    """Return an estimate of bits/dim by the ODE of all test images, with its standard error.

    It is their bound, as recorded in results, plus two mean differences on the images measured
    here: from the bound to the ODE of `ODE`, and from there to the smallest tolerance.
    """
    record = json.loads((ROOT / "results/vdm_mnist/eval.json").read_text())["continuous_bound"]
    steps = differences(ODE, BOUND), differences(BASELINE, ODE)
    mean = record["mean"] + sum(step.mean() for step in steps)
    error = math.hypot(record["over_images"], *map(_error, steps))
    return f"{mean:.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="an .npz with train_images and test_images")
    parser.add_argument("--first", type=int, default=0, help="where to begin, a multiple of 100")
    parser.add_argument("--images", type=int, default=IMAGES, help="a multiple of 100, to 10000")
    parser.add_argument("--batch", type=int, default=BATCH, help="a divisor of 100")
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    if not options.table:
        if not options.data:
            parser.error("give an .npz with the images of MNIST")
        if options.images not in range(IMAGES, 10_001, IMAGES):
            parser.error(f"--images is {options.images}: give a multiple of {IMAGES}, to 10000")
        if options.first not in range(0, options.images, IMAGES):
            parser.error(f"--first is {options.first}: give a multiple of {IMAGES} below --images")
        if options.batch < 1 or IMAGES % options.batch:
            parser.error(f"--batch is {options.batch}: give a divisor of {IMAGES}")
        with np.load(options.data) as arrays:
            images = arrays["test_images"][: options.images, ..., None]
            model = ss.load("mnist_likelihood")
            if not options.first:  # chains are measured there alone
                model = with_moments(model, arrays["train_images"][:200, ..., None])
        for first in range(options.first, options.images, IMAGES):
            for name in (ODE, BOUND) if first else MEASURES:
                if not RESULTS.has(name=name, first=first):
                    bits, nfe = bits_of(MEASURES[name], model, images, first, options.batch)
                    line = {"name": name, "first": first, "images": IMAGES, "nfe": nfe}
                    RESULTS.add({**line, "bits": np.round(bits, 6).tolist()})
    print(table())
    if RESULTS.has(name=BOUND, first=0):  # the last of them
        print(f"\n{ODE}, minus {BOUND}: {change(ODE, BOUND)}")
        print(f"all test images by the ODE, estimated: {of_all_images()} bits/dim")


if __name__ == "__main__":
    main()
