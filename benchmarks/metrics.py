"""The Frechet distance of 2048 features: time against SciPy's matrix square root, and peak memory.

    python benchmarks/metrics.py [--images=50000] [--repeats=3]

Time: `frechet_distance` and the formula with `scipy.linalg.sqrtm`, which the published programs
use, take turns on the same statistics, of 10,000 images (covariances of full rank) and of 1000
images (singular covariances). The ratio is the median over turns. Memory and seconds: a separate
process streams features of --images images in batches of 250, as an evaluation does, and prints its
peak memory and the seconds of each part. Set OMP_NUM_THREADS to compare on fewer cores.

Results are written to benchmarks/results: metrics_frechet.jsonl and metrics_stream.jsonl.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np
from runs import Results, markdown_table, median, power

from files import text
from metrics.frechet import Accumulator, Statistics, frechet_distance, frechet_interval

FEATURES, BATCH = 2048, 250
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
FRECHET = Results("metrics_frechet", ("features", "covariances", "threads"))
STREAM = Results("metrics_stream", ("features", "images", "threads"))
RANKS = {"full rank": 10_000, "singular": 1000}  # and the images of each set


def batches(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield correlated float32 features of decaying variance, half of them zero."""
    rng = np.random.default_rng(seed)
    scale = (1 + np.arange(FEATURES, dtype=np.float32)) ** -0.5
    for first in range(0, count, BATCH):
        noise = rng.standard_normal((min(BATCH, count - first), FEATURES), np.float32) * scale
        yield np.maximum(noise + np.roll(noise, 1, axis=1) + 0.01 * seed, 0)


def accumulated(count: int, seed: int, **options: int) -> Accumulator:
    accumulator = Accumulator(count, **options)
    for batch in batches(count, seed):
        accumulator.add(batch)
    return accumulator


def published(a: Statistics, b: Statistics) -> float:
    """Compute the distance by the matrix square root of a general matrix."""
    import scipy.linalg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of singular matrices
        root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    squares = np.sum((a.mean - b.mean) ** 2)
    return float(squares + np.trace(a.covariance + b.covariance - 2 * np.real(root)))


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def speeds(repeats: int) -> None:
    """Measure both programs in turns."""
    for name, count in RANKS.items():
        a, b = (accumulated(count, seed, groups=1).statistics() for seed in (0, 1))
        seconds, distances = {"ours": [], "sqrtm": []}, {}
        for _ in range(repeats):
            for side, function in (("ours", frechet_distance), ("sqrtm", published)):
                elapsed, distances[side] = timed(function, a, b)
                seconds[side].append(elapsed)
        key = {"features": FEATURES, "covariances": name, "threads": THREADS, "images": count}
        FRECHET.put({**key, "seconds": seconds, "distances": distances})


def table() -> str:
    """Return the times of both programs, and how much their distances differ."""
    rows = []
    for line in FRECHET.lines():
        ours, theirs = line["seconds"]["ours"], line["seconds"]["sqrtm"]
        change = abs(line["distances"]["sqrtm"] / line["distances"]["ours"] - 1)
        times = median(ours), median(theirs), median(np.divide(theirs, ours), ".1f")
        rows.append((line["covariances"], str(line["threads"]), *times, power(change)))
    head = ("covariances", "threads", "ours, s", "`sqrtm`, s", "ratio", "relative difference")
    return markdown_table(head, rows)


def stream(images: int) -> None:
    """Print the child process's results as a JSON object."""
    reference = accumulated(BATCH * 40, 0, groups=1).statistics()
    start = time.perf_counter()
    for _ in batches(images, 1):
        pass
    features = time.perf_counter() - start
    streaming, drawn = timed(accumulated, images, 1)
    spread, interval = timed(frechet_interval, drawn, reference)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        json.dumps(
            {
                "seconds of streaming": round(streaming - features, 1),
                "seconds of distance and interval": round(spread, 1),
                "peak memory in GB": round(peak, 2),
                "of all features in float64": round(images * FEATURES * 8 / 1e9, 2),
                "distance": round(interval.distance, 5),
                "corrected": interval.corrected and round(interval.corrected, 5),
                "standard error": round(interval.standard_error, 5),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", action="store_true", help="for the child process")
    flags = parser.parse_args()
    if flags.stream:
        stream(flags.images)
        return
    print(f"{FEATURES} features, {THREADS} threads, NumPy {np.__version__}", flush=True)
    speeds(flags.repeats)
    print(table(), flush=True)
    command = [sys.executable, __file__, "--stream", f"--images={flags.images}"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout)
    STREAM.put({"features": FEATURES, "images": flags.images, "threads": THREADS, **found})
    print(text.table([(name, str(value)) for name, value in found.items()]))


if __name__ == "__main__":
    main()
