r"""DPM-Solver and DPM-Solver++ (Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095).

`solvers/exponential.py` solves the linear part of a step exactly, along the probability-flow ODE or
a reverse SDE. A solver of order k replaces the prediction by a polynomial through k predictions:
of the steps before (multistep), or of stages inside the step (singlestep).

Multistep order 3 is in no paper. The published code halves the second derivative of the parabola,
and so has order 2. Here it is the parabola.

An ancestral step from t to s solves the ODE to less noise than sigma_s, then adds the missing noise
(DDIM, arXiv:2010.02502, Eq. 16, and k-diffusion's ancestral samplers):

    std^2 = eta^2 sigma_s^2 (1 - exp(-2 h)),    ODE to sqrt(sigma_s^2 - std^2)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from errors import require_choice, require_in
from numerics.arrays import in_float64
from sampling import Plan
from sde_lib import SDE
from solvers.exponential import (
    FRACTIONS,
    PREDICTIONS,
    ExponentialStep,
    exponential_step,
    polynomial_integral,
    step_orders,
)
from solvers.tables import (
    Coefficients,
    LinearCombination,
    coefficients_at,
    stage_weights,
    table_plan,
    unit_coefficients,
)

ORDERS = (1, 2, 3)
METHODS = ("multistep", "singlestep")
STEP_ENDS = ("grid", "by_order", "log_snr")
NOISE_FORMS = ("sde", "ancestral", "ancestral_stages")

# Stages of a step, as fractions of h: r_1, and r_1 and r_2 of the papers.
_STAGES = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}


@dataclass(frozen=True, kw_only=True)
class DPMSolver:
    """DPM-Solver, DPM-Solver++, and their versions with noise.

    Args:
        order: 1, 2 or 3. Order 1 is DDIM with eta = 0; with prediction x0 and eta = 1, it is DDIM
            with eta = 1.
        method: "multistep" costs one evaluation per step; its first steps have orders 1, 2, ...,
            because there are no predictions yet. With "singlestep" a step of order k costs k
            evaluations; the stages lie evenly in lambda between the ends of the step.
        prediction: "x0" is DPM-Solver++, "eps" DPM-Solver.
        lower_order_final: lower the order by one per step at the end, down to 1, which is stabler
            with few steps. The step of order 1 has an error of order h^2, in proportion to sigma
            where sampling stops. It is small, but with many steps it dominates that of order 3.
        step_ends: where singlestep steps end. "grid": at each time of the grid. The other two are
            the published lists of orders, which spend as many evaluations as the grid has steps:
            of order 3, then 2 and 1, or 1, or 2; of order 2, then 1 if the number is odd.
            "by_order": a step of order k covers k steps of the grid, whose times are the stages;
            published for grids uniform and quadratic. "log_snr": steps are even in lambda, between
            the ends of the grid; published for grid log_snr.
        eta: amount of fresh noise, from 0, the probability-flow ODE, to 1, the reverse SDE. With
            few steps, prediction "eps" and noise_form "sde" are then unstable.
        noise_form: "sde" solves the reverse SDE whose noise has the variance eta g^2 dt. Of method
            singlestep also: "ancestral" takes an ancestral step, whose stages are without noise,
            and "ancestral_stages" takes an ancestral step to each stage, up to order 2. Their
            variance is eta^2 times that for eta = 1.
        s_noise: scale of the fresh noise, above 0.

    Raises:
        ValueError: for an unknown name, a number out of range, fields that do not go together, and
            fewer steps than the orders need.
    """

    order: int = 2
    method: str = "multistep"
    prediction: str = "x0"
    lower_order_final: bool = True
    step_ends: str = "grid"
    eta: float = 0.0
    noise_form: str = "sde"
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        require_choice("order", self.order, ORDERS)
        require_choice("method", self.method, METHODS)
        require_choice("prediction", self.prediction, PREDICTIONS)
        require_choice("step_ends", self.step_ends, STEP_ENDS)
        require_in("eta", self.eta, "[0, 1]")
        require_choice("noise_form", self.noise_form, NOISE_FORMS)
        require_in("s_noise", self.s_noise, "(0, inf)")
        for name, default in (("noise_form", "sde"), ("s_noise", 1.0)):
            if self.eta == 0 and getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not used with eta=0; set eta above 0, or "
                    f"leave {name} out"
                )
        for name, default in (("noise_form", "sde"), ("step_ends", "grid")):
            if self.method != "singlestep" and getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs method='singlestep', not "
                    f"{self.method!r}; set that, or leave {name} out"
                )
        if self.noise_form == "ancestral_stages" and self.order == 3:
            raise ValueError("noise_form='ancestral_stages' needs order=1 or 2, not order=3")
        if self.step_ends != "grid" and not self.lower_order_final:
            raise ValueError(
                f"lower_order_final=False is used with step_ends='grid', not with "
                f"{self.step_ends!r}, which is a list of orders; leave it out"
            )
        if self.step_ends == "by_order" and self.noise_form != "sde":
            raise ValueError(
                f"step_ends='by_order' needs noise_form='sde', not {self.noise_form!r}, whose "
                "stages are no times of the grid; choose step_ends=grid or log_snr"
            )

    @property
    def follows_flow(self) -> bool:
        """Whether it integrates the probability-flow ODE, without fresh noise."""
        return self.eta == 0

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        if self.method == "multistep":
            weights, noise = self._multistep(coefficients_at(sde, times))
        else:
            times, steps = self._divide(sde, times)
            weights, noise = self._singlestep(coefficients_at(sde, times), steps)
        return table_plan(
            times,
            weights,
            prediction=self.prediction,
            noise=self.s_noise * noise if self.eta else None,
        )

    def _step(self, start: Coefficients, end: Coefficients) -> ExponentialStep:
        eta = self.eta if self.noise_form == "sde" else 0.0
        return exponential_step(start, end, self.prediction, eta)

    def _multistep(self, coefficients: Coefficients) -> tuple[np.ndarray, np.ndarray]:
        """Return weights of 2M (2211.01095, Algorithm 2), its version for eps, and order 3."""
        x, *predictions = unit_coefficients(self.order)
        weights, noise = [], []
        orders = step_orders(
            len(coefficients.t) - 1, self.order, rising=True, falling=self.lower_order_final
        )
        for number, order in enumerate(orders):
            step = self._step(coefficients.at(number), coefficients.at(number + 1))
            half_log_snr = coefficients.half_log_snr[number - order + 1 : number + 1][::-1]
            integral = polynomial_integral(
                step, half_log_snr, predictions[:order], step.constant_weight
            )
            weights.append(step.scale * x + integral)
            noise.append(step.noise)
        return np.stack(weights), np.array(noise)

    def _divide(self, sde: SDE, times: np.ndarray) -> tuple[np.ndarray, list[tuple[float, ...]]]:
        """Return the times of all evaluations and the final time; of each step, its stages.

        Stages are fractions of the step in lambda, the first of which is 0.
        """
        at, steps = coefficients_at(sde, times), len(times) - 1
        if self.step_ends == "grid":
            orders = step_orders(steps, self.order, rising=False, falling=self.lower_order_final)
        else:
            orders = published_orders(steps, self.order)
        if self.step_ends == "by_order":
            last = np.cumsum(orders)
            parts = [
                at.half_log_snr[end - k : end + 1] for k, end in zip(orders, last, strict=True)
            ]
            return times, [tuple((part[:-1] - part[0]) / (part[-1] - part[0])) for part in parts]
        if self.step_ends == "log_snr":
            first, last = at.half_log_snr[[0, -1]]
            even = np.linspace(first, last, len(orders) + 1)
            inner = in_float64(sde.time_of_log_snr, 2 * even[1:-1])
            times = np.concatenate([times[:1], inner, times[-1:]])
            at = coefficients_at(sde, times)
        targets = at.half_log_snr[1:]
        if self.noise_form == "ancestral":
            before = Coefficients(*(values[:-1] for values in at))
            targets = _ancestral(before, Coefficients(*(v[1:] for v in at)), self.eta)[
                0
            ].half_log_snr
        stages = [_STAGES[order] for order in orders]
        return _with_stages(sde, times, at.half_log_snr[:-1], targets, stages), stages

    def _singlestep(
        self, coefficients: Coefficients, steps: list[tuple[float, ...]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weights of Algorithms 1 and 2 of 2206.00927; for x0, 2211.01095, Algorithm 1."""
        weights, noise, number = [], [], 0
        for fractions in steps:
            start, *ends = (coefficients.at(number + k) for k in range(len(fractions) + 1))
            rests = [_ancestral(start, end, self.eta) for end in ends]
            goals = {
                "sde": ends,
                "ancestral": [*ends[:-1], rests[-1][0]],
                "ancestral_stages": [rest for rest, _ in rests],
            }[self.noise_form]
            rows = stage_weights(_stages([self._step(start, goal) for goal in goals], fractions))
            weights.append(np.pad(rows, ((0, 0), (0, self.order - len(rows)))))
            if self.noise_form == "sde":
                pairs = zip([start, *ends], ends, strict=False)
                noise += [self._step(*pair).noise for pair in pairs]
            elif self.noise_form == "ancestral":
                noise += [0.0] * len(ends[1:]) + [rests[-1][1]]
            else:
                noise += _remaining([std for _, std in rests], rows[:, 0])
            number += len(fractions)
        # Each stage has independent noise. It is carried on to the end of the step, which so has
        # the noise of the whole step, as along one path.
        return np.concatenate(weights), np.array(noise)


def published_orders(evaluations: int, order: int) -> list[int]:
    """Return orders of steps that sum to a number of evaluations (2206.00927, Section 3.4).

    There is a step of order 1 at the end wherever the published code has one.
    """
    if order < 3:
        return [order] * (evaluations // order) + [1] * (evaluations % order)
    last = {0: [2, 1], 1: [1], 2: [2]}[evaluations % 3]
    return [3] * ((evaluations - sum(last)) // 3) + last


def _ancestral(start: Coefficients, end: Coefficients, eta: float) -> tuple[Coefficients, Any]:
    """Return the coefficients where an ancestral step's ODE ends, and the std of its noise."""
    fresh = eta**2 * -np.expm1(2 * (start.half_log_snr - end.half_log_snr))
    kept = np.log1p(-fresh) / 2
    rest = end._replace(sigma=end.sigma * np.exp(kept), half_log_snr=end.half_log_snr - kept)
    return rest, end.sigma * np.sqrt(fresh)


def _remaining(stds: list[float], carried: np.ndarray) -> list[float]:
    """Return the noise to add after each stage, where that of the stage before is scaled."""
    before = carried * np.append(0.0, stds[:-1])
    return list(np.sqrt(np.square(stds) - before**2))


def _stages(steps: list[ExponentialStep], fractions: tuple[float, ...]) -> list[LinearCombination]:
    """Return the states after the stages of a step, given the steps from its start to each."""
    x, *predictions = unit_coefficients(len(steps))
    first, states = predictions[0], [steps[0].scale * x + steps[0].constant_weight * predictions[0]]
    if len(steps) == 2:
        slope = (predictions[1] - first) / fractions[1]
        states.append(steps[1].scale * x + steps[1].constant_weight * (first + slope / 2))
    if len(steps) == 3:
        _, r_1, r_2 = fractions
        # The line through the first prediction and the latest, which is this fraction of h ahead.
        for step, latest, fraction in zip(
            steps[1:], predictions[1:], (r_1 / r_2, r_2), strict=True
        ):
            weights = step.weights(np.array([0.0, fraction]), FRACTIONS)
            states.append(step.scale * x + weights @ np.stack([first, latest]))
    return states


def _with_stages(
    sde: SDE,
    times: np.ndarray,
    starts: np.ndarray,
    targets: np.ndarray,
    stages: list[tuple[float, ...]],
) -> np.ndarray:
    """Return the times of all evaluations, then the final time.

    Stages lie at fractions of the way from `starts` to `targets`, which are values of lambda.
    """
    number = np.repeat(np.arange(len(stages)), [len(fractions) for fractions in stages])
    fraction = np.concatenate(stages)
    between = (1 - fraction) * starts[number] + fraction * targets[number]
    found = in_float64(sde.time_of_log_snr, 2 * between)
    return np.append(np.where(fraction == 0, times[number], found), times[-1])
