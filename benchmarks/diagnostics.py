"""What measurements during training cost: CPU time of runs with and without them, in pairs.

    python benchmarks/diagnostics.py [--pairs=3]

A run is a process with a configuration's own cadence; sample grids are as in the configuration.
The first pair fills the cache of compiled programs and is not counted. CPU time, of all threads,
hardly depends on what else the machine does. Appends to results/diagnostics.jsonl. A pair takes
about two minutes on two cores.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from runs import ROOT, Results

RESULTS = Results("diagnostics", ("configuration", "steps", "pair"))
CONFIGURATION = "configs/vp_digits.py"


def cpu_seconds(cache: Path, *flags: str) -> float:
    """Return the CPU seconds of a training run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "main.py", f"--config={CONFIGURATION}", "--mode=train"),
                *(f"--workdir={folder}", *flags),
            ],
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    steps = f"--config.training.steps={options.steps}"
    off = "--config.diagnostics.every=0"
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for pair in range(options.pairs + 1):
            order = ((), (off,)) if pair % 2 else ((off,), ())
            found = {flags: cpu_seconds(cache, steps, *flags) for flags in order}
            RESULTS.add(
                {
                    "configuration": CONFIGURATION,
                    "steps": options.steps,
                    "pair": pair,
                    "compiled_before": pair > 0,
                    "without": found[(off,)],
                    "with": found[()],
                }
            )
    lines = [line for line in RESULTS.lines() if line["steps"] == options.steps]
    ratios = [line["with"] / line["without"] for line in lines if line["compiled_before"]]
    print(f"with over without: {np.round(ratios, 3).tolist()}, median {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
