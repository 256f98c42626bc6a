r"""Which solver for which budget: samplers compared with the exact score of the digits.

    pip install matplotlib
    python benchmarks/samplers.py                      # the whole table
    python benchmarks/samplers.py --grids              # every solver on every grid

The score is exact, so that only the solver is measured. The data are scikit-learn's 1500 training
digits x_i in [-1, 1], for VE and EDM too, each with Gaussian noise of width tau = 0.1, about one
gray level (0.125). Then p(x_0) is a mixture of 1500 Gaussians, and at every noise level, with
v = sigma^2 + alpha^2 tau^2,

    E[x_0 | x_t] = (sigma^2 sum_i w_i x_i + alpha tau^2 x_t) / v,
    w_i proportional to exp(-|x_t - alpha x_i|^2 / (2 v)).

Without this noise (tau = 0) every sampler would end on training images, whatever it did at small
noise. The last evaluations would have no effect, and the distances would only show which images
were chosen. The score of a trained network has a width too.

All samplers go from t = 1 to where sigma / alpha = 0.02 and return E[x_0 | x_t] there; this
evaluation counts. They start from the same noise. Measured are

    the Frechet distance of pixels, in [0, 1], from the samples to the mixture (its exact moments);
    for solvers of the probability-flow ODE, the root mean square of the pixels' difference, in
    [0, 1], to its exact solution from the same noise.

The same number of samples of the mixture, and the exact solution, have distances above 0: the
floor. Writes benchmarks/results/samplers.md and .json, and docs/assets/samplers.png.
"""

import argparse
import dataclasses
import functools
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from networks import provenance
from sampler_report import FIGURE, RESULTS, number, write_report

import errors
import sampling
from data import datasets, scaling
from denoising import Denoiser
from files.writing import write_json
from metrics.frechet import Statistics, frechet_distance
from numerics.arrays import expand_like
from numerics.ode import ODEOptions
from sde_lib import SDE, SDES
from solvers.analytic_dpm import AnalyticDPM
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_adaptive import DPMAdaptive, sample_adaptive
from solvers.dpm_solver import DPMSolver
from solvers.heun import Heun
from solvers.moments import EpsMoments, estimate_moments
from solvers.ode import FlowOptions, sample_ode
from solvers.predictor_corrector import (
    Ancestral,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
)
from solvers.unipc import UniPC
from time_grids import TIME_GRIDS, Schedule

PROCESSES = ("vp", "subvp", "cosine", "linear", "ve", "edm")
BUDGETS = (5, 10, 20, 50, 100)
WIDTH = 0.1
# The grid of each process that is best for most solvers, by --grids.
GRIDS = {
    "vp": "quadratic",
    "subvp": "quadratic",
    "cosine": "uniform",
    "linear": "uniform",
    "ve": "log_snr",
    "edm": "log_snr",
}
LAST_NOISE = 0.02  # sigma / alpha where sampling stops
REFERENCE_STEPS = 500
DIVERGED = 1e3  # largest pixel


def digits() -> np.ndarray:
    """Return the training images of scikit-learn's digits in [-1, 1], (1500, 8, 8, 1)."""
    data = datasets.load("digits", image_size=8, channels=1)
    return scaling.ImageScaler().forward(data.quantizer.normalize(data.train))


def ideal_denoiser(sde: SDE, images: Any, width: float = WIDTH) -> Denoiser:
    """Return the exact denoiser of `images` (n, ...) with Gaussian noise of this width."""
    network = Partial(_posterior_mean, sde, jnp.asarray(images), jnp.asarray(width))
    return Denoiser(sde=sde, network=network, parameterization="x0", conditioning="t")


def _posterior_mean(sde: SDE, images: Any, width: Any, x: Any, t: Any) -> Any:
    points, flat = images.reshape(len(images), -1).astype(x.dtype), x.reshape(len(x), -1)
    alpha, sigma = expand_like(sde.alpha(t), flat), expand_like(sde.sigma(t), flat)
    inner = (alpha * width) ** 2
    # |x_t|^2 is left out; it is the same for all images.
    logits = alpha * (flat @ points.T) - alpha**2 / 2 * jnp.sum(points**2, axis=1)[None]
    weights = jax.nn.softmax(logits / (sigma**2 + inner), axis=-1)
    pull = sigma**2 * (weights @ points) + alpha * width**2 * flat
    return (pull / (sigma**2 + inner)).reshape(x.shape)


def moments_of_data(images: np.ndarray) -> Statistics:
    """Return mean and covariance of the smoothed images' pixels in [0, 1]."""
    pixels = _pixels(images)
    noise = (WIDTH / 2) ** 2 * np.eye(pixels.shape[1])
    return Statistics(len(pixels), pixels.mean(axis=0), np.cov(pixels.T, bias=True) + noise)


def distance(x: Any, truth: Statistics) -> float | None:
    """Return the Frechet distance of samples in [-1, 1]; None if they diverged."""
    pixels = _pixels(x)
    if not np.abs(pixels).max() < DIVERGED:
        return None
    return frechet_distance(
        Statistics(len(pixels), pixels.mean(axis=0), np.cov(pixels.T, bias=True)), truth
    )


def _pixels(x: Any) -> np.ndarray:
    return (np.asarray(x, np.float64).reshape(len(x), -1) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the table.

    Args:
        solver: a solver with fixed steps, or an adaptive one: a function of (denoiser, shape,
            t_min, tolerance).
        flow: whether it solves the probability-flow ODE.
        evaluations: network evaluations per step.
        tolerances: for an adaptive solver, from loose to tight; the tightest within budget counts.
        grids: grids that are better for it than those of GRIDS.
    """

    solver: Any
    flow: bool
    evaluations: int = 1
    tolerances: tuple[float, ...] = ()
    grids: dict[str, str] = field(default_factory=dict)

    def grid(self, process: str) -> str:
        return "adaptive" if self.tolerances else self.grids.get(process, GRIDS[process])


_ode = functools.partial(Entry, flow=True)
_sde = functools.partial(Entry, flow=False)


def _pc(predictor: Any, corrector: Any = None) -> PredictorCorrector:
    return PredictorCorrector(predictor=predictor, corrector=corrector)


def _singlestep(order: int) -> DPMSolver:
    return DPMSolver(order=order, method="singlestep", prediction="eps", lower_order_final=False)


def adaptive_dpm(denoiser: Denoiser, shape: tuple, t_min: float, tolerance: float):
    # As in the paper.
    options = DPMAdaptive(
        rtol=tolerance, atol=tolerance, prediction="eps", max_growth=float("inf"), t_min=t_min
    )
    return sample_adaptive(KEY, denoiser, shape, options=options)


def adaptive_ode(denoiser: Denoiser, shape: tuple, t_min: float, tolerance: float):
    ode = ODEOptions(solver="bosh3", rtol=tolerance, atol=tolerance)
    options = FlowOptions(t_min=t_min, ode_variable="angle")
    return sample_ode(KEY, denoiser, shape, options=options, ode=ode)


KEY = jax.random.key(0)
# Exceptions from GRIDS, also by --grids.
EVEN_IN_LOG = {"cosine": "log_snr", "linear": "log_snr"}
QUADRATIC = {"cosine": "quadratic", "linear": "quadratic"}
ENTRIES = {
    "DDIM": _ode(solver=DDIM()),
    "DPM-Solver-2S": _ode(solver=_singlestep(2), evaluations=2),
    "DPM-Solver-3S": _ode(solver=_singlestep(3), evaluations=3),
    "DPM-Solver++ 2M": _ode(solver=DPMSolver()),
    "DPM-Solver++ 3M": _ode(solver=DPMSolver(order=3)),
    "UniPC-2": _ode(solver=UniPC(order=2)),
    "UniPC-3": _ode(solver=UniPC()),
    "DEIS-2": _ode(solver=DEIS(order=2)),
    "DEIS-3": _ode(solver=DEIS()),
    "Heun (EDM)": _ode(solver=Heun(), evaluations=2, grids=EVEN_IN_LOG),
    "probability flow (Euler)": _ode(solver=_pc(ProbabilityFlow())),
    "adaptive DPM-Solver-23": _ode(solver=adaptive_dpm, tolerances=(0.2, 0.1, 0.05, 0.01, 0.003)),
    "adaptive ODE (bosh3)": _ode(solver=adaptive_ode, tolerances=(0.1, 0.005, 2e-4)),
    "DDIM, eta 1": _sde(solver=DDIM(eta=1.0)),
    "SDE-DPM-Solver++ 2M": _sde(solver=DPMSolver(eta=1.0)),
    "Heun with churn": _sde(solver=Heun(s_churn=20.0), evaluations=2, grids=EVEN_IN_LOG),
    "Analytic-DDIM": _sde(solver=AnalyticDPM(eta=0.0)),
    "Analytic-DDPM": _sde(solver=AnalyticDPM()),
    "ancestral, large": _sde(solver=_pc(Ancestral(variance="large")), grids=QUADRATIC),
    "Euler-Maruyama": _sde(solver=_pc(EulerMaruyama())),
    "reverse diffusion": _sde(solver=_pc(ReverseDiffusion()), grids=QUADRATIC),
    "Euler-Maruyama + Langevin": _sde(solver=_pc(EulerMaruyama(), Langevin()), evaluations=2),
    "reverse diffusion + Langevin": _sde(
        solver=_pc(ReverseDiffusion(), Langevin()), evaluations=2, grids=QUADRATIC
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A process with its exact score, the time where sampling stops, and the exact moments."""

    denoiser: Denoiser
    t_min: float
    count: int
    truth: Statistics
    moments: EpsMoments

    @classmethod
    def of(cls, process: str, count: int) -> "Problem":
        images, sde = digits(), SDES[process]()
        denoiser = ideal_denoiser(sde, images)
        t_min = float(sde.time_of_log_snr(jnp.asarray(-2 * np.log(LAST_NOISE))))
        noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
        times = Schedule(grid="log_snr", steps=60, t_min=t_min).of(sde)
        batch = jnp.asarray(images + WIDTH * noise)
        moments = estimate_moments(jax.random.key(1), denoiser, [batch], times)
        truth = moments_of_data(images)
        return cls(denoiser=denoiser, t_min=t_min, count=count, truth=truth, moments=moments)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, 8, 8, 1)

    @functools.cache  # noqa: B019 (a problem lives as long as the program)
    def times(self, grid: str, steps: int) -> tuple[float, ...]:
        schedule = Schedule(grid=grid, steps=steps, t_min=self.t_min)
        return tuple(schedule.of(self.denoiser.sde).tolist())

    def sample(self, solver: Any, grid: str, steps: int) -> sampling.Samples:
        """Draw samples by a solver with fixed steps."""
        schedule = Schedule(times=self.times(grid, steps), final_step="denoise")
        if hasattr(solver, "moments"):
            solver = dataclasses.replace(solver, moments=self.moments)
        return sampling.sample(KEY, self.denoiser, self.shape, solver=solver, schedule=schedule)

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """The exact solution of the probability flow, by UniPC of order 4."""
        return np.asarray(self.sample(UniPC(), "log_snr", REFERENCE_STEPS).x)

    @functools.cached_property
    def facts(self) -> dict[str, float]:
        """The floor, the distance of the exact solution, and the error of that solution."""
        coarse = np.asarray(self.sample(UniPC(), "log_snr", REFERENCE_STEPS // 2).x)
        rng, images = np.random.default_rng(1), digits()
        draws = [images[rng.integers(len(images), size=self.count)] for _ in range(10)]
        draws = [draw + WIDTH * rng.standard_normal(draw.shape) for draw in draws]
        floors = [distance(draw, self.truth) for draw in draws]
        return {
            "data": float(np.mean(floors)),
            "data_std": float(np.std(floors)),
            "exact": distance(self.exact, self.truth),
            "exact_error": float(np.sqrt(np.mean((coarse - self.exact) ** 2)) / 2),
        }

    def measured(self, samples: sampling.Samples, flow: bool) -> dict[str, Any]:
        """Return the distance to the data and, with `flow`, the error to the exact solution."""
        result = {"nfe": samples.nfe, "distance": distance(samples.x, self.truth)}
        if flow and result["distance"] is not None:
            squares = np.mean((_pixels(samples.x) - _pixels(self.exact)) ** 2, axis=1)
            result["error"] = float(np.sqrt(squares.mean()))
            result["median_error"] = float(np.sqrt(np.median(squares)))
        return result


def fixed(problem: Problem, entry: Entry, grid: str, budgets: tuple[int, ...]) -> dict[int, dict]:
    """Measure a solver with fixed steps within each budget."""
    results = {}
    for budget in budgets:
        steps = (budget - 1) // entry.evaluations  # one evaluation denoises
        try:
            samples = problem.sample(entry.solver, grid, steps)
        except errors.SamplingError:
            results[budget] = {"nfe": 1 + steps * entry.evaluations, "distance": None}
        else:
            results[budget] = problem.measured(samples, entry.flow)
    return results


def adaptive(problem: Problem, entry: Entry, budgets: tuple[int, ...]) -> dict[int, dict]:
    """Measure an adaptive solver within each budget."""
    results: dict[int, dict] = {}
    for tolerance in entry.tolerances:
        samples = entry.solver(problem.denoiser, problem.shape, problem.t_min, tolerance)
        if samples.nfe > max(budgets):
            break
        result = {"tolerance": tolerance, **problem.measured(samples, entry.flow)}
        results |= {budget: result for budget in budgets if samples.nfe <= budget}
    return results


def measure(process: str, names: list[str], budgets: tuple[int, ...], count: int) -> dict:
    """Measure all rows of a process."""
    problem, rows = Problem.of(process, count), {}
    for name in names:
        entry, start = ENTRIES[name], time.perf_counter()
        if entry.tolerances:
            results = adaptive(problem, entry, budgets)
        else:
            results = fixed(problem, entry, entry.grid(process), budgets)
        shown = [number(r["distance"]) for r in results.values()]
        print(f"  {name:30} {'  '.join(shown)}  ({time.perf_counter() - start:.1f} s)", flush=True)
        budgeted = {str(budget): result for budget, result in results.items()}
        rows[name] = {"grid": entry.grid(process), "flow": entry.flow, "budgets": budgeted}
    return {"t_min": problem.t_min, **problem.facts, "rows": rows}


def try_grids(process: str, names: list[str], budgets: tuple[int, ...], count: int) -> None:
    """Print the distances of every solver on every grid."""
    problem = Problem.of(process, count)
    for name in names:
        for grid in TIME_GRIDS if not ENTRIES[name].tolerances else ():
            results = fixed(problem, ENTRIES[name], grid, budgets)
            shown = [f"{number(r['distance']):10}" for r in results.values()]
            print(f"  {name:30} {grid:10} {''.join(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grids", action="store_true", help="try all grids, and write nothing")
    parser.add_argument("--processes", default=",".join(PROCESSES))
    parser.add_argument("--solvers", help="names in the table, separated by ;")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--count", type=int, default=2000, help="samples of each solver")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    budgets = tuple(map(int, options.budgets.split(",")))
    names = options.solvers.split(";") if options.solvers else list(ENTRIES)
    content = {
        **provenance(jax.devices()[0].device_kind),
        "count": options.count,
        "width": WIDTH,
        "clip_last_std": LAST_NOISE,
        "budgets": budgets,
        "processes": {},
    }
    start = time.perf_counter()
    for process in options.processes.split(","):
        print(f"{process} ({time.perf_counter() - start:.0f} s)", flush=True)
        work = try_grids if options.grids else measure
        content["processes"][process] = work(process, names, budgets, options.count)
    if not options.grids:
        content["seconds"] = round(time.perf_counter() - start)
        write_json(options.results, content)
        write_report(content, options.results.with_suffix(".md"), options.figure)


if __name__ == "__main__":
    main()
