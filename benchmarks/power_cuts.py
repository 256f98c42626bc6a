"""Cut the power of a training run again and again, and look for what is lost. Linux, as root.

    python benchmarks/power_cuts.py --cuts=20

A run of `configs/vp_digits.py` saves to a small ext4 file system in a file. A copy of that file is
what a disk holds at the moment of a power cut. Each copy is mounted, its journal is replayed, and
its run must have a readable config.json and a checkpoint that loads, once the run has had one.
Results are written to benchmarks/results/power_cuts.jsonl.
"""

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runs import ROOT, Results

from errors import ScoreSDEError
from experiment.build import build
from experiment.configurations import load_configuration
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints

RESULTS = Results("power_cuts", ("cuts", "keep"))
CONFIG = "configs/vp_digits.py"
MEGABYTES = 96


@contextlib.contextmanager
def mounted(disk: Path, folder: Path) -> Iterator[Path]:
    """Mount a file system in a file."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def training(workdir: Path, keep: int) -> Iterator[None]:
    """Train without end, with a checkpoint every 10 steps."""
    command = [sys.executable, ROOT / "main.py", f"--config={CONFIG}", f"--workdir={workdir}"]
    command += ["--mode=train", "--config.training.steps=1000000"]
    command += [f"--config.training.keep_checkpoints={keep}"]
    command += ["--config.training.checkpoint_every=10", "--config.training.sample_every=0"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        if child.poll() is not None:
            raise SystemExit(f"the training run ended by itself, with {child.returncode}")
    finally:
        child.kill()
        child.wait()


def loss(run: Path, experiment, before: tuple[int, ...]) -> str:
    """Return what the run in a copy has lost, or ''; `before` are its steps before the cut."""
    workdir = Workdir(run)
    checkpoints = Checkpoints(workdir.checkpoints)
    try:
        workdir.read_config()
        restored = checkpoints.restore(experiment.trainer.abstract_state())
    except ScoreSDEError as error:
        return str(error)
    if restored is None:
        return f"no checkpoint, and there were {before}"
    if restored.step < before[-1] - 10:
        return f"checkpoint {restored.step}, and there were {before}"
    return ""


def tried(cuts: int, keep: int = 1) -> str:
    """Return what became of the cuts."""
    (line,) = RESULTS.lines(cuts=cuts, keep=keep)
    return f"{cuts - line['lost']} of {cuts} cuts lost nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--keep", type=int, default=1, help="config.training.keep_checkpoints")
    arguments = parser.parse_args()
    experiment = build(load_configuration(CONFIG))
    pauses, lost = random.Random(0), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk, copy = folder / "disk", folder / "copy"
        disk.write_bytes(bytes(MEGABYTES << 20))
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        with mounted(disk, folder / "live") as live, training(live / "run", arguments.keep):
            checkpoints = Checkpoints(live / "run" / "checkpoints")
            while not checkpoints.steps():
                time.sleep(0.1)
            for cut in range(arguments.cuts):
                time.sleep(pauses.uniform(0.2, 4))
                before = checkpoints.steps()
                shutil.copyfile(disk, copy)
                with mounted(copy, folder / "after") as after:
                    found = loss(after / "run", experiment, before)
                lost += bool(found)
                print(f"cut {cut + 1}, checkpoints {before}: {found or 'nothing lost'}", flush=True)
    RESULTS.put({"cuts": arguments.cuts, "keep": arguments.keep, "lost": lost})
    print(tried(arguments.cuts, arguments.keep))
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
