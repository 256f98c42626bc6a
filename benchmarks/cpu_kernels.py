"""Train with convolutions by XLA's own code and by YNNPACK's, in turns, on the CPU.

    python benchmarks/cpu_kernels.py [--turns=3] [--only=configs/vp_digits.py]
    python benchmarks/cpu_kernels.py --table

Each run is a process of main.py that trains 25 steps on random images. Noted is the median speed of
the later ones. Writes results/cpu_kernels.jsonl; takes 25 minutes on two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from runs import ROOT, Line, Results, markdown_table, median, provenance

RESULTS = Results("cpu_kernels", ("config", "batch", "turn"))
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
KERNELS = {"xla": "-individual_convolution", "ynnpack": "+individual_convolution"}
STEPS, FIRST = 25, 10  # of a run, and those that do not count
# Configurations, with pixels, channels and batch size
CASES = {
    "configs/vp_digits.py": (8, 1, 64),
    "configs/vp_mnist.py": (28, 1, 64),
    "configs/vp_cifar10.py:ddpm": (32, 3, 8),
}


def images_per_second(config: str, kernels: str, folder: Path) -> float:
    """Train on random images, and return the speed."""
    size, channels, batch = CASES[config]
    draw = np.random.default_rng(0).integers
    shape = (256, size, size, channels)
    images = {name: draw(0, 256, shape, "uint8") for name in ("train", "test")}
    labels = {f"{name}_labels": draw(0, 10, 256) for name in images}
    np.savez(folder / "images.npz", **images, **labels)
    fields = {
        "data.name": folder / "images.npz",
        "training.batch_size": batch,
        "training.steps": STEPS,
        "training.checkpoint_every": STEPS,
        "training.sample_every": 0,
        "training.log_every": 1,
        "diagnostics.every": 0,
    }
    command = [sys.executable, "main.py", f"--config={config}", "--mode=train"]
    command += [f"--workdir={folder / 'run'}", *(f"--config.{k}={v}" for k, v in fields.items())]
    environment = os.environ | {"XLA_FLAGS": f"{FLAG}={KERNELS[kernels]}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{config}:\n{done.stderr[-2000:]}")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["images_per_sec"] for line in lines[FIRST:])


def measured(config: str, turn: int) -> Line:
    """Train by both, the other one first in every second turn."""
    speeds = {}
    for kernels in list(KERNELS)[:: 1 if turn % 2 == 0 else -1]:
        with tempfile.TemporaryDirectory() as folder:
            speeds[kernels] = images_per_second(config, kernels, Path(folder))
    key = {"config": config, "batch": CASES[config][2], "turn": turn}
    return {**key, "images_per_second": speeds, **provenance("cpu")}


def table() -> str:
    """Return the table of medians and ranges over turns."""
    rows = []
    for config in CASES:
        lines = RESULTS.lines(config=config)
        both = [[line["images_per_second"][kernels] for line in lines] for kernels in KERNELS]
        speeds = [median(speed, ",.1f") for speed in reversed(both)]
        ratio = median(np.divide(*both))
        rows.append((f"`{config}`", str(CASES[config][2]), *speeds, ratio))
    head = ("configuration", "batch", "images/s by YNNPACK", "by XLA", "faster")
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    for config in [options.only] if options.only else CASES:
        for turn in range(options.turns):
            RESULTS.put(line := measured(config, turn))
            print(config, turn, line["images_per_second"], flush=True)


if __name__ == "__main__":
    main()
