"""DDIM's Table 1 and its pictures, on a trained network.

    python benchmarks/ddim.py [--workdir=RUN] [--samples=500]
    python benchmarks/ddim.py --table
    python benchmarks/ddim.py --pictures --workdir=RUN

Song, Meng and Ermon 2021 (arXiv:2010.02502), Table 1: the noise eta against the number of network
evaluations, of which the last predicts x0. The last row is sigma-hat: the mean of eta = 1 with the
larger noise of DDPM's transition, here `Ancestral(variance="large")`. All cells begin with the same
noise. Without `--workdir`, configs/vp_digits.py is trained first, in a temporary folder.

Results go to results/ddim.jsonl, and what is there is not repeated. 500 samples of the whole table
take about eight minutes of one core. `--pictures` writes docs/assets/ddim_consistency.png, with
rows of one latent each and growing steps (Figure 5), and docs/assets/ddim_interpolation.png, with
latents on a great circle between two (Figure 6).
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from runs import ROOT, Results, trained
from trained_samplers import KEYS, Run, fill, markdown

import scoresde as ss
from files.pictures import image_grid, write_png
from numerics.arrays import normal_like, sample_keys
from solvers import ddim
from solvers.ode import interpolate
from solvers.predictor_corrector import Ancestral

RESULTS = Results("ddim", KEYS)
CONFIGURATION = "configs/vp_digits.py"
STEPS = (10, 20, 50, 100, 1000)
ROWS = {f"eta = {eta:g}": ss.DDIM(eta=eta) for eta in (0.0, 0.2, 0.5, 1.0)}
ROWS["sigma-hat"] = ss.PredictorCorrector(predictor=Ancestral(variance="large"))
LATENTS, BETWEEN = 6, 11
ASSETS = ROOT / "docs" / "assets"


def schedule(steps: int, final_step: str = "denoise") -> ss.Schedule:
    """Return DDIM's quadratic grid with this number of evaluations."""
    return ss.Schedule(grid="quadratic", steps=steps - 1, t_min=1e-3, final_step=final_step)


def cells() -> Iterator[tuple]:
    for steps in STEPS:
        for row, solver in ROWS.items():
            yield row, str(steps), solver, schedule(steps)


def decoded(run: Run, latents: jax.Array, steps: int) -> np.ndarray:
    """Return the predicted x0 of the states that DDIM decodes, in the network's range."""
    grid, denoiser = schedule(steps), run.model.denoiser
    states = ddim.decode(denoiser, latents, grid)
    return np.asarray(denoiser.predict(states, jnp.asarray(grid.t_min, states.dtype)).x0)


def twice(picture: np.ndarray) -> np.ndarray:
    """Return a picture at twice its size."""
    return picture.repeat(2, axis=0).repeat(2, axis=1)


def pictures(run: Run) -> None:
    """Draw both figures, and print how far the images are from those of the most steps."""
    zeros = jnp.zeros((LATENTS, *run.model.shape))
    latents = normal_like(sample_keys(jax.random.key(1), jnp.arange(LATENTS)), zeros)
    by_steps = [decoded(run, latents, steps) for steps in STEPS]
    for steps, images in zip(STEPS, by_steps, strict=True):
        error = np.sqrt(np.mean((images - by_steps[-1]) ** 2)) / 2
        print(f"{steps:5} evaluations: {error:.4f} of the range from {STEPS[-1]}")
    rows = np.stack(by_steps, axis=1).reshape(-1, *run.model.shape)
    grid = image_grid(run.model.to_data(rows), columns=len(STEPS))
    write_png(ASSETS / "ddim_consistency.png", twice(grid))
    fractions = jnp.linspace(0, 1, BETWEEN)
    strips = [
        decoded(run, interpolate(latents[i], latents[i + 1], fractions), 50)
        for i in range(0, LATENTS, 2)
    ]
    grid = image_grid(run.model.to_data(np.concatenate(strips)), columns=BETWEEN)
    write_png(ASSETS / "ddim_interpolation.png", twice(grid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="of a trained run; default: train one")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--pictures", action="store_true", help="draw the figures alone")
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    name = "VP"
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.workdir or Path(scratch) / "run"
            if not options.workdir:
                trained(CONFIGURATION, {}, folder)
            run = Run(folder, options.samples)
            name = run.name
            if not options.pictures:
                print(f"as many training images: {run.floor():.3f}", flush=True)
                fill(RESULTS, run, cells())
            pictures(run)
    columns = [str(steps) for steps in STEPS]
    print(markdown(RESULTS, name, options.samples, "evaluations", ROWS, columns))


if __name__ == "__main__":
    main()
