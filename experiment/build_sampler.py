"""Build the sampler that config.sampling, config.guidance and config.task describe."""

import dataclasses
from collections.abc import Callable
from typing import Any

from errors import ConfigError
from experiment.class_guidance import GUIDANCES, Classes, GuidanceOptions
from experiment.data import Data
from experiment.ends import Ends
from experiment.options import SamplingOptions
from experiment.reader import Reader, config_errors
from experiment.sampler import Adaptive, FixedSteps, Sampler
from experiment.tasks import (
    TASKS,
    Input,
    InverseProblem,
    Measurement,
    Task,
)
from numerics.clipping import Clipping
from sampling import Samples
from sde_lib import SDE
from solvers import ADAPTIVE, SOLVERS
from solvers.analytic_dpm import AnalyticDPM
from solvers.predictor_corrector import CORRECTORS, PREDICTORS, PredictorCorrector
from time_grids import Schedule

PARTS = {"predictor": PREDICTORS, "corrector": CORRECTORS}  # of a PredictorCorrector, by field


def build_sampler(reader: Reader, sde: SDE, data: Data, classes: Classes, ends: Ends) -> Sampler:
    """Build the sampler that the configuration describes.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    guidance, details = _build_guidance(reader, data)
    method = guidance.method
    with config_errors("guidance"):
        sample_classes = classes.network if method is None else method.sample_classes(classes)
    task = _build_task(reader, data)
    if (clip := reader.config["sampling"]["clip"]) not in (None, "none"):
        data.kind.require_images(f"config.sampling.clip={clip!r}", "leave it out")
    chosen = reader.lookup("sampling", {**SOLVERS, **ADAPTIVE})
    if reader.config["sampling"]["name"] != "pc":
        for field, table in PARTS.items():
            reader.offer("sampling", table, f"name=pc {field}")
    if chosen in ADAPTIVE.values():
        function, option_classes = chosen
        options, solve = _adaptive(reader, function, option_classes, data)
        evaluations = None
    else:
        options, solve = _fixed_steps(reader, chosen, data, task)
        evaluations = _count_evaluations(reader, solve, sde) * guidance.evaluations
    section = "classifier" if guidance.needs == "classifier" else "model"
    with config_errors("sampling"):
        options.check(
            classes=sample_classes,
            null_label=classes.network if method is None and classes.network else None,
            owner=f"config.{section}.num_classes",
        )
    if task is not None:
        _check_task(reader, task, solve)
    if getattr(getattr(solve, "solver", None), "needs_energy", False):
        _check_energy(reader, task)
    needs = {guidance.needs, solve.uncertainty}
    if isinstance(solve, FixedSteps):
        needs |= getattr(solve.solver, "needs", frozenset())
    return Sampler(
        name=reader.config["sampling"]["name"],
        options=options,
        guidance=guidance,
        guidance_details=details,
        classes=classes,
        sample_classes=sample_classes,
        task=task,
        solve=solve,
        evaluations=evaluations,
        needs=frozenset(needs - {""}),
        data=data,
        ends=ends,
    )


def _build_guidance(reader: Reader, data: Data) -> tuple[GuidanceOptions, Any]:
    """Return the options of the guidance, and those that its method alone has, or None."""
    row = reader.lookup("guidance", GUIDANCES)
    if row is None or row.options is None:
        return reader.build("guidance", GuidanceOptions), None
    name = reader.config["guidance"]["name"]
    if row.images_only:
        data.kind.require_images(f"config.guidance.name={name!r}", "choose another")
    guidance, details = reader.build_all("guidance", (GuidanceOptions, row.options)).values()
    if row.check is not None:
        with config_errors("guidance"):
            row.check(details, reader.config["sampling"]["clip"])
    return guidance, details


def require_learned(reader: Reader, path: str) -> None:
    """Raise ConfigError unless the network predicts variances, for `variance` of a section."""
    parameterization = reader.config["denoiser"]["parameterization"]
    if parameterization != "eps_learned_variance":
        raise ConfigError(
            f"config.{path}.variance='learned' needs a network that predicts variances, with "
            f"config.denoiser.parameterization=eps_learned_variance, not {parameterization!r}; "
            "choose small or large"
        )


def _range(data: Data) -> dict[str, float]:
    return dict(zip(("low", "high"), data.limits, strict=True))


def _adaptive(
    reader: Reader, function: Callable[..., Samples], classes: dict[str, type], data: Data
) -> tuple[SamplingOptions, Adaptive]:
    built = reader.build_all(
        "sampling",
        (SamplingOptions, Clipping, *classes.values()),
        ignore={"name"},
        fixed=_range(data),
    )
    given = {name: built[cls] for name, cls in classes.items()}
    solve = Adaptive(function=function, options=given, clipping=built[Clipping])
    return built[SamplingOptions], solve


def _fixed_steps(
    reader: Reader, cls: type, data: Data, task: Task | None
) -> tuple[SamplingOptions, FixedSteps]:
    parts: dict[str, type | None] = {}
    if cls is PredictorCorrector:
        for name, table in PARTS.items():
            parts[name] = reader.lookup("sampling", {"none": None, **table}, name)
    built = reader.build_all(
        "sampling",
        (SamplingOptions, Clipping, Schedule, cls, *filter(None, parts.values())),
        ignore={"name", *parts},
        fixed=_range(data),
    )
    solver = built[cls]
    if parts:
        made = {name: None if part is None else built[part] for name, part in parts.items()}
        with config_errors("sampling"):
            solver = dataclasses.replace(solver, **made)
        _check_predictor(reader, solver.predictor)
    schedule = _with_start(built[Schedule], task)
    solve = FixedSteps(solver=solver, schedule=schedule, clipping=built[Clipping])
    return built[SamplingOptions], solve


def _with_start(schedule: Schedule, task: Task | None) -> Schedule:
    """Return the schedule from the time up to which SDEdit adds noise."""
    if task is None:
        return schedule
    with config_errors("task"):
        return dataclasses.replace(schedule, start=task.options.start)


def _check_predictor(reader: Reader, predictor: Any) -> None:
    if getattr(predictor, "variance", None) == "learned":
        require_learned(reader, "sampling")
    guidance = reader.config["guidance"]["name"]
    if getattr(predictor, "guidance_form", None) == "mean" and guidance != "classifier":
        raise ConfigError(
            "config.sampling.guidance_form='mean' is used with config.guidance.name=classifier, "
            f"not with {guidance!r}; leave it out"
        )


def _check_energy(reader: Reader, task: Task | None) -> None:
    """Raise ConfigError unless a sampler that compares densities has them."""
    sampling, guidance = reader.config["sampling"], reader.config["guidance"]["name"]
    field = "name" if sampling["name"] != "pc" else "corrector"
    what = f"config.sampling.{field}={sampling[field]!r}"
    if not reader.config["denoiser"]["energy"]:
        remedy = "langevin" if field == "name" else "langevin or annealed_langevin"
        raise ConfigError(
            f"{what} compares densities, which a network has with config.denoiser.energy=True; "
            f"train one with that, or choose config.sampling.{field}={remedy}"
        )
    if guidance != "none":
        raise ConfigError(
            f"{what} compares densities, which a score with config.guidance.name={guidance!r} "
            "does not have; set it to none, or choose another sampler"
        )
    if task is not None and task.inverse_problem is not None:
        raise ConfigError(
            f"{what} compares densities, which a score with config.task.name={task.name!r} does "
            "not have; choose another sampler"
        )
    if (clip := sampling["clip"]) not in (None, "none"):
        raise ConfigError(
            f"{what} compares densities, which a score with config.sampling.clip={clip!r} does not "
            "have; set it to none"
        )


def _count_evaluations(reader: Reader, solve: FixedSteps, sde: SDE) -> int:
    """Return the network evaluations per image without guidance; record the number of steps."""
    schedule = solve.schedule
    with config_errors("sampling"):
        times = schedule.of(sde)
        if isinstance(solve.solver, AnalyticDPM):  # it plans once it has its moments
            evaluations = len(times) - 1
        else:
            plan = solve.solver.plan(sde, times)
            plan.require_final_step(schedule.final_step)
            evaluations = plan.evaluations
    whole = dataclasses.replace(schedule, start=1.0)  # SDEdit takes the rest of it
    reader.record("sampling", steps=whole.count(sde) + (schedule.grid == "timesteps"))
    return evaluations + (schedule.final_step == "denoise")


def _build_task(reader: Reader, data: Data) -> Task | None:
    classes = reader.lookup("task", TASKS)
    built = reader.build_all("task", classes, ignore={"name"})
    if not built:
        return None
    name = reader.config["task"]["name"]
    what = f"config.task.name={name!r}"
    given, options = built[Input].input, built[classes[-1]]
    if options.translates:
        return Task(name=name, input=given, options=options)
    data.kind.require_images(what, "leave it out, or guide by a loss in Python (docs/points.md)")
    problem = built.get(InverseProblem)
    if problem is None:
        return Task(name=name, input=given, options=options)
    with config_errors("task"):
        operator = options.operator(data.shape)
    return Task(name=name, input=given, options=options, inverse_problem=problem, operator=operator)


def _check_task(reader: Reader, task: Task, solve: FixedSteps | Adaptive) -> None:
    """Raise ConfigError for a task that this sampler cannot do."""
    config = reader.config["sampling"]
    adaptive = isinstance(solve, Adaptive)
    fixed = f"config.sampling.name={config['name']!r} chooses its own steps; choose one of: " + (
        ", ".join(SOLVERS)
    )
    if task.options.start < 1:
        if adaptive:
            raise ConfigError(f"config.task.name={task.name!r} needs fixed steps, but {fixed}")
        return
    if task.options.upsamples or task.options.translates:  # `check_ends` has the latter
        return
    problem = task.inverse_problem
    if problem is None:
        if not solve.inverts:
            raise ConfigError(
                f"config.task.name={task.name!r} encodes images as latents, which "
                f"config.sampling.name={config['name']!r} cannot do; choose ode, or ddim with eta=0"
            )
        if solve.clipping.clip != "none":
            raise ConfigError(
                f"config.sampling.clip={config['clip']!r} is not used with config.task.name="
                f"{task.name!r}; leave it out"
            )
    elif problem.method == "projection":
        assert isinstance(task.options, Measurement)
        if adaptive:
            raise ConfigError(
                f"config.task.method='projection' acts between fixed steps, but {fixed}; or choose "
                "config.task.method=pigdm"
            )
        if not task.options.can_project:
            raise ConfigError(
                f"config.task.method='projection' is unstable with config.task.name={task.name!r}: "
                "the pseudo-inverse magnifies noise without bounds; choose pigdm"
            )
