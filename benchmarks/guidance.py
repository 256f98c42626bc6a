r"""Quality and cost of guidance: class accuracy of guided digits, and time over evaluations.

    pip install scikit-learn
    python benchmarks/guidance.py                          # trains both networks first
    python benchmarks/guidance.py --part=accuracy --unconditional=FOLDER --conditional=FOLDER
    python benchmarks/guidance.py --part=overhead          # needs no trained network

Accuracy. Samples of the ten digits in turn, from a run of configs/vp_digits.py guided by its
classifier of noisy images, and from a run of configs/vp_digits.py:conditional with classifier-free
guidance. The columns are

    accuracy   fraction of samples that a support vector machine of scikit-learn, trained on the
               training images only, assigns to the wanted digit, with sqrt(p (1 - p) / n);
    distance   Frechet distance of pixels in [0, 1] to all training images;
    spread     root of the pixels' variance within a class, over that of the training images.

Overhead. Time of a whole call of `sampling.sample` with 20 steps of DDIM, over that of the 20 bare
evaluations it needs in one jitted loop: of the network; of the network and the classifier's
gradient; of the network at twice the batch; of the network and its transpose. Weights are random.
Calls take turns, and ratios are those of medians. The last table compares the same evaluations in a
loop and called one by one. For gradients of JAX's own convolution on the CPU this ratio is 10 to 60
(models/blocks/convolution.py).

Each part rewrites its tables in benchmarks/results/guidance.md and leaves the rest unchanged.
"""

import argparse
import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from networks import provenance
from runs import markdown_table

import sampling
from configs import vp_cifar10, vp_digits
from denoising import Denoiser
from experiment import build
from experiment.data import Data
from experiment.experiment import Experiment
from experiment.randomness import base_key
from files.writing import write_file
from guidance import operators
from guidance.base import guide
from guidance.classifier import Classifier, ClassifierGuidance
from guidance.classifier_free import ClassifierFreeGuidance
from guidance.posterior import DPS, LossGuidance, PiGDM
from guidance.projection import Projection
from jobs.cache import batches_of
from jobs.restore import TrainedModel, load_classifier, load_model
from jobs.workdir import Workdir
from metrics.frechet import Statistics, frechet_distance
from numerics.arrays import sum_per_sample
from numerics.clipping import Clipping
from solvers.ddim import DDIM
from solvers.predictor_corrector import Ancestral, PredictorCorrector
from solvers.unipc import UniPC
from time_grids import Schedule
from training.step import Trainer

RESULTS = ROOT / "benchmarks" / "results" / "guidance.md"
CLASSES, SEED, BATCH = 10, 0, 100


def write_part(name: str, text: str) -> None:
    """Write the text between the marks of this part in the file of results."""
    marks = [f"<!-- {name} -->", f"<!-- end of {name} -->"]
    old = RESULTS.read_text() if RESULTS.exists() else "# Guidance on the digits, and what it costs"
    if marks[0] not in old:
        old = "\n\n".join([old.rstrip("\n"), *marks]) + "\n"
    between = re.compile(f"{re.escape(marks[0])}.*{re.escape(marks[1])}", re.DOTALL)
    new = between.sub(lambda _: f"{marks[0]}\n\n{text}\n\n{marks[1]}", old)
    write_file(RESULTS, lambda temporary: temporary.write_text(new))


def machine() -> str:
    """Describe the machine and the commit."""
    made = provenance(jax.devices()[0].device_kind)
    return "{device}, {cores} cores, commit {commit}".format(**made)


def train(folder: Path, variant: str, *modes: str) -> None:
    for mode in modes:
        flags = [f"--config=configs/vp_digits.py:{variant}", f"--workdir={folder}"]
        subprocess.run([sys.executable, "main.py", *flags, f"--mode={mode}"], cwd=ROOT, check=True)


class Judge:
    """Measures samples of the digits, in three columns."""

    COLUMNS = ("accuracy", "distance", "spread")

    def __init__(self, data: Data) -> None:
        from sklearn.svm import SVC

        found = data.splits
        self.train, test = (
            data.quantizer.to_uint8(images).reshape(len(images), -1) / 255
            for images in (found.train, found.test)
        )
        self.labels = found.train_labels
        self.machine = SVC().fit(self.train, self.labels)
        self.on_test = self.machine.score(test, found.test_labels)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> list[str]:
        pixels = images.reshape(len(images), -1) / 255
        accuracy = np.mean(self.machine.predict(pixels) == labels)
        error = np.sqrt(accuracy * (1 - accuracy) / len(labels))
        return [
            f"{accuracy:.1%} +- {error:.1%}",
            f"{self.distance(pixels):.3f}",
            f"{self.spread(pixels, labels) / self.spread(self.train, self.labels):.2f}",
        ]

    def distance(self, pixels: np.ndarray) -> float:
        return frechet_distance(_statistics(pixels), _statistics(self.train))

    def floor(self, count: int) -> str:
        """Return the distance of `count` training images, drawn with replacement."""
        rng = np.random.default_rng(SEED)
        draws = [self.train[rng.integers(len(self.train), size=count)] for _ in range(10)]
        distances = [self.distance(draw) for draw in draws]
        return f"{np.mean(distances):.3f} +- {np.std(distances, ddof=1):.3f}"

    def spread(self, pixels: np.ndarray, labels: np.ndarray) -> float:
        variances = [pixels[labels == y].var(axis=0, ddof=1).sum() for y in range(CLASSES)]
        return np.sqrt(np.mean(variances))


def _statistics(pixels: np.ndarray) -> Statistics:
    return Statistics(len(pixels), pixels.mean(axis=0), np.cov(pixels.T))


SHORT = Schedule(grid="quadratic", steps=19, final_step="denoise")
LONG = Schedule(grid="quadratic", steps=99, final_step="denoise")
SCORE, MEAN = (
    PredictorCorrector(predictor=Ancestral(variance="large", guidance_form=form))
    for form in ("score", "mean")
)
SAMPLERS = {
    "UniPC, 20 evaluations": {"solver": UniPC(), "schedule": SHORT},
    "DDIM, 20": {"solver": DDIM(), "schedule": SHORT},
    "ancestral, 100": {"solver": SCORE, "schedule": LONG},
    "ancestral, mean form, 100": {"solver": MEAN, "schedule": LONG},
}
CLASSIFIER_SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
# The second has the noise, sigma / alpha from 0.19 to 1.61, of Kynkaanniemi et al. 2024.
INTERVALS = {
    (0.0, 1.0): (0.0, 1.0, 1.5, 2.0, 3.0, 5.0),
    (0.06, 0.36): (2.0, 3.0, 5.0),
    (0.3, 0.8): (2.0, 3.0, 5.0),
}


def row(
    model: TrainedModel, judge: Judge, sampler: str, condition: Callable[..., Denoiser], count: int
) -> list[str]:
    """Measure samples; `condition` maps the network's denoiser and the labels to their denoiser."""
    key, labels, parts = base_key(SEED, "sampling"), np.arange(count) % CLASSES, []
    for indices in batches_of(count, BATCH):
        denoiser = condition(model.denoiser, jnp.asarray(labels[indices]))
        options = {"indices": jnp.asarray(indices), **SAMPLERS[sampler]}
        samples = sampling.sample(key, denoiser, (len(indices), *model.shape), **options)
        parts.append(model.to_data(np.asarray(samples.x)))
    cells = judge(np.concatenate(parts), labels)
    print(sampler, *cells, flush=True)
    return cells


def with_classifier(model: TrainedModel, classifier: Classifier, judge: Judge, count: int) -> str:
    """Return the table of classifier guidance."""

    def guided(scale: float, denoiser: Denoiser, labels: jax.Array) -> Denoiser:
        guidance = ClassifierGuidance(classifier=classifier, labels=labels, scale=scale)
        return guide(denoiser, guidance)

    rows = [
        [sampler, f"{scale:g}", *row(model, judge, sampler, partial(guided, scale), count)]
        for sampler in SAMPLERS
        for scale in CLASSIFIER_SCALES
    ]
    return markdown_table(["sampler", "scale", *Judge.COLUMNS], rows)


def classifier_free(model: TrainedModel, judge: Judge, sampler: str, count: int) -> str:
    """Return the table of classifier-free guidance."""

    def guided(guidance: ClassifierFreeGuidance, denoiser: Denoiser, labels: jax.Array) -> Denoiser:
        return guide(dataclasses.replace(denoiser, labels=labels), guidance)

    rows = []
    for interval, scales in INTERVALS.items():
        for scale in scales:
            guidance = ClassifierFreeGuidance(null_label=CLASSES, scale=scale, interval=interval)
            cells = row(model, judge, sampler, partial(guided, guidance), count)
            rows.append(["{:g} to {:g}".format(*interval), f"{scale:g}", *cells])
    return markdown_table(["interval of t", "scale", *Judge.COLUMNS], rows)


def measure_accuracy(unconditional: Path, conditional: Path, count: int) -> str:
    """Return the tables, as Markdown."""
    model, sampler = load_model(unconditional), next(iter(SAMPLERS))
    classifier = load_classifier(model.experiment, Workdir(unconditional), "config.guidance.name")
    judge = Judge(model.experiment.data)
    tables = [
        "### Guided by a classifier of noisy images, network without classes",
        with_classifier(model, classifier, judge, count),
        f"### Guided without a classifier, class-conditional network, {sampler}",
        classifier_free(load_model(conditional), judge, sampler, count),
    ]
    head = [
        f"`python benchmarks/guidance.py --part=accuracy --count={count}`: {count} samples per "
        f"row, the ten digits in turn, sampling seed {SEED}, training seed 42; {machine()}.",
        f"The judge is right on {judge.on_test:.1%} of the real test images. {count} real training "
        f"images have a distance of {judge.floor(count)} and a spread of 1.",
    ]
    return "\n\n".join([*head, *tables])


STEPS = 20


class Setting(NamedTuple):
    """Networks with random weights, and a batch of noise and labels."""

    denoiser: Denoiser
    conditional: Denoiser
    classifier: Classifier
    x: jax.Array
    labels: jax.Array


def setting(config: Any, batch: int) -> Setting:
    config.training.batch_size = batch
    experiment = build.build(config)
    config.model.num_classes = CLASSES

    def randomized(trainer: Trainer) -> Any:
        params = trainer.init_state(jax.random.key(SEED)).ema_params
        # Layers that start at 0 would have outputs so small that arithmetic is slow.
        noise = partial(jax.random.normal, jax.random.key(SEED))
        return jax.tree.map(lambda p: p + 0.02 * noise(p.shape), params)

    def denoiser(experiment: Experiment) -> Denoiser:
        return experiment.model.denoiser(randomized(experiment.trainer))

    # Clipped, as for inverse problems: at high noise levels gradients are huge.
    clipped = dataclasses.replace(denoiser(experiment), clipping=Clipping(clip="range"))
    classifier = experiment.parts.classifier.classifier(
        randomized(experiment.parts.classifier.trainer)
    )
    x = jax.random.normal(jax.random.key(1), (batch, *experiment.data.shape))
    labels = jnp.arange(batch) % CLASSES
    return Setting(clipped, denoiser(build.build(config)), classifier, x, labels)


def digits() -> Setting:
    return setting(vp_digits.get_config(), 64)


def eighth_of_cifar10() -> Setting:
    config = vp_cifar10.get_config("ddpm_continuous")
    config.model.features //= 8
    return setting(config, 8)


def network(at: Setting, x: jax.Array, cond: jax.Array) -> jax.Array:
    return at.denoiser.network(x, cond)


def network_and_classifier(at: Setting, x: jax.Array, cond: jax.Array) -> jax.Array:
    def log_prob(x: jax.Array) -> jax.Array:
        logits, _ = at.classifier.network(x, cond)
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

    return network(at, x, cond) + jax.grad(log_prob)(x)


def network_twice(at: Setting, x: jax.Array, cond: jax.Array) -> jax.Array:
    labels = jnp.concatenate([at.labels, jnp.full_like(at.labels, CLASSES)])
    double = at.conditional.network(jnp.tile(x, (2, 1, 1, 1)), jnp.tile(cond, 2), labels)
    return double[: len(x)] - double[len(x) :]


def network_and_transpose(at: Setting, x: jax.Array, cond: jax.Array) -> jax.Array:
    output, transpose = jax.vjp(lambda x: network(at, x, cond), x)
    return output + transpose(x)[0]


Evaluate = Callable[[Setting, jax.Array, jax.Array], jax.Array]  # (setting, x, condition)


class Case(NamedTuple):
    """A way to sample, and the evaluations that it takes."""

    denoiser: Denoiser
    evaluate: Evaluate
    projection: Projection | None = None


@partial(jax.jit, static_argnames="evaluate")
def once(evaluate: Evaluate, at: Setting, x: jax.Array, t: Any) -> jax.Array:
    return x + 0.1 * jnp.tanh(evaluate(at, x, jnp.full(len(x), t)))


@partial(jax.jit, static_argnames="evaluate")
def looped(evaluate: Evaluate, at: Setting, steps: Any) -> jax.Array:
    return jax.lax.fori_loop(0, steps, lambda i, x: once(evaluate, at, x, i / steps), at.x)


def one_by_one(evaluate: Evaluate, at: Setting) -> jax.Array:
    x = at.x
    for i in range(STEPS):
        x = once(evaluate, at, x, i / STEPS)
    return x


def cases(at: Setting) -> dict[str, Case]:
    """Return the measured ways to sample, by name."""
    classifier = ClassifierGuidance(classifier=at.classifier, labels=at.labels)
    free = ClassifierFreeGuidance(null_label=CLASSES, scale=2.0)
    of_class = dataclasses.replace(at.conditional, labels=at.labels)
    loss = LossGuidance(loss=lambda x0: sum_per_sample(x0**2))
    found = {
        "nothing": Case(at.denoiser, network),
        "class, by a classifier": Case(guide(at.denoiser, classifier), network_and_classifier),
        "class, without a classifier": Case(guide(of_class, free), network_twice),
        "loss of the image": Case(guide(at.denoiser, loss), network_and_transpose),
    }
    shape = at.x.shape[1:]
    left = np.broadcast_to(np.arange(shape[1]) < shape[1] // 2, shape[:2])
    measured = {
        "inpainting": operators.inpainting(shape, left),
        "blur": operators.blur(shape, 1.0),
        "Fourier": operators.fourier(shape, operators.cartesian_mask(shape, 2.0)),
        "compressed sensing": operators.compressed_sensing(shape, 0.25),
    }
    for name, operator in measured.items():
        known = {"operator": operator, "measurement": operator(at.x)}
        if name != "blur":  # its inverse amplifies noise without bounds
            found[f"{name}, projection"] = Case(at.denoiser, network, Projection(**known))
        for method in (PiGDM, DPS):
            guided = guide(at.denoiser, method(**known, noise=0.1))
            found[f"{name}, {method.__name__}"] = Case(guided, network_and_transpose)
    return found


def sampled(case: Case, x: jax.Array) -> jax.Array:
    schedule = Schedule(grid="quadratic", steps=STEPS, final_step="none")
    key = jax.random.key(SEED)
    return sampling.sample(
        key, case.denoiser, x.shape, solver=DDIM(), schedule=schedule, projection=case.projection
    ).x


def in_turns(calls: dict[Any, Callable[[], jax.Array]], repeats: int) -> dict[Any, float]:
    """Return the median milliseconds per evaluation of each call."""
    seconds = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
        if not repeat:
            print("compiled; now measuring", flush=True)
    return {name: 1e3 * float(np.median(taken)) / STEPS for name, taken in seconds.items()}


def measure_overhead(make: Callable[[], Setting], repeats: int) -> str:
    """Return the tables of one network, as Markdown."""
    at = make()
    found = cases(at)
    evaluations = (network, network_and_classifier, network_twice, network_and_transpose)
    taken = in_turns(
        {evaluate: partial(looped, evaluate, at, STEPS) for evaluate in evaluations}
        | {name: partial(sampled, case, at.x) for name, case in found.items()}
        | {(evaluate, "alone"): partial(one_by_one, evaluate, at) for evaluate in evaluations},
        repeats,
    )
    rows, loops = [], []
    for name, case in found.items():
        bare, whole = taken[case.evaluate], taken[name]
        cells = [f"{bare:.2f}", f"{whole:.2f}", f"{whole / bare - 1:+.1%}"]
        rows.append([name, case.evaluate.__name__.replace("_", " "), *cells])
    for evaluate in evaluations:
        inside, alone = taken[evaluate], taken[evaluate, "alone"]
        cells = [f"{inside:.2f}", f"{alone:.2f}", f"{inside / alone:.2f}"]
        loops.append([evaluate.__name__.replace("_", " "), *cells])
    count = sum(leaf.size for leaf in jax.tree.leaves(at.denoiser.network))
    tables = [
        f"### {make.__name__.replace('_', ' ')}: {count:,} parameters, batch {len(at.x)}",
        markdown_table(["guidance", "evaluations", "bare, ms", "sampling, ms", "overhead"], rows),
        markdown_table(["evaluations", "in a loop, ms", "one by one, ms", "ratio"], loops),
    ]
    print("\n".join(tables), flush=True)
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("accuracy", "overhead", "both"), default="both")
    parser.add_argument("--count", type=int, default=500, help="samples per row")
    parser.add_argument("--unconditional", type=Path, help="a run of configs/vp_digits.py")
    parser.add_argument("--conditional", type=Path, help="a run of its variant conditional")
    parser.add_argument("--repeats", type=int, default=9, help="turns, for the overhead")
    options = parser.parse_args()
    if options.part != "overhead":
        with tempfile.TemporaryDirectory() as scratch:
            if not (unconditional := options.unconditional):
                unconditional = Path(scratch) / "unconditional"
                train(unconditional, "unet", "train", "train_classifier")
            if not (conditional := options.conditional):
                conditional = Path(scratch) / "conditional"
                train(conditional, "conditional", "train")
            write_part("accuracy", measure_accuracy(unconditional, conditional, options.count))
    if options.part != "accuracy":
        command = f"`python benchmarks/guidance.py --part=overhead --repeats={options.repeats}`"
        parts = [measure_overhead(make, options.repeats) for make in (digits, eighth_of_cifar10)]
        head = f"{command}: medians of {options.repeats} turns; {machine()}."
        write_part("overhead", "\n\n".join([head, *parts]))
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
