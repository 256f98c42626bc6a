"""What the benchmarks of trained networks share: runs on the digits, and files of results."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", ROOT / "benchmarks" / "results"))

Line = dict[str, Any]


class Results:
    """Lines of JSON in benchmarks/results, one for each finished part of a benchmark.

    A try that should not change them sets BENCHMARK_RESULTS to another folder.
    """

    def __init__(self, name: str, keys: tuple[str, ...]) -> None:
        self._path, self._keys = RESULTS / f"{name}.jsonl", keys
        RESULTS.mkdir(parents=True, exist_ok=True)

    def lines(self, **wanted: Any) -> list[Line]:
        """Return the lines that have the wanted values."""
        if not self._path.exists():
            return []
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [line for line in lines if wanted.items() <= line.items()]

    def has(self, **key: Any) -> bool:
        """Return whether there is a line of this key; other processes may have written it."""
        return bool(self.lines(**{name: key[name] for name in self._keys}))

    def add(self, line: Line) -> None:
        """Append a line."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def put(self, *lines: Line) -> None:
        """Write lines in place of those of the same keys; the others stay."""
        kept = {tuple(line[name] for name in self._keys): line for line in (*self.lines(), *lines)}
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept.values()))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(device: str) -> Line:
    """Return machine, commit and versions, to be kept beside measured numbers."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch", "diffusers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit,
        "versions": versions,
    }


def experiment_of(name: str, fields: dict[str, Any]) -> Any:
    """Return the experiment of a configuration with some of its fields changed."""
    from experiment.build import build
    from experiment.configurations import load_configuration

    config = load_configuration(name)
    for path, value in fields.items():
        section, _, field = path.rpartition(".")
        node = config[section] if section else config
        if field not in node:
            raise KeyError(path)
        with node.unlocked():
            node[field] = value
    return build(config)


def discrete_bits(
    config: Any, checkpoint: Any, fields: dict[str, Any], count: int | None = None
) -> float:
    """Return the mean discrete bound of the first test images, or of all, in bits/dim.

    `fields` are those of config.discrete_bound that change. All calls have the same noises.
    """
    import jax.numpy as jnp

    from bounds.discrete import discrete_bound
    from experiment.build import build
    from experiment.randomness import base_key

    experiment = build({**config, "discrete_bound": config["discrete_bound"] | fields})
    data = experiment.data
    denoiser, times = experiment.likelihood.discrete_bound.of(checkpoint, data.limits)
    count, found = count or len(data.splits.test), []
    for start in range(0, count, 100):
        indices = jnp.arange(start, min(start + 100, count))
        terms = discrete_bound(
            base_key(0, "discrete_bound"),
            denoiser,
            data.noiseless(data.splits.test, indices),
            times=times,
            pixel_levels=data.pixel_levels,
            options=experiment.likelihood.discrete_bound.options,
            indices=indices,
        )
        found.append(np.asarray(terms.total, np.float64))
    return float(np.concatenate(found).mean() / (data.size * np.log(2)))


def evaluated(name: str, fields: dict[str, Any], folder: Path, ema: str = "") -> dict[str, Any]:
    """Evaluate the run in a folder with some fields changed; return the results."""
    import run_lib
    from evaluation.evaluate import results_file
    from jobs.restore import load_checkpoint
    from jobs.workdir import Workdir

    experiment, workdir = experiment_of(name, fields), Workdir(folder)
    run_lib.evaluate(experiment, workdir, ema=ema)
    checkpoint = load_checkpoint(experiment, workdir, None, ema)
    return json.loads(results_file(workdir, checkpoint).read_text())


def trained(name: str, fields: dict[str, Any], folder: Path) -> float:
    """Train in a folder, or continue there; return the seconds that it took."""
    import run_lib
    from jobs.workdir import Workdir

    start = time.perf_counter()
    run_lib.train(experiment_of(name, fields), Workdir(folder))
    return time.perf_counter() - start


def steps_of_main(
    config: str, fields: dict[str, Any], steps: int, variables: dict[str, str] | None = None
) -> tuple[list[Line], float]:
    """Train a few steps by a process of main.py, without measurements.

    Args:
        config: the configuration.
        fields: fields of it that change.
        steps: how many.
        variables: set in the environment of the process.

    Returns:
        The line of the log of each step, and the peak of the process's memory in GB.
    """
    fields = fields | {
        "training.steps": steps,
        "training.checkpoint_every": steps,
        "training.sample_every": 0,
        "training.log_every": 1,
        "diagnostics.every": 0,
    }
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "main.py", f"--config={config}", "--mode=train"]
        command += [f"--workdir={name}", *(f"--config.{k}={v}" for k, v in fields.items())]
        log, environment = Path(name, "log"), os.environ | (variables or {})
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
            _, status, usage = os.wait4(process.pid, 0)  # which tells the peak of this process
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{config}:\n{log.read_text()[-2000:]}")
        lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    return lines, usage.ru_maxrss * 1024 / 1e9


def frechet_of(results: dict[str, Any]) -> float:
    """Return the Frechet distance to the training images, of the 64 pixels."""
    return results["frechet"]["pixels"]["to_train"]["mean"]


def in_turns(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, np.ndarray]:
    """Return the CPU and the wall seconds of calls in turns, by name: (rounds, 2)."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(found.values()))) < 3:
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            found[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: np.array(each) for name, each in found.items()}


def median(values: Sequence[float], form: str = ".2f") -> str:
    """Return median and range of the values over turns."""
    low, middle, high = (format(q, form) for q in np.quantile(values, [0, 0.5, 1]))
    return f"{middle} ({low} to {high})"


def power(value: float, digits: int = 0) -> str:
    """Return a small number with its power of ten, such as 3e-5."""
    return f"{value:.{digits}e}".replace("e-0", "e-")


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Return mean and standard deviation of the values over seeds."""
    array = np.array(list(values))
    deviation = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{deviation}"


def different(groups: list[np.ndarray], baseline: np.ndarray) -> Iterator[bool]:
    """Yield for each group whether it differs from the baseline; values are paired by seed.

    A 95% interval of Student's t. The spread is the larger of the group's own and a typical one:
    the median of the groups' variances, over that of chi^2 / 2 with 2 degrees of freedom.
    """
    from scipy.stats import t

    differences = [group - baseline for group in groups]
    variances = [each.var(ddof=1) for each in differences if np.any(each)]
    typical = np.median(variances) / np.log(2)
    for each in differences:
        error = np.sqrt(max(each.var(ddof=1), typical) / len(each))
        freedom = 2 * len(variances) if each.var(ddof=1) < typical else len(each) - 1
        yield bool(np.any(each) and abs(each.mean()) > t.ppf(0.975, freedom) * error)
