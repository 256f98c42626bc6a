"""Throughput of our Inception-v3 and PyTorch's on the same cores, alternating, in one run.

    pip install torch
    python benchmarks/inception.py

PyTorch runs the same layers with random weights like pytorch-fid: separate batch normalization,
float32, without gradients, once in its usual memory layout (NCHW), once with channels last. Each
program is a separate process with its own peak memory. They take turns, and ratios are those of the
same turn. All include the resize of 32x32 images of 0..255 to 299x299. Processor seconds are summed
over threads; other work on the machine disturbs them less.
"""

import argparse
import importlib.util
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIDES = ("ours", "nchw", "channels_last")


def random_images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)


def ours(batch: int, threads: int) -> Callable[[], np.ndarray]:
    import jax

    from metrics.inception.weights import activations, template

    rng = np.random.default_rng(0)
    params = jax.device_put(
        jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), template())
    )
    images = random_images(batch)
    return lambda: np.asarray(activations(params, images, resize="pytorch").features)


class Layers:
    """Convolution, batch normalization and relu in PyTorch, weights made on first use."""

    def __init__(self, channels_last: bool) -> None:
        self.layers, self.channels_last = {}, channels_last

    def __call__(self, name, x, features, kernel, stride=1, same=True):
        import torch

        if name not in self.layers:
            padding = [size // 2 for size in kernel] if same else 0
            conv = torch.nn.Conv2d(x.shape[1], features, kernel, stride, padding, bias=False)
            layer = torch.nn.Sequential(
                conv, torch.nn.BatchNorm2d(features, eps=1e-3), torch.nn.ReLU(inplace=True)
            ).eval()
            if self.channels_last:
                layer = layer.to(memory_format=torch.channels_last)
            self.layers[name] = layer
        return self.layers[name](x)


def theirs(batch: int, threads: int, channels_last: bool) -> Callable[[], np.ndarray]:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    layer = Layers(channels_last)
    output = torch.nn.Linear(2048, 1008)

    def halve(x):
        return functional.max_pool2d(x, 3, 2)

    def average(x):
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def chain(name, x, *widths_and_kernels):
        for index, (width, kernel) in enumerate(widths_and_kernels):
            x = layer(f"{name}{index}", x, width, kernel)
        return x

    def a(name, x, pool):
        branches = [
            chain(f"{name}1", x, (64, (1, 1))),
            chain(f"{name}5", x, (48, (1, 1)), (64, (5, 5))),
            chain(f"{name}3", x, (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            chain(f"{name}p", average(x), (pool, (1, 1))),
        ]
        return torch.cat(branches, 1)

    def b(x):
        double = chain("b3", x, (64, (1, 1)), (96, (3, 3)))
        branches = [
            layer("b", x, 384, (3, 3), 2, False),
            layer("b4", double, 96, (3, 3), 2, False),
            halve(x),
        ]
        return torch.cat(branches, 1)

    def c(name, x, w):
        wide, tall = (1, 7), (7, 1)
        branches = [
            chain(f"{name}1", x, (192, (1, 1))),
            chain(f"{name}7", x, (w, (1, 1)), (w, wide), (192, tall)),
            chain(f"{name}d", x, (w, (1, 1)), (w, tall), (w, wide), (w, tall), (192, wide)),
            chain(f"{name}p", average(x), (192, (1, 1))),
        ]
        return torch.cat(branches, 1)

    def d(x):
        small = chain("d3", x, (192, (1, 1)))
        large = chain("d7", x, (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
        branches = [
            layer("d4", small, 320, (3, 3), 2, False),
            layer("d8", large, 192, (3, 3), 2, False),
            halve(x),
        ]
        return torch.cat(branches, 1)

    def e(name, x, pooled):
        single = chain(f"{name}3", x, (384, (1, 1)))
        double = chain(f"{name}d", x, (448, (1, 1)), (384, (3, 3)))
        branches = [chain(f"{name}1", x, (320, (1, 1)))]
        for key, branch in (("s", single), ("t", double)):
            branches += [layer(f"{name}{key}{k}", branch, 384, k) for k in ((1, 3), (3, 1))]
        branches.append(chain(f"{name}p", pooled, (192, (1, 1))))
        return torch.cat(branches, 1)

    def run() -> np.ndarray:
        x = torch.from_numpy(random_images(batch)).permute(0, 3, 1, 2).float() / 255
        x = 2 * functional.interpolate(x, size=(299, 299), mode="bilinear") - 1
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x = layer("0", x, 32, (3, 3), 2, False)
        x = layer("1", x, 32, (3, 3), 1, False)
        x = halve(layer("2", x, 64, (3, 3)))
        x = layer("3", x, 80, (1, 1))
        x = halve(layer("4", x, 192, (3, 3), 1, False))
        for index, pool in enumerate((32, 64, 64)):
            x = a(f"a{index}", x, pool)
        x = b(x)
        for index, width in enumerate((128, 160, 160, 192)):
            x = c(f"c{index}", x, width)
        x = d(x)
        x = e("e0", x, average(x))
        x = e("e1", x, functional.max_pool2d(x, 3, 1, 1))
        features = x.mean((2, 3))
        output(features)
        return features.numpy()

    return run


def worker(connection, side: str, batch: int, threads: int) -> None:
    """Reply to each message with seconds (elapsed, processor), and to "end" with peak memory."""
    make = ours if side == "ours" else lambda b, n: theirs(b, n, side == "channels_last")
    run = make(batch, threads)
    connection.send(run().shape)  # compiles, or makes the weights
    while connection.recv() != "end":
        start = time.perf_counter(), time.process_time()
        run()
        connection.send((time.perf_counter() - start[0], time.process_time() - start[1]))
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def compare(batch: int, repeats: int, threads: int) -> dict:
    """Return the seconds of every program, in turns, and its peak memory in GB."""
    context = multiprocessing.get_context("spawn")
    ends = {}
    for side in SIDES:
        ends[side], other = context.Pipe()
        context.Process(target=worker, args=(other, side, batch, threads), daemon=True).start()
        assert ends[side].recv() == (batch, 2048)
    seconds = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, end in ends.items():
            end.send("run")
            seconds[side].append(end.recv())
    peaks = {}
    for side, end in ends.items():
        end.send("end")
        peaks[side] = end.recv()
    return {"seconds": {side: np.array(s) for side, s in seconds.items()}, "peaks": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, help="threads of PyTorch; default: the number of cores"
    )
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("error: PyTorch is not installed; run `pip install torch` first")
    threads = options.threads or len(os.sched_getaffinity(0))
    result = compare(options.batch, options.repeats, threads)
    for side, seconds in result["seconds"].items():
        elapsed, processor = options.batch / np.median(seconds, axis=0)
        print(
            f"{side:14} {elapsed:6.2f} images/s, {processor:6.2f} per processor second, "
            f"peak memory {result['peaks'][side]:.2f} GB"
        )
        if side != "ours":
            low, middle, high = np.quantile(
                seconds / result["seconds"]["ours"], [0.0, 0.5, 1.0], axis=0
            )
            print(
                f"    ours over this: {middle[0]:.2f} ({low[0]:.2f} .. {high[0]:.2f}); by "
                f"processor time {middle[1]:.2f} ({low[1]:.2f} .. {high[1]:.2f})"
            )


if __name__ == "__main__":
    main()
