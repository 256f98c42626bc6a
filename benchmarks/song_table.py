"""Song et al. 2021's Table 1 on trained networks: predictors, correctors, and both, for VE and VP.

    python benchmarks/song_table.py [--ve=RUN] [--vp=RUN] [--steps=100] [--samples=500]
    python benchmarks/song_table.py --steps=1000
    python benchmarks/song_table.py --table

The columns of the paper (arXiv:2011.13456), for N noise levels in place of its 1000:

    PN     predictor only, N evaluations of the network
    P2N    predictor only, twice as many steps, 2 N evaluations
    C2N    corrector only (Langevin), at 2 N noise levels; and C2000 as in the paper
    PCN    predictor and corrector at N noise levels, 2 N evaluations

Each ends with a prediction of x0, which counts as an evaluation. Ancestral sampling has the large
variance for VP and the small one for VE, as in the paper. Without `--ve` and `--vp` both networks
are trained first, in a temporary folder: configs/vp_digits.py, for VE with the fields of VE below.
Results go to results/song_table.jsonl, and what is there is not repeated. N = 100 with 500 samples
takes about ten minutes of one core.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runs import Results, trained
from trained_samplers import KEYS, Run, fill, markdown

import scoresde as ss
from solvers.predictor_corrector import (
    Ancestral,
    Langevin,
    ProbabilityFlow,
    ReverseDiffusion,
)

RESULTS = Results("song_table", KEYS)
CONFIGURATION = "configs/vp_digits.py"
LIGHT = {"training.sample_every": 0, "diagnostics.every": 0}
# The largest distance between two digits in [0, 1] is 4.8 (technique 1 of Song and Ermon 2020).
FIELDS = {
    "VE": {
        "sde.name": "ve",
        "sde.sigma_max": 5.0,
        "data.centered": False,
        "denoiser.parameterization": "edm",
        **LIGHT,
    },
    "VP": LIGHT,
}
T_MIN = {"VE": 1e-5, "VP": 1e-3}
PREDICTORS = {
    "VE": {
        "ancestral sampling": Ancestral(variance="small"),
        "reverse diffusion": ReverseDiffusion(),
        "probability flow": ProbabilityFlow(),
    },
    "VP": {
        "ancestral sampling": Ancestral(variance="large"),
        "reverse diffusion": ReverseDiffusion(),
        "probability flow": ProbabilityFlow(),
    },
}
CORRECTOR_ONLY = "corrector only"


def schedule(name: str, levels: int) -> ss.Schedule:
    """Return the uniform grid of the paper with so many noise levels, the last denoised."""
    return ss.Schedule(steps=levels - 1, t_min=T_MIN[name], final_step="denoise")


def corrector_levels(n: int) -> list[int]:
    """Return the numbers of levels of the corrector alone.

    One Langevin step per level follows the noise only where levels are close. So the paper's 2000
    are measured for any N.
    """
    return sorted({2 * n, 2000})


def cells(name: str, n: int) -> Iterator[tuple]:
    """Yield the cells of the table of one process, the short ones first."""

    def solver(predictor, corrector):
        return ss.PredictorCorrector(predictor=predictor, corrector=corrector)

    langevin = Langevin(snr=0.16, norm_reduction="batch")
    for row, predictor in PREDICTORS[name].items():
        yield row, f"P{n}", solver(predictor, None), schedule(name, n)
    for row, predictor in PREDICTORS[name].items():
        yield row, f"PC{n}", solver(predictor, langevin), schedule(name, n)
    for row, predictor in PREDICTORS[name].items():
        yield row, f"P{2 * n}", solver(predictor, None), schedule(name, 2 * n)
    for levels in corrector_levels(n):
        yield CORRECTOR_ONLY, f"C{levels}", solver(None, langevin), schedule(name, levels)


def table(name: str, n: int, samples: int) -> str:
    """Return the table of one process."""
    corrector = [f"C{levels}" for levels in corrector_levels(n)]
    columns = [f"P{n}", f"P{2 * n}", *corrector, f"PC{n}"]
    return markdown(RESULTS, name, samples, name, [*PREDICTORS[name], CORRECTOR_ONLY], columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ve", type=Path, help="a trained run; default: train one")
    parser.add_argument("--vp", type=Path, help="a trained run; default: train one")
    parser.add_argument("--steps", type=int, default=100, help="N, 1000 in the paper")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--table", action="store_true", help="print what is measured")
    options = parser.parse_args()
    n = options.steps
    with tempfile.TemporaryDirectory() as scratch:
        for name in () if options.table else ("VP", "VE"):
            folder = getattr(options, name.lower()) or Path(scratch) / name
            if not getattr(options, name.lower()):
                trained(CONFIGURATION, FIELDS[name], folder)
            run = Run(folder, options.samples)
            print(f"{name}, as many training images: {run.floor():.3f}", flush=True)
            fill(RESULTS, run, cells(name, n))
    for name in PREDICTORS:
        print(f"\n{table(name, n, options.samples)}")


if __name__ == "__main__":
    main()
