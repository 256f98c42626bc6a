"""What the noise that dequantizes gray levels adds to bits/dim, on the digits.

    python benchmarks/dequantization.py [--seeds=3]
    python benchmarks/dequantization.py --table

Two networks of configs/vp_digits.py, trained with uniform or truncated normal noise for 400 steps,
which is far from enough: only differences count. Bits/dim are by the probability-flow ODE, of all
test images with one draw of noise. Finished runs are not repeated:
benchmarks/results/dequantization.jsonl.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from runs import Results, evaluated, experiment_of, markdown_table, spread, trained

CONFIG = "configs/vp_digits.py"
RESULTS = Results("dequantization", keys=("seed", "trained_with", "noise"))
FIELDS = {
    "training.steps": 400,
    "training.checkpoint_every": 400,
    "training.sample_every": 0,
    "diagnostics.every": 0,
    "eval.metrics": ("bits_per_dim",),
    "eval.dequantizations": 1,
    "eval.error_budget_images": 0,
    "likelihood.rtol": 1e-3,
    "likelihood.atol": 1e-3,
    "dequantizer.steps": 300,
}
# Fields of the noises, and of training with them.
LEVELS = {"data.dequantization": "truncated_normal", "times.t_min": 0.003, "sampling.t_min": 0.003}
NOISES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "variational": {"data.dequantization": "variational"},
    "truncated_normal": {**LEVELS, "likelihood.t_min": 0.003},
}
ROWS = {"uniform": tuple(NOISES), "truncated_normal": ("truncated_normal",)}  # trained with: noises


def measure(seed: int, trained_with: str, folder: Path) -> None:
    """Train a network, and measure its bits/dim with each noise."""
    import run_lib
    from jobs.workdir import Workdir

    fields = FIELDS | {"seed": seed} | (LEVELS if trained_with != "uniform" else {})
    trained(CONFIG, fields, folder)
    for noise in ROWS[trained_with]:
        key = {"seed": seed, "trained_with": trained_with, "noise": noise}
        if noise == "variational":
            run_lib.train_dequantizer(experiment_of(CONFIG, fields), Workdir(folder))
        if not RESULTS.has(**key):
            found = evaluated(CONFIG, fields | NOISES[noise], folder)["bits_per_dim"]
            kept = ("mean", "over_images", "dequantization")
            RESULTS.add(key | {name: found[name] for name in kept})


def table() -> str:
    """Return the table of what is measured: mean and standard deviation over seeds."""
    rows = []
    for trained_with, noises in ROWS.items():
        for noise in noises:
            chosen = RESULTS.lines(trained_with=trained_with, noise=noise)
            values = (spread(line[name] for line in chosen) for name in ("mean", "dequantization"))
            rows.append((f"`{trained_with}`", f"`{noise}`", *values))
    return markdown_table(("trained with", "noise of bits/dim", "bits/dim", "of it log2 q"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    for seed in () if given.table else range(given.seeds):
        for trained_with in ROWS:
            with tempfile.TemporaryDirectory() as folder:
                measure(seed, trained_with, Path(folder) / "run")
    print(table())


if __name__ == "__main__":
    main()
