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
import statistics
from pathlib import Path

from runs import Line, Results, markdown_table, steps_of_main

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
    fields = {"data.name": folder, "training.batch_size": batch}
    lines, peak = steps_of_main(config, fields, STEPS)
    losses = [line["loss"] for line in lines]
    return {
        "config": config,
        "batch": batch,
        "first_losses": statistics.mean(losses[:5]),
        "last_losses": statistics.mean(losses[-5:]),
        "step_seconds": batch / statistics.median(line["images_per_sec"] for line in lines[5:]),
        "peak_gb": peak,
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
