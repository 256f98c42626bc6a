"""Checks that objective, sampler and task go with the ends of the paths."""

from errors import ConfigError
from experiment.ends import FIELD, Ends
from experiment.experiment import Experiment
from experiment.sampler import Adaptive, Sampler


def check_ends(experiment: Experiment) -> None:
    """Raise ConfigError unless objective, sampler and task suit the ends of the paths."""
    ends, sampler = experiment.ends, experiment.sampler
    task = sampler.task
    if task is not None and task.options.translates and ends.given is None:
        raise ConfigError(
            "config.task.name='translate' maps between two data sets, and config.coupling has "
            f"none; give {FIELD}=NAME to a run that was trained with it, or choose another task"
        )
    if experiment.trainer.loss.simulates:
        _check_simulated(experiment)
    if ends.plain:
        return
    _check_training(experiment)
    _check_sampling(ends, sampler)
    if task is None:
        return
    if not task.options.translates:
        raise ConfigError(
            f"config.task.name={task.name!r} starts from noise, and config.coupling has other "
            "ends; choose translate or generate"
        )
    if task.options.encodes and ends.diffusion:
        remedy = f"sample a run in which config.data.name and {FIELD} have changed places"
        if ends.operator is not None:
            measurement = experiment.config["coupling"]["measurement"]
            remedy = f"choose to_data, the only one of config.coupling.measurement={measurement!r}"
        raise ConfigError(
            "config.task.direction='from_data' needs a network of that direction, and with "
            f"config.sde.diffusion={ends.diffusion:g} a network has one; {remedy} "
            "(docs/bridges.md)"
        )
    if task.options.encodes and not sampler.solve.inverts:
        raise ConfigError(
            f"config.task.direction='from_data' inverts the flow, which config.sampling.name="
            f"{sampler.name!r} cannot do; choose ode, or ddim with eta=0"
        )


def _check_training(experiment: Experiment) -> None:
    ends, loss = experiment.ends, experiment.config["loss"]["name"]
    g = f"config.sde.diffusion={ends.diffusion:g}"
    for wrong, problem in (
        (
            not experiment.trainer.loss.takes_ends,
            f"config.loss.name={loss!r} takes the ends for noise; choose denoising",
        ),
        (
            bool(experiment.model.sde.parameters()),
            "config.sde.name='learned' has no fixed paths; choose linear",
        ),
        (
            bool(ends.diffusion) and ends.given is None,
            f"{g} makes bridges between two data sets; give {FIELD}=NAME, or set it to 0",
        ),
        (
            experiment.model.upsampling > 1,
            "config.model.upsampling is for noise alone; leave out config.coupling",
        ),
        (
            experiment.trainer.augment is not None,
            "config.augmentation.probability would transform one end of a path alone; set it to 0",
        ),
        (
            (ends.coupling.simulates or experiment.trainer.loss.simulates)
            and bool(experiment.model.num_classes),
            "config.model.num_classes needs classes, which simulated pairs lack; set it to 0",
        ),
    ):
        if wrong:
            raise ConfigError(problem)


def _check_simulated(experiment: Experiment) -> None:
    """Raise ConfigError unless the ends are those of chains, and samples end where they start."""
    name, t_min = experiment.ends.name, experiment.sampler.solve.t_min
    loss, first = experiment.config["loss"], experiment.trainer.loss.first_time
    if name != "reference":
        raise ConfigError(
            f"config.loss.name={loss['name']!r} simulates its paths, first of a Brownian motion, "
            f"and takes no ends of config.coupling.name={name!r}; choose reference"
        )
    if t_min < first * (1 - 1e-6):
        raise ConfigError(
            f"config.sampling.t_min={t_min:g} is before the first time that "
            f"config.loss.num_timesteps={loss['num_timesteps']} trains; give "
            f"config.sampling.t_min={first:.4g}"
        )


def _check_sampling(ends: Ends, sampler: Sampler) -> None:
    """Raise ConfigError for a sampler that relies on ends being independent noise."""
    if sampler.guidance.needs not in ("", "bad_model"):  # it adds a gradient to the score
        raise ConfigError(
            f"config.guidance.name={sampler.guidance.name!r} needs scores, which networks of "
            "coupled ends do not have; set it to none"
        )
    name = f"config.sampling.name={sampler.name!r}"
    if ends.diffusion:
        if sampler.name != "bridge":
            raise ConfigError(
                f"{name} does not follow the bridges of config.sde.diffusion={ends.diffusion:g}; "
                "choose bridge"
            )
        return
    solve = sampler.solve
    if isinstance(solve, Adaptive):
        follows = solve.inverts
    else:
        follows = getattr(solve.solver, "follows_flow", False)
    if not follows:
        raise ConfigError(
            f"{name} adds noise as if the ends of paths were noise; choose ode, or without fresh "
            "noise ddim, dpm_solver or heun"
        )
