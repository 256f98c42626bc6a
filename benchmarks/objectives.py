"""Objectives compared: one network on the digits, trained by each for equally many images.

    python benchmarks/objectives.py [--seeds 3] [--steps 800] [--only NAME,NAME]

Each run adds a line to benchmarks/results/objectives.jsonl, and runs that are there are not
repeated. Prints a table: bits/dim by the probability-flow ODE, the Frechet
distance between pixels of samples and of the training images at 20 network evaluations, and seconds
per step, with standard deviations over the seeds. Times are of this machine, and only comparable
with each other if nothing else runs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results" / "objectives.jsonl"

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


def measure(name: str, seed: int, steps: int) -> dict:
    """Train and evaluate one recipe with one seed."""
    import run_lib
    from experiment.build import build
    from experiment.configurations import load_configuration
    from jobs.workdir import Workdir

    fields = {
        "seed": seed,
        "training.steps": steps,
        "training.checkpoint_every": steps,
        "training.sample_every": 0,
        "eval.dequantizations": 1,
        "eval.error_budget_images": 0,
        "eval.sampling_seeds": 1,
        "eval.metrics": ("bits_per_dim", "frechet"),
        "sampling.seed": seed,
    }
    config = load_configuration("configs/vp_digits.py")
    for path, value in (fields | RECIPES[name]).items():
        section, _, field = path.rpartition(".")
        node = config[section] if section else config
        with node.unlocked():
            node[field] = value
    with tempfile.TemporaryDirectory() as folder:
        experiment, workdir = build(config), Workdir(folder)
        start = time.perf_counter()
        run_lib.train(experiment, workdir)
        seconds = time.perf_counter() - start
        run_lib.evaluate(experiment, workdir)
        found = json.loads((workdir.eval / f"{steps}.json").read_text())
        logged = [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
    rates = [line["images_per_sec"] for line in logged[1:] if "images_per_sec" in line]
    batch = experiment.training.batch_size
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "bits_per_dim": found["bits_per_dim"]["mean"],
        "frechet": found["frechet"]["pixels"]["to_train"]["mean"],
        "seconds_per_step": batch / float(np.median(rates)),
        "seconds": round(seconds, 1),
    }


def table(lines: list[dict]) -> str:
    """Return the Markdown table of all runs."""
    rows = ["| objective | bits/dim | Frechet, 20 evaluations | s per step | seeds |", "|---|" * 5]
    rows[1] = "|---|---|---|---|---|"
    for name in RECIPES:
        runs = [line for line in lines if line["name"] == name]
        if not runs:
            continue
        cells = []
        for field, digits in (("bits_per_dim", 3), ("frechet", 3), ("seconds_per_step", 4)):
            values = np.array([run[field] for run in runs])
            spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.{digits}f}{spread}")
        rows.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--only", help="names, separated by semicolons")
    options = parser.parse_args()
    names = options.only.split(";") if options.only else list(RECIPES)
    lines = (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    done = {(line["name"], line["seed"], line["steps"]) for line in lines}
    for seed in range(options.seeds):
        for name in names:
            if (name, seed, options.steps) not in done:
                lines.append(measure(name, seed, options.steps))
                print(lines[-1], flush=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table([line for line in lines if line["steps"] == options.steps]))


if __name__ == "__main__":
    main()
