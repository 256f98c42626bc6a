"""From config.sampling to a sampler: its solver, where it walks, how predictions are clipped."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Array, Key

import sampling
from config_reader import Reader
from denoising import Clipping, Denoiser
from experiment import ConfigError
from input_pipeline import ImageScaler
from sampling import Samples
from sde_lib import SDE
from solvers import ADAPTIVE, SOLVERS
from solvers.analytic_dpm import AnalyticDPM
from solvers.moments import EpsMoments
from solvers.predictor_corrector import CORRECTORS, PREDICTORS, PredictorCorrector
from time_grids import TIME_GRIDS, Schedule


def build_sampler(
    reader: Reader, sde: SDE, scaler: ImageScaler
) -> tuple[Callable[..., Samples], int | None, Callable[..., Any] | None]:
    """The sampler, its network evaluations an image where they are known beforehand, and how to
    give it the moments of its network if it needs them."""
    _give_way(reader)
    chosen = reader.lookup("sampling", "name", {**SOLVERS, **ADAPTIVE})
    ignore = {"name", "seed", "label"}
    if reader.config.sampling.name in ADAPTIVE:
        function, options = chosen
        classes = (Clipping, *options.values())
        clipping, *made = reader.construct_all("sampling", classes, ignore)
        clipping = dataclasses.replace(clipping, low=scaler.low, high=scaler.high)
        given = dict(zip(options, made, strict=True))
        return _clipped(partial(function, **given), clipping), None, None

    clipping, schedule, solver = _fixed_steps(reader, chosen, ignore)
    clipping = dataclasses.replace(clipping, low=scaler.low, high=scaler.high)

    def sampler(solver: sampling.Solver) -> Callable[..., Samples]:
        return _clipped(partial(sampling.sample, solver=solver, schedule=schedule), clipping)

    with reader.errors("sampling"):
        times = schedule.of(sde)
        needs_moments = chosen is AnalyticDPM
        rows = len(times) - 1 if needs_moments else solver.plan(sde, times).evaluations
    reader.resolved["sampling"]["steps"] = len(times) - (schedule.grid != "levels")
    with_moments = None
    if needs_moments:

        def with_moments(moments: EpsMoments) -> Callable[..., Samples]:
            ready = dataclasses.replace(solver, moments=moments)
            ready.plan(sde, times)  # moments that do not fit show now
            return sampler(ready)

    return sampler(solver), rows + (schedule.finish == "denoise"), with_moments


# What a person gives by hand takes the place of what the file says in another way.
_INSTEAD = {
    "steps": ("times",),
    "times": ("grid", "steps", "rho"),
    "grid": ("times", "steps", "rho"),
    "rtol": ("steps",),
    "s_churn": ("churn_min", "churn_max", "churn_noise"),
}


def _give_way(reader: Reader) -> None:
    """Unset the file's fields of sampling that fields given by hand make meaningless."""
    config = reader.config.sampling
    for given, others in _INSTEAD.items():
        if f"sampling.{given}" not in reader.explicit:
            continue
        if given == "grid" and config.grid in TIME_GRIDS:
            others = ("times", "rho")
        if given == "s_churn" and config.s_churn:
            others = ()
        if given == "rtol" and config.name != "sde":
            others = ()
        for name in others:
            if f"sampling.{name}" not in reader.explicit:
                config[name] = None


def _clipped(draw: Callable[..., Samples], clipping: Clipping) -> Callable[..., Samples]:
    def sampler(key: Key[Array, ""], denoiser: Denoiser, shape: tuple, **options: Any) -> Samples:
        return draw(key, dataclasses.replace(denoiser, clipping=clipping), shape, **options)

    return sampler


def _fixed_steps(
    reader: Reader, cls: type, ignore: set[str]
) -> tuple[Clipping, Schedule, sampling.Solver]:
    if cls is not PredictorCorrector:
        return tuple(reader.construct_all("sampling", (Clipping, Schedule, cls), ignore))
    moves = [
        reader.lookup("sampling", role, {**table, "none": None})
        for role, table in (("predictor", PREDICTORS), ("corrector", CORRECTORS))
    ]
    given = [move for move in moves if move]
    classes = (Clipping, Schedule, PredictorCorrector, *given)
    ignore |= {"predictor", "corrector"}
    clipping, schedule, whole, *made = reader.construct_all("sampling", classes, ignore)
    predictor, corrector = (made.pop(0) if move else None for move in moves)
    if getattr(predictor, "variance", None) == "learned":
        require_learned(reader, "sampling")
    return clipping, schedule, dataclasses.replace(whole, predictor=predictor, corrector=corrector)


def require_learned(reader: Reader, path: str) -> None:
    meaning = reader.config.denoiser.parameterization
    if meaning != "eps_variance":
        raise ConfigError(
            f"config.{path}.variance='learned' needs a network that answers variances, with "
            f"config.denoiser.parameterization=eps_variance, not {meaning!r}; choose small or large"
        )
