"""Samplers on a 4-component Gaussian mixture in 2-D, whose score is known at every time.

    python benchmarks/mixture.py

Prints, in float64: for each process, the errors of mean, covariance and mode weights of samples, in
their Monte-Carlo standard errors; for VP, errors of the fixed-step solver as the step halves. Runs
in about a minute. Likelihoods of the same mixture are in `likelihood.py`.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from analytic import standardized_mixture

import sampling
import sde_lib
from numerics.ode import ODEOptions
from solvers.ode import FlowOptions, sample_ode
from solvers.predictor_corrector import EulerMaruyama, PredictorCorrector

COUNT = 20_000
T_MIN = 1e-5
MIXTURE = standardized_mixture()
TIGHT = ODEOptions(solver="dopri8", rtol=1e-9, atol=1e-9)


def deviations(samples: np.ndarray) -> str:
    """Return the largest errors of mean, covariance and weights, in Monte-Carlo standard errors."""
    x = np.asarray(samples, np.float64)
    products = np.einsum("bi,bj->bij", x - MIXTURE.mean, x - MIXTURE.mean).reshape(len(x), -1)
    members = np.eye(len(MIXTURE.weights))[MIXTURE.nearest(x)]
    truth = MIXTURE.sample(1, 1_000_000)
    weights = np.eye(len(MIXTURE.weights))[MIXTURE.nearest(truth)].mean(axis=0)
    pairs = (
        (x, MIXTURE.mean),
        (products, MIXTURE.covariance.ravel()),
        (members, weights),
    )
    scores = [
        np.abs((v.mean(axis=0) - true) / (v.std(axis=0) / np.sqrt(len(v)))).max()
        for v, true in pairs
    ]
    return " | ".join(f"{score:.1f}" for score in scores)


def draw(sde: sde_lib.SDE, steps: int, churn: float, grid: str = "uniform") -> np.ndarray:
    solver = PredictorCorrector(predictor=EulerMaruyama(churn=churn))
    schedule = sampling.Schedule(steps=steps, t_min=T_MIN, grid=grid, final_step="none")
    denoiser = MIXTURE.denoiser(sde)
    key = jax.random.key(1)
    return np.asarray(
        sampling.sample(key, denoiser, (COUNT, 2), solver=solver, schedule=schedule).x
    )


def flow(sde: sde_lib.SDE, ode: ODEOptions) -> tuple[np.ndarray, int]:
    options = FlowOptions(t_min=T_MIN, final_step="none")
    samples = sample_ode(
        jax.random.key(1), MIXTURE.denoiser(sde), (COUNT, 2), options=options, ode=ode
    )
    return np.asarray(samples.x), samples.nfe


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    jax.config.update("jax_enable_x64", True)
    sdes = {"VP": sde_lib.VPSDE(), "sub-VP": sde_lib.SubVPSDE(), "VE": sde_lib.VESDE()}
    print(f"{COUNT} samples: mean | covariance | mode weights, in standard errors")
    for name, sde in sdes.items():
        grid = "log_snr" if name == "VE" else "uniform"
        print(f"  {name:7} Euler-Maruyama, 1000 steps:  {deviations(draw(sde, 1000, 1.0, grid))}")
        x, nfe = flow(sde, ODEOptions())
        print(f"  {name:7} probability flow, NFE {nfe:4}:   {deviations(x)}")
    print("\nEuler on the probability-flow ODE, mean distance to the exact solution, VP")
    exact, _ = flow(sdes["VP"], TIGHT)
    last = None
    for steps in (100, 200, 400, 800, 1600):
        error = np.linalg.norm(draw(sdes["VP"], steps, 0.0) - exact, axis=1).mean()
        order = "" if last is None else f"order {np.log2(last / error):.2f}"
        print(f"  {steps:5} steps {error:.2e} {order}")
        last = error


if __name__ == "__main__":
    main()
