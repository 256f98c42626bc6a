"""Kill runs at random moments, and start two at once: the results must be those of one quiet run.

    python benchmarks/kills.py --kills=60 --pairs=20
    python benchmarks/kills.py --kills=20 --pairs=0 --hosts=2

Training, evaluation and sampling of a tiny network are started and killed (SIGKILL) until they end
by themselves. Then pairs of the same command start together in one folder. Files with numbers must
equal those of a run that nobody disturbed, bit for bit, except for the time they took. Results are
written to benchmarks/results/kills.jsonl.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from runs import ROOT, Results

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from command_line import TINY, Running, configuration, flags, run, start, start_hosts

from experiment.build import build
from files.nested import flatten
from numerics.arrays import digest
from training.checkpoints import Checkpoints

RESULTS = Results("kills", ("kills", "pairs", "hosts"))
FIELDS = TINY | {"training.steps": 60, "training.checkpoint_every": 4, "eval.samples": 40}
FIELDS |= {"eval.batch_size": 8, "sampling.variant": None}
COMMANDS = {
    "train": flags("train", "WORKDIR", FIELDS),
    "eval": flags("eval", "WORKDIR", FIELDS),
    "sample": [*flags("sample", "WORKDIR", FIELDS), "--num_samples=40"],
}
WRITTEN = {"train": "*", "eval": "eval/*", "sample": "samples/*"}


def command(mode: str, workdir: Path) -> list[str]:
    return [argument.replace("WORKDIR", str(workdir)) for argument in COMMANDS[mode]]


def outcome(workdir: Path) -> dict[str, object]:
    """Return what a finished folder holds: parameters, logs, results, samples."""
    found: dict[str, object] = {}
    like = build(configuration(FIELDS)).trainer.abstract_state()
    restored = Checkpoints(workdir / "checkpoints").restore(like)
    assert restored is not None
    found["state"] = digest([np.asarray(leaf) for leaf in jax.tree.leaves(restored.state)])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found["log"] = [{**json.loads(line), "images_per_sec": 0} for line in lines]
    for file in sorted(workdir.glob("eval/*.json")):
        results = flatten(json.loads(file.read_text()), ".")
        found |= {f"{file.name}: {k}": v for k, v in results.items() if not k.endswith("seconds")}
    for file in sorted(workdir.glob("samples/*/samples.npz")):
        with np.load(file) as arrays:
            found[file.parent.name] = digest(dict(arrays))
    partial = [str(path) for path in workdir.rglob("*partial*")]
    found["left behind"] = partial + [str(path) for path in workdir.rglob("*.lock")]
    return found


def killed(workdir: Path, kills: int, draw: random.Random, hosts: int) -> None:
    """Run all modes to their ends, with this many kills in equal shares.

    Of several hosts, one or all are killed; the others must end by themselves.
    """
    done = 0
    for number, mode in enumerate(COMMANDS):
        wanted = kills * (number + 1) // len(COMMANDS)
        while True:
            running = started(mode, workdir, hosts)
            doomed: list[Running] = []
            if done < wanted:
                time.sleep(draw.uniform(0.2, 3.0) * hosts)
                doomed = running if draw.random() < 1 / (hosts + 1) else [draw.choice(running)]
                doomed = [each for each in doomed if each.process.is_alive()]
                for each in doomed:
                    each.send(signal.SIGKILL)
                done += bool(doomed)
            # Hosts that are left must end within a minute.
            calls = [each.wait(60 if doomed else 1200) for each in running]
            if not any(call.status == -signal.SIGKILL for call in calls):
                assert not any(call.status for call in calls), calls
                if done >= wanted:
                    break
                # It ended before its share of kills: again from the start.
                for file in workdir.glob(WRITTEN[mode]):
                    remove(file)


def started(mode: str, workdir: Path, hosts: int) -> list[Running]:
    """Start a mode on several hosts of one device, or on one with as many devices."""
    if hosts == 1:
        return [start(*command(mode, workdir))]
    return start_hosts(*command(mode, workdir), hosts=hosts)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def pairs(workdir: Path, count: int, draw: random.Random) -> tuple[int, int]:
    """Start pairs of the same command; return how many were refused, and how many went wrong."""
    refused = wrong = 0
    for number in range(count):
        mode = ("train", "eval")[number % 2]
        if mode == "train" and workdir.exists():
            remove(workdir)
        elif mode == "eval":
            for file in workdir.glob("eval/*"):
                remove(file)
        both = [start(*command(mode, workdir))]
        time.sleep(draw.uniform(0, 1))
        both.append(start(*command(mode, workdir)))
        calls = [running.wait() for running in both]
        busy = [call for call in calls if "is in use by process" in call.stderr]
        refused += len(busy)
        wrong += sum(call.status != 0 for call in calls) != len(busy) or len(busy) == 2
    return refused, wrong


def tried(kills: int, pairs: int, hosts: int = 1) -> tuple[str, str]:
    """Return what became of the kills, and of the pairs."""
    (line,) = RESULTS.lines(kills=kills, pairs=pairs, hosts=hosts)
    first, second = (
        f"{len(line[name])} numbers differ" if line[name] else "all numbers equal"
        for name in ("differing", "differing_after")
    )
    disturbed = f"{line['wrong']} wrong" if line["wrong"] else "the others undisturbed"
    return (
        f"{kills} kills of training, evaluation and sampling: {first}",
        f"{pairs} pairs: {line['refused']} refused, {disturbed}, {second}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--hosts", type=int, default=1, help="as many processes, of one device")
    given = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        quiet, disturbed = Path(name, "quiet"), Path(name, "disturbed")
        for mode in COMMANDS:
            call = run(*command(mode, quiet), devices=given.hosts)
            assert call.status == 0, call
        expected = outcome(quiet)
        killed(disturbed, given.kills, draw, given.hosts)
        found = outcome(disturbed)
        differing = [key for key in expected if found.get(key) != expected[key]]
        print(f"{given.kills} kills; {differing if differing else 'all numbers equal'}", flush=True)
        refused, wrong = pairs(disturbed, given.pairs, draw)
        found = {key: value for key, value in outcome(disturbed).items() if key in expected}
        after = [key for key in found if found[key] != expected[key]]
    line = {"kills": given.kills, "pairs": given.pairs, "hosts": given.hosts}
    line |= {"differing": differing, "refused": refused, "wrong": wrong, "differing_after": after}
    RESULTS.put(line)
    print(*tried(given.kills, given.pairs, given.hosts), sep="\n")
    sys.exit(bool(differing or wrong or after))


if __name__ == "__main__":
    main()
