"""Training speed on the CPU by what the environment sets, in turns.

    python benchmarks/cpu_training.py [--turns=3] [--only=convolutions]
    python benchmarks/cpu_training.py --table

Compared are convolutions by YNNPACK and by XLA's own code, and memory that is returned to the
system after each step or kept. Each run is a process of main.py that trains 25 steps on random
images. Noted are the median speed of the later ones, and the peak of the process's memory. Writes
results/cpu_training.jsonl; takes half an hour on two cores.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from runs import Line, Results, markdown_table, median, provenance, steps_of_main

RESULTS = Results("cpu_training", ("comparison", "config", "batch", "turn"))
STEPS, FIRST = 25, 10  # of a run, and those that do not count
# Configurations, with pixels, channels and batch size
SHAPES = {
    "configs/vp_digits.py": (8, 1, 64),
    "configs/vp_mnist.py": (28, 1, 64),
    "configs/vp_cifar10.py:ddpm": (32, 3, 8),
}
DIGITS, MNIST, CIFAR10 = SHAPES
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type={}individual_convolution"
# As many heaps as by default; where the user sets any of these variables, main.py sets none.
RETURNED = {"MALLOC_ARENA_MAX": str(8 * (os.cpu_count() or 1))}
KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
}


class Comparison(NamedTuple):
    """Two environments, the second of which should be faster, and where they are tried."""

    slow: dict[str, str]
    fast: dict[str, str]
    configurations: tuple[str, ...]


COMPARISONS = {
    "convolutions": Comparison(
        {"XLA_FLAGS": CONVOLUTIONS.format("+")},
        {"XLA_FLAGS": CONVOLUTIONS.format("-")},
        (DIGITS, MNIST, CIFAR10),
    ),
    "memory": Comparison(RETURNED, KEPT, (DIGITS,)),
}
NAMES = ("slow", "fast")
HEADS = {
    "convolutions": ("images/s by YNNPACK", "by XLA", "faster"),
    "memory": ("images/s, returned", "kept", "faster", "GB, returned", "kept"),
}


def random_images(config: str, folder: str) -> Path:
    """Write a data set of random images with ten classes, and return its file."""
    size, channels, _ = SHAPES[config]
    draw, shape = np.random.default_rng(0).integers, (256, size, size, channels)
    images = {name: draw(0, 256, shape, "uint8") for name in ("train", "test")}
    labels = {f"{name}_labels": draw(0, 10, 256) for name in images}
    file = Path(folder, "images.npz")
    np.savez(file, **images, **labels)
    return file


def measured(comparison: str, config: str, turn: int) -> Line:
    """Train in both environments, the fast one first in every second turn."""
    given, batch, speeds, peaks = COMPARISONS[comparison], SHAPES[config][2], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        fields = {"data.name": random_images(config, folder), "training.batch_size": batch}
        for name in NAMES[:: -1 if turn % 2 else 1]:
            lines, peaks[name] = steps_of_main(config, fields, STEPS, getattr(given, name))
            speeds[name] = statistics.median(line["images_per_sec"] for line in lines[FIRST:])
    key = {"comparison": comparison, "config": config, "batch": batch, "turn": turn}
    return {**key, "images_per_second": speeds, "peak_gb": peaks, **provenance("cpu")}


def table(comparison: str) -> str:
    """Return the table of medians and ranges over turns."""
    head, shows_memory = HEADS[comparison], comparison == "memory"
    rows = []
    for config in COMPARISONS[comparison].configurations:
        lines = RESULTS.lines(comparison=comparison, config=config)
        slow, fast = ([line["images_per_second"][name] for line in lines] for name in NAMES)
        speeds = (median(slow, ",.1f"), median(fast, ",.1f"), median(np.divide(fast, slow)))
        peaks = [
            f"{max(e['peak_gb'][name] for e in lines):.1f}" for name in NAMES[: 2 * shows_memory]
        ]
        rows.append((f"`{config}`", str(SHAPES[config][2]), *speeds, *peaks))
    return markdown_table(("configuration", "batch", *head), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=list(COMPARISONS))
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    for comparison in [options.only] if options.only else COMPARISONS:
        if options.table:
            print(f"{comparison}\n{table(comparison)}\n")
            continue
        for config in COMPARISONS[comparison].configurations:
            for turn in range(options.turns):
                RESULTS.put(line := measured(comparison, config, turn))
                print(comparison, config, turn, line["images_per_second"], flush=True)


if __name__ == "__main__":
    main()
