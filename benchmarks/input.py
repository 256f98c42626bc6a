"""Speed and memory of reading images, beside PyTorch's DataLoader; waiting of the training loop.

    python benchmarks/input.py speed --torch=PYTHON    # PYTHON has torch, pillow and array_record
    python benchmarks/input.py memory --folder=FOLDER --size=64 --count=200000
    python benchmarks/input.py waiting

speed: images per second of 64x64 JPEG files in a folder and in array_record. Both sides decode by
Pillow with the same number of worker processes on the same cores, shuffle, flip half of the images,
scale them to [-1, 1] in float32 and make batches of 128. They take turns, each in a process of its
own, and a ratio is that of one turn. Without --torch, only our side runs.

memory: resident memory of this process and its workers over one pass through a folder.

waiting: the share of time that a training loop waits for batches, with a device that takes the time
of 2000 images per second, for 32x32 images in batches of 128 as in configs/vp_cifar10.py.

Results are printed, and written to benchmarks/results: input_speed.jsonl, input_memory.jsonl and
input_waiting.jsonl. Images are generated into --scratch, once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import count as counted
from pathlib import Path

import numpy as np
from runs import Results, markdown_table, median

SPEED = Results("input_speed", ("kind", "size", "count", "images", "workers", "cores"))
MEMORY = Results("input_memory", ("size", "count", "workers"))
WAITING = Results("input_waiting", ("held", "rate", "steps", "workers", "cores"))
CORES = len(os.sched_getaffinity(0))
BATCH = 128


def measured(batches, images):
    """Images per second, and per second of CPU, after two batches in which the workers start."""
    for _ in range(2):
        next(batches)
    start, used, seen = time.perf_counter(), cpu_seconds(), 0
    while seen < images:
        seen += len(next(batches))
    seconds = time.perf_counter() - start, cpu_seconds() - used
    print(seen / seconds[0], seen / seconds[1])


def cpu_seconds():
    """CPU time of this process and its workers: not changed by other programs' load."""
    ticks = 0
    for process in (os.getpid(), *children()):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def torch_side(arguments):
    """PyTorch's DataLoader; this runs in another interpreter, without our project."""
    import io

    import torch
    from PIL import Image

    torch.set_num_threads(1)
    names = sorted(map(str, Path(arguments.folder).rglob("*.jpg")))
    shards = sorted(map(str, Path(arguments.folder).glob("train-*.array_record")))

    class Images(torch.utils.data.Dataset):
        source = None

        def __len__(self):
            return arguments.count

        def __getitem__(self, index):
            if shards:
                if self.source is None:
                    from array_record.python.array_record_data_source import ArrayRecordDataSource

                    self.source = ArrayRecordDataSource(shards)
                opened = Image.open(io.BytesIO(self.source[index]))
            else:
                opened = Image.open(names[index])
            image = np.asarray(opened.convert("RGB"))
            if torch.rand(()) < 0.5:
                image = image[:, ::-1]
            x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            return x.float().div_(127.5).sub_(1)

    loader = torch.utils.data.DataLoader(
        Images(),
        batch_size=BATCH,
        shuffle=True,
        num_workers=arguments.workers,
        persistent_workers=True,
        drop_last=True,
    )
    measured((x for _ in counted() for x in loader), arguments.images)


def streamed(folder, size, workers, memory_gb=0.0, **changes):
    """Training batches of ours."""
    from data.batches import TrainingBatches
    from data.datasets import load

    data = load(folder, image_size=size, channels=3, memory_gb=memory_gb)
    settings = {"random_flip": True, "dequantization": "none"} | changes
    return TrainingBatches(images=data.train, batch_size=BATCH, seed=0, workers=workers, **settings)


def ours_side(arguments):
    batches = streamed(arguments.folder, arguments.size, arguments.workers)
    measured(map(batches.at, counted()), arguments.images)
    batches.close()


def speed(arguments):
    """Both sides in turns."""
    from generated_images import generate

    folder = Path(arguments.scratch) / f"jpeg{arguments.size}-{arguments.count}"
    generate(folder, count=arguments.count, size=arguments.size)
    packed = Path(arguments.scratch) / f"packed{arguments.size}-{arguments.count}"
    from data.datasets import open_splits
    from data.packing import pack

    _, splits, fit = open_splits(str(folder), image_size=arguments.size, channels=3)
    pack(str(folder), splits, fit, packed)
    sides = {"ours": sys.executable} | ({"torch": arguments.torch} if arguments.torch else {})
    for kind, source in (("jpeg folder", folder), ("array_record", packed)):
        rates = {side: [] for side in sides}
        for _ in range(arguments.turns):
            for side, python in sides.items():
                command = [python, __file__, f"{side}_side", f"--folder={source}"]
                command += [f"--{name}={getattr(arguments, name)}" for name in FIELDS]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rates[side].append([float(rate) for rate in done.stdout.split()[-2:]])
        key = {name: getattr(arguments, name) for name in FIELDS}
        by_clock = {
            per: {side: [rate[k] for rate in found] for side, found in rates.items()}
            for k, per in enumerate(("per_second", "per_cpu_second"))
        }
        SPEED.put({"kind": kind, **key, "cores": CORES, **by_clock})


def table():
    """Return what is measured: medians and ranges over turns."""
    rows = []
    for line in MEMORY.lines():
        sizes = line["mb"]
        growth = max(sizes) - sizes[len(sizes) // 10]
        what = f"read {line['count']:,} images of {line['size']}x{line['size']} once"
        what += f" by {line['workers']} processes: memory of all at most, and growth after a tenth"
        rows.append((what, f"{max(sizes)} MB, {growth} MB"))
    for line in WAITING.lines():
        what = f"wait for data {line['held']}, with a device of {line['rate']:g} images/s"
        rows.append((what, f"{line['waited'] / line['seconds']:.2%} of the time"))
    for line in SPEED.lines():
        rates, used = line["per_second"], line["per_cpu_second"]
        found = f"{median(rates['ours'], ',.0f')} images/s"
        if "torch" in rates:
            ratio, by_cpu = (median(np.divide(e["ours"], e["torch"])) for e in (rates, used))
            found += f"; {ratio} times PyTorch's, per CPU second {by_cpu}"
        size = f"{line['size']}x{line['size']}"
        rows.append((f"{line['kind']}, {size}, {line['workers']} processes", found))
    return markdown_table(("what", "measured"), rows)


def resident():
    """Resident memory in MB: of this process, and with the private memory of its children."""
    found = []
    for process in (os.getpid(), *children()):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
        found.append(int(sizes["Rss" if process == os.getpid() else "Pss"]) / 1e3)
    return sum(found)


def children():
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def memory(arguments):
    """Resident memory over one pass."""
    batches = streamed(arguments.folder, arguments.size, arguments.workers)
    seen, sizes = 0, []
    for step in range(arguments.count // BATCH):
        seen += len(batches.at(step))
        if step % max(1, arguments.count // BATCH // 20) == 0:
            sizes.append(round(resident()))
    batches.close()
    key = {name: getattr(arguments, name) for name in ("size", "count", "workers")}
    MEMORY.put({**key, "images": seen, "mb": sizes})


def waiting(arguments):
    """The share of time that the loop waits."""
    from generated_images import generate

    from training.prefetch import prefetched

    folder = Path(arguments.scratch) / "jpeg32-20000"
    generate(folder, count=20_000, size=32)
    for held, memory_gb in (("in memory", 1.0), ("streamed", 0.0)):
        batches = streamed(str(folder), 32, arguments.workers, memory_gb, dequantization="uniform")
        waited, start = 0.0, time.perf_counter()
        with prefetched(batches.at, counted(), ahead=2) as inputs:
            for step in range(arguments.steps + 20):
                if step == 20:  # the first ones start the workers
                    waited, start = 0.0, time.perf_counter()
                before = time.perf_counter()
                next(inputs)
                waited += time.perf_counter() - before
                time.sleep(BATCH / arguments.rate)
        seconds = time.perf_counter() - start
        key = {name: getattr(arguments, name) for name in ("rate", "steps", "workers")}
        WAITING.put({"held": held, **key, "cores": CORES, "waited": waited, "seconds": seconds})
        batches.close()


FIELDS = ("size", "count", "images", "workers")
MODES = {f.__name__: f for f in (speed, memory, waiting, ours_side, torch_side)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=list(MODES))
    parser.add_argument("--torch", default="", help="an interpreter that has torch")
    parser.add_argument("--folder")
    parser.add_argument("--scratch", default=f"{tempfile.gettempdir()}/scoresde-input")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=20_000, help="images in the folder")
    parser.add_argument("--images", type=int, default=20_000, help="images read per measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=2000.0, help="images/s of the device")
    given = parser.parse_args()
    MODES[given.mode](given)
    if given.mode in ("speed", "memory", "waiting"):
        print(table())
