"""How much less the bound of a run with a learned schedule varies than with its first schedule.

    python main.py --config=configs/vdm_digits.py --mode=train --workdir=RUN
    python benchmarks/learned_schedule.py RUN

The network knows the log-SNR, not the time, so the schedule can be made linear again between the
same ends, as before training. Prints mean and standard deviation, in bits/dim, of the
bound's term between the ends, for one time and noise per test image.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DRAWS = 64


def main() -> None:
    import scoresde as ss
    from denoising import Denoiser
    from numerics.monotone import linear
    from objectives.times import log_snr_speed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="its workdir")
    model = ss.load(parser.parse_args().run)
    data = model.experiment.data
    x0 = data.noiseless(data.splits.test, jnp.arange(len(data.splits.test)))

    @jax.jit
    def term(denoiser: Denoiser, key: jax.Array) -> jax.Array:
        time_key, noise_key = jax.random.split(key)
        t = jax.random.uniform(time_key, (len(x0),))
        eps = jax.random.normal(noise_key, x0.shape)
        error = denoiser.predict(denoiser.sde.perturb(x0, t, eps), t).eps - eps
        squares = jnp.sum(error**2, axis=(1, 2, 3)) * log_snr_speed(denoiser.sde, t)
        return 0.5 * squares / (x0[0].size * jnp.log(2))

    process = model.denoiser.sde
    first = dataclasses.replace(process, interior=linear())
    for name, sde in (("linear", first), ("trained", process)):
        denoiser = dataclasses.replace(model.denoiser, sde=sde)
        found = np.stack([term(denoiser, jax.random.key(draw)) for draw in range(DRAWS)])
        print(f"{name:8} mean {found.mean():.4f}  standard deviation {found.std():.4f}")


if __name__ == "__main__":
    main()
