"""From config.sampling to a sampler: its solver, where it walks, what it is asked."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Array, Key

import sampling
from data.scaling import ImageScaler
from denoising import Clipping, Denoiser
from errors import ConfigError
from experiment.reader import Reader
from experiment.tasks import TASKS, GuidanceOptions, Restoration, Task
from sampling import Samples
from sde_lib import SDE
from solvers import ADAPTIVE, SOLVERS, ddim, ode
from solvers.analytic_dpm import AnalyticDPM
from solvers.moments import EpsMoments
from solvers.predictor_corrector import CORRECTORS, PREDICTORS, PredictorCorrector
from time_grids import TIME_GRIDS, Schedule


class Sampling(NamedTuple):
    """What config.sampling describes.

    `evaluations` are the network's for an image, where they are known beforehand; `with_moments`
    gives the sampler those of its network, if it needs them; `task` is None for plain samples.
    """

    sampler: Callable[..., Samples]
    evaluations: int | None
    with_moments: Callable[..., Any] | None
    guidance: GuidanceOptions
    task: Task | None


def build_sampling(
    reader: Reader, sde: SDE, scaler: ImageScaler, item_shape: tuple[int, int, int]
) -> Sampling:
    """The sampler, and what it is asked."""
    _give_way(reader)
    config = reader.config.sampling
    if config.task == "stroke" and config.name in ADAPTIVE:
        raise ConfigError(
            f"config.sampling.name={config.name!r} chooses its own steps from 1 down, but task="
            f"'stroke' starts at config.sampling.start; choose one of: {', '.join(SOLVERS)}"
        )
    chosen = reader.lookup("sampling", "name", {**SOLVERS, **ADAPTIVE})
    asked = (GuidanceOptions, *reader.lookup("sampling", "task", TASKS))
    if Restoration in asked and config.posterior != "projection":
        config.clip = config.clip or "range"
    if config.name in ADAPTIVE:
        function, options = chosen
        made = reader.construct_all("sampling", (*asked, Clipping, *options.values()), _IGNORED)
        guidance, *of_task, clipping = made[: len(asked) + 1]
        clipping = dataclasses.replace(clipping, low=scaler.low, high=scaler.high)
        given = dict(zip(options, made[len(asked) + 1 :], strict=True))
        task = _task(reader, of_task, item_shape, _coder(function, given))
        return Sampling(_clipped(partial(function, **given), clipping), None, None, guidance, task)

    made = _fixed_steps(reader, chosen, asked)
    guidance, *of_task, clipping, schedule, solver = made
    clipping = dataclasses.replace(clipping, low=scaler.low, high=scaler.high)
    task = _task(reader, of_task, item_shape, _coder(solver, {"schedule": schedule}))

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

    evaluations = rows + (schedule.finish == "denoise")
    evaluations *= 1 + (guidance.guidance == "classifier_free")
    return Sampling(sampler(solver), evaluations, with_moments, guidance, task)


_IGNORED = frozenset({"name", "task", "seed", "label"})


def _task(
    reader: Reader, options: list[Any], item_shape: tuple[int, int, int], coder: Any
) -> Task | None:
    """What is to be done with pictures, if this sampler can do it."""
    config = reader.config.sampling
    name, start = config.task, config.start
    if (name == "stroke") != (start is not None and start < 1):
        raise ConfigError(
            f"config.sampling.start={start} and task={name!r}: stroke starts at noised pictures, "
            "at a time below 1 (config.sampling.start=0.5), and nothing else does"
        )
    if not options:
        return None
    if name in ("reconstruct", "interpolate") and coder is None:
        raise ConfigError(
            f"config.sampling.name={config.name!r} goes one way; for task={name!r}, which needs "
            "images as noise, choose ode, or ddim with eta=0"
        )
    given, *restoring = options
    if not restoring and name != "stroke" and config.clip not in (None, "none"):
        raise ConfigError(
            f"config.sampling.clip={config.clip!r} has no part in task={name!r}, which goes both "
            "ways; leave it out"
        )
    if not restoring:
        coder = None if name == "stroke" else coder
        return Task(name=name, input=given.input, coder=coder)
    restoration, measuring = restoring
    if restoration.posterior == "projection" and config.name in ADAPTIVE:
        raise ConfigError(
            "config.sampling.posterior='projection' acts between fixed steps, and name="
            f"{config.name!r} chooses its own; choose posterior=pigdm, or one of: "
            f"{', '.join(SOLVERS)}"
        )
    if restoration.posterior == "projection" and name == "deblur":
        raise ConfigError(
            "config.sampling.posterior='projection' would undo the blur itself, which magnifies "
            "rounding and noise without bounds; choose pigdm"
        )
    with reader.errors("sampling"):
        operator = measuring.operator(item_shape)
    return Task(name=name, input=given.input, restoration=restoration, operator=operator)


def _coder(solver: Any, options: dict[str, Any]) -> tuple[Callable, Callable] | None:
    """The ways from images to latent codes and back, of a sampler that has both."""
    if solver is ode.sample_ode:
        # Images are taken as states at t_min, and codes made states there again.
        flow = dataclasses.replace(options["options"], finish="sample")
        ways = (ode.encode, ode.decode)
        return tuple(partial(_state, way, options=flow, ode=options["ode"]) for way in ways)
    if isinstance(solver, ddim.DDIM) and solver.eta == 0:
        return partial(ddim.encode, **options), partial(ddim.decode, **options)
    return None


def _state(way: Callable[..., Samples], *arguments: Any, **options: Any) -> Array:
    return way(*arguments, **options).x


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


def _fixed_steps(reader: Reader, cls: type, asked: tuple[type, ...]) -> list[Any]:
    """Objects of the classes `asked`, a Clipping, a Schedule, and the solver."""
    common = (*asked, Clipping, Schedule)
    if cls is not PredictorCorrector:
        return reader.construct_all("sampling", (*common, cls), _IGNORED)
    moves = [
        reader.lookup("sampling", role, {**table, "none": None})
        for role, table in (("predictor", PREDICTORS), ("corrector", CORRECTORS))
    ]
    given = [move for move in moves if move]
    classes = (*common, PredictorCorrector, *given)
    made = reader.construct_all("sampling", classes, _IGNORED | {"predictor", "corrector"})
    first, whole, made = made[: len(common)], made[len(common)], made[len(common) + 1 :]
    predictor, corrector = (made.pop(0) if move else None for move in moves)
    form = getattr(predictor, "guidance_form", None)
    if form == "mean" and reader.config.sampling.guidance != "classifier":
        raise ConfigError(
            "config.sampling.guidance_form='mean' is of guidance='classifier' alone, not of "
            f"{reader.config.sampling.guidance!r}; leave it out"
        )
    if getattr(predictor, "variance", None) == "learned":
        require_learned(reader, "sampling")
    return [*first, dataclasses.replace(whole, predictor=predictor, corrector=corrector)]


def require_learned(reader: Reader, path: str) -> None:
    meaning = reader.config.denoiser.parameterization
    if meaning != "eps_learned_variance":
        raise ConfigError(
            f"config.{path}.variance='learned' needs a network that answers variances, with "
            f"config.denoiser.parameterization=eps_learned_variance, not {meaning!r}; choose small "
            "or large"
        )
