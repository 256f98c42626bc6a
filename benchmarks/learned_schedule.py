"""How much less the bound of a run with a learned schedule varies than with its first schedule.

    python results/run.py vdm_digits
    python benchmarks/learned_schedule.py runs/results/vdm_digits

The network knows the log-SNR, not the time, so the schedule can be made linear again between the
same ends, as before training. Prints mean and standard deviation, in bits/dim, of the
bound's term between the ends, for one time and noise per test image, and adds them to
benchmarks/results/learned_schedule.jsonl.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from runs import Results, markdown_table

DRAWS = 64
RESULTS = Results("learned_schedule", keys=("run", "schedule"))
SCHEDULES = {"linear": "linear, between the trained ends", "trained": "trained"}


def table(run: str) -> str:
    """Return the table of a run."""
    rows = [
        (SCHEDULES[line["schedule"]], f"{line['mean']:.3f}", f"{line['deviation']:.2f}")
        for line in RESULTS.lines(run=run)
    ]
    return markdown_table(("schedule", "mean of l_t, bits/dim", "standard deviation"), rows)


def main() -> None:
    import scoresde as ss
    from denoising import Denoiser
    from numerics.monotone import linear
    from objectives.times import log_snr_speed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="its workdir")
    folder = Path(parser.parse_args().run)
    model = ss.load(folder)
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
        key = {"run": folder.name, "schedule": name}
        if not RESULTS.has(**key):
            denoiser = dataclasses.replace(model.denoiser, sde=sde)
            found = np.stack([term(denoiser, jax.random.key(draw)) for draw in range(DRAWS)])
            RESULTS.add(key | {"mean": float(found.mean()), "deviation": float(found.std())})
    print(table(folder.name))


if __name__ == "__main__":
    main()
