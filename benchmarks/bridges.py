r"""Schroedinger bridges between Gaussians, whose closed form is known, and minibatch OT.

    python benchmarks/bridges.py                       # Gaussians, in a few minutes
    python benchmarks/bridges.py --reflow=runs/reflow  # rounds of reflow on points

From N(-0.1, I) to N(0.1, diag(1/4 .. 9/4)) with a Brownian motion of diffusion g, the bridge
couples coordinate i of both ends with the covariance

    c = (sqrt(4 s0^2 s1^2 + g^4) - g^2) / 2

and at time t its variance is (1-t)^2 s0^2 + t^2 s1^2 + t (1-t) (2 c + g^2) (Leonard 2014,
arXiv:1308.0215; Bunne et al. 2022, arXiv:2202.05722, Theorem 3). Networks are affine in x at each
time of the sampler, and fitted by least squares: they can represent the bridge, so what is left is
the error of the method, of the number of steps and of the samples. The parts are those of training:
`draw_noise`, `BridgeSteps`, the couplings, and rounds as in --mode=train_bridge.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import bridge_points
from data.couplings import Independent, MinibatchOT, Reference
from denoising import Denoiser
from experiment.build import build
from jobs.bridges import train_rounds
from jobs.restore import load_checkpoint
from jobs.translate import task_run
from jobs.workdir import Workdir
from metrics.sliced_wasserstein import sliced_wasserstein
from numerics.transport import assignment, entropic_plan, squared_distances
from objectives.ends import draw_noise
from sampling import sample
from sde_lib import LinearPathSDE
from solvers.bridge import BridgeSteps
from time_grids import Schedule

STEPS, ROWS, BATCH = 40, 4000, 250
CASES = ((0.5, 5), (1.0, 1), (1.0, 5), (1.0, 20), (1.0, 50), (2.0, 5))  # g, dimension
MEAN = 0.1
SCHEDULE = Schedule(grid="quadratic", steps=STEPS, t_min=1e-3, final_step="denoise")


class Problem:
    """The two Gaussians of a dimension, and their bridge of diffusion g."""

    def __init__(self, dims: int, g: float):
        self.dims, self.g = dims, g
        self.std1 = np.sqrt(np.linspace(0.25, 2.25, dims)) if dims > 1 else np.array([1.5])
        self.covariance = (np.sqrt(4 * self.std1**2 + g**4) - g**2) / 2

    def draw(self, rng, count):
        x0, x1 = rng.standard_normal((2, count, self.dims))
        return np.float32(x0 - MEAN), np.float32(x1 * self.std1 + MEAN)

    def variance(self, t):
        g2 = self.g**2
        return (1 - t) ** 2 + (t * self.std1) ** 2 + t * (1 - t) * (2 * self.covariance + g2)


def affine(a, b, times, x, t):
    """The network: the predicted x0 at the time of the grid that is nearest to t."""
    at = jnp.argmin(jnp.abs(times - t[0]))
    return x @ a[at] + b[at]


@jax.jit
def bridges(sde, x0, x1, times, key):
    """Return states (times, n, d) of bridges between pairs, drawn as in training."""
    blank = Denoiser(sde=sde, network=lambda x, t: x, conditioning="t", end=x1)

    def at(given):
        time, key = given
        t = jnp.full(len(x0), time)
        return sde.perturb(x0, t, draw_noise(key, blank, x0, t))

    return jax.lax.map(at, (times.astype(x0.dtype), jax.random.split(key, len(times))))


def fit(pairs, sde, seed):
    """Fit a denoiser to pairs (n, 2, d) by least squares at each time of the sampler."""
    x0, x1 = pairs.swapaxes(0, 1)
    times, a, b = SCHEDULE.of(sde), [], []
    for x in np.asarray(bridges(sde, x0, x1, times, jax.random.key(seed)), np.float64):
        design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        # Ridge as small as rounding: at t = 0 there is nothing to predict.
        gram = design.T @ design / len(x) + 1e-9 * np.eye(x.shape[1] + 1)
        found = np.linalg.solve(gram, design.T @ x0 / len(x))
        a.append(found[:-1])
        b.append(found[-1])
    tables = (jnp.asarray(np.stack(v), jnp.float32) for v in (a, b, times))
    return Denoiser(
        sde=sde, network=Partial(affine, *tables), parameterization="x0", conditioning="t"
    )


def simulate(denoiser, x1, seed, frames=0):
    key = jax.random.key(seed)
    return sample(
        key,
        denoiser,
        x1.shape,
        solver=BridgeSteps(),
        schedule=SCHEDULE,
        initial=jnp.asarray(x1),
        frames=frames,
    )


def first_pairs(coupling, problem, rng):
    """The pairs of the first round, batch by batch as in training."""
    parts = []
    for _ in range(ROWS // BATCH):
        x0, x1 = problem.draw(rng, BATCH)
        parts.append(np.stack([x0, coupling.ends(x0, x1, rng)], axis=1))
    return np.concatenate(parts)


def errors(problem, x1, drawn):
    """Return the errors of mean and variance of x0 and at t = 1/2, and of the correlation."""
    x0, middle = np.asarray(drawn.x, np.float64), np.asarray(drawn.trajectory[0], np.float64)
    t = float(drawn.times[0])
    correlation = ((x0 - x0.mean(0)) * (x1 - x1.mean(0))).mean(0) / (x0.std(0) * x1.std(0))
    return (
        np.sqrt(np.mean((x0.mean(0) + MEAN) ** 2)),
        np.abs(x0.var(0) - 1).mean(),
        np.abs(middle.var(0) / problem.variance(t) - 1).mean(),
        np.abs(correlation - problem.covariance / problem.std1).mean(),
    )


def solve(method, problem, rounds, seed):
    """Return the errors of a method after an even number of further rounds."""
    rng, g = np.random.default_rng(seed), problem.g
    coupling = {
        "IMF": Independent(),
        "IPF": Reference(diffusion=g),
        "minibatch OT": MinibatchOT(diffusion=g),
        "independent": Independent(),
    }[method]
    sde = LinearPathSDE(diffusion=g, alpha_min=1e-6)
    pairs = first_pairs(coupling, problem, rng)
    for number in range(rounds + 1):
        denoiser = fit(pairs, sde, 1000 * seed + number)
        x0, x1 = problem.draw(rng, ROWS)
        start = x0 if number % 2 else x1  # where the paths of this round start
        if number == rounds:
            drawn = simulate(denoiser, start, seed + 7, frames=(0.5,))
            return errors(problem, start, drawn)
        end = np.asarray(simulate(denoiser, start, 1000 * seed + number).x)
        pairs = np.stack([start, end], axis=1)  # the other direction's data come first
    raise AssertionError


def cells(found):
    """Return means over seeds with their standard errors."""
    means, errors = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
    return " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(means, errors, strict=True))


def table_of_bridges(seeds, rounds):
    print("errors: mean of x0 | variance of x0 | variance at 1/2 (relative) | correlation")
    for g, dims in CASES:
        problem = Problem(dims, g)
        for method in ("independent", "minibatch OT", "IMF", "IPF"):
            count = rounds if method in ("IMF", "IPF") else 0
            found = np.array([solve(method, problem, count, seed) for seed in range(seeds)])
            print(f"| {g:g} | {dims} | {method} | {cells(found)} |", flush=True)


def table_of_transport(seeds):
    print("\ncost over that of the exact assignment of the same batch")
    print("| batch | dimension | regularization 0.05 | 0.02 | 0.005 | assignment over infinite |")
    for batch in (64, 256):
        for dims in (2, 10, 50):
            problem, ratios = Problem(dims, 1.0), []
            infinite = (2 * MEAN) ** 2 * dims + np.sum((problem.std1 - 1) ** 2)
            for seed in range(seeds):
                x, y = problem.draw(np.random.default_rng(seed), batch)
                cost = squared_distances(x, y)
                exact = cost[np.arange(batch), assignment(x, y)].mean()
                costs = [
                    (entropic_plan(x, y, share * cost.mean()) * cost).sum() / exact
                    for share in (0.05, 0.02, 0.005)
                ]
                ratios.append([*costs, exact / infinite])
            print(f"| {batch} | {dims} | {cells(np.array(ratios))} |", flush=True)


def table_of_reflow(folder, rounds, steps):
    """Train rounds of reflow on points; print the cost of transport and the distance to moons."""
    config = bridge_points.get_config("independent")
    training = {"steps": steps, "checkpoint_every": steps, "sample_every": 0}
    config.training.update(training)
    train_rounds(build(config), Workdir(folder), rounds)
    config.task.update({"name": "translate", "input": "test"})
    print("\n| round | steps | transport cost | sliced Wasserstein distance to moons |")
    for number in range(rounds):
        for count in (1, 4, 50):
            config.sampling.steps = count
            experiment = build(config)
            run = task_run(experiment, experiment.sampler.task, 2000)
            found = run.run(load_checkpoint(experiment, Workdir(f"{folder}/round_{number}")))
            cost = np.mean(np.sum((found.samples - found.arrays["input"]) ** 2, axis=1))
            distance = sliced_wasserstein(found.samples, experiment.data.splits.test)
            print(f"| {number} | {count} | {cost:.3f} | {distance:.4f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10, help="even, after the first")
    parser.add_argument("--reflow", help="a folder: print the table of reflow alone")
    parser.add_argument("--steps", type=int, default=1500, help="of each round of reflow")
    given = parser.parse_args()
    if given.reflow:
        table_of_reflow(given.reflow, 3, given.steps)
        return
    table_of_bridges(given.seeds, given.rounds)
    table_of_transport(given.seeds)


if __name__ == "__main__":
    main()
