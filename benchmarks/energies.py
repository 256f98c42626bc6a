"""Score matching and maximum likelihood of an energy on the same points, against the truth.

    python benchmarks/energies.py                  # trains three seeds of each; about 5 minutes
    python benchmarks/energies.py --seeds=0
    python benchmarks/energies.py --report         # the table alone
    python benchmarks/energies.py --chains         # plain and Metropolis-adjusted Langevin

The points are the two moons with the noise of t = 0.03, whose density is known: an integral over
the arcs. The normalizing constants of the energies are integrals on a grid. Results are in
`benchmarks/results/energies.jsonl` and `energies_chains.jsonl`; the tables are in docs/energies.md.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.special

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runs import Results, experiment_of, markdown_table

T = 0.03
NODES = 500  # of the integral over an arc
METHODS = {
    "score matching": "configs/energy_moons.py",
    "maximum likelihood": "configs/energy_moons.py:maximum_likelihood",
}
RESULTS = Results("energies", ("method", "seed"))
STEP_SIZES = (0.2, 0.5, 1.0, 1.5)  # of chains, in units of the variance
CHAINS = Results("energies_chains", ("solver", "step_size"))


def log_density(x, experiment):
    """The truth in the range of the network: log p_t of the moons of `data.generators`."""
    sde, scaler = experiment.model.sde, experiment.data.scaler
    mean, std = np.array(scaler.mean), np.array(scaler.std)
    angle = np.pi * (np.arange(NODES) + 0.5) / NODES
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centers = np.concatenate([upper, np.array([1, 0.5]) - upper])
    alpha, sigma = float(sde.alpha(np.float32(T))), float(sde.sigma(np.float32(T)))
    centers, variance = alpha * (centers - mean) / std, (alpha * 0.08 / std) ** 2 + sigma**2
    found = []
    for part in np.array_split(x, 20):
        squares = np.sum((part[:, None] - centers) ** 2 / variance, axis=-1)
        found.append(scipy.special.logsumexp(-squares / 2, axis=1) - np.log(len(centers)))
    return np.concatenate(found) - np.sum(np.log(2 * np.pi * variance)) / 2


def measure(method, seed):
    import jax
    import jax.numpy as jnp

    import run_lib
    from jobs.densities import density_on_grid
    from jobs.restore import load_checkpoint
    from jobs.workdir import Workdir
    from likelihood import LikelihoodOptions, log_prob
    from sampling import sample
    from solvers.mala import MALA
    from time_grids import Schedule

    fields = {"seed": seed, "training.sample_every": 0}
    experiment = experiment_of(METHODS[method], fields)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        run_lib.train(experiment, Workdir(Path(folder)))
        seconds = time.process_time() - start
        denoiser = load_checkpoint(experiment, Workdir(Path(folder))).denoiser
    data, sde = experiment.data, experiment.model.sde
    encoded = jnp.asarray(data.encode(data.splits.test[:]))
    noise = jax.random.normal(jax.random.key(0), encoded.shape)
    x = sde.perturb(encoded, jnp.asarray(T), noise)
    truth = log_density(np.asarray(x, float), experiment)
    energy = np.asarray(denoiser.log_density(x, T), float)
    density = density_on_grid(denoiser, np.asarray(data.encode(data.splits.train[:])), T)
    line = {
        "method": method,
        "seed": seed,
        "truth": truth.mean() + data.log_det,
        "nats": energy.mean() - density.log_z + data.log_det,
        "error": (energy - truth).std(),
        "upper": mass_of_upper_moon(density, experiment),
        "cpu_seconds": round(seconds, 1),
    }
    if method == "score matching":
        options = LikelihoodOptions(trace="exact", t_min=T)
        found = log_prob(jax.random.key(0), denoiser, x, options=options)
        line["nats_by_ode"] = float(found.nats.mean()) + data.log_det
    schedule = Schedule(steps=500, t_min=T, final_step="none")
    drawn = sample(jax.random.key(1), denoiser, (1000, 2), solver=MALA(), schedule=schedule)
    line["acceptance"] = drawn.acceptance.mean()
    RESULTS.add({k: v if isinstance(v, str | int) else float(v) for k, v in line.items()})


def mass_of_upper_moon(density, experiment):
    """The probability of the places that are nearer to the upper arc; of the truth, 1/2."""
    side = len(density.values)
    axes = [
        low + (np.arange(side) + 0.5) * (high - low) / side
        for low, high in zip(density.low, density.high, strict=True)
    ]
    scaler = experiment.data.scaler
    x, y = (axis * s + m for axis, s, m in zip(axes, scaler.std, scaler.mean, strict=True))
    x, y = np.meshgrid(x, y)
    weights = np.exp(density.values)
    return (weights * (arc(x, y) < arc(1 - x, 0.5 - y))).sum() / weights.sum()


def arc(x, y):
    """The distance to the half circle (cos a, sin a), 0 <= a <= pi."""
    ends = np.hypot(np.abs(x) - 1, y)
    return np.where(y > 0, np.abs(np.hypot(x, y) - 1), ends)


def chains(count=40_000, steps=60):
    """Measure the variance of chains over that of the energy's Gaussian N(0, V), V = sigma^2."""
    import jax
    import jax.numpy as jnp

    from denoising import Denoiser
    from sampling import sample
    from sde_lib import VPSDE
    from solvers.langevin import LangevinDynamics
    from solvers.mala import MALA
    from time_grids import Schedule

    def energy(x, t):
        return -jnp.sum(x**2, axis=1) / (2 * VPSDE().sigma(t) ** 2)

    def network(x, t):
        return -x / VPSDE().sigma(t)[:, None] ** 2

    denoiser = Denoiser(
        sde=VPSDE(), network=network, energy=energy, parameterization="score", conditioning="t"
    )
    schedule = Schedule(steps=steps, t_min=T, final_step="none")
    variance = float(VPSDE().sigma(jnp.float32(T))) ** 2
    for step_size in STEP_SIZES:
        for solver in (LangevinDynamics(step_size=step_size), MALA(step_size=step_size)):
            key, shape = jax.random.key(0), (count, 1)
            found = sample(key, denoiser, shape, solver=solver, schedule=schedule)
            line = {"solver": type(solver).__name__, "step_size": step_size}
            line["ratio"] = float(np.var(np.asarray(found.x, float)) / variance)
            if found.acceptance is not None:
                line["acceptance"] = float(found.acceptance.mean())
            if not CHAINS.has(**line):
                CHAINS.add(line)


def table():
    """Return the table of both methods, in Markdown."""
    rows = []
    for label, key, form in (
        ("log-likelihood, Z by the grid", "nats", "{:.3f} ± {:.3f}"),
        ("log-likelihood by the ODE, without Z", "nats_by_ode", "{:.3f} ± {:.3f}"),
        ("truth", "truth", "{:.3f}"),
        (
            "error of log p up to a constant, standard deviation on the test points",
            "error",
            "{:.2f} ± {:.2f}",
        ),
        ("probability of the upper moon of each network; truth 0.5", "upper", ""),
        ("CPU seconds of training", "cpu_seconds", "{:.0f} ± {:.0f}"),
    ):
        cells = []
        for method in METHODS:
            found = [line[key] for line in of_method(method) if key in line]
            each = ", ".join(f"{value:.2f}" for value in found)
            spread = np.std(found, ddof=1) if found else 0
            cells.append(form.format(np.mean(found), spread) if found and form else each)
        rows.append((label, *cells))
    return markdown_table(("", *METHODS), rows)


def of_method(method):
    return sorted(RESULTS.lines(method=method), key=lambda line: line["seed"])


def chains_table():
    """Return the table of chains, in Markdown."""
    found = {(line["solver"], line["step_size"]): line for line in CHAINS.lines()}
    plain, adjusted = (
        [found[solver, step_size] for step_size in STEP_SIZES]
        for solver in ("LangevinDynamics", "MALA")
    )
    return markdown_table(
        ("`step_size`", *(f"{step_size:g}" for step_size in STEP_SIZES)),
        [
            ("`langevin`", *(f"{line['ratio']:.2f}" for line in plain)),
            ("1 / (1 - h / 2 V)", *(f"{1 / (1 - h / 2):.2f}" for h in STEP_SIZES)),
            ("`mala`", *(f"{line['ratio']:.2f}" for line in adjusted)),
            ("`mala`, accepted", *(f"{line['acceptance']:.0%}" for line in adjusted)),
        ],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--report", action="store_true", help="print the table alone")
    parser.add_argument("--chains", action="store_true", help="compare chains, train nothing")
    given = parser.parse_args()
    if given.chains:
        chains()
        print(chains_table())
        return
    if not given.report:
        for seed in map(int, given.seeds.split(",")):
            for method in given.methods.split(","):
                if not RESULTS.has(method=method, seed=seed):
                    measure(method, seed)
    print(table())


if __name__ == "__main__":
    main()
