"""Read hostile files of every format, and count what becomes of them. Linux.

    python benchmarks/hostile_files.py --count=200

Each file is a small good one that is changed: bits flipped, cut off, lengths made huge, parts of
another format put in; or it is made to never end: containers shared 2^60 times, equal hashes,
thousands of dimensions, deep nesting, archives that overlap or unpack to gigabytes, pipes and
devices. It is read as the program reads it, in a child process that may take 1.5 GB more than it
has at its start, and 10 seconds per file. The result of a file is one of

    read         it is harmless
    one line     an error of one line, of the kind that the program prints
    traceback    any other error, or a message of several lines or more than 4000 characters
    time         it took more than 10 s
    memory       it took more than 1.5 GB
    program      code of the file ran, or another program was started

The program ends with status 1 if there are any of the last four. With the same --seed, the files
are the same. Results are written to benchmarks/results/hostile_files.jsonl.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from runs import ROOT, Results

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile_content import FOLDER, MADE, write_hostile

RESULTS = Results("hostile_files", ("count", "seed"))
SECONDS, MEMORY = 10, 3 * 2**29
GOOD = ("read", "one line")
OUTCOMES = (*GOOD, "traceback", "time", "memory", "program")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn")


# The child process.


def readers() -> dict[str, tuple[Callable[[Path], Any], type[Exception]]]:
    """Return how the program reads each kind of file, and the errors that it prints as one line."""
    from data import datasets
    from data.pictures import read_mask
    from errors import ScoreSDEError
    from experiment.build import build_network
    from experiment.configurations import load_configuration
    from files.arrays import read_array, read_arrays
    from jobs.cache import ResultCache
    from metrics import statistics_files
    from metrics.inception.weights import inception_features
    from published.exchange import Candidate, import_state
    from solvers.moments import EpsMoments

    config = load_configuration("configs/vp_cifar10.py")
    config.data.image_size, config.model.features = 8, 8
    config.model.channel_multipliers, config.model.blocks_per_resolution = (1, 1), 1
    config.model.attention_resolutions = ()
    candidate = Candidate("vp_cifar10", *build_network(config))
    indices = np.arange(3)

    def cached(path: Path) -> Any:
        link = path.with_name(f"{path.name}-0-2.npz")
        link.symlink_to(path.name)
        found = ResultCache(path.parent).get_or_compute(path.name, indices, lambda _: {})
        return found

    def images(path: Path) -> Any:
        link = path.with_name(f"{path.name}.npz")
        link.symlink_to(path.name)
        return datasets.load(str(link), image_size=8, channels=3)

    return {
        "checkpoint": (lambda path: import_state(path, candidate, [candidate]), ScoreSDEError),
        "weights": (inception_features, ValueError),
        "statistics": (statistics_files.load, ValueError),
        "moments": (EpsMoments.load, ValueError),
        "arrays": (lambda path: read_arrays(path, str(path)), ScoreSDEError),
        "array": (lambda path: read_array(path, str(path)), ScoreSDEError),
        "cache": (cached, ScoreSDEError),
        "images": (images, ValueError),
        "picture": (lambda path: read_mask(str(path), (8, 8, 3)), ValueError),
    }


class _TimeoutError(BaseException):
    pass


def child() -> None:
    """Read lines of a target and a path; print the result of each as JSON."""
    started: list[str] = []
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    table = readers()
    sys.addaudithook(lambda event, _: started.append(event) if event in STARTS else None)

    def stop(*_: Any) -> None:
        raise _TimeoutError

    signal.signal(signal.SIGALRM, stop)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        target, _, path = line.rstrip("\n").partition(" ")
        read, expected = table[target]
        begin = time.monotonic()
        signal.alarm(SECONDS)
        try:
            result, text = _outcome(read, expected, Path(path))
        except _TimeoutError:
            result, text = "time", ""
        finally:
            signal.alarm(0)
        if started or Path(path).with_name(FOLDER).exists():
            result, text = "program", str(started)
        seconds = time.monotonic() - begin
        print(json.dumps([result, text[:300], round(seconds, 2)]), file=out, flush=True)


def _outcome(read: Callable[[Path], Any], expected: type[Exception], path: Path) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read(path)
    except Exception as error:
        text, cause = f"{type(error).__name__}: {error}", error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "memory", text
            cause = cause.__cause__ or cause.__context__
        lines = str(error).splitlines()
        short = len(lines) == 1 and len(lines[0]) <= 4000
        if isinstance(error, expected | FileNotFoundError) and short:
            return "one line", text
        return "traceback", text
    return "read", ""


# The parent process.


@contextlib.contextmanager
def _children(folder: Path) -> Iterator[Callable[[str, Path], tuple[str, str, float]]]:
    """Yield a function that has a file read in a child process, a new one if the last hangs."""
    running: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{__file__} --child does not start")
        running.append(process)
        return process

    def read(target: str, path: Path) -> tuple[str, str, float]:
        process = running[-1] if running else start()
        print(target, path, file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], SECONDS + 5)
        line = process.stdout.readline() if ready and process.stdout else ""
        if line:
            return tuple(json.loads(line))
        process.kill()  # it is within a call that no alarm interrupts, or has crashed
        process.wait()
        running.clear()
        return "time" if not ready else "traceback", "the process ended or hung", SECONDS

    try:
        yield read
    finally:
        for process in running:
            process.kill()
            process.wait()


def tried(count: int, seed: int = 0) -> str:
    """Return what became of the files."""
    (line,) = RESULTS.lines(count=count, seed=seed)
    total = sum(map(Counter, line["outcomes"].values()), Counter())
    bad = ", ".join(
        f"{total[name]} {name}" for name in OUTCOMES if total[name] and name not in GOOD
    )
    kinds, slowest = len(line["outcomes"]), line["slowest_seconds"]
    files = f"{total.total():,} files of {kinds} kinds"
    return f"{files}: {bad or 'no fault'}; at most {slowest:.1f} s each"


def main() -> None:
    """Make and read the files, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    rng, counts, slowest = np.random.default_rng(options.seed), {}, 0.0
    with tempfile.TemporaryDirectory() as folder, _children(Path(folder)) as read:
        for number in range(options.count):
            target = list(MADE)[number % len(MADE)]
            path = Path(folder, f"{number}")
            write_hostile(rng, target, path)
            result, text, seconds = read(target, path)
            counts.setdefault(target, Counter())[result] += 1
            slowest = max(slowest, seconds)
            if result not in GOOD:
                print(f"file {number}, {target}: {result}, {seconds} s: {text}", flush=True)
            path.unlink()
    total = sum(counts.values(), Counter())
    for name, row in [*counts.items(), ("all", total)]:
        numbers = ", ".join(f"{row[result]} {result}" for result in OUTCOMES)
        print(f"{name:10}  {row.total():4} files: {numbers}")
    key = {"count": options.count, "seed": options.seed}
    RESULTS.put({**key, "outcomes": counts, "slowest_seconds": slowest})
    print(tried(options.count, options.seed))
    sys.exit(any(total[result] for result in OUTCOMES if result not in GOOD))


if __name__ == "__main__":
    main()
