"""Objectives compared: one network on the digits, trained by each for equally many images.

    python benchmarks/objectives.py [--seeds=3] [--steps=600] [--only="EDM;v"]
    python benchmarks/objectives.py --timing
    python benchmarks/objectives.py --table

Each run adds a line to results/objectives.jsonl, and runs that are there are not repeated. They are
measured by bits/dim of the probability-flow ODE on the 297 test images, and by the Frechet
distance between pixels of 1500 samples in 20 network evaluations and the training images. A run
takes about 45 seconds on two cores.

`--timing` measures training steps of all recipes in turns, in one process, and writes
results/objectives_timing.jsonl: a minute, and three more if nothing is compiled yet. `--table`
prints the table of docs/objectives.md.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from runs import Results, different, evaluated, experiment_of, frechet_of, in_turns, spread, trained

RESULTS = Results("objectives", ("name", "seed", "steps"))
TIMES = Results("objectives_timing", ("name",))
CONFIGURATION = "configs/vp_digits.py"
BASELINE = "sigma2, stratified"

CHAIN = {
    "sde.name": "ddpm",
    "times.name": "timesteps",
    "denoiser.conditioning": "timestep",
    "data.dequantization": "none",
}
LEARNED = CHAIN | {
    "model.name": "adm",
    "model.learned_variance": True,
    "model.head_width": 32,
    "model.channel_multipliers": (1, 1),
    "model.attention_resolutions": (4,),
    "denoiser.parameterization": "eps_learned_variance",
}
FLOW = {
    "sde.name": "linear",
    "denoiser.parameterization": "velocity",
    "weight.name": "velocity",
}
# What differs from configs/vp_digits.py: VP, noise prediction, weight sigma2, stratified times.
RECIPES = {
    "sigma2, uniform": {"times.name": "uniform"},
    "sigma2, stratified": {},
    "g2, uniform": {"weight.name": "g2", "times.name": "uniform"},
    "g2, log-SNR": {"weight.name": "g2", "times.name": "log_snr"},
    "g2, loss-aware": {"weight.name": "g2", "times.name": "loss_aware_bins", "times.bins": 20},
    "min-SNR 5": {"weight.name": "min_snr", "weight.gamma": 5.0},
    "v": {"denoiser.parameterization": "v", "weight.name": "v"},
    "x0, min-SNR 5": {
        "denoiser.parameterization": "x0",
        "weight.name": "min_snr",
        "weight.gamma": 5.0,
    },
    "sigmoid, log-SNR": {
        "weight.name": "sigmoid",
        "times.name": "log_snr",
        "times.divide_density": False,
    },
    "EDM": {
        "sde.name": "edm",
        "denoiser.parameterization": "edm",
        "weight.name": "edm",
        "times.name": "log_normal",
    },
    "flow matching": FLOW,
    "rectified flow, logit-normal": FLOW | {"times.name": "logit_normal"},
    "DDPM's chain": CHAIN,
    "improved DDPM, L_hybrid": LEARNED | {"loss.name": "hybrid"},
    "improved DDPM, L_vlb": LEARNED | {"loss.name": "vlb", "times.name": "loss_aware"},
}


def fields_of(name: str, seed: int, steps: int) -> dict:
    """Return what a run of a recipe changes in the configuration."""
    fields = {
        "seed": seed,
        "training.steps": steps,
        "training.checkpoint_every": steps,
        "training.sample_every": 0,
        "diagnostics.every": 0,
        "eval.dequantizations": 1,
        "eval.error_budget_images": 0,
        "eval.sampling_seeds": 1,
        "eval.metrics": ("bits_per_dim", "frechet"),
        "sampling.seed": seed,
    }
    return fields | RECIPES[name]


def measure(name: str, seed: int, steps: int) -> dict:
    """Train and evaluate one recipe with one seed."""
    fields = fields_of(name, seed, steps)
    with tempfile.TemporaryDirectory() as folder:
        seconds = trained(CONFIGURATION, fields, Path(folder))
        found = evaluated(CONFIGURATION, fields, Path(folder))
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "bits_per_dim": found["bits_per_dim"]["mean"],
        "frechet": frechet_of(found),
        "seconds": round(seconds, 1),
    }


def stepping(name: str, count: int) -> Callable[[], None]:
    """Return a call that takes training steps of a recipe, which is compiled."""
    import jax

    from experiment.randomness import base_key
    from jobs.training_job import model_job

    job = model_job(experiment_of(CONFIGURATION, fields_of(name, 0, 600)))
    parallel, batches = job.data.parallel, job.batches()
    rows = parallel.local_rows(job.options.batch_size)
    batch = parallel.put_batch(batches.at(0, rows))
    advance, key = job.trainer.compiled_step(), base_key(0, "training")
    state = [job.trainer.init_state(base_key(0, "init"))]

    def call() -> None:
        for _ in range(count):
            state[0], _ = advance(key, state[0], batch)
        jax.block_until_ready(state[0])

    call()
    print(name, flush=True)
    return call


def time_steps(seconds: float) -> None:
    """Measure seconds per step of all recipes in turns, and their ratios to the baseline."""
    count = 10
    found = in_turns({name: stepping(name, count) for name in RECIPES}, seconds)
    lines = []
    for name, times in found.items():
        ratios = times / found[BASELINE]
        lines.append(
            {
                "name": name,
                "rounds": len(times),
                "cpu_ms_per_step": 1000 * float(np.median(times[:, 0])) / count,
                "ms_per_step": 1000 * float(np.median(times[:, 1])) / count,
                "cpu_ratio": [float(q) for q in np.quantile(ratios[:, 0], [0.25, 0.5, 0.75])],
                "ratio": [float(q) for q in np.quantile(ratios[:, 1], [0.25, 0.5, 0.75])],
            }
        )
        print(lines[-1])
    TIMES.put(*lines)


def table(lines: list[dict]) -> str:
    """Return the Markdown table of runs with equally many steps.

    A star marks a mean whose difference from the baseline is beyond its 95% interval.
    """
    rows = [
        "| objective | bits/dim | Frechet distance, 20 evaluations | time per step, relative |",
        "|---|---|---|---|",
    ]
    times = {line["name"]: line["cpu_ratio"][1] for line in TIMES.lines()}
    runs = {
        name: {line["seed"]: line for line in lines if line["name"] == name} for name in RECIPES
    }
    seeds = sorted(set.intersection(*(set(found) for found in runs.values())))
    stars = {name: ["", ""] for name in RECIPES}
    if len(seeds) > 1:
        for column, field in enumerate(("bits_per_dim", "frechet")):
            groups = [np.log([runs[name][seed][field] for seed in seeds]) for name in RECIPES]
            baseline = groups[list(RECIPES).index(BASELINE)]
            for name, star in zip(RECIPES, different(groups, baseline), strict=True):
                stars[name][column] = " *" if star else ""
    for name in RECIPES:
        bits, frechet = (
            spread(run[field] for run in runs[name].values()) if runs[name] else ""
            for field in ("bits_per_dim", "frechet")
        )
        ratio = f"{times[name]:.2f}" if name in times else ""
        rows.append(f"| {name} | {bits}{stars[name][0]} | {frechet}{stars[name][1]} | {ratio} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", help="names, separated by semicolons")
    parser.add_argument("--timing", action="store_true", help="time steps instead")
    parser.add_argument("--seconds", type=float, default=60, help="of --timing, without compiling")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.timing:
        time_steps(options.seconds)
    names = options.only.split(";") if options.only else list(RECIPES)
    for seed in () if options.timing or options.table else range(options.seeds):
        for name in names:
            if not RESULTS.has(name=name, seed=seed, steps=options.steps):
                RESULTS.add(measure(name, seed, options.steps))
    print(table(RESULTS.lines(steps=options.steps)))


if __name__ == "__main__":
    main()
