"""The teacher of a distillation: the network of another run, with frozen parameters."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from denoising import Denoiser
from errors import CheckpointError, ConfigError, WorkdirError
from experiment.build import build
from experiment.experiment import Experiment
from jobs.restore import restore_state
from jobs.workdir import Workdir
from objectives.distillation import ProgressiveDistillation

_FIELD = "config.loss.teacher"


def load_teacher(experiment: Experiment) -> Denoiser | None:
    """Return the teacher with its averaged parameters; None if the objective needs none.

    Raises:
        ConfigError: if there is no such run or checkpoint, or it cannot teach this network.
    """
    if not experiment.loss.teacher:
        return None
    teacher, workdir, step = check_teacher(experiment)
    try:
        restored = restore_state(teacher, workdir, step)
    except (CheckpointError, WorkdirError) as error:
        raise ConfigError(f"{_FIELD}={experiment.loss.teacher!r}: {error}") from error
    print(f"the teacher is {workdir.path} at step {restored.step}")
    return teacher.model.denoiser(restored.state.ema_params)


def params_of_student(teacher: Denoiser, template: Any) -> tuple[Any, Any] | None:
    """Return two copies of the teacher's parameters if they fit the student's, else None.

    The first are to be trained, the second averaged. `template` has the shapes of the student's.
    """
    params = teacher.network.args[0]
    fits = jax.tree.structure(params) == jax.tree.structure(template) and all(
        ours.shape == theirs.shape
        for ours, theirs in zip(jax.tree.leaves(template), jax.tree.leaves(params), strict=True)
    )
    if not fits:
        print("the teacher has another network, so the student starts with random parameters")
        return None
    print("the student starts with the teacher's parameters")
    first, second = (jax.tree.map(jnp.copy, params) for _ in range(2))
    return first, second


def check_teacher(experiment: Experiment) -> tuple[Experiment, Workdir, int | None]:
    """Return the experiment, the folder and the step that `config.loss.teacher` names.

    Raises:
        ConfigError: if there is no such run, or it cannot teach this network.
    """
    text = experiment.loss.teacher
    run, _, number = text.rpartition(":")
    run, step = (run, int(number)) if run and number.isdecimal() else (text, None)
    workdir = Workdir(Path(run).expanduser())
    try:
        teacher = build(workdir.read_config())
    except (WorkdirError, ConfigError) as error:
        raise ConfigError(f"{_FIELD}={text!r}: {error}") from error
    for name, ours, theirs in (
        ("sde", experiment.config["sde"], teacher.config["sde"]),
        ("image shape", experiment.data.shape, teacher.data.shape),
        ("data.centered", experiment.data.options.centered, teacher.data.options.centered),
        ("model.num_classes", experiment.model.num_classes, teacher.model.num_classes),
    ):
        if ours != theirs:
            raise ConfigError(
                f"{_FIELD}={text!r} has another {name} than this run: {_brief(theirs)}, not "
                f"{_brief(ours)}; give the same, or another teacher"
            )
    _check_objectives(experiment, teacher)
    return teacher, workdir, step


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items() if each is not None)
    return str(value)


def _check_objectives(experiment: Experiment, teacher: Experiment) -> None:
    """Raise ConfigError unless what the teacher was trained for is what the objective needs."""
    text, theirs, ours = experiment.loss.teacher, teacher.loss, experiment.loss
    if not theirs.samplers:
        return
    both = isinstance(ours, ProgressiveDistillation) and isinstance(theirs, ProgressiveDistillation)
    if not both:
        raise ConfigError(
            f"{_FIELD}={text!r} was trained by config.loss.name="
            f"{teacher.config['loss']['name']!r}, which gives no scores; give a run that has them"
        )
    if theirs.student_steps != 2 * ours.student_steps:
        half, odd = divmod(theirs.student_steps, 2)
        remedy = "give another teacher" if odd else f"give config.loss.student_steps={half}"
        raise ConfigError(
            f"config.loss.student_steps={ours.student_steps} must be half the teacher's, but "
            f"{_FIELD}={text!r} samples in {theirs.student_steps}; {remedy}"
        )
    for name in ("grid", "t_min"):
        wanted, found = getattr(theirs, name), getattr(ours, name)
        if wanted != found:
            raise ConfigError(
                f"config.loss.{name}={found!r} must be that of the teacher; give "
                f"config.loss.{name}={wanted}"
            )
