"""Make a result: train, evaluate and sample by main.py, and record what came out.

    python results/run.py vp_digits
    python results/run.py vdm_mnist --config.data.name=mnist.npz
    python results/run.py --tables

The run lies in runs/results/NAME and continues where it stopped. Further flags go to main.py, and
paths in them are relative to the root of the project. With another flag than that of the data, it
is another recipe: its run lies in runs/results/NAME-HASH, of the flags, and so does its record.
Otherwise the record is results/NAME:

    record.json    commands, commit, machine, seconds, images seen
    config.json    the resolved configuration
    eval.json      the evaluation, with its protocol
    curve.jsonl    the measurements during training
    samples.png    samples in the order of their seeds, not chosen
    model/         the network in float16, if it is small

`--tables` writes the tables of docs/results.md anew from these files.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parent
sys.path.insert(0, str(ROOT))

from results import tables  # noqa: E402


class Recipe(NamedTuple):
    """How a result is made.

    Attributes:
        config: the configuration.
        modes: the modes of main.py, in turn.
        flags: further flags of main.py; those of the command line come after them.
        ships: whether its network is kept.
    """

    config: str
    modes: tuple[str, ...] = ("train", "eval", "sample")
    flags: tuple[str, ...] = ()
    ships: bool = False


DATA = "--config.data.name="
WITH_CLASSIFIER = ("train", "train_classifier", "eval", "sample")
FASHION = ("--config.data.name=fashion_mnist",)
# The probability-flow ODE on 10,000 test images would take longer than the training.
BOUND = ("--config.eval.metrics=('continuous_bound','frechet')",)

# What the short runs of benchmarks/likelihood_recipe.py favor, for four times as long.
FIXED_SCHEDULE = (
    "--config.model.input_frequencies=()",
    "--config.sde.name=vp",
    "--config.loss.name=denoising",
    "--config.weight.name=g2",
    "--config.times.name=log_snr",
    "--config.training.steps=10000",
)

RECIPES = {
    "vp_digits": Recipe("configs/vp_digits.py", ships=True),
    "vdm_digits": Recipe("configs/vdm_digits.py"),
    "vdm_mnist": Recipe("configs/vdm_mnist.py", flags=BOUND, ships=True),
    "vdm_mnist_fixed_schedule": Recipe("configs/vdm_mnist.py", flags=(*FIXED_SCHEDULE, *BOUND)),
    "vp_mnist": Recipe("configs/vp_mnist.py", modes=WITH_CLASSIFIER, ships=True),
    "vdm_fashion_mnist": Recipe("configs/vdm_mnist.py", flags=(*FASHION, *BOUND)),
    "vp_fashion_mnist": Recipe("configs/vp_mnist.py", modes=WITH_CLASSIFIER, flags=FASHION),
    "vp_cifar10_small": Recipe("configs/vp_cifar10_small.py", modes=WITH_CLASSIFIER),
}


def main(arguments: list[str]) -> None:
    """Make the result that the first argument names, or the tables."""
    if arguments == ["--tables"]:
        tables.write()
        return
    if not arguments or arguments[0] not in RECIPES:
        sys.exit(f"error: give --tables or one of: {', '.join(RECIPES)}")
    name, *flags = arguments
    changes = " ".join(flag for flag in flags if not flag.startswith(DATA))
    suffix = f"-{hashlib.sha256(changes.encode()).hexdigest()[:6]}" if changes else ""
    recipe, workdir = RECIPES[name], ROOT / "runs" / "results" / f"{name}{suffix}"
    for mode in recipe.modes:
        _run(recipe, mode, workdir, flags)
    if changes:
        _record(workdir, workdir / "record")
        print(f"the recipe is changed, so its record is {workdir / 'record'}")
        return
    _record(workdir, RESULTS / name)
    if recipe.ships:
        _ship(workdir, name)
    tables.write()


def _run(recipe: Recipe, mode: str, workdir: Path, flags: list[str]) -> None:
    """Run a mode of main.py, and append its cost to the run's costs.jsonl."""
    command = ["main.py", f"--config={recipe.config}", f"--mode={mode}", *recipe.flags, *flags]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    call = [sys.executable, *command, f"--workdir={workdir}"]
    status = subprocess.run(call, cwd=ROOT, check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    line = {
        "mode": mode,
        "command": " ".join(["python", *command]),
        "wall_seconds": round(time.time() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "commit": _output("git", "describe", "--always", "--dirty", "--exclude=*"),
        "other_load": round(os.getloadavg()[2], 1),
    }
    if workdir.exists():
        with (workdir / "costs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    if status:
        sys.exit(status)


def _record(workdir: Path, folder: Path) -> None:
    """Copy what a run has made to the record."""
    import jax

    folder.mkdir(exist_ok=True)
    evaluation = max((workdir / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime)
    step = json.loads(evaluation.read_text())["step"]
    config = json.loads((workdir / "config.json").read_text())
    record: dict[str, Any] = {
        "step": step,
        "images_seen": step * config["training"]["batch_size"],
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "costs": tables.read_lines(workdir / "costs.jsonl"),
    }
    _write(folder / "record.json", record)
    _write(folder / "config.json", config)
    shutil.copy(evaluation, folder / "eval.json")
    shutil.copy(workdir / "metrics.jsonl", folder / "curve.jsonl")
    samples = max((workdir / "samples").rglob("*.png"), key=lambda path: path.stat().st_mtime)
    shutil.copy(samples, folder / "samples.png")


def _ship(workdir: Path, name: str) -> None:
    """Keep the network of a run."""
    from jobs.shipped import model_folder, write_model
    from jobs.workdir import Workdir

    write_model(Workdir(workdir), model_folder(name))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
