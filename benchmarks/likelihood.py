r"""Log-likelihoods: exactness, cost, and speed against the published computation.

    python benchmarks/likelihood.py                              # the first table only
    python main.py --config=configs/vp_digits.py --mode=train    # minutes; then all three tables:
    python benchmarks/likelihood.py --workdir=runs/vp_digits

Exactness: mixtures of four Gaussians in 2 and in 64 dimensions, whose score and density are known
at every time, in float64 with tight tolerances. The result is a log-density of the data noised to
t_min, computed as if noised data at t = 1 followed the prior. With z the latent of x and p_1 the
true density at t = 1,

    result(x) - log p(x) = (log prior(z) - log p_1(z)) + the solver's error + the probes' noise.

The first bracket, the prior's mismatch, belongs to the process and has its own columns. The errors
are the rest. For random probes, their mean over points is printed in standard errors of that mean.

Cost: bits/dim of test images by each solver in each variable at one tolerance, with one probe per
image, the same for all. The reference is the same solve at a tolerance of 1e-6.

The published computation (Song et al. 2021, arXiv:2011.13456, Appendix D.2): SciPy's RK45 on the
host over t, with all pixels and log-densities of the batch as one vector in float64. It calls
jitted functions of the drift and of e^T J e = e^T grad_x (e^T drift), a vector-Jacobian product. As
released they are two programs, and the network is evaluated twice; one program for both is also
measured. They and `log_prob` take turns with the same images, probes, t_min and tolerance. The
latter runs by default, with dopri5, and with dopri5 in t with common steps. --repeats=0 skips it.

Results are written to benchmarks/results: likelihood_exactness.jsonl, likelihood_solvers.jsonl and
likelihood_published.jsonl.
"""

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from runs import ROOT, Line, Results, markdown_table, median, power
from scipy.integrate import solve_ivp

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from analytic import Mixture, standardized_mixture

import sde_lib
from denoising import Denoiser
from experiment.data import Data
from jobs.restore import load_model
from likelihood import PROBES, LikelihoodOptions, log_prob
from metrics.bits_per_dim import bits_per_dim
from numerics.arrays import sample_keys, sum_per_sample
from numerics.ode import ODEOptions
from probability_flow import VARIABLES

EXACT = Results("likelihood_exactness", ("dims", "points", "process", "variable"))
SOLVERS = Results("likelihood_solvers", ("step", "images", "rtol", "solver", "variable"))
PUBLISHED = Results("likelihood_published", ("step", "images", "rtol", "side"))
KEY = jax.random.key(0)
T_MIN = 1e-5
PROCESSES = {"VP": sde_lib.VPSDE(), "sub-VP": sde_lib.SubVPSDE(), "VE": sde_lib.VESDE()}
TIGHT = ODEOptions(solver="dopri8", rtol=1e-7, atol=1e-7)
RANDOM = list(PROBES)
TRUTH = ODEOptions(rtol=1e-6, atol=1e-6)


def exactness(dims: int, points: int) -> None:
    """Print the errors of each process in each variable, with each trace."""
    mixture = standardized_mixture(dims)
    x = jnp.asarray(mixture.sample(0, points))
    print(f"\nmixture in {dims}-D, {points} points, in nats")
    print(f"{'':31}prior's mismatch    exact trace     one probe, standard errors")
    print("  process  variable             largest    mean   largest    NFE   " + "  ".join(RANDOM))
    for name, sde in PROCESSES.items():
        for variable in sorted(VARIABLES):
            mismatch, error, nfe = _errors(mixture, sde, x, variable, "exact")
            line = {"dims": dims, "points": points, "process": name, "variable": variable}
            line |= {"nfe": nfe, "standard_errors": {}}
            line |= _summary("mismatch", mismatch) | _summary("error", error)
            for trace in RANDOM:
                noise = _errors(mixture, sde, x, variable, trace)[1]
                deviation = noise.mean() / (noise.std(ddof=1) / np.sqrt(points))
                line["standard_errors"][trace] = float(deviation)
            EXACT.put(line)
            deviations = "".join(f"{each:+12.2f}" for each in line["standard_errors"].values())
            print(
                f"  {name:8} {variable:17} {line['mismatch_largest']:10.1e} "
                f"{line['mismatch_mean']:+.1e} {line['error_largest']:9.1e} {nfe:6.0f}{deviations}",
                flush=True,
            )


def _summary(name: str, values: np.ndarray) -> Line:
    """Return the mean, the mean absolute and the largest absolute value."""
    sizes = np.abs(values)
    found = {"mean": values.mean(), "mean_absolute": sizes.mean(), "largest": sizes.max()}
    return {f"{name}_{kind}": float(value) for kind, value in found.items()}


def exactness_table(points: int) -> str:
    """Return the largest errors of each mixture and process, over variables and probes."""
    rows, found = [], EXACT.lines(points=points)
    for dims, process in dict.fromkeys((line["dims"], line["process"]) for line in found):
        lines = EXACT.lines(dims=dims, process=process, points=points)
        probes = [abs(each) for line in lines for each in line["standard_errors"].values()]
        exact, mismatch = (
            power(max(line[name] for line in lines))
            for name in ("error_largest", "mismatch_largest")
        )
        rows.append((f"{dims}-D, {process}", exact, f"{max(probes):.1f}", mismatch))
    head = ("mixture, process", "exact trace", "probes, in standard errors", "prior mismatch")
    return markdown_table(head, rows)


def _errors(
    mixture: Mixture, sde: sde_lib.SDE, x: jax.Array, variable: str, trace: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the prior's mismatch of each point, the error without it, and the mean NFE."""
    options = LikelihoodOptions(trace=trace, t_min=T_MIN, ode_variable=variable)
    result = log_prob(KEY, mixture.denoiser(sde), x, options=options, ode=TIGHT)
    mismatch = np.asarray(sde.prior_log_prob(result.latent))
    mismatch = mismatch - mixture.marginal(sde, 1.0).log_prob(result.latent)
    error = np.asarray(result.nats) - mixture.marginal(sde, T_MIN).log_prob(x) - mismatch
    return mismatch, error, float(np.asarray(result.nfe).mean())


class Found(NamedTuple):
    """Bits/dim and network evaluations per image, and the batch's seconds."""

    bits: np.ndarray
    nfe: np.ndarray
    seconds: float


class Digits(NamedTuple):
    """A network trained to a step, test images in its range, and the map from nats to bits/dim."""

    step: int
    denoiser: Denoiser
    x: jax.Array
    in_bits: Callable[[Any], np.ndarray]


def trained(workdir: Path, count: int) -> Digits:
    """Load the latest checkpoint of a run of configs/vp_digits.py, and its first test images."""
    model = load_model(workdir)
    data, seed = model.experiment.data, model.experiment.evaluation.seed
    indices = data.parallel.place(np.arange(count))
    x = data.dequantized(data.splits.test, indices, seed=seed, draw=0).x
    print(f"\ndigits, step {model.checkpoint.step}, {count} test images")
    return Digits(model.checkpoint.step, model.denoiser, x, _in_bits(data))


def _in_bits(data: Data) -> Callable[[Any], np.ndarray]:
    dims = math.prod(data.shape)
    log_det = data.quantizer.log_det(dims) + data.scaler.log_det(dims)
    return functools.partial(bits_per_dim, log_det=log_det, dims=dims)


def ours(digits: Digits, variable: str, ode: ODEOptions) -> Found:
    """Time one call of `log_prob`, which is compiled if it is not the first."""
    options = LikelihoodOptions(t_min=T_MIN, ode_variable=variable)
    start = time.perf_counter()
    result = jax.block_until_ready(
        log_prob(KEY, digits.denoiser, digits.x, options=options, ode=ode)
    )
    seconds = time.perf_counter() - start
    return Found(digits.in_bits(result.nats), np.asarray(result.nfe), seconds)


def _line(digits: Digits, rtol: float, found: Found, truth: np.ndarray) -> Line:
    """Return what all results on digits have."""
    line = {"step": digits.step, "images": len(truth), "rtol": rtol, "bits": found.bits.mean()}
    line |= {"nfe": found.nfe.mean(), "nfe_largest": int(found.nfe.max())}
    line |= _summary("error", found.bits - truth)
    return {name: float(v) if isinstance(v, np.floating) else v for name, v in line.items()}


def solvers_table(step: int, images: int) -> str:
    """Return evaluations and errors of two solvers in the default variable."""
    rows, default = [], LikelihoodOptions().ode_variable
    for solver in ("adams", "dopri5"):
        lines = SOLVERS.lines(step=step, images=images, solver=solver, variable=default)
        for line in sorted(lines, key=lambda line: line["rtol"]):
            nfe = f"{line['nfe']:.0f}", str(line["nfe_largest"])
            error = power(line["error_mean_absolute"], 1)
            rows.append((f"`{solver}`", power(line["rtol"]), *nfe, error))
    head = ("`solver`", "tolerance", "evaluations, mean", "slowest", "error")
    return markdown_table(head, rows)


def cost(digits: Digits, truth: np.ndarray, solvers: list[str], rtol: float) -> None:
    """Print evaluations, seconds and errors of each solver in each variable."""
    print(f"\ntolerance {rtol:g}; reference {truth.mean():.4f} bits/dim")
    print("                                                      bits/dim minus reference:")
    print("  solver  variable            NFE slowest   s/image     mean   mean absolute error")
    for solver in solvers:
        for variable in sorted(VARIABLES):
            ode = ODEOptions(solver=solver, rtol=rtol, atol=rtol)
            # The first call compiles.
            tries = [ours(digits, variable, ode) for _ in range(3)][1:]
            found = min(tries, key=lambda found: found.seconds)
            error = found.bits - truth
            line = {"solver": solver, "variable": variable, "seconds": [t.seconds for t in tries]}
            SOLVERS.put(_line(digits, rtol, found, truth) | line)
            print(
                f"  {solver:7} {variable:17} {found.nfe.mean():5.0f} {found.nfe.max():7} "
                f"{found.seconds / len(error):9.4f} {error.mean():+10.5f} "
                f"{np.abs(error).mean():9.5f}",
                flush=True,
            )


@jax.jit
def _drift(denoiser: Denoiser, x: Any, t: Any) -> Any:
    return denoiser.ode_velocity(x, t)


@jax.jit
def _drift_and_divergence(denoiser: Denoiser, x: Any, t: Any, probes: Any) -> tuple[Any, Any]:
    drift, pull_back = jax.vjp(lambda x: denoiser.ode_velocity(x, t), x)
    (gradient,) = pull_back(probes)
    return drift, sum_per_sample(probes * gradient)


@jax.jit
def _divergence(denoiser: Denoiser, x: Any, t: Any, probes: Any) -> Any:
    return _drift_and_divergence(denoiser, x, t, probes)[1]


def published(digits: Digits, rtol: float, programs: int) -> Found:
    """Compute bits/dim by SciPy's RK45, with the probes that `log_prob` draws."""
    _, denoiser, x, in_bits = digits
    batch, size = len(x), x.size
    keys = sample_keys(KEY, jnp.arange(batch))
    probes = jax.vmap(lambda key, x: PROBES["rademacher"](key, 1, x)[0])(keys, x)

    def field(t: float, state: np.ndarray) -> np.ndarray:
        pixels, t = jnp.asarray(state[:size].reshape(x.shape), x.dtype), jnp.asarray(t, x.dtype)
        if programs == 1:
            drift, divergence = _drift_and_divergence(denoiser, pixels, t, probes)
        else:
            drift = np.asarray(_drift(denoiser, pixels, t))
            divergence = _divergence(denoiser, pixels, t, probes)
        return np.concatenate([np.asarray(drift, np.float64).ravel(), np.asarray(divergence)])

    start = time.perf_counter()
    begin = np.concatenate([np.asarray(x, np.float64).ravel(), np.zeros(batch)])
    solution = solve_ivp(field, (T_MIN, 1.0), begin, method="RK45", rtol=rtol, atol=rtol)
    assert solution.success, solution.message
    latent = jnp.asarray(solution.y[:size, -1].reshape(x.shape), x.dtype)
    nats = np.asarray(denoiser.sde.prior_log_prob(latent)) + solution.y[size:, -1]
    seconds = time.perf_counter() - start
    return Found(in_bits(nats), np.full(batch, solution.nfev), seconds)


def against_published(digits: Digits, truth: np.ndarray, rtol: float, repeats: int) -> None:
    """Print seconds, evaluations and bits/dim of all programs, which take turns."""
    ode = ODEOptions(solver="adams", rtol=rtol, atol=rtol)
    dopri5 = dataclasses.replace(ode, solver="dopri5")
    batch = dataclasses.replace(dopri5, step_size_control="batch")
    variable = LikelihoodOptions().ode_variable
    sides = {
        "SciPy, two programs": lambda: published(digits, rtol, 2),
        "SciPy, one program": lambda: published(digits, rtol, 1),
        "ours": lambda: ours(digits, variable, ode),
        "ours, dopri5": lambda: ours(digits, variable, dopri5),
        "ours, dopri5, t, batch": lambda: ours(digits, "t", batch),
    }
    found = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            result = side()
            if repeat:  # the first compiles
                found[name].append(result)
    seconds = {name: np.array([run.seconds for run in tries]) for name, tries in found.items()}
    two, one, *_ = sides
    reference = found[one][-1].bits
    print(f"\ntolerance {rtol:g}; seconds of the batch, median (range) of {repeats}")
    print("speedup over SciPy with two programs, with one; mean and largest NFE; bits/dim,")
    print("minus SciPy's; minus the reference: mean, mean absolute error")
    for name, tries in found.items():
        line = {"side": name, "seconds": [run.seconds for run in tries]}
        PUBLISHED.put(_line(digits, rtol, tries[-1], truth) | line)
        bits, nfe = tries[-1].bits, tries[-1].nfe
        error = bits - truth
        print(
            f"  {name:24} {_spread(seconds[name])}  {_spread(seconds[two] / seconds[name])}  "
            f"{_spread(seconds[one] / seconds[name])}  {nfe.mean():4.0f} {nfe.max():4}  "
            f"{bits.mean():.5f} {(bits - reference).mean():+.5f}  "
            f"{error.mean():+.5f} {np.abs(error).mean():.5f}"
        )


def published_table(step: int, images: int, rtol: float) -> str:
    """Return evaluations of each program, and how much faster it is than SciPy."""
    lines, rows = PUBLISHED.lines(step=step, images=images, rtol=rtol), []
    for line in lines:
        nfe = f"{line['nfe']:.0f}", str(line["nfe_largest"])
        two, one = (
            median(np.divide(each["seconds"], line["seconds"]), ".1f") for each in lines[:2]
        )
        rows.append((line["side"], *nfe, median(line["seconds"]), two, one))
    head = ("program", "evaluations, mean", "slowest", "seconds")
    return markdown_table((*head, "faster than SciPy, two programs", "one program"), rows)


def _spread(values: np.ndarray) -> str:
    return f"{np.median(values):.2f} ({values.min():.2f} .. {values.max():.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="a trained run of configs/vp_digits.py")
    parser.add_argument("--points", type=int, default=256, help="points per mixture; 0 skips it")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--solvers", default="adams,bosh3,dopri5,dopri8,heun,tsit5")
    parser.add_argument(
        "--rtol", type=float, default=1e-3, help="tolerance of the table of solvers"
    )
    parser.add_argument(
        "--rtol_scipy",
        type=float,
        default=1e-5,
        help="tolerance of the comparison; default: as published",
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of the comparison")
    options = parser.parse_args()
    if options.points:
        with jax.enable_x64(True):
            for dims in (2, 64):
                exactness(dims, options.points)
        print(exactness_table(options.points))
    if options.workdir is None:
        return
    digits = trained(options.workdir, options.images)
    truth = ours(digits, "angle", TRUTH).bits
    cost(digits, truth, sorted(filter(None, options.solvers.split(","))), options.rtol)
    print(solvers_table(digits.step, options.images))
    if options.repeats:
        against_published(digits, truth, options.rtol_scipy, options.repeats)
        print(published_table(digits.step, options.images, options.rtol_scipy))


if __name__ == "__main__":
    main()
