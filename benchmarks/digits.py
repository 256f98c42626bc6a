"""The digits example, run and timed like a first-time user's, and a baseline on the same data.

    python benchmarks/digits.py [--workdir FOLDER]

Prints wall times and peak memory of whole processes, the metrics of the evaluation, and the
bits/dim of scikit-learn's best Gaussian mixture on the same split and the same dequantization.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def run(cache: Path, workdir: Path, *flags: str) -> tuple[float, str]:
    """Return wall seconds and standard output of one call of main.py on the digits."""
    command = [sys.executable, "main.py", "--config=configs/vp_digits.py", f"--workdir={workdir}"]
    start = time.perf_counter()
    result = subprocess.run(
        [*command, *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, result.stdout


def gaussian_mixture_bits() -> tuple[float, str]:
    """Return bits/dim on the test images by the best mixture of several, and its description."""
    from sklearn.mixture import GaussianMixture

    from data import datasets
    from metrics.bits_per_dim import bits_per_dim

    data = datasets.load("digits", image_size=8, channels=1)
    rng = np.random.default_rng(0)

    def dequantized(images: np.ndarray) -> np.ndarray:
        noise = rng.random(images.shape, np.float32)
        return data.quantizer.dequantize(images, noise).reshape(len(images), -1)

    train = np.concatenate([dequantized(data.train) for _ in range(5)])
    test = np.concatenate([dequantized(data.test) for _ in range(5)])
    log_det, dims = data.quantizer.log_det(64), 64
    # The best few of a search over 1 to 80 components, three covariance types and three floors.
    candidates = [("full", 10, 1e-3), ("full", 20, 3e-3), ("diag", 40, 1e-4), ("diag", 80, 1e-4)]
    results = []
    for kind, components, floor in candidates:
        model = GaussianMixture(
            components, covariance_type=kind, reg_covar=floor, random_state=0
        ).fit(train)
        nats = model.score_samples(test)
        bits = float(bits_per_dim(nats, log_det=log_det, dims=dims).mean())
        results.append((bits, f"{components} components, {kind} covariances"))
    return min(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workdir", type=Path, help="folder to keep the run in; default: a temporary one"
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        workdir = parser.parse_args().workdir or scratch / "run"
        one_step = ("--mode=train", "--config.training.steps=1", "--config.training.sample_every=0")
        cold, _ = run(scratch / "cache", scratch / "cold", *one_step)
        warm, _ = run(scratch / "cache", scratch / "warm", *one_step)
        print(f"one step, checkpoint, exit: cold cache {cold:.1f} s, warm {warm:.1f} s", flush=True)
        train, _ = run(scratch / "other_cache", workdir, "--mode=train")
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"training: {train:.1f} s on a cold cache, peak memory {memory:.2f} GB", flush=True)
        seconds, output = run(scratch / "other_cache", workdir, "--mode=eval")
        print(f"evaluation: {seconds:.1f} s\n{output}", flush=True)
        newest = max((workdir / "eval").glob("*.json"), key=lambda file: file.stat().st_mtime)
        distance = json.loads(newest.read_text())["frechet"]["pixels"]
        ratio = distance["to_train"]["mean"] / distance["train_to_test"]
        print(f"Frechet distance to the training images, over train to test: {ratio:.2f}")
    bits, kind = gaussian_mixture_bits()
    print(f"Gaussian mixture: {bits:.3f} bits/dim ({kind})")


if __name__ == "__main__":
    main()
