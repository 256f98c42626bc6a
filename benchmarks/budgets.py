"""Which solver to take: Frechet distance at 5 to 100 evaluations, on trained networks.

    python benchmarks/budgets.py digits [--workdir=RUN] [--samples=1500]
    python benchmarks/budgets.py mnist --workdir=RUN [--samples=500]
    python benchmarks/budgets.py --table

`digits` is a run of configs/vp_digits.py, which is trained first without `--workdir`. `mnist` is
one of configs/vp_mnist.py with its classifier, such as runs/results/vp_mnist. Its samples are of
all classes in turn, and the distance is that of the classifier's features.

A row takes the quadratic grid, unless it names EDM's. Each ends with a prediction of x0, which
counts as an evaluation. Steps of two evaluations make an odd number with it, so these have one less
where the column is even. All cells begin with the same noise. `floor` is the mean distance of as
many training images. Results go to results/budgets.jsonl, and what is there is not repeated.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runs import Results, trained
from trained_samplers import KEYS, Run, fill, markdown

import scoresde as ss
from solvers.deis import DEIS
from solvers.predictor_corrector import Ancestral, EulerMaruyama, Langevin

RESULTS = Results("budgets", KEYS)
CONFIGURATION = "configs/vp_digits.py"
BUDGETS = (5, 10, 20, 50, 100)
FEATURES = {"digits": "pixels", "mnist": "classifier"}
SAMPLES = {"digits": 1500, "mnist": 500}
T_MIN = 1e-3
FLOOR = "floor"


class Choice(NamedTuple):
    """A solver, its grid, and how many evaluations a step takes."""

    solver: object
    grid: str = "quadratic"
    per_step: int = 1


CHOICES = {
    "DDIM": Choice(ss.DDIM()),
    "DPM-Solver++ 2M": Choice(ss.DPMSolver(order=2)),
    "DPM-Solver++ 3M": Choice(ss.DPMSolver(order=3)),
    "DEIS 3": Choice(DEIS(order=3)),
    "UniPC 3": Choice(ss.UniPC(order=3)),
    "UniPC 3, EDM's grid": Choice(ss.UniPC(order=3), grid="karras"),
    "Heun": Choice(ss.Heun(), per_step=2),
    "Heun, EDM's grid": Choice(ss.Heun(), grid="karras", per_step=2),
    # With fresh noise:
    "Heun, EDM's grid, churn 10": Choice(ss.Heun(s_churn=10.0), grid="karras", per_step=2),
    "DDIM, eta = 1": Choice(ss.DDIM(eta=1.0)),
    "DPM-Solver++ 2M SDE": Choice(ss.DPMSolver(order=2, eta=1.0)),
    "ancestral, large variance": Choice(
        ss.PredictorCorrector(predictor=Ancestral(variance="large"))
    ),
    "Euler-Maruyama": Choice(ss.PredictorCorrector(predictor=EulerMaruyama())),
    "Euler-Maruyama and Langevin": Choice(
        ss.PredictorCorrector(predictor=EulerMaruyama(), corrector=Langevin(snr=0.16)), per_step=2
    ),
}


def schedule(choice: Choice, evaluations: int) -> ss.Schedule:
    """Return the grid of at most so many evaluations, the last of which predicts x0."""
    steps = (evaluations - 1) // choice.per_step
    return ss.Schedule(grid=choice.grid, steps=steps, t_min=T_MIN, final_step="denoise")


def cells() -> Iterator[tuple]:
    """Yield the cells of the table, those of few evaluations first."""
    for evaluations in BUDGETS:
        for name, choice in CHOICES.items():
            yield name, str(evaluations), choice.solver, schedule(choice, evaluations)


def columns_of(run: str) -> list[str]:
    """Return the budgets at which all solvers are measured."""
    count = SAMPLES[run]
    found = [e["column"] for e in RESULTS.lines() if (e["run"], e["samples"]) == (run, count)]
    return [column for column in map(str, BUDGETS) if found.count(column) == len(CHOICES)]


def table(run: str) -> str:
    """Return the table of a run."""
    columns = columns_of(run)
    return markdown(RESULTS, run, SAMPLES[run], "evaluations", CHOICES, columns)


def floor(run: str) -> float:
    """Return the mean distance of as many training images as there are samples."""
    lines = [each for each in RESULTS.lines() if (each["run"], each["row"]) == (run, FLOOR)]
    return next(each["frechet"] for each in lines if each["samples"] == SAMPLES[run])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", choices=FEATURES, default="digits")
    parser.add_argument("--workdir", type=Path, help="of a trained run; digits: default, train one")
    parser.add_argument("--samples", type=int, help="default: 1500 of digits, 500 of mnist")
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    if not options.table:
        if options.run == "mnist" and not options.workdir:
            parser.error("mnist needs --workdir=RUN; `python results/run.py vp_mnist` makes one")
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.workdir or Path(scratch) / "run"
            if not options.workdir:
                trained(CONFIGURATION, {}, folder)
            count = options.samples or SAMPLES[options.run]
            run = Run(folder, count, name=options.run, features=FEATURES[options.run])
            key = {"run": run.name, "row": FLOOR, "column": "", "samples": count}
            if not RESULTS.has(**key):
                RESULTS.add({**key, "frechet": run.floor()})
            fill(RESULTS, run, cells())
    for run in FEATURES:
        print(f"\n{run}\n{table(run)}")


if __name__ == "__main__":
    main()
