"""Checks of networks without a score at every time, which are sampled in ways of their own.

They are consistency models, students of progressive distillation, and energies of one noise level.
None has a likelihood by the probability-flow ODE.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from denoising import Denoiser
from errors import ConfigError
from experiment.experiment import Experiment
from experiment.reader import Reader, config_errors
from experiment.sampler import FixedSteps
from losses import LOSSES
from numerics.parameterizations import PARAMETERIZATIONS
from objectives.consistency import require_level
from objectives.distillation import ProgressiveDistillation
from objectives.maximum_likelihood import MaximumLikelihood
from training.objective import Objective

TEACHER = "config.loss.teacher"

# At t = 1: the weight of the error of x0, and the change of x0 per change of the network's output.
_SMALLEST_WEIGHT = 0.1
_LARGEST_GAIN = 10.0


def require_used(reader: Reader, kind: type[Objective]) -> None:
    """Raise ConfigError if the command line sets times or weights that an objective has not."""
    fields = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore
    for section in ("times", "weight"):
        given = sorted(name for name in reader.overrides if name.startswith(f"{section}."))
        if given and section not in fields:
            name = reader.config["loss"]["name"]
            raise ConfigError(
                f"config.{given[0]} is not used with config.loss.name={name!r}, which has its own "
                f"{'noise levels' if section == 'times' else 'weight'}; leave it out"
            )


def require_scores(experiment: Experiment, what: str, remedy: str) -> None:
    """Raise ConfigError unless the objective trains scores at all times, which `what` needs."""
    if not experiment.ends.plain:
        raise ConfigError(
            f"{what} needs scores, and with config.coupling the ends of paths are no independent "
            f"noise; {remedy}"
        )
    if experiment.trainer.loss.samplers:
        raise ConfigError(
            f"{what} needs scores at all times, which config.loss.name="
            f"{experiment.config['loss']['name']!r} does not train; {remedy}"
        )


def check_few_steps(experiment: Experiment) -> None:
    """Raise ConfigError unless objective, parameterization and sampler go together."""
    _check_parameterization(experiment)
    objective, name = experiment.trainer.loss, experiment.config["loss"]["name"]
    if not objective.samplers:
        if experiment.sampler.name == "consistency":
            raise ConfigError(
                "config.sampling.name='consistency' needs a consistency model, which "
                f"config.loss.name={name!r} does not train; choose another, such as unipc"
            )
        return
    sampler = experiment.sampler
    if sampler.name not in objective.samplers:
        remedy = f"choose {' or '.join(objective.samplers)}"
        require_scores(experiment, f"config.sampling.name={sampler.name!r}", remedy)
    if sampler.guidance.method is not None:
        guidance = f"config.guidance.name={sampler.guidance.name!r}"
        require_scores(experiment, guidance, "set it to none")
    if sampler.task is not None and sampler.task.options.start == 1:
        task = f"config.task.name={sampler.task.name!r}"
        require_scores(experiment, task, "choose generate, or a run of another loss")
    if isinstance(objective, ProgressiveDistillation):
        _check_student(experiment, objective)
    if isinstance(objective, MaximumLikelihood):
        _check_level(experiment, objective.t_min)


def _check_level(experiment: Experiment, t_min: float) -> None:
    """Raise ConfigError unless an energy is used at the time at which it is trained."""
    for section in ("sampling", "likelihood"):
        if (given := experiment.config[section]["t_min"]) != t_min:
            raise ConfigError(
                f"config.{section}.t_min={given} is another time than config.loss.t_min={t_min}, "
                "whose density is trained; leave it out"
            )


def _check_parameterization(experiment: Experiment) -> None:
    objective, name = experiment.trainer.loss, experiment.config["loss"]["name"]
    given = experiment.model.options.parameterization
    wanted = objective.parameterization
    if wanted is not None and given != wanted:
        raise ConfigError(
            f"config.loss.name={name!r} needs config.denoiser.parameterization={wanted}, not "
            f"{given!r}"
        )
    if wanted is None and not PARAMETERIZATIONS[given].predicts_mean:
        able = [key for key, row in LOSSES.items() if row.parameterization == given]
        raise ConfigError(
            f"config.denoiser.parameterization={given!r} needs config.loss.name="
            f"{' or '.join(sorted(able))}, not {name!r}"
        )
    if wanted == "consistency":
        with config_errors("denoiser"):
            require_level(experiment.model.sde, experiment.model.options.sigma_min)


def _check_student(experiment: Experiment, objective: ProgressiveDistillation) -> None:
    """Raise ConfigError unless the student is sampled at the times that it is trained at."""
    sde, options = experiment.model.sde, experiment.model.options
    with config_errors("loss"):
        times = objective.teacher_times(sde)[::2]
    solve, wanted = experiment.sampler.solve, objective.schedule
    assert isinstance(solve, FixedSteps)
    found = solve.schedule.of(sde)
    same = len(found) == len(times) and np.allclose(found, times, rtol=1e-5)
    if not (same and solve.inverts and solve.schedule.final_step != "denoise"):
        raise ConfigError(
            "config.sampling has other steps than the student is trained for; give "
            f"config.sampling.steps={wanted.steps} grid={wanted.grid} t_min={wanted.t_min} "
            f"final_step={wanted.final_step} eta=0, or leave them out"
        )
    one = jnp.ones(1)
    if objective.weight(sde, one)[0] * jnp.exp(sde.log_snr(one))[0] < _SMALLEST_WEIGHT:
        raise ConfigError(
            f"config.weight.name={experiment.config['weight']['name']!r} gives pure noise, where a "
            "student starts, no weight; choose truncated_snr or v"
        )
    if _gain(experiment) > _LARGEST_GAIN:
        raise ConfigError(
            f"config.denoiser.parameterization={options.parameterization!r} gives no x0 for "
            "pure noise, where a student starts; choose v, x0, velocity or edm (the teacher too)"
        )


def _gain(experiment: Experiment) -> float:
    """Return the change of x0 for a change by 1 of the network's output at t = 1."""
    options = experiment.model.options
    parameterization = PARAMETERIZATIONS[options.parameterization]
    if parameterization.of_levels:
        return 0.0  # x0 is a mean of gray levels, whatever the output is
    channels = parameterization.channels

    def x0(output: float) -> float:
        denoiser = Denoiser(
            sde=experiment.model.sde,
            network=lambda x, t: jnp.full((1, channels), output),
            parameterization=options.parameterization,
            conditioning="t",
            sigma_data=options.sigma_data,
        )
        return float(denoiser.predict(jnp.zeros((1, 1)), 1.0).x0[0, 0])

    return abs(x0(1.0) - x0(0.0))


def check_teacher(experiment: Experiment, teacher: Experiment) -> None:
    """Raise ConfigError unless the run `teacher` can teach the network of `experiment`."""
    text = experiment.trainer.loss.teacher
    for name, ours, theirs in (
        ("sde", experiment.config["sde"], teacher.config["sde"]),
        ("shape", experiment.data.shape, teacher.data.shape),
        ("range", experiment.data.scaler, teacher.data.scaler),
        ("model.num_classes", experiment.model.num_classes, teacher.model.num_classes),
    ):
        if ours != theirs:
            raise ConfigError(
                f"{TEACHER}={text!r} has another {name} than this run: {_brief(theirs)}, not "
                f"{_brief(ours)}; give the same, or another teacher"
            )
    _check_teacher_objective(experiment, teacher)


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items() if each is not None)
    return str(value)


def _check_teacher_objective(experiment: Experiment, teacher: Experiment) -> None:
    """Raise ConfigError unless what the teacher was trained for is what the objective needs."""
    ours, theirs = experiment.trainer.loss, teacher.trainer.loss
    text = ours.teacher
    if ours.simulates and teacher.ends.sets != experiment.ends.sets[::-1]:
        start, end = experiment.ends.sets
        raise ConfigError(
            f"{TEACHER}={text!r} does not lead from {start} to {end}; give a run with "
            f"config.data.name={end} and config.coupling.data={start}"
        )
    if not theirs.samplers:
        return
    if not (
        isinstance(ours, ProgressiveDistillation) and isinstance(theirs, ProgressiveDistillation)
    ):
        raise ConfigError(
            f"{TEACHER}={text!r} was trained by config.loss.name="
            f"{teacher.config['loss']['name']!r}, which gives no scores; give a run that has them"
        )
    if theirs.student_steps != 2 * ours.student_steps:
        half, odd = divmod(theirs.student_steps, 2)
        remedy = "give another teacher" if odd else f"give config.loss.student_steps={half}"
        raise ConfigError(
            f"config.loss.student_steps={ours.student_steps} must be half the teacher's, but "
            f"{TEACHER}={text!r} samples in {theirs.student_steps}; {remedy}"
        )
    for name in ("grid", "t_min"):
        wanted, found = getattr(theirs, name), getattr(ours, name)
        if wanted != found:
            raise ConfigError(
                f"config.loss.{name}={found!r} must be that of the teacher; give "
                f"config.loss.{name}={wanted}"
            )
