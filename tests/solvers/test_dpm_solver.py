"""DPM-Solver's published lists of orders, and its ancestral steps, against their formulas.

The formulas are written in y = x / alpha, s = sigma / alpha, where every process is the same. The
data are two Gaussians of variance 0.09 around -1 and 1, for which x0 is known in closed form.
"""

import itertools
import re

import numpy as np
import pytest

from sde_lib import EDMSDE, VPSDE
from solvers.ddim import DDIM
from solvers.dpm_solver import DPMSolver, published_orders
from solvers.tables import coefficients_at
from time_grids import Schedule

STEPS = 8
PROCESSES = {"vp": VPSDE(), "edm": EDMSDE()}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
START = np.random.default_rng(0).normal(size=(5, 2))
NOISE = np.random.default_rng(1).normal(size=(3 * STEPS, 5, 2))
FRESH = [(0.0, 1.0), (0.4, 1.0), (0.4, 1.01), (1.0, 1.0)]
fresh_noise = pytest.mark.parametrize(("eta", "s_noise"), FRESH)


def x0_at(y, s):
    return (0.09 * y + s**2 * np.tanh(y / (0.09 + s**2))) / (0.09 + s**2)


def eps_at(y, s):
    return (y - x0_at(y, s)) / s


def run_plan(plan, sde, y):
    """Run a table by its definition, from and to y."""
    at, history = coefficients_at(sde, plan.times), []
    alpha, s = at.alpha, at.sigma / at.alpha
    predict = {"eps": eps_at, "x0": x0_at}[plan.function.prediction]
    x = alpha[0] * y
    for k, (weights, noise) in enumerate(zip(plan.steps.weights, plan.steps.noise, strict=True)):
        history = [predict(x / alpha[k], s[k]), *history]
        x = weights[0] * x + sum(w * m for w, m in zip(weights[1:], history, strict=False))
        x = x + noise * NOISE[k]
    return x / alpha[-1]


def levels(sde, times):
    at = coefficients_at(sde, times)
    return at.sigma / at.alpha


def grid(sde, name="karras", steps=STEPS):
    return Schedule(grid=name, steps=steps, t_min=1e-2).of(sde)


@pytest.mark.parametrize(
    ("order", "orders"),
    [
        (1, {1: [1], 4: [1, 1, 1, 1]}),
        (2, {1: [1], 2: [2], 5: [2, 2, 1], 6: [2, 2, 2]}),
        (3, {1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 10: [3, 3, 3, 1]}),
    ],
)
def test_published_orders(order, orders):
    """The rules at the end of 2206.00927, Section 3.4, by hand."""
    for evaluations, expected in orders.items():
        assert published_orders(evaluations, order) == expected


def singlestep_eps(y, s, nodes):
    """2206.00927, Eq. 4.2 and Algorithm 5, for any stages; `nodes` are the levels of each step."""
    for here, *inner, there in nodes:
        lam = -np.log([here, *inner, there])
        h, p = lam[-1] - lam[0], eps_at(y, here)
        r = (lam[1:-1] - lam[0]) / h
        if not inner:
            y = y - there * np.expm1(h) * p
        elif len(inner) == 1:
            q = eps_at(y - inner[0] * np.expm1(r[0] * h) * p, inner[0])
            y = y - there * np.expm1(h) * p - there / (2 * r[0]) * np.expm1(h) * (q - p)
        else:
            d1 = eps_at(y - inner[0] * np.expm1(r[0] * h) * p, inner[0]) - p
            tail = np.expm1(r[1] * h) / (r[1] * h) - 1
            middle = y - inner[1] * np.expm1(r[1] * h) * p - inner[1] * r[1] / r[0] * tail * d1
            d2 = eps_at(middle, inner[1]) - p
            y = y - there * np.expm1(h) * p - there / r[1] * (np.expm1(h) / h - 1) * d2
    return y


@pytest.mark.parametrize("order", [1, 2, 3])
@every_process
def test_steps_of_the_published_lists_spend_the_evaluations_of_the_grid(sde, order):
    for count in (4, 5, 6):
        orders = published_orders(count, order)
        ends = np.cumsum([0, *orders])
        # In time: the stages are the times of the grid between the ends.
        times = grid(sde, "quadratic", count)
        s = levels(sde, times)
        by_order = [s[first : last + 1] for first, last in itertools.pairwise(ends)]
        # In lambda: K even steps, with even stages.
        even = np.geomspace(s[0], s[-1], len(orders) + 1)
        log_snr = [
            np.geomspace(*ends, order + 1)
            for ends, order in zip(itertools.pairwise(even), orders, strict=True)
        ]
        for step_ends, nodes in (("by_order", by_order), ("log_snr", log_snr)):
            fields = {"order": order, "method": "singlestep", "step_ends": step_ends}
            plan = DPMSolver(prediction="eps", **fields).plan(sde, times)
            assert plan.evaluations == count
            y = s[0] * START
            found = run_plan(plan, sde, y)
            np.testing.assert_allclose(found, singlestep_eps(y, s, nodes), atol=1e-7)


def ancestral_step(here, there, eta):
    """DDIM's Eq. 16 for alpha = 1: the level that is stepped to, and the noise that is added."""
    up = eta * np.sqrt(there**2 * (here**2 - there**2) / here**2)
    return np.sqrt(there**2 - up**2), up


def ancestral_dpm_solver_2(y, s, eta, s_noise):
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        down, up = ancestral_step(here, there, eta)
        middle = np.sqrt(here * down)
        second = eps_at(y + (middle - here) * eps_at(y, here), middle)
        y = y + (down - here) * second + s_noise * up * NOISE[2 * i + 1]
    return y


def ancestral_2s(y, s, eta, s_noise):
    """2211.01095, Algorithm 1 with r = 1/2, to the lower level."""
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        down, up = ancestral_step(here, there, eta)
        middle = np.sqrt(here * down)
        second = x0_at(middle / here * y + (1 - middle / here) * x0_at(y, here), middle)
        y = down / here * y + (1 - down / here) * second + s_noise * up * NOISE[2 * i + 1]
    return y


def ancestral_sde(y, s, eta, s_noise):
    """An ancestral step to the middle, then one of the whole step with the prediction there.

    The noise of the middle is part of that of the step.
    """
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        middle = np.sqrt(here * there)
        (down_1, up_1), (down_2, up_2) = (
            ancestral_step(here, level, eta) for level in (middle, there)
        )
        noise = s_noise * up_1 * NOISE[2 * i]
        first = down_1 / here * y + (1 - down_1 / here) * x0_at(y, here) + noise
        y = down_2 / here * y + (1 - down_2 / here) * x0_at(first, middle)
        rest = np.sqrt(up_2**2 - (down_2 / down_1 * up_1) ** 2)
        y = y + down_2 / down_1 * noise + s_noise * rest * NOISE[2 * i + 1]
    return y


ANCESTRAL = {
    "dpm_solver_2": (ancestral_dpm_solver_2, "ancestral", "eps"),
    "2s": (ancestral_2s, "ancestral", "x0"),
    "sde": (ancestral_sde, "ancestral_stages", "x0"),
}


@fresh_noise
@pytest.mark.parametrize("name", ANCESTRAL)
@every_process
def test_ancestral_steps(sde, name, eta, s_noise):
    truth, form, prediction = ANCESTRAL[name]
    fields = {"noise_form": form, "s_noise": s_noise, "eta": eta} if eta else {}
    fields |= {"method": "singlestep", "prediction": prediction, "lower_order_final": False}
    times = grid(sde)
    s = levels(sde, times)
    found = run_plan(DPMSolver(order=2, **fields).plan(sde, times), sde, s[0] * START)
    np.testing.assert_allclose(found, truth(s[0] * START, s, eta, s_noise), atol=1e-8)


@fresh_noise
@every_process
def test_multistep_solves_the_sde_with_less_noise(sde, eta, s_noise):
    """SDE-DPM-Solver++ 2M with the exponents of the SDE whose noise is eta g^2."""
    times = grid(sde)
    s = levels(sde, times)
    y, last = s[0] * START, None
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        h, now = np.log(here / there), x0_at(y, here)
        slope = 0.0 if last is None else (now - last) * h / np.log(s[i - 1] / here)
        gain = 1 - np.exp(-(1 + eta) * h)
        y = there / here * np.exp(-eta * h) * y + gain * (now + slope / 2)
        y = y + s_noise * there * np.sqrt(1 - np.exp(-2 * eta * h)) * NOISE[i]
        last = now
    solver = DPMSolver(order=2, eta=eta, s_noise=s_noise, lower_order_final=False)
    found = run_plan(solver.plan(sde, times), sde, s[0] * START)
    np.testing.assert_allclose(found, y, atol=1e-9)


@fresh_noise
@every_process
def test_ancestral_steps_of_order_one_are_ddim(sde, eta, s_noise):
    """And Euler steps to the lower level, by their formula."""
    times = grid(sde)
    s = levels(sde, times)
    y = s[0] * START
    for i, (here, there) in enumerate(itertools.pairwise(s)):
        down, up = ancestral_step(here, there, eta)
        y = y + (down - here) * eps_at(y, here) + s_noise * up * NOISE[i]
    form = {"noise_form": "ancestral"} if eta else {}
    for solver in (
        DDIM(eta=eta, s_noise=s_noise),
        DPMSolver(order=1, method="singlestep", eta=eta, s_noise=s_noise, **form),
    ):
        found = run_plan(solver.plan(sde, times), sde, s[0] * START)
        np.testing.assert_allclose(found, y, atol=1e-9)


def test_all_forms_of_the_reverse_sde_agree_where_they_should():
    """With eta = 1 and x0, ancestral stages are the exponential integrator of the reverse SDE."""
    sde, fields = PROCESSES["vp"], {"order": 2, "method": "singlestep", "eta": 1.0}
    stages, exact = (
        DPMSolver(noise_form=form, **fields).plan(sde, grid(sde)).steps
        for form in ("ancestral_stages", "sde")
    )
    np.testing.assert_allclose(stages.weights, exact.weights, atol=1e-12)
    np.testing.assert_allclose(stages.noise, exact.noise, rtol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eta": 1.5}, "eta=1.5 must lie in [0, 1]"),
        ({"s_noise": 0.0}, "s_noise=0.0 must be above 0"),
        ({"s_noise": 1.01}, "s_noise=1.01 is not used with eta=0; set eta above 0"),
        ({"noise_form": "ancestral"}, "noise_form='ancestral' is not used with eta=0"),
        ({"noise_form": "no"}, "noise_form='no' is unknown; choose one of: ancestral, ancestral_"),
        ({"step_ends": "no"}, "step_ends='no' is unknown; choose one of: by_order, grid, log_snr"),
        ({"step_ends": "by_order"}, "step_ends='by_order' needs method='singlestep'"),
        (
            {"noise_form": "ancestral", "eta": 0.5},
            "noise_form='ancestral' needs method='singlestep', not 'multistep'",
        ),
        (
            {
                "method": "singlestep",
                "order": 3,
                "noise_form": "ancestral_stages",
                "eta": 0.5,
            },
            "noise_form='ancestral_stages' needs order=1 or 2, not order=3",
        ),
        (
            {"method": "singlestep", "step_ends": "log_snr", "lower_order_final": False},
            "lower_order_final=False is used with step_ends='grid', not with 'log_snr'",
        ),
        (
            {"method": "singlestep", "step_ends": "by_order", "noise_form": "ancestral", "eta": 1},
            "step_ends='by_order' needs noise_form='sde', not 'ancestral'",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DPMSolver(**fields)


def test_scale_of_noise_that_ddim_does_not_add_is_refused():
    with pytest.raises(ValueError, match=r"s_noise=1\.01 is not used with eta=0"):
        DDIM(s_noise=1.01)
