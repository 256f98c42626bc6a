"""What each choice of configs/vdm_mnist.py gains: short runs, each with one choice undone.

    python benchmarks/likelihood_recipe.py MNIST.npz [--steps=200] [--seeds=1] [--only="all"]

Each run is measured by the variational bound on the first 1,000 test images, and adds a line to
results/likelihood_recipe.jsonl; runs that are there are not repeated. 200 steps take two to
five minutes on two cores. `python results/run.py --tables` writes the table of docs/results.md.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from runs import Results, evaluated, trained

RESULTS = Results("likelihood_recipe", ("name", "seed", "steps"))
CONFIGURATION = "configs/vdm_mnist.py"
TEST_IMAGES = 1000
EPS = {"denoiser.parameterization": "eps"}
WITHOUT_WAVES = {"model.input_frequencies": ()}
FIXED = {
    "sde.name": "vp",
    "loss.name": "denoising",
    "weight.name": "g2",
    "times.name": "log_snr",
}
CHOICES = {
    "all": {},
    "without waves of the input": WITHOUT_WAVES,
    "noise prediction": EPS,
    "noise prediction without waves": EPS | WITHOUT_WAVES,
    "fixed schedule": FIXED,
    "fixed schedule, noise prediction, uniform dequantization": FIXED
    | EPS
    | {"data.dequantization": "uniform"},
    "constant learning rate": {"optim.schedule": "constant"},
    "no average of parameters": {"ema.rate": 0.0},
}


def measure(name: str, seed: int, steps: int, data: Path) -> dict:
    """Train with one choice undone, and evaluate the bound."""
    fields = {
        "seed": seed,
        "data.name": str(data),
        "training.steps": steps,
        "training.checkpoint_every": steps,
        "training.sample_every": 0,
        "diagnostics.every": 0,
        "ema.snapshot_every": 0,
        "eval.metrics": ("continuous_bound",),
        "continuous_bound.num_times": 16,
    } | CHOICES[name]
    with tempfile.TemporaryDirectory() as folder:
        seconds = trained(CONFIGURATION, fields, Path(folder))
        found = evaluated(CONFIGURATION, fields, Path(folder))["continuous_bound"]
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "bound": found["mean"],
        "over_images": found["over_images"],
        "seconds": round(seconds, 1),
    }


def with_fewer_test_images(source: str, folder: Path) -> Path:
    """Write a copy of an .npz of images with the first of its test images alone."""
    path = folder / "mnist.npz"
    with np.load(source) as arrays:
        kept = {
            name: array[:TEST_IMAGES] if "test" in name else array for name, array in arrays.items()
        }
    np.savez(path, **kept)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "data", help="an .npz with train_images, train_labels, test_images, test_labels"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default=";".join(CHOICES), help="names of recipes")
    arguments = parser.parse_args()
    names = arguments.only.split(";")
    if unknown := set(names) - set(CHOICES):
        parser.error(f"--only: {', '.join(unknown)} is unknown; choose among {'; '.join(CHOICES)}")
    with tempfile.TemporaryDirectory() as folder:
        data = with_fewer_test_images(arguments.data, Path(folder))
        for seed in range(arguments.seeds):
            for name in names:
                if not RESULTS.has(name=name, seed=seed, steps=arguments.steps):
                    RESULTS.add(measure(name, seed, arguments.steps, data))


if __name__ == "__main__":
    main()
