"""Seconds from a command to its first training step, and to its end.

    python benchmarks/start_up.py                            # two minutes
    python benchmarks/start_up.py --against=DIR --turns=1    # another checkout, in turns
    python benchmarks/start_up.py --imports                  # the slowest modules instead

Cold: no cache of compiled programs. Warm: what an earlier run has compiled is on the disk. "first
step" ends when the progress bar shows one step. "whole" is a run of one step with its measurements,
samples and checkpoint. CPU seconds do not depend on what else the machine computes. Without
--against, results are written to benchmarks/results/start_up.jsonl.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runs import ROOT, Results, markdown_table

RESULTS = Results("start_up", ("row", "cores"))
COMMAND = ("--config=configs/vp_digits.py", "--mode=train", "--config.training.steps=1")


def environment(cache: Path) -> dict[str, str]:
    """Return one whose compiled programs are in `cache`, whatever the user has set."""
    folders = dict.fromkeys(("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"), str(cache))
    return os.environ | {"JAX_PLATFORMS": "cpu"} | folders


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process that runs, by Linux's /proc."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(checkout: Path, cache: Path) -> dict[str, tuple[float, float]]:
    """Return (wall, CPU) seconds of one run to its first step and to its end."""
    with tempfile.TemporaryDirectory() as folder:
        start, seen, first = time.perf_counter(), b"", None
        process = subprocess.Popen(
            [sys.executable, "main.py", *COMMAND, f"--workdir={folder}/run"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(cache),
            cwd=checkout,
        )
        while part := os.read(process.stderr.fileno(), 65536):
            seen += part
            if first is None and b"| 1/1 [" in seen:
                first = time.perf_counter() - start, cpu_seconds(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        whole = time.perf_counter() - start, used.ru_utime + used.ru_stime
    if status or first is None:
        sys.exit(seen.decode())
    return {"first step": first, "whole": whole}


def once(checkout: Path, *arguments: str) -> dict[str, tuple[float, float]]:
    """Return (wall, CPU) seconds of a short program."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        cwd=checkout,
        env=environment(Path(tempfile.gettempdir())),
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{arguments} failed")
    return {"": (time.perf_counter() - start, used.ru_utime + used.ru_stime)}


def measure(checkout: Path, warm: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds of one turn of a checkout, by name."""
    with tempfile.TemporaryDirectory() as cold:
        found = {f"{name}, cold": each for name, each in train(checkout, Path(cold)).items()}
    found |= {f"{name}, warm": each for name, each in train(checkout, warm).items()}
    return {"import run_lib": once(checkout, "-c", "import run_lib")[""]} | found


def slowest_imports(checkout: Path, count: int) -> str:
    """Return the modules of `import run_lib` whose own lines take longest, by top-level package."""
    text = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import run_lib"],
        capture_output=True,
        text=True,
        cwd=checkout,
        env=environment(Path(tempfile.gettempdir())),
        check=True,
    ).stderr
    own: dict[str, int] = {}
    for microseconds, name in re.findall(r"import time: +(\d+) \| +\d+ \| +([^.\s]+)", text):
        own[name] = own.get(name, 0) + int(microseconds)
    rows = sorted(own.items(), key=lambda row: -row[1])[:count]
    return "\n".join(f"{seconds / 1e6:7.3f} s  {name}" for name, seconds in rows)


def table() -> str:
    """Return the median wall seconds with a cold and with a warm cache."""
    found = {line["row"]: f"{statistics.median(line['wall']):.1f} s" for line in RESULTS.lines()}
    whole = "the end of a run of one step, with its measurements, samples and checkpoint"
    rows = [
        (text, *(found[f"{row}, {cache}"] for cache in ("cold", "warm")))
        for row, text in (("first step", "the first training step"), ("whole", whole))
    ]
    imports = found["import run_lib"]
    head = ("from the command to", "cold compilation cache", "warm")
    return markdown_table(head, [("the end of `import run_lib`", imports, imports), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--imports", action="store_true")
    arguments = parser.parse_args()
    if arguments.imports:
        print(slowest_imports(ROOT, 25))
        return
    checkouts = {"this": ROOT} | ({"other": arguments.against} if arguments.against else {})
    caches = {name: Path(tempfile.mkdtemp()) for name in checkouts}
    turns: dict[str, list] = {name: [] for name in checkouts}
    try:
        for name, checkout in checkouts.items():
            train(checkout, caches[name])  # fills the cache, and the disk's
        for _ in range(arguments.turns):
            for name, checkout in checkouts.items():
                turns[name].append(measure(checkout, caches[name]))
                found = (f"{row} {w:.1f} ({c:.1f})" for row, (w, c) in turns[name][-1].items())
                print(f"{name}: {', '.join(found)}", file=sys.stderr, flush=True)
    finally:
        for cache in caches.values():
            shutil.rmtree(cache, ignore_errors=True)
    print(f"medians of {arguments.turns} turns: wall seconds (CPU seconds)")
    print("| | " + " | ".join(checkouts) + " |\n" + "| --- " * (1 + len(checkouts)) + "|")
    for row in turns["this"][0]:
        cells = []
        for results in turns.values():
            wall, used = (statistics.median(turn[row][i] for turn in results) for i in (0, 1))
            cells.append(f"{wall:.1f} ({used:.1f})")
        print(f"| {row} | " + " | ".join(cells) + " |")
        if not arguments.against:
            wall, used = zip(*(turn[row] for turn in turns["this"]), strict=True)
            cores = len(os.sched_getaffinity(0))
            RESULTS.put({"row": row, "cores": cores, "wall": wall, "cpu": used})
    if not arguments.against:
        print(table())


if __name__ == "__main__":
    main()
