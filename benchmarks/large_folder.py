"""Train on a folder of many large images, on one process and on two: time, memory and losses.

    python benchmarks/large_folder.py --folder=FOLDER                  # 200,000 images of 256x256
    python benchmarks/large_folder.py --folder=FOLDER --count=300      # a try
    python benchmarks/large_folder.py --folder=FOLDER --list           # lists what is there

The images are generated if they are missing. The folder is listed twice, with an empty cache at
first; lists of fewer than 10,000 files are not kept. Then a small network of six sizes trains for
50 steps with batches of 4: on one process with two devices, and on two processes as two hosts with
one device each. No image is held in memory. Results are written to benchmarks/results: seconds of
each list to large_folder_lists.jsonl; the peak resident memory of each process, and whether all
losses are equal bit for bit, to large_folder.jsonl.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated_images import generate
from runs import ROOT, Results, markdown_table

LISTS = Results("large_folder_lists", ("files",))
TRAINED = Results("large_folder", ("files", "size", "steps"))
NETWORK = {
    "model.features": 8,
    "model.channel_multipliers": (1, 1, 2, 2, 4, 4),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (),
    "training.batch_size": 4,
    "training.log_every": 1,
    "training.sample_every": 0,
    "diagnostics.every": 0,
    "data.memory_gb": 0.0,
}


def listed(folder: Path) -> tuple[float, int]:
    """Return the seconds in which a folder is listed, and the number of its files."""
    from data.folders import read_folder

    start = time.perf_counter()
    splits = read_folder(str(folder), "")
    return round(time.perf_counter() - start, 2), sum(len(split.items) for split in splits.values())


def trained(given: argparse.Namespace, workdir: Path, processes: int) -> list[float]:
    """Train on two devices, divided over the processes; return the peak memory of each in GB."""
    fields = NETWORK | {
        "data.name": given.folder,
        "data.image_size": given.size,
        "data.channels": 3,
        "training.steps": given.steps,
        "training.checkpoint_every": given.steps,
    }
    command = [sys.executable, "main.py", "--config=configs/vp_digits.py", "--mode=train"]
    command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    if processes > 1:
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    devices = f"--xla_force_host_platform_device_count={2 // processes}"
    running = [
        subprocess.Popen(
            command + ([f"--process_id={number}"] if processes > 1 else []),
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices},
            stdout=subprocess.DEVNULL,
        )
        for number in range(processes)
    ]
    peaks = []
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)  # which tells the peak of this process alone
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: training ended with status {process.returncode}; see above")
        peaks.append(round(usage.ru_maxrss * 1024 / 1e9, 2))
    return peaks


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def table() -> str:
    """Return what is measured."""
    rows = [
        (
            f"list a folder of {line['files']:,} files: the first time, and again",
            " s, ".join(f"{seconds:.2g}" for seconds in line["seconds"]) + " s",
        )
        for line in LISTS.lines()
    ]
    for line in TRAINED.lines():
        what = f"train {line['steps']} steps on {line['files']:,} images of {line['size']}x"
        what += f"{line['size']}, a batch of 4: one process with two devices; two, one each"
        peaks = "; ".join(" and ".join(f"{gb:.2f}" for gb in peak) for peak in line["peak_gb"])
        equal = "equal bit for bit" if line["losses_equal"] else "different"
        rows.append((what, f"peak memory {peaks} GB; losses {equal}"))
    return markdown_table(("what", "measured"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--list", action="store_true", help="list alone, and generate nothing")
    given = parser.parse_args()
    given.folder = Path(given.folder).resolve()
    if not given.list:
        generate(given.folder, count=given.count, size=given.size)
        time.sleep(3)  # the list of a folder that has just changed is not kept
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name
        (first, files), (again, _) = listed(given.folder), listed(given.folder)
        LISTS.put({"files": files, "seconds": [first, again]})
        print(f"{files:,} files listed in {first} s, {again} s", flush=True)
        if given.list:
            return
        one, two = Path(name, "one"), Path(name, "two")
        line = {"files": files, "size": given.size, "steps": given.steps}
        line["peak_gb"] = [trained(given, one, processes=1), trained(given, two, processes=2)]
        line["losses_equal"] = losses(one) == losses(two)
        TRAINED.put({**line, "losses": len(losses(one))})
    print(table())
    sys.exit(not line["losses_equal"])


if __name__ == "__main__":
    main()
