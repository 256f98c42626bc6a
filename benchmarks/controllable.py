"""Controllable generation on MNIST: samples by class, and inverse problems.

    pip install scikit-image
    python benchmarks/controllable.py --workdir=RUN
    python benchmarks/controllable.py --table

RUN is a run of configs/vp_mnist.py with its classifier, such as runs/results/vp_mnist.

Classes. 1,000 samples of the ten digits in turn by classifier-free guidance, with 19 steps of UniPC
and a prediction of x0. The accuracy is the fraction that shows the wanted digit, as the run's
classifier sees it, which is trained apart and takes no part in the sampling. The distance is that
of its features to the training images.

Inverse problems. The first 100 test images are measured, with noise of standard deviation 0.05 in
the network's range of -1 to 1, and restored without their classes in 99 steps of DDIM and a
prediction of x0. PSNR and SSIM compare the restored images 0..255 with the test images; their means
have standard errors over images. `measurement` is the pseudoinverse of the measurement itself.

Results go to results/controllable.jsonl, and what is there is not repeated.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from runs import Line, Results
from trained_samplers import Run

import scoresde as ss
from denoising import Denoiser
from errors import SamplingError
from files.pictures import image_grid, write_png
from guidance.operators import LinearOperator, blur, downsampling, inpainting

RESULTS = Results("controllable", ("part", "row", "column"))
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
OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "right half hidden": partial(inpainting, SHAPE, LEFT),
    "four pixels of five hidden": partial(inpainting, SHAPE, SCATTERED),
    "means of 4x4 pixels": partial(downsampling, SHAPE, 4),
    "blur of 2 pixels": partial(blur, SHAPE, 2.0),
}


def measure_classes(run: Run) -> None:
    """Measure accuracy and distance at each scale of guidance."""

    def guided(scale: float, denoiser: Denoiser) -> Denoiser:
        return ss.guide(denoiser, ss.ClassifierFreeGuidance(null_label=CLASSES, scale=scale))

    wanted = np.arange(run.count) % CLASSES
    for scale in SCALES:
        key = {"part": "classes", "row": f"{scale:g}", "column": str(run.count)}
        if RESULTS.has(**key):
            continue
        rows, nfe = run.draw(ss.UniPC(), SHORT, partial(guided, scale))
        right = float(np.mean(run.classes(rows) == wanted))
        RESULTS.add({**key, "accuracy": right, "nfe": nfe, **run.distance(rows)})
    key = {"part": "classes", "row": "test images", "column": str(run.count)}
    if not RESULTS.has(**key):
        splits = run.model.experiment.data.splits
        found = np.concatenate([run.classes(rows) for rows in np.split(splits.test, 10)])
        RESULTS.add({**key, "accuracy": float(np.mean(found == splits.test_labels))})


# From the denoiser, the operator and the measurement to what samples: a denoiser and a projection.
METHODS: dict[str, Callable[..., tuple[Denoiser, Any]]] = {
    "PiGDM": lambda d, A, y, std: (
        ss.guide(d, ss.PiGDM(operator=A, measurement=y, noise=NOISE, data_std=std)),
        None,
    ),
    "DPS": lambda d, A, y, std: (
        ss.guide(d, ss.DPS(operator=A, measurement=A.in_range(y), noise=NOISE)),
        None,
    ),
    "projection": lambda d, A, y, std: (d, ss.Projection(operator=A, measurement=y)),
}


def restore(
    run: Run, method: str, operator: LinearOperator, y: jax.Array, eta: float
) -> np.ndarray:
    """Return the restored images in the network's range; NaN where sampling fails."""
    data = run.model.experiment.data
    std = float(data.encode(data.splits.train[:1000]).std())
    labels = jnp.full(len(y), CLASSES)  # no class
    denoiser = replace(run.model.denoiser, labels=labels, clipping=ss.Clipping(clip="range"))
    denoiser, projection = METHODS[method](denoiser, operator, y, std)
    try:
        drawn = ss.sample(
            jax.random.key(0),
            denoiser,
            (len(y), *SHAPE),
            solver=ss.DDIM(eta=eta),
            schedule=LONG,
            projection=projection,
        )
    except SamplingError as error:
        print(error)
        return np.full((len(y), *SHAPE), np.nan)
    return np.asarray(drawn.x)


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
        line |= {name: float(np.mean(values)), f"{name}_error": float(np.std(values) / 10)}
    return line


def measured(run: Run, operator: LinearOperator, count: int) -> tuple[np.ndarray, jax.Array]:
    """Return the first test images 0..255, and their noisy measurements."""
    data = run.model.experiment.data
    truth = data.splits.test[:count]
    clean = operator(jnp.asarray(data.encode(truth)))
    noise = NOISE * jax.random.normal(jax.random.key(1), clean.shape)
    return truth, clean + operator.in_range(noise)


def measure_inverse_problems(run: Run) -> None:
    """Measure the restored images of each operator and method."""
    for problem, make in OPERATORS.items():
        operator = make()
        truth, y = measured(run, operator, IMAGES)
        results = {"measurement": partial(operator.pseudo_inverse, y)}
        for method in METHODS:
            for eta in (0.0, 1.0):
                results[f"{method}, eta = {eta:g}"] = partial(
                    restore, run, method, operator, y, eta
                )
        for row, compute in results.items():
            key = {"part": "inverse problems", "row": row, "column": problem}
            if not RESULTS.has(**key):
                images = run.model.to_data(np.asarray(compute()))
                RESULTS.add({**key, **quality(images, truth)})


def picture(run: Run) -> None:
    """Draw test images, and of each operator the measurements and the images restored by PiGDM."""
    rows = [run.model.experiment.data.splits.test[:SHOWN]]
    for make in OPERATORS.values():
        operator = make()
        _, y = measured(run, operator, SHOWN)
        for x in (operator.pseudo_inverse(y), restore(run, "PiGDM", operator, y, 1.0)):
            rows.append(run.model.to_data(np.asarray(x)))
    grid = image_grid(np.concatenate(rows), columns=SHOWN)
    write_png(PICTURE, grid)


def classes_table() -> str:
    """Return the table of accuracy and distance against the scale."""
    lines = ["| scale | accuracy | Frechet distance |", "|---|---|---|"]
    for line in RESULTS.lines():
        if line["part"] == "classes":
            distance = (
                "{frechet:.2f} ({low:.2f} to {high:.2f})".format(**line)
                if "frechet" in line
                else ""
            )
            lines.append(f"| {line['row']} | {line['accuracy']:.1%} | {distance} |")
    return "\n".join(lines)


def problems_table() -> str:
    """Return the table of PSNR and SSIM."""
    found = {
        (line["row"], line["column"]): "{psnr:.1f} ± {psnr_error:.1f}, {ssim:.2f}".format(**line)
        for line in RESULTS.lines()
        if line["part"] == "inverse problems"
    }
    lines = [f"| PSNR in dB, SSIM | {' | '.join(OPERATORS)} |", "|---|" + "---|" * len(OPERATORS)]
    for row in dict.fromkeys(row for row, _ in found):
        lines.append(f"| {row} | {' | '.join(found.get((row, c), '') for c in OPERATORS)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="a run of configs/vp_mnist.py")
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    if not options.table:
        if not options.workdir:
            parser.error("give --workdir=RUN; `python results/run.py vp_mnist` makes one")
        run = Run(options.workdir, 1000, features="classifier")
        measure_classes(run)
        measure_inverse_problems(run)
        picture(run)
    print(f"{classes_table()}\n\n{problems_table()}")


if __name__ == "__main__":
    main()
