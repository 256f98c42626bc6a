"""What measurements during training cost: their share of a run's time.

    python benchmarks/diagnostics.py [--runs=3]

A run is a process with a configuration's own cadences, and counts the time inside its measurements
and plots. A share of one run is more precise than a difference of two. The first run compiles; the
others find compiled programs in the cache. Writes results/diagnostics.jsonl. A run takes about 50
seconds on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import ROOT, Results

RESULTS = Results("diagnostics", ("configuration", "steps", "run"))
CONFIGURATION = "configs/vp_digits.py"


def one_run(cache: str, steps: int) -> None:
    """Train in this process, and print the seconds that it took, and those of measuring."""
    import jax

    import run_lib
    from experiment.build import build
    from experiment.configurations import load_configuration
    from jobs import train, training_loop
    from jobs.workdir import Workdir

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # as main.py
    spent = {"measuring_cpu": 0.0, "measuring": 0.0}

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **more: Any) -> Any:
            jax.block_until_ready(arguments)  # steps that still run are training
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                spent["measuring_cpu"] += time.process_time() - cpu
                spent["measuring"] += time.perf_counter() - wall

        return call

    loop = training_loop.Loop
    loop._write_measurements = counted(loop._write_measurements)
    train.conclude = counted(train.conclude)
    config = load_configuration(CONFIGURATION)
    config.training.steps = steps
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_lib.train(build(config), Workdir(Path(folder)))
    total = {"cpu": time.process_time(), "seconds": time.perf_counter() - start}
    print(json.dumps({**total, **spent, "every": config.diagnostics.every}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--one", metavar="CACHE", help="train once in this process")
    options = parser.parse_args()
    if options.one:
        one_run(options.one, options.steps)
        return
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        for run in range(options.runs):
            command = [sys.executable, __file__, f"--one={cache}", f"--steps={options.steps}"]
            said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(said.stdout.splitlines()[-1])
            key = {"configuration": CONFIGURATION, "steps": options.steps, "run": run}
            lines.append({**key, "compiles": run == 0, **found})
            shares = found["measuring_cpu"] / found["cpu"], found["measuring"] / found["seconds"]
            print(
                f"compiles: {run == 0}; share of CPU time {shares[0]:.3f}, of time {shares[1]:.3f}"
            )
    RESULTS.put(*lines)


if __name__ == "__main__":
    main()
