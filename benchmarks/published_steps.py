"""Train every published CIFAR-10 configuration at full size for 20 steps by main.py.

    python benchmarks/published_steps.py FOLDER            # of CIFAR-10 images, or an .npz
    python benchmarks/published_steps.py FOLDER --batch=128
    python benchmarks/published_steps.py --table

Networks, objectives and optimizers are as published; only the batch is smaller. Each run is a
process of its own. Noted are seconds per step without compilation, the peak of its resident memory,
and the mean loss of its first and last five steps. Finished ones are not run again:
benchmarks/results/published_steps.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from runs import ROOT, Line, Results, markdown_table

from experiment.configurations import known_configurations

RESULTS = Results("published_steps", keys=("config", "batch"))
STEPS = 20


def published_configurations() -> list[str]:
    """Return those of CIFAR-10."""
    return [
        config
        for config, fields in known_configurations()
        if fields.data.name == "cifar10" and fields.training.published_batch_size
    ]


def trained(config: str, folder: str, batch: int) -> Line:
    """Train a configuration; return what was measured."""
    fields = {
        "data.name": folder,
        "training.batch_size": batch,
        "training.steps": STEPS,
        "training.checkpoint_every": STEPS,
        "training.sample_every": 0,
        "training.log_every": 1,
        "diagnostics.every": 0,
    }
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "main.py", f"--config={config}", "--mode=train"]
        command += [f"--workdir={name}", *(f"--config.{k}={v}" for k, v in fields.items())]
        log = Path(name, "log")
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)  # which tells the peak of this process
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{config}:\n{log.read_text()[-2000:]}")
        lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    return {
        "config": config,
        "batch": batch,
        "first_losses": statistics.mean(losses[:5]),
        "last_losses": statistics.mean(losses[-5:]),
        "step_seconds": batch / statistics.median(line["images_per_sec"] for line in lines[5:]),
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def table() -> str:
    """Return the table of what is measured."""
    head = ("configuration", "batch", "seconds a step", "peak, GB", "loss, 1 to 5", "16 to 20")
    rows = []
    for line in RESULTS.lines():
        first, last = (f"{line[f'{which}_losses']:.4g}" for which in ("first", "last"))
        seconds, peak = f"{line['step_seconds']:.1f}", f"{line['peak_gb']:.1f}"
        rows.append((f"`{line['config']}`", str(line["batch"]), seconds, peak, first, last))
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="CIFAR-10: a folder of images or an .npz")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        print(table())
        return
    if given.folder is None:
        parser.error("give the folder of CIFAR-10, or --table")
    folder = str(Path(given.folder).resolve())
    for config in published_configurations():
        if not RESULTS.has(config=config, batch=given.batch):
            RESULTS.add(trained(config, folder, given.batch))


if __name__ == "__main__":
    main()
