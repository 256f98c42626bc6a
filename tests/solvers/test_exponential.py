"""DPM-Solver, UniPC and DEIS against their papers' algorithms, written here on states.

The loop that runs a table is tested with the other solvers. Here a table is run in NumPy by its
definition, so a case costs milliseconds.
"""

import functools
from itertools import pairwise
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import standardized_mixture

from numerics.arrays import in_float64
from sde_lib import SDES, VESDE, VPSDE
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_solver import DPMSolver
from solvers.tables import coefficients_at
from solvers.unipc import UniPC
from time_grids import Schedule

PLANE = standardized_mixture(dims=2)
PROCESSES = {"vp": VPSDE(), "ve": VESDE(sigma_max=20.0)}
STEPS = 8
START = np.random.default_rng(0).normal(size=(5, 2))
NOISE = np.random.default_rng(1).normal(size=(3 * STEPS, 5, 2))

both = pytest.mark.parametrize("process", PROCESSES)
predictions = pytest.mark.parametrize("prediction", ["eps", "x0"])
finals = pytest.mark.parametrize("final", [False, True])


@functools.cache
def compiled(process, prediction):
    """The exact eps or x0, as a function of x and t."""
    denoiser = PLANE.denoiser(PROCESSES[process])
    predict = jax.jit(lambda x, t: getattr(denoiser.predict(x, t), prediction))
    return lambda x, t: np.asarray(predict(jnp.asarray(x), jnp.float64(t)))


@functools.cache
def compiled_coefficients(process):
    """t -> (alpha, sigma, lambda), and lambda -> t, of float64 numbers."""
    sde = PROCESSES[process]
    coefficients = jax.jit(lambda t: (sde.alpha(t), sde.sigma(t), sde.log_snr(t) / 2))
    time = jax.jit(lambda half_log_snr: sde.time_of_log_snr(2 * half_log_snr))
    return (
        lambda t: tuple(float(value) for value in coefficients(jnp.float64(t))),
        lambda half_log_snr: float(time(jnp.float64(half_log_snr))),
    )


def grid(sde, steps=STEPS):
    """Steps of unequal length in t and in lambda."""
    return Schedule(grid="quadratic", steps=steps, t_min=1e-3).of(sde)


def run_table(plan, predict, x):
    """The states of a table, by its definition."""
    states, history = [x], []
    for t, weights, noise, z in zip(*plan.steps[:3], NOISE, strict=False):
        history = [predict(states[-1], t), *history]
        x = weights[0] * states[-1] + sum(w * m for w, m in zip(weights[1:], history, strict=False))
        states.append(x + noise * z)
    return states


def agree(process, solver, truth, prediction):
    sde = PROCESSES[process]
    start, times = float(sde.prior_std) * START, grid(sde)
    states = run_table(solver.plan(sde, times), compiled(process, prediction), start)
    np.testing.assert_allclose(
        states[-1], truth(World(process, prediction), start, times), atol=1e-9
    )


class World:
    """A process and the exact prediction, as the papers' algorithms use them."""

    def __init__(self, process, prediction):
        self.sde, self.kind = PROCESSES[process], prediction
        self.predict = compiled(process, prediction)
        self.at, self.time = compiled_coefficients(process)

    def step(self, x, t, s):
        """The linear part of the step to s, the factor of the integral, and h with its sign."""
        (alpha_t, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = self.at(t), self.at(s)
        if self.kind == "eps":
            return alpha_s / alpha_t * x, -sigma_s, lam_s - lam_t
        return sigma_s / sigma_t * x, -alpha_s, -(lam_s - lam_t)


def step_orders(order, steps, final, rising):
    """Written out: 1, 2, ..., order, ..., 2, 1."""
    orders = [order] * steps
    for k in range(1, order):
        if rising:
            orders[k - 1] = k
    for k in range(1, order):
        if final:
            orders[-k] = min(orders[-k], k)
    return orders


def phi(k, h):
    """phi_k(h) by its recursion (2206.00927, App. B.1)."""
    return np.exp(h) if k == 0 else (phi(k - 1, h) - 1 / factorial(k - 1)) / h


def dpm_single(world, x, times, orders):
    """2206.00927, Algorithms 1 and 2, where for x0 h has the other sign and alpha is in sigma's
    place, which gives 2211.01095's Algorithm 1 for order 2."""
    for (t, s), order in zip(pairwise(times), orders, strict=True):
        lam_t, lam_s = world.at(t)[2], world.at(s)[2]
        p = world.predict(x, t)
        line, gain, h = world.step(x, t, s)
        if order == 1:
            x = line + gain * np.expm1(h) * p
        elif order == 2:
            mid = world.time((lam_t + lam_s) / 2)
            line_mid, gain_mid, _ = world.step(x, t, mid)
            q = world.predict(line_mid + gain_mid * np.expm1(h / 2) * p, mid)
            x = line + gain * np.expm1(h) * p + gain / (2 * 0.5) * np.expm1(h) * (q - p)
        else:
            r1, r2 = 1 / 3, 2 / 3
            s1, s2 = (world.time(lam_t + r * (lam_s - lam_t)) for r in (r1, r2))
            line1, gain1, _ = world.step(x, t, s1)
            line2, gain2, _ = world.step(x, t, s2)
            d1 = world.predict(line1 + gain1 * np.expm1(r1 * h) * p, s1) - p
            tail = np.expm1(r2 * h) / (r2 * h) - 1
            u2 = line2 + gain2 * np.expm1(r2 * h) * p + gain2 * r2 / r1 * tail * d1
            d2 = world.predict(u2, s2) - p
            x = line + gain * np.expm1(h) * p + gain / r2 * (np.expm1(h) / h - 1) * d2
    return x


def dpm_multi(world, x, times, orders):
    """2211.01095, Algorithm 2; order 3 is the Taylor series, whose derivatives at lambda_t are
    those of the parabola."""
    half_log_snr = [world.at(t)[2] for t in times]
    p = []
    for i, order in enumerate(orders):
        p.append(world.predict(x, times[i]))
        line, gain, h = world.step(x, times[i], times[i + 1])
        if order == 1:
            x = line + gain * np.expm1(h) * p[i]
        elif order == 2:
            r = (half_log_snr[i] - half_log_snr[i - 1]) / (half_log_snr[i + 1] - half_log_snr[i])
            x = line + gain * np.expm1(h) * ((1 + 1 / (2 * r)) * p[i] - 1 / (2 * r) * p[i - 1])
        else:
            a, b = half_log_snr[i - 1] - half_log_snr[i], half_log_snr[i - 2] - half_log_snr[i]
            # a D1 + a^2/2 D2 = p_i-1 - p_i, and the same for b.
            system = np.linalg.inv(np.array([[a, a**2 / 2], [b, b**2 / 2]]))
            differences = np.stack([p[i - 1] - p[i], p[i - 2] - p[i]])
            d1, d2 = np.einsum("ij,jkl->ikl", system, differences)
            eta = half_log_snr[i + 1] - half_log_snr[i]
            x = line + gain * h * (
                phi(1, h) * p[i] + eta * phi(2, h) * d1 + eta**2 * phi(3, h) * d2
            )
    return x


@finals
@predictions
@both
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_is_the_papers(x64, order, process, prediction, final):
    for method, algorithm in (("singlestep", dpm_single), ("multistep", dpm_multi)):
        orders = step_orders(order, STEPS, final, method == "multistep")
        solver = DPMSolver(
            order=order, method=method, prediction=prediction, lower_order_final=final
        )
        agree(process, solver, functools.partial(algorithm, orders=orders), prediction)


def dpm_stochastic(world, x, times, order):
    """SDE-DPM-Solver-1 and 2M, and those of ++, as version 2 of 2211.01095 has them."""
    last = lam_last = None
    for i, (t, s) in enumerate(pairwise(times)):
        (alpha_t, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = world.at(t), world.at(s)
        h, m = lam_s - lam_t, world.predict(x, t)
        slope = (m - last) * h / (lam_t - lam_last) if order == 2 and i else 0.0
        if world.kind == "x0":
            x = sigma_s / sigma_t * np.exp(-h) * x + alpha_s * (1 - np.exp(-2 * h)) * (
                m + slope / 2
            )
            x = x + sigma_s * np.sqrt(1 - np.exp(-2 * h)) * NOISE[i]
        else:
            x = alpha_s / alpha_t * x - 2 * sigma_s * (np.exp(h) - 1) * (m + slope / 2)
            x = x + sigma_s * np.sqrt(np.exp(2 * h) - 1) * NOISE[i]
        last, lam_last = m, lam_t
    return x


@predictions
@both
@pytest.mark.parametrize("order", [1, 2])
def test_stochastic_multistep_is_the_papers(x64, order, process, prediction):
    solver = DPMSolver(order=order, prediction=prediction, eta=1.0, lower_order_final=False)
    agree(process, solver, functools.partial(dpm_stochastic, order=order), prediction)


@both
def test_order_one_is_ddim(x64, process):
    """eta = 0 for both predictions, and eta = 1, of the same noise, for x0."""
    sde = PROCESSES[process]
    times = grid(sde)
    for eta, prediction in ((0.0, "eps"), (0.0, "x0"), (1.0, "x0")):
        truth = run_table(DDIM(eta=eta).plan(sde, times), compiled(process, "eps"), START)
        solver = DPMSolver(
            order=1, prediction=prediction, eta=float(prediction == "x0" and eta == 1)
        )
        ours = run_table(solver.plan(sde, times), compiled(process, prediction), START)
        np.testing.assert_allclose(ours, truth, atol=1e-11)


@predictions
def test_third_order_is_exact_for_parabolas_in_lambda(prediction):
    """The exact solution by a fine sum; the halved derivative of the published code would fail."""
    sde = PROCESSES["vp"]
    times = grid(sde)
    at = coefficients_at(sde, times)
    solver = DPMSolver(order=3, prediction=prediction, lower_order_final=False)
    weights = solver.plan(sde, times).steps.weights
    parabola = np.polynomial.Polynomial([0.3, -0.5, 0.2])
    for i in range(2, STEPS):
        half_log_snr = np.linspace(at.half_log_snr[i], at.half_log_snr[i + 1], 20001)
        half_log_snr = (half_log_snr[1:] + half_log_snr[:-1]) / 2
        width = (at.half_log_snr[i + 1] - at.half_log_snr[i]) / len(half_log_snr)
        if prediction == "eps":
            integral = (
                -at.alpha[i + 1] * np.sum(np.exp(-half_log_snr) * parabola(half_log_snr)) * width
            )
        else:
            integral = (
                at.sigma[i + 1] * np.sum(np.exp(half_log_snr) * parabola(half_log_snr)) * width
            )
        ours = weights[i][1:] @ parabola(at.half_log_snr[[i, i - 1, i - 2]])
        np.testing.assert_allclose(ours, integral, rtol=1e-7, atol=1e-9)


def test_stages_divide_the_step_evenly_in_lambda():
    sde, orders = PROCESSES["vp"], [3] * (STEPS - 2) + [2, 1]
    times = grid(sde)
    plan = DPMSolver(order=3, method="singlestep").plan(sde, times)
    assert plan.evaluations == sum(orders)
    half_log_snr, ends = coefficients_at(sde, plan.times).half_log_snr, np.cumsum([0, *orders])
    np.testing.assert_array_equal(plan.times[ends], times)
    for (first, last), order in zip(pairwise(ends), orders, strict=True):
        even = np.linspace(half_log_snr[first], half_log_snr[last], order + 1)
        np.testing.assert_allclose(half_log_snr[first : last + 1], even, atol=1e-9)


def unipc(world, x, times, orders, variant):
    """Algorithms 1 and 2 of 2302.04867, with R(h) a B(h) = phi(h) solved as it stands there."""
    half_log_snr = [world.at(t)[2] for t in times]
    p = [world.predict(x, times[0])]
    for i, order in enumerate(orders, start=1):
        line, gain, h = world.step(x, times[i - 1], times[i])
        b = {"bh1": h, "bh2": np.expm1(h)}[variant]
        width = half_log_snr[i] - half_log_snr[i - 1]
        line = line + gain * np.expm1(h) * p[i - 1]

        def combined(newer, r, alone, line=line, gain=gain, h=h, b=b, base=p[i - 1]):
            """line + gain B(h) sum a_m (p_m - base) / r_m."""
            n = np.arange(1, len(r) + 1)
            right = np.array([h**k * factorial(k) * phi(k + 1, h) for k in n])
            matrix = np.array([[(r_m * h) ** (k - 1) for r_m in r] for k in n])
            a = [0.5] if alone else np.linalg.solve(matrix, right / b)
            total = sum(a_m / r_m * (q - base) for a_m, r_m, q in zip(a, r, newer, strict=True))
            return line + gain * b * total

        r = [(half_log_snr[i - m] - half_log_snr[i - 1]) / width for m in range(2, order + 1)]
        older = [p[i - m] for m in range(2, order + 1)]
        predicted = combined(older, r, alone=order == 2) if older else line
        if i == len(orders):
            return predicted
        p.append(world.predict(predicted, times[i]))
        x = combined([*older, p[i]], [*r, 1.0], alone=order == 1)


@finals
@both
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_is_the_papers(x64, order, process, final):
    for prediction, variant in (("x0", "bh1"), ("x0", "bh2"), ("eps", "bh1"), ("eps", "bh2")):
        solver = UniPC(order=order, variant=variant, prediction=prediction, lower_order_final=final)
        orders = step_orders(order, STEPS, final, rising=True)
        agree(process, solver, functools.partial(unipc, orders=orders, variant=variant), prediction)


def test_b_of_h_counts_at_the_ends_alone():
    sde = PROCESSES["vp"]
    bh1, bh2 = (
        UniPC(order=3, variant=variant).plan(sde, grid(sde)).steps.weights
        for variant in ("bh1", "bh2")
    )
    differ = np.abs(bh1 - bh2).max(axis=1) > 1e-9
    # UniC-1 and UniP-2 make step 1, UniC-2 none; UniP-2 is in the last step but one, and the
    # corrector undoes it in the last.
    np.testing.assert_array_equal(differ, [False, True, True, *[False] * (STEPS - 5), True, True])


def deis(world, x, times, orders):
    """2204.13902, Eq. 14 and 15, with dx = f x + g^2 / (2 sigma) eps dt, by a fine sum in t."""
    p = []
    for i, order in enumerate(orders):
        t, s = times[i], times[i + 1]
        p.insert(0, world.predict(x, t))
        # Evenly in log t, which all processes bear.
        edges = np.exp(np.linspace(np.log(t), np.log(s), 4001))
        tau, width = np.sqrt(edges[1:] * edges[:-1]), np.diff(np.log(edges))
        at, g2 = coefficients_at(world.sde, tau), in_float64(world.sde.squared_diffusion, tau)
        alpha_t, alpha_s = world.at(t)[0], world.at(s)[0]
        kernel = alpha_s / at.alpha * g2 / (2 * at.sigma) * tau * width
        x = alpha_s / alpha_t * x
        for j in range(order):
            others = [times[i - k] for k in range(order) if k != j]
            lagrange = [(tau - other) / (times[i - j] - other) for other in others]
            x = x + np.sum(kernel * np.prod(lagrange, axis=0)) * p[j]
    return x


@both
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.slow
def test_deis_is_the_papers(x64, order, process):
    sde = PROCESSES[process]
    start, times = float(sde.prior_std) * START, grid(sde)
    orders = step_orders(order, STEPS, final=False, rising=True)
    states = run_table(DEIS(order=order).plan(sde, times), compiled(process, "eps"), start)
    truth = deis(World(process, "eps"), start, times, orders)
    np.testing.assert_allclose(states[-1], truth, atol=1e-6)


@both
def test_deis_of_one_prediction_is_ddim(process):
    sde = PROCESSES[process]
    times = grid(sde)
    ours, ddim = DEIS(order=1).plan(sde, times), DDIM().plan(sde, times)
    np.testing.assert_allclose(ours.steps.weights, ddim.steps.weights, rtol=1e-9, atol=1e-12)


def test_deis_where_lambda_is_linear_in_time_is_dpm_solver():
    sde = PROCESSES["ve"]
    times = grid(sde)
    dpm = DPMSolver(order=3, prediction="eps", lower_order_final=False).plan(sde, times)
    ours = DEIS(order=3).plan(sde, times)
    np.testing.assert_allclose(ours.steps.weights[2:], dpm.steps.weights[2:], rtol=1e-9)


SOLVERS = [
    DPMSolver(order=3, prediction="x0"),
    DPMSolver(order=3, prediction="eps"),
    DPMSolver(order=3, prediction="x0", eta=1.0),
    DPMSolver(order=3, prediction="x0", method="singlestep", eta=1.0),
    UniPC(order=4, prediction="x0"),
    UniPC(order=3, prediction="eps"),
    DEIS(order=4),
]


@pytest.mark.parametrize("name", SDES)
def test_a_constant_prediction_is_solved_exactly(name):
    """Whatever the order: with x0 = c a state alpha c + sigma eps stays one, its noise and all."""
    sde = SDES[name]()
    times = grid(sde)
    for solver in SOLVERS:
        plan = solver.plan(sde, times)
        t, s = (
            coefficients_at(sde, plan.times[part]) for part in (slice(None, -1), slice(1, None))
        )
        kind, of_x = plan.function.prediction, plan.steps.weights[:, 0]
        of_predictions = plan.steps.weights[:, 1:].sum(axis=1)
        if kind == "x0":
            signal = of_x * t.alpha + of_predictions
            variance = (of_x * t.sigma) ** 2 + plan.steps.noise**2
            np.testing.assert_allclose(signal, s.alpha, rtol=1e-9)
            np.testing.assert_allclose(variance, s.sigma**2, rtol=1e-9)
        elif not plan.function.stochastic:
            np.testing.assert_allclose(of_x * t.alpha, s.alpha, rtol=1e-9)
            np.testing.assert_allclose(of_x * t.sigma + of_predictions, s.sigma, rtol=1e-8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: DPMSolver(order=4), "order=4 is unknown; choose one of: 1, 2, 3"),
        (
            lambda: DPMSolver(method="adaptive"),
            "method='adaptive' is unknown; choose one of: multi",
        ),
        (lambda: DPMSolver(prediction="v"), "prediction='v' is unknown; choose one of: eps, x0"),
        (lambda: UniPC(order=0), "order=0 is unknown; choose one of: 1, 2, 3, 4"),
        (lambda: UniPC(variant="bh3"), "variant='bh3' is unknown; choose one of: bh1, bh2"),
        (lambda: UniPC(prediction="v"), "prediction='v' is unknown; choose one of: eps, x0"),
        (lambda: DEIS(order=5), "order=5 is unknown; choose one of: 1, 2, 3, 4"),
    ],
)
def test_unknown_options_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


@pytest.mark.parametrize(
    "solver",
    [
        DPMSolver(order=3),
        DPMSolver(order=3, lower_order_final=False),
        DPMSolver(order=3, method="singlestep"),
        UniPC(order=3),
        DEIS(order=3),
    ],
    ids=str,
)
def test_too_few_steps_are_refused(solver):
    sde = PROCESSES["vp"]
    message = "order=3 needs at least 3 steps, the grid has 2; give more steps or order=2"
    with pytest.raises(ValueError, match=message):
        solver.plan(sde, grid(sde, steps=2))
    assert solver.plan(sde, grid(sde, steps=3)).evaluations >= 3


def test_single_steps_of_full_order_need_no_others():
    solver = DPMSolver(order=3, method="singlestep", lower_order_final=False)
    assert solver.plan(PROCESSES["vp"], grid(PROCESSES["vp"], steps=1)).evaluations == 3
