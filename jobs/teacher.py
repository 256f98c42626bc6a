"""The teacher of a distillation: the network of another run, with frozen parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from denoising import Denoiser
from errors import CheckpointError, ConfigError, WorkdirError
from experiment.experiment import Experiment
from experiment.few_steps import TEACHER, check_teacher
from jobs.restore import experiment_of, restore_parameters
from jobs.workdir import Workdir, run_and_step


def load_teacher(experiment: Experiment) -> Denoiser | None:
    """Return the teacher with its averaged parameters; None if the objective needs none.

    Raises:
        ConfigError: if there is no such run or checkpoint, or it cannot teach this network.
    """
    if not experiment.trainer.loss.teacher:
        return None
    teacher, workdir, step = find_teacher(experiment)
    try:
        restored = restore_parameters(teacher, workdir, step)
    except (CheckpointError, WorkdirError) as error:
        raise ConfigError(f"{TEACHER}={experiment.trainer.loss.teacher!r}: {error}") from error
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


def find_teacher(experiment: Experiment) -> tuple[Experiment, Workdir, int | None]:
    """Return the experiment, the folder and the step that `config.loss.teacher` names.

    Raises:
        ConfigError: if there is no such run or checkpoint, or it cannot teach this network.
    """
    text = experiment.trainer.loss.teacher
    run, step = run_and_step(text)
    workdir = Workdir(run)
    try:
        teacher = experiment_of(workdir)
        workdir.require_checkpoint(step)
    except (CheckpointError, WorkdirError) as error:
        raise ConfigError(f"{TEACHER}={text!r}: {error}") from error
    check_teacher(experiment, teacher)
    return teacher, workdir, step
