"""Train on a folder of many large images, on one process and on two: time, memory and losses.

    python benchmarks/large_folder.py --folder=FOLDER                  # 200,000 images of 256x256
    python benchmarks/large_folder.py --folder=FOLDER --count=300      # a try
    python benchmarks/large_folder.py --folder=FOLDER --list           # lists what is there

The images are generated if they are missing. The folder is listed twice, with an empty cache at
first; lists of fewer than 10,000 files are not kept. Then a small network of six sizes trains for
50 steps with batches of 4: on one process with two devices, and on two processes as two hosts with
one device each. No image is held in memory. Printed as JSON: seconds of each list, the peak
resident memory of each process, and whether all losses are equal bit for bit.
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

ROOT = Path(__file__).resolve().parents[1]
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


def listed(folder: Path) -> float:
    """Return the seconds in which a folder is listed."""
    sys.path.insert(0, str(ROOT))
    from data.folders import read_folder

    start = time.perf_counter()
    read_folder(str(folder), "")
    return round(time.perf_counter() - start, 2)


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
        found: dict[str, object] = {"listed in s": [listed(given.folder) for _ in range(2)]}
        if given.list:
            print(json.dumps(found))
            return
        one, two = Path(name, "one"), Path(name, "two")
        found["one process, GB"] = trained(given, one, processes=1)
        found["two processes, GB"] = trained(given, two, processes=2)
        found["losses"] = "equal" if losses(one) == losses(two) else "differ"
        found["steps"] = len(losses(one))
    print(json.dumps(found, indent=2))
    sys.exit(found["losses"] != "equal")


if __name__ == "__main__":
    main()
