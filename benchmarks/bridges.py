r"""Schroedinger bridges between Gaussians, whose closed form is known, and minibatch OT.

    python benchmarks/bridges.py                       # what is missing of Gaussians, in minutes
    python benchmarks/bridges.py --reflow=runs/reflow  # rounds of reflow on points
    python benchmarks/bridges.py --report              # the tables alone

From N(-0.1, I) to N(0.1, diag(1/4 .. 9/4)) with a Brownian motion of diffusion g, the bridge
couples coordinate i of both ends with the covariance

    c = (sqrt(4 s0^2 s1^2 + g^4) - g^2) / 2

and at time t its variance is (1-t)^2 s0^2 + t^2 s1^2 + t (1-t) (2 c + g^2) (Leonard 2014,
arXiv:1308.0215; Bunne et al. 2022, arXiv:2202.05722, Theorem 3). Networks are affine in x at each
time of the sampler, and fitted by least squares: they can represent the bridge, so what is left is
the error of the method, of the number of steps and of the samples. The parts are those of training:
`draw_noise`, `BridgeSteps`, the couplings, and rounds as in --mode=train_bridge. Chains of affine
steps from a Gaussian are Gaussian, and their moments follow without samples.

Results are in `benchmarks/results/bridges.jsonl`, a line for each seed; a run that was stopped
continues. The tables are in docs/bridges.md.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runs import Results

from configs import bridge_points
from data.couplings import Independent, MinibatchOT, Reference
from denoising import Denoiser
from experiment.build import build
from jobs.bridges import train_bridge
from jobs.restore import load_checkpoint
from jobs.translate import task_run
from jobs.workdir import Workdir
from metrics.sliced_wasserstein import sliced_wasserstein
from numerics.transport import assignment, entropic_plan, squared_distances
from objectives.ends import draw_noise
from objectives.mean_matching import simulate_steps
from sampling import sample
from sde_lib import LinearPathSDE
from solvers.bridge import BridgeSteps
from time_grids import Schedule

RESULTS = Results("bridges", ("table", "case", "method", "seed"))
STEPS, ROWS, BATCH = 40, 4000, 250
CASES = ((0.5, 5), (1.0, 1), (1.0, 5), (1.0, 20), (1.0, 50), (2.0, 5))  # g, dimension
ERRORS = ("mean", "covariance", "coupling")
MEAN = 0.1
BATCHES, TRANSPORT_DIMS, SHARES = (64, 256), (2, 10, 50), (0.05, 0.02, 0.005)
REFLOWS, REFLOW_STEPS = 3, (1, 4, 50)  # rounds, and steps of sampling
SCHEDULE = Schedule(grid="quadratic", steps=STEPS, t_min=1e-3, final_step="denoise")
SOLVER = BridgeSteps(variance="large")


class Problem:
    """The two Gaussians of a dimension, and their bridge of diffusion g."""

    def __init__(self, dims: int, g: float):
        self.dims, self.g = dims, g
        self.std1 = np.sqrt(np.linspace(0.25, 2.25, dims)) if dims > 1 else np.array([1.5])
        self.coupled = (np.sqrt(4 * self.std1**2 + g**4) - g**2) / 2

    def draw(self, rng, count):
        x0, x1 = rng.standard_normal((2, count, self.dims))
        return np.float32(x0 - MEAN), np.float32(x1 * self.std1 + MEAN)

    def mean(self, t):
        return (2 * t - 1) * MEAN

    def covariance(self, t):
        middle = t * (1 - t) * (2 * self.coupled + self.g**2)
        return np.diag((1 - t) ** 2 + (t * self.std1) ** 2 + middle)


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of x_t, and its covariance (d, d) with x_1."""

    t: float
    mean: np.ndarray
    covariance: np.ndarray
    with_start: np.ndarray


def affine(a, b, times, x, t):
    """The network: the predicted x0 at the time of the grid that is nearest to t."""
    at = jnp.argmin(jnp.abs(times - t[0]))
    return x @ a[at] + b[at][None]


@jax.jit
def bridges(sde, x0, x1, times, key):
    """Return states (times, n, d) of bridges between pairs, drawn as in training."""
    blank = Denoiser(sde=sde, network=lambda x, t: x, conditioning="t", end=x1)

    def at(given):
        time, key = given
        t = jnp.full(len(x0), time)
        return sde.perturb(x0, t, draw_noise(key, blank, x0, t))

    return jax.lax.map(at, (times.astype(x0.dtype), jax.random.split(key, len(times))))


def least_squares(states, targets):
    """Return the affine maps (times, d, d) and (times, d) from states to targets (times, n, d)."""
    a, b = [], []
    for x, y in zip(np.asarray(states, np.float64), targets, strict=True):
        design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        # Ridge as small as rounding: at t = 0 there is nothing to predict.
        gram = design.T @ design / len(x) + 1e-9 * np.eye(x.shape[1] + 1)
        found = np.linalg.solve(gram, design.T @ y / len(x))
        a.append(found[:-1])
        b.append(found[-1])
    return np.stack(a), np.stack(b)


def match_bridges(pairs, sde, seed):
    """Fit a network to bridges between pairs (n, 2, d), at each time of the sampler."""
    x0, x1 = pairs.swapaxes(0, 1)
    times = SCHEDULE.of(sde)
    states = bridges(sde, x0, x1, times, jax.random.key(seed))
    return times, *least_squares(states, np.broadcast_to(x0, states.shape))


def match_means(teacher, start, sde, seed):
    """Fit a network to the steps of a teacher's chains, or of the reference process without one."""
    z = jax.random.normal(jax.random.key(seed), (len(start), STEPS, start.shape[1]))
    steps = jax.jit(simulate_steps)(sde, teacher, start, z)
    a, b = least_squares(steps.x, np.asarray(steps.x0, np.float64))
    return np.asarray(steps.t, np.float64)[::-1], a[::-1], b[::-1]


def denoiser_of(fitted, sde):
    tables = (jnp.asarray(table, jnp.float32) for table in (*fitted[1:], fitted[0]))
    return Denoiser(
        sde=sde, network=Partial(affine, *tables), parameterization="x0", conditioning="t"
    )


def simulate(denoiser, x1, seed):
    key, start = jax.random.key(seed), jnp.asarray(x1)
    found = sample(key, denoiser, x1.shape, solver=SOLVER, schedule=SCHEDULE, initial=start)
    return np.asarray(found.x)


def moments(fitted, sde, mean, covariance):
    """Yield the moments of the sampler's chain that starts at t = 1 with these ones."""
    times, a, b = fitted
    plan = SOLVER.plan(sde, times)
    found = Moments(1.0, mean, covariance, covariance)
    yield found
    weights = [*plan.steps.weights, np.array([0.0, 1.0])]  # the last one denoises
    for number, (of_x, of_x0) in enumerate(weights):
        step = of_x * np.eye(len(mean)) + of_x0 * a[number]
        noise = plan.steps.noise[number] if number < len(plan.steps.noise) else 0.0
        found = Moments(
            t=times[number + 1] if number + 1 < len(times) else 0.0,
            mean=found.mean @ step + of_x0 * b[number],
            covariance=step.T @ found.covariance @ step + noise**2 * np.eye(len(mean)),
            with_start=step.T @ found.with_start,
        )
        yield found


def first_pairs(coupling, problem, rng):
    """The pairs of the first round, batch by batch as in training."""
    parts = []
    for _ in range(ROWS // BATCH):
        x0, x1 = problem.draw(rng, BATCH)
        parts.append(np.stack([x0, coupling.ends(x0, x1, rng)], axis=1))
    return np.concatenate(parts)


DSB = "the same, by mean matching"
METHODS = {
    "independent pairs": lambda g: Independent(),
    "transport in batches": lambda g: MinibatchOT(diffusion=g),
    "Markovian fitting": lambda g: Independent(),
    "proportional fitting": lambda g: Reference(diffusion=g),
    DSB: lambda g: Reference(diffusion=g),
}
FITTING = ("Markovian fitting", "proportional fitting", DSB)


def solve(method, problem, rounds, seed):
    """Return the moments along the chain from x1 to x0 after an even number of further rounds."""
    sde = LinearPathSDE(diffusion=problem.g, alpha_min=1e-6)
    rounds = rounds if method in FITTING else 0
    fitted = (rounds_of_steps if method == DSB else rounds_of_pairs)(
        METHODS[method](problem.g), problem, sde, rounds, seed
    )
    mean, covariance = np.full(problem.dims, MEAN), problem.covariance(1.0)
    return list(moments(fitted, sde, mean, covariance))


def rounds_of_pairs(coupling, problem, sde, rounds, seed):
    """Fit bridges between pairs, of which each round simulates those of the next."""
    rng = np.random.default_rng(seed)
    pairs = first_pairs(coupling, problem, rng)
    fitted = match_bridges(pairs, sde, 1000 * seed)
    for number in range(rounds):
        x0, x1 = problem.draw(rng, ROWS)
        start = x0 if number % 2 else x1  # where the paths of the last round start
        end = simulate(denoiser_of(fitted, sde), start, 1000 * seed + number)
        pairs = np.stack([start, end], axis=1)  # the other direction's data come first
        fitted = match_bridges(pairs, sde, 1000 * seed + number + 1)
    return fitted


def rounds_of_steps(coupling, problem, sde, rounds, seed):
    """Fit the steps of chains, which the round before simulates, and first the reference."""
    rng, teacher = np.random.default_rng(seed), None
    for number in range(rounds + 1):
        x0, x1 = problem.draw(rng, ROWS)
        fitted = match_means(teacher, x1 if number % 2 else x0, sde, 1000 * seed + number)
        teacher = denoiser_of(fitted, sde)
    return fitted


def errors(problem, chain):
    """Return the errors of a chain's moments, of which the first two are the largest of all times.

    They are the root mean square of the mean's, and relative ones in the Frobenius norm: of the
    covariance, and of the covariance of x0 with x1.
    """
    pairs = [(found.covariance, problem.covariance(found.t)) for found in chain]
    pairs.append((chain[-1].with_start, np.diag(problem.coupled)))
    relative = [np.linalg.norm(found - true) / np.linalg.norm(true) for found, true in pairs]
    means = [np.sqrt(np.mean((found.mean - problem.mean(found.t)) ** 2)) for found in chain]
    return {"mean": max(means), "covariance": max(relative[:-1]), "coupling": relative[-1]}


def measure_bridges(seeds, rounds):
    for g, dims in CASES:
        problem = Problem(dims, g)
        for method in METHODS:
            for seed in range(seeds):
                key = {"table": "bridges", "case": f"{g:g} | {dims}", "method": method}
                if not RESULTS.has(**key, seed=seed):
                    found = errors(problem, solve(method, problem, rounds, seed))
                    add(key | {"seed": seed, "rounds": rounds * (method in FITTING)} | found)


def measure_transport(seeds):
    """Measure the cost of regularized pairs over that of the exact assignment of their batch."""
    for batch, dims, seed in itertools.product(BATCHES, TRANSPORT_DIMS, range(seeds)):
        key = {"table": "transport", "case": f"{batch} | {dims}", "method": "", "seed": seed}
        if RESULTS.has(**key):
            continue
        problem = Problem(dims, 1.0)
        infinite = (2 * MEAN) ** 2 * dims + np.sum((problem.std1 - 1) ** 2)
        x, y = problem.draw(np.random.default_rng(seed), batch)
        cost = squared_distances(x, y)
        exact = cost[np.arange(batch), assignment(x, y)].mean()
        costs = {
            f"{share:g}": (entropic_plan(x, y, share * cost.mean()) * cost).sum() / exact
            for share in SHARES
        }
        add(key | costs | {"exact": exact / infinite})


def measure_reflow(folder, steps):
    """Train rounds of reflow on points; measure the cost of transport and the distance to moons."""
    config = bridge_points.get_config("independent")
    training = {"steps": steps, "checkpoint_every": steps, "sample_every": 0}
    config.training.update(training)
    train_bridge(build(config), Workdir(folder), rounds=REFLOWS)
    config.task.update({"name": "translate", "input": "test"})
    for number, count in itertools.product(range(REFLOWS), REFLOW_STEPS):
        config.sampling.steps = count
        experiment = build(config)
        run = task_run(experiment, experiment.sampler.task, 2000)
        found = run.run(load_checkpoint(experiment, Workdir(f"{folder}/round_{number}")))
        cost = np.mean(np.sum((found.samples - found.arrays["input"]) ** 2, axis=1))
        distance = sliced_wasserstein(found.samples, experiment.data.splits.test)
        key = {"table": "reflow", "case": str(number), "method": str(count), "seed": config.seed}
        if not RESULTS.has(**key):
            add(key | {"training_steps": steps, "cost": cost, "distance": distance})


def add(line):
    RESULTS.add({k: float(v) if isinstance(v, np.floating) else v for k, v in line.items()})


def found_of(table, case, method, name):
    """Return a number of each seed."""
    wanted = {"table": table, "case": case, "method": method}
    return np.array([line[name] for line in RESULTS.lines(**wanted)])


def cell(values):
    """Return the mean over seeds, with its standard error if there are several."""
    if not len(values):
        return "-"
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{error}"


def table_of_bridges():
    rows = ["| g | dimension | method | mean | covariance | coupling |", "|" + "---|" * 6]
    for (g, dims), method in itertools.product(CASES, METHODS):
        case = f"{g:g} | {dims}"
        cells = [cell(found_of("bridges", case, method, name)) for name in ERRORS]
        rows.append(f"| {case} | {method} | {' | '.join(cells)} |")
    return "\n".join(rows)


def table_of_transport():
    rows = [
        "| batch | dimension | regularization 0.05 | 0.02 | 0.005 "
        "| exact assignment over infinitely many rows |",
        "|" + "---|" * 6,
    ]
    names = [*(f"{share:g}" for share in SHARES), "exact"]
    for batch, dims in itertools.product(BATCHES, TRANSPORT_DIMS):
        case = f"{batch} | {dims}"
        cells = [cell(found_of("transport", case, "", name)) for name in names]
        rows.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(rows)


def table_of_reflow():
    columns = " | ".join(f"{steps} steps" for steps in REFLOW_STEPS[1:])
    rows = [
        "| rounds of reflow | transport cost, 50 steps | sliced Wasserstein distance to moons, "
        f"1 step | {columns} |",
        "|" + "---|" * 5,
    ]
    for number in range(REFLOWS):
        found = [found_of("reflow", str(number), str(REFLOW_STEPS[-1]), "cost")]
        found += [found_of("reflow", str(number), str(steps), "distance") for steps in REFLOW_STEPS]
        cells = [cell(values) for values in found]
        rows.append(f"| {number or 'none'} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10, help="even, after the first")
    parser.add_argument("--reflow", metavar="FOLDER", help="measure reflow alone, with runs there")
    parser.add_argument("--steps", type=int, default=800, help="of each round of reflow")
    parser.add_argument("--report", action="store_true", help="print the tables alone")
    given = parser.parse_args()
    if given.reflow:
        measure_reflow(given.reflow, given.steps)
    elif not given.report:
        measure_bridges(given.seeds, given.rounds)
        measure_transport(given.seeds)
    print(f"{table_of_bridges()}\n\n{table_of_transport()}\n\n{table_of_reflow()}")


if __name__ == "__main__":
    main()
