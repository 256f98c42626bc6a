"""Speed of `models.blocks.convolution` against JAX's own convolution, alternating, in one run.

    python benchmarks/convolution.py
    python benchmarks/convolution.py --features=64 --batch=16
    export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
    taskset -c 0 python benchmarks/convolution.py --shapes

Measured on the U-Net of configs/vp_digits.py: the gradient of the squared output with respect to
the input, outside and inside a loop, and a training step. Each is compiled with both convolutions.
Calls take turns, and ratios are those of medians.

`--shapes` measures single 3x3 convolutions and both their gradients instead, at the shapes of
DDPM's network for CIFAR-10, and writes benchmarks/results/convolution.md. There they are compared
with JAX's own, and with those that were tried: as nine products of moved images with a matrix each,
and as one product of patches. Times are those of the processor, which other programs hardly change,
and ratios are medians of turns. With the settings above the GNU C library keeps memory from call to
call, as a training step keeps it from one convolution to the next.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from runs import ROOT, markdown_table

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


def by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), PADDING, dimension_numbers=numbers)


def moved(x: jax.Array) -> list[list[jax.Array]]:
    """Return an image moved by each offset of a 3x3 kernel."""
    size, padded = x.shape[1], jnp.pad(x, ((0, 0), *PADDING, (0, 0)))
    return [[padded[:, a : a + size, b : b + size] for b in range(3)] for a in range(3)]


def by_nine_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    images = moved(x)
    return sum(images[a][b] @ kernel[a, b] for a in range(3) for b in range(3))


def by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = jnp.concatenate([image for row in moved(x) for image in row], axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


PADDING = ((1, 1), (1, 1))
WAYS = {
    "ours": lambda x, kernel: layers.image_convolution(x, kernel, (1, 1), PADDING),
    "lax": by_lax,
    "nine": by_nine_products,
    "patches": by_patches,
}


def single(way: Callable, batch: int, size: int, channels: int, features: int) -> list:
    """Return a 3x3 convolution and its gradients by images and by kernel, compiled."""
    x, y = (
        jax.random.normal(jax.random.key(c), (batch, size, size, c)) for c in (channels, features)
    )
    kernel = jax.random.normal(jax.random.key(0), (3, 3, channels, features))

    def of_image(kernel: jax.Array, y: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: way(x, kernel), x)[1](y)[0]

    def of_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: way(x, kernel), kernel)[1](y)[0]

    calls = ((way, x, kernel), (of_image, kernel, y), (of_kernel, x, y))
    return [
        partial(jax.jit(function).lower(*given).compile(), *given) for function, *given in calls
    ]


def shape_rows(batch: int, repeats: int) -> Iterator[list[str]]:
    """Yield rows of a table: our milliseconds, and the times of the others over ours."""
    others = [name for name in WAYS if name != "ours"]
    kinds = ("forward", "by image", "by kernel")
    yield ["pixels", "channels", *(name for kind in kinds for name in (f"{kind}, ms", *others))]
    for shape in SHAPES:
        cells = []
        for calls in zip(*(single(way, batch, *shape) for way in WAYS.values()), strict=True):
            seconds = np.empty((repeats + 1, len(WAYS)))
            for turn in seconds:
                for side, call in enumerate(calls):
                    start = time.process_time()
                    jax.block_until_ready(call())
                    turn[side] = time.process_time() - start
            ours = seconds[1:, :1]  # the first warms up
            ratios = np.median(seconds[1:, 1:] / ours, axis=0)
            cells += [f"{1e3 * np.median(ours):.2f}", *(f"{ratio:.2f}" for ratio in ratios)]
        size, channels, features = shape
        yield [f"{size} x {size}", f"{channels} to {features}", *cells]


def write_shapes(batch: int, repeats: int) -> None:
    """Print the table of shapes, and write it to RESULTS."""
    cores = len(os.sched_getaffinity(0))
    head, *rows = shape_rows(batch, repeats)
    lines = [
        "# 3x3 convolutions and their gradients",
        "",
        f"By `benchmarks/convolution.py --shapes --batch={batch}` on {cores} core(s), "
        f"jaxlib {jax.lib.__version__}, float32: processor time, and medians of {repeats} turns. "
        "The columns after our milliseconds are times over ours: of lax's convolution, of nine "
        "products, and of one product of patches.",
        "",
        markdown_table(head, rows),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


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
