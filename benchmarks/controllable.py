"""Controllable generation on MNIST and CIFAR-10: samples by class, and inverse problems.

    pip install scikit-image
    python benchmarks/controllable.py --workdir=RUN
    python benchmarks/controllable.py --table

RUN is a run of configs/vp_mnist.py or vp_cifar10_small.py with its classifier. Its last part is its
name in the results: runs/results/vp_mnist.

Classes. 1,000 samples of the ten classes in turn by classifier-free guidance, with 19 steps of
UniPC and a prediction of x0, which take 40 evaluations. The accuracy is the fraction that shows the
wanted class, as the run's classifier sees it, which is trained apart and takes no part in the
sampling. The distance is that of its features to the training images.

Inverse problems, on MNIST alone. The first 100 test images are measured, with noise of standard
deviation 0.05 in the network's range of -1 to 1, and restored without their classes in 99 steps of
DDIM and a prediction of x0. PSNR and SSIM compare the restored images 0..255 with the test images;
their means have standard errors over images. `measurement` is the measurement itself, as an image.

Results go to results/controllable.jsonl, and what is there is not repeated.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from runs import Line, Results
from trained_samplers import Run

import scoresde as ss
from denoising import Denoiser
from files.pictures import image_grid, write_png
from guidance.operators import LinearOperator, blur, downsampling, inpainting

RESULTS = Results("controllable", ("run", "part", "row", "column"))
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "assets" / "restored.png"
CLASSES, IMAGES, SHOWN, NOISE = 10, 100, 10, 0.05
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
SHORT, LONG = (
    ss.Schedule(grid="quadratic", steps=steps, t_min=1e-3, final_step="denoise")
    for steps in (19, 99)
)
SHAPE = (28, 28, 1)
LEFT = np.broadcast_to(np.arange(28) < 14, (28, 28)).astype(float)
SCATTERED = (np.random.default_rng(0).random((28, 28)) < 0.2).astype(float)


class Problem(NamedTuple):
    """A measurement of images.

    Attributes:
        make: makes the operator A.
        dps_scale: scale of DPS, 1 / |A A^T|.
        inverts: whether the pseudoinverse keeps the noise small, as projection needs.
    """

    make: Callable[[], LinearOperator]
    dps_scale: float = 1.0
    inverts: bool = True


PROBLEMS = {
    "right half hidden": Problem(partial(inpainting, SHAPE, LEFT)),
    "four pixels of five hidden": Problem(partial(inpainting, SHAPE, SCATTERED)),
    "means of 4x4 pixels": Problem(partial(downsampling, SHAPE, 4), dps_scale=16.0),
    "blur of 2 pixels": Problem(partial(blur, SHAPE, 2.0), inverts=False),
}
METHODS = ("PiGDM", "DPS", "projection")


class Measured(NamedTuple):
    """Test images 0..255 and their noisy measurements by a problem's operator."""

    problem: Problem
    operator: LinearOperator
    truth: np.ndarray
    y: jax.Array

    @property
    def as_image(self) -> np.ndarray:
        """The measurement in the network's range, as an image."""
        return np.asarray(self.operator.pseudo_inverse(self.y) if self.problem.inverts else self.y)


def measure_classes(run: Run) -> None:
    """Measure accuracy and distance at each scale of guidance, and the accuracy on test images."""

    def guided(scale: float, denoiser: Denoiser) -> Denoiser:
        return ss.guide(denoiser, ss.ClassifierFreeGuidance(null_label=CLASSES, scale=scale))

    wanted = np.arange(run.count) % CLASSES
    for scale in SCALES:
        key = {"run": run.name, "part": "classes", "row": f"{scale:g}"}
        key["column"] = str(run.count)
        if not RESULTS.has(**key):
            rows, nfe = run.draw(ss.UniPC(), SHORT, partial(guided, scale))
            right = float(np.mean(run.classes(rows) == wanted))
            RESULTS.add({**key, "accuracy": right, "nfe": nfe, **run.distance(rows)})
    data = run.model.experiment.data
    key = {"run": run.name, "part": "classes", "row": "test images"}
    key["column"] = str(len(data.splits.test))
    if not RESULTS.has(**key):
        batches = np.split(data.as_samples(data.splits.test), 10)
        found = np.concatenate([run.classes(rows) for rows in batches])
        RESULTS.add({**key, "accuracy": float(np.mean(found == data.splits.test_labels))})


def measure(run: Run, problem: Problem) -> Measured:
    """Measure the first test images."""
    data, operator = run.model.experiment.data, problem.make()
    truth = data.as_samples(data.splits.test[:IMAGES])
    clean = operator(jnp.asarray(data.encode(truth)))
    y = clean + NOISE * jax.random.normal(jax.random.key(1), clean.shape)
    # Hidden pixels are 0; a blur leaves noise in all frequencies.
    return Measured(problem, operator, truth, operator.in_range(y) if problem.inverts else y)


def restore(run: Run, found: Measured, method: str, eta: float) -> np.ndarray:
    """Return restored images 0..255."""
    data, operator, y = run.model.experiment.data, found.operator, found.y
    denoiser = replace(
        run.model.denoiser,
        labels=jnp.full(len(y), CLASSES),  # no class
        clipping=ss.Clipping(clip="range"),
    )
    known, projection = {"operator": operator, "measurement": y}, None
    if method == "PiGDM":
        std = float(data.encode(data.splits.train[:1000]).std())
        denoiser = ss.guide(denoiser, ss.PiGDM(**known, noise=NOISE, data_std=std))
    elif method == "DPS":
        known["measurement"] = operator.in_range(y)
        scale = found.problem.dps_scale
        denoiser = ss.guide(denoiser, ss.DPS(**known, noise=NOISE, scale=scale))
    else:
        projection = ss.Projection(**known)
    drawn = ss.sample(
        jax.random.key(0),
        denoiser,
        (len(y), *SHAPE),
        solver=ss.DDIM(eta=eta),
        schedule=LONG,
        projection=projection,
    )
    return run.model.to_data(np.asarray(drawn.x))


def quality(restored: np.ndarray, truth: np.ndarray) -> Line:
    """Return PSNR and SSIM of images 0..255, as means and standard errors."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pairs = list(zip(truth[..., 0], restored[..., 0], strict=True))
    found = {
        "psnr": [peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs],
        "ssim": [structural_similarity(a, b, data_range=255) for a, b in pairs],
    }
    line: Line = {}
    for name, values in found.items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        line |= {name: float(np.mean(values)), f"{name}_error": float(error)}
    return line


def rows_of(problem: Problem) -> Iterator[tuple[str, str, float]]:
    """Yield the rows of a problem: the name, the method and eta."""
    for method in METHODS:
        if method != "projection" or problem.inverts:
            for eta in (0.0, 1.0):
                yield f"{method}, eta = {eta:g}", method, eta


def measure_problems(run: Run) -> None:
    """Measure the restored images of each problem and method, and draw some of them."""
    shown = []
    for name, problem in PROBLEMS.items():
        found = measure(run, problem)
        key = {"run": run.name, "part": "inverse problems", "row": "measurement", "column": name}
        measurement = run.model.to_data(found.as_image)
        if not RESULTS.has(**key):
            RESULTS.add({**key, **quality(measurement, found.truth)})
        for row, method, eta in rows_of(problem):
            key["row"] = row
            if not RESULTS.has(**key):
                RESULTS.add({**key, **quality(restore(run, found, method, eta), found.truth)})
        first = Measured(problem, found.operator, found.truth[:SHOWN], found.y[:SHOWN])
        shown += [first.truth] if not shown else []
        shown += [measurement[:SHOWN], restore(run, first, "PiGDM", 1.0)]
    write_png(PICTURE, image_grid(np.concatenate(shown), columns=SHOWN))


def classes_table(name: str) -> str:
    """Return the table of a run: accuracy and distance against the scale."""
    lines = ["| scale | accuracy | Frechet distance |", "|---|---|---|"]
    for line in RESULTS.lines():
        if (line["run"], line["part"]) == (name, "classes"):
            right, count = line["accuracy"], int(line["column"])
            error = math.sqrt(right * (1 - right) / count)
            form = "{frechet:.2f} ({low:.2f} to {high:.2f})" if "frechet" in line else ""
            cells = (line["row"], f"{right:.1%} ± {error:.1%}", form.format(**line))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def problems_table() -> str:
    """Return the table of PSNR and SSIM."""
    found = {
        (line["row"], line["column"]): "{psnr:.1f} ± {psnr_error:.1f}, {ssim:.2f}".format(**line)
        for line in RESULTS.lines()
        if line["part"] == "inverse problems"
    }
    lines = [f"| PSNR in dB, SSIM | {' | '.join(PROBLEMS)} |", "|---|" + "---|" * len(PROBLEMS)]
    for row in dict.fromkeys(row for row, _ in found):
        lines.append(f"| {row} | {' | '.join(found.get((row, c), '') for c in PROBLEMS)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="a run with its classifier")
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    if not options.table:
        import skimage  # noqa: F401  # missing, it should be so before hours of sampling

        if not options.workdir:
            parser.error("give --workdir=RUN; `python results/run.py vp_mnist` makes one")
        run = Run(options.workdir, 1000, options.workdir.name, features="classifier")
        measure_classes(run)
        if run.model.shape == SHAPE:
            measure_problems(run)
    for name in dict.fromkeys(line["run"] for line in RESULTS.lines()):
        print(f"{name}\n\n{classes_table(name)}\n")
    print(problems_table())


if __name__ == "__main__":
    main()
