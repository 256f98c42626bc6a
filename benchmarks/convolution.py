"""Speed of `models.blocks.convolution` against JAX's own convolution, alternating, in one run.

    python benchmarks/convolution.py
    python benchmarks/convolution.py --features=64 --batch=16
    export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
    taskset -c 0 python benchmarks/convolution.py --shapes

Measured on the U-Net of configs/vp_digits.py: the gradient of the squared output with respect to
the input, outside and inside a loop, and a training step. Each is compiled with both convolutions.
Calls take turns, and ratios are those of medians.

`--shapes` measures both gradients of single 3x3 convolutions instead, at the shapes of DDPM's
network for CIFAR-10, and writes benchmarks/results/convolution.md. Times are those of the
processor, which other programs hardly change, and ratios are medians of pairs. With the settings
above the GNU C library keeps memory from call to call, as a training step keeps it from one
convolution to the next.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import vp_digits
from experiment import build
from models.blocks import layers

TURNS = 3  # iterations of the loop
RESULTS = ROOT / "benchmarks/results/convolution.md"
# rows and columns of the image, channels of the image, channels of the result
SHAPES = (
    (32, 3, 128),
    (32, 128, 3),
    (32, 128, 128),
    (32, 256, 128),
    (32, 384, 128),
    (32, 256, 256),
    (16, 128, 256),
    (16, 256, 256),
    (16, 512, 256),
    (8, 256, 256),
    (8, 512, 256),
    (4, 256, 256),
    (4, 512, 256),
)


def calls(batch: int, features: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return the timed calls by name, each with the number of measured items per call."""
    config = vp_digits.get_config()
    config.model.features = features
    config.training.batch_size = batch
    experiment = build.build(config)
    trainer, key = experiment.trainer, jax.random.key(0)
    state = trainer.init_state(key)
    x = experiment.parallel.split_rows(np.asarray(jax.random.normal(key, (batch, 8, 8, 1))))

    def gradient(params, x):
        denoiser = experiment.model.denoiser(params)
        return jax.grad(lambda x: jnp.sum(denoiser.predict(x, 0.5).x0 ** 2))(x)

    def loop(params, x):
        return lax.fori_loop(0, TURNS, lambda _, x: jnp.tanh(gradient(params, x)), x)

    alone, repeated = (
        jax.jit(function).lower(state.params, x).compile() for function in (gradient, loop)
    )
    step, states = (
        trainer.compiled_step().lower(key, state, x).compile(),
        [trainer.init_state(key)],
    )

    def train():
        states[:] = [step(key, states[0], x)[0]]
        return states

    return {
        "gradient": (lambda: alone(state.params, x), 1),
        "gradient in a loop": (lambda: repeated(state.params, x), TURNS),
        "training step": (train, 1),
    }


def single(convolve: Callable, batch: int, size: int, channels: int, features: int) -> list:
    """Return the compiled gradients of a 3x3 convolution by its images and by its kernel."""
    x, y = (
        jax.random.normal(jax.random.key(c), (batch, size, size, c)) for c in (channels, features)
    )
    kernel = jax.random.normal(jax.random.key(0), (3, 3, channels, features))

    def value(x, kernel):
        return convolve(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    of_image = jax.jit(lambda kernel, y: jax.vjp(lambda x: value(x, kernel), x)[1](y)[0])
    of_kernel = jax.jit(lambda x, y: jax.vjp(lambda kernel: value(x, kernel), kernel)[1](y)[0])
    return [
        partial(of_image.lower(kernel, y).compile(), kernel, y),
        partial(of_kernel.lower(x, y).compile(), x, y),
    ]


def shape_rows(batch: int, repeats: int) -> Iterator[str]:
    """Yield rows of a table: milliseconds by both convolutions, and their ratio."""
    of = "gradient by"
    yield f"| pixels | channels | {of} image | lax / ours | {of} kernel | lax / ours |"
    yield "|---|---|---|---|---|---|"
    for shape in SHAPES:
        sides = [
            single(f, batch, *shape) for f in (layers.image_convolution, lax.conv_general_dilated)
        ]
        cells = []
        for pair in zip(*sides, strict=True):
            seconds = np.empty((repeats + 1, 2))
            for turn in seconds:
                for side, call in enumerate(pair):
                    start = time.process_time()
                    jax.block_until_ready(call())
                    turn[side] = time.process_time() - start
            ours, lax_s = seconds[1:].T  # the first warms up
            cells += [
                f"{1e3 * np.median(ours):.2f} ms, lax {1e3 * np.median(lax_s):.2f} ms",
                f"{np.median(lax_s / ours):.2f}",
            ]
        size, channels, features = shape
        yield f"| {size} x {size} | {channels} to {features} | " + " | ".join(cells) + " |"


def write_shapes(batch: int, repeats: int) -> None:
    """Print the table of shapes, and write it to RESULTS."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Gradients of 3x3 convolutions",
        "",
        f"By `benchmarks/convolution.py --shapes --batch={batch}` on {cores} core(s), "
        f"jaxlib {jax.lib.__version__}, float32: processor time, and medians of {repeats} pairs.",
        "",
    ]
    for row in shape_rows(batch, repeats):
        print(row, flush=True)
        lines.append(row)
    RESULTS.write_text("\n".join(lines) + "\n")
    print(f"written to {RESULTS}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="default: 64; 8 with --shapes")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", action="store_true", help="single convolutions")
    options = parser.parse_args()
    if options.shapes:
        write_shapes(options.batch or 8, options.repeats)
        return
    batch = options.batch or 64
    ours = calls(batch, options.features)
    with mock.patch.object(layers, "image_convolution", lax.conv_general_dilated):
        stock = calls(batch, options.features)
    sides = {"ours": ours, "lax": stock}
    print(f"{options.features} features, batch {batch}; milliseconds")
    for kind in ours:
        seconds = {side: [] for side in sides}
        for repeat in range(options.repeats + 1):
            for side, of_side in sides.items():
                call, count = of_side[kind]
                start = time.perf_counter()
                jax.block_until_ready(call())
                if repeat:  # the first warms up
                    seconds[side].append((time.perf_counter() - start) / count)
        medians = {side: 1e3 * np.median(values) for side, values in seconds.items()}
        print(
            f"  {kind:20} ours {medians['ours']:8.1f}   lax {medians['lax']:8.1f}   "
            f"lax / ours {medians['lax'] / medians['ours']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
