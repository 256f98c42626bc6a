"""Speed of `models.blocks.convolution` against JAX's own convolution, alternating, in one run.

    python benchmarks/convolution.py
    python benchmarks/convolution.py --features=64 --batch=16

Measured on the U-Net of configs/vp_digits.py: the gradient of the squared output with respect to
the input, outside and inside a loop, and a training step. Each is compiled with both convolutions.
Calls take turns, and ratios are those of medians.
"""

import argparse
import sys
import time
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    ours = calls(options.batch, options.features)
    with mock.patch.object(layers, "image_convolution", lax.conv_general_dilated):
        stock = calls(options.batch, options.features)
    sides = {"ours": ours, "lax": stock}
    print(f"{options.features} features, batch {options.batch}; milliseconds")
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
