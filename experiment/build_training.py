"""Build what trains a network: objective, optimizer and averages."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Key

from errors import ConfigError
from experiment.data import Data
from experiment.few_steps import require_used
from experiment.options import PartOptions, TrainingOptions
from experiment.reader import Reader, config_errors
from losses import LOSSES, sees_noise_alone
from objectives.times import TIMES
from objectives.weights import WEIGHTS
from sde_lib import SDE
from training.averages import ExponentialAverage, HalfLifeAverage, MoreAverages, MovingAverage
from training.objective import Objective
from training.optimizers import OPTIMIZERS, Optimizer
from training.schedules import SCHEDULES, Cosine
from training.step import Trainer


def build_loss(reader: Reader, sde: SDE, data: Data) -> Objective:
    """Return the objective, with its times and weight."""
    times = reader.build_named("times", TIMES)
    parts = {"sigma_data": reader.config["denoiser"]["sigma_data"]}
    weight = reader.build_named("weight", WEIGHTS, fixed=parts)
    kind = reader.lookup("loss", LOSSES)
    require_used(reader, kind)
    if kind.bounds_levels and data.pixel_levels is None:
        what = f"config.loss.name={reader.config['loss']['name']!r}, a bound on gray levels,"
        data.kind.require_images(what, "choose denoising")
    parts = {"times": times, "weight": weight, "sde": sde, "pixel_levels": data.pixel_levels}
    parts |= {"total_steps": reader.config["training"]["steps"], "row_shape": data.shape}
    return reader.build_named("loss", LOSSES, fixed=parts)


def check_objective(reader: Reader, sde: SDE, loss: Objective) -> None:
    """Raise ConfigError unless the objective trains all parameters and outputs."""
    name, process = reader.config["loss"]["name"], reader.config["sde"]["name"]
    if loss.trains_process != bool(sde.parameters()):
        raise ConfigError(
            f"config.loss.name={name!r} does not go with config.sde.name={process!r}; "
            "config.sde.name=learned and config.loss.name=learned_schedule need each other"
        )
    conditioning = reader.config["denoiser"]["conditioning"]
    if loss.trains_process and not sees_noise_alone(conditioning):
        raise ConfigError(
            f"config.denoiser.conditioning={conditioning!r} depends on the time, and "
            f"config.loss.name={name!r} moves the noise of each time; choose log_snr"
        )
    parameterization = reader.config["denoiser"]["parameterization"]
    learned = parameterization == "eps_learned_variance"
    if learned and not loss.trains_variance:
        raise ConfigError(
            f"config.loss.name={name!r} does not train the variance that a network with "
            f"config.denoiser.parameterization={parameterization!r} predicts; choose hybrid, "
            "or vlb with variance=learned"
        )
    if loss.trains_variance and not learned:
        raise ConfigError(
            f"config.loss.name={name!r} trains a variance, which a network with "
            f"config.denoiser.parameterization={parameterization!r} does not predict; set "
            "config.denoiser.parameterization=eps_learned_variance and "
            "config.model.learned_variance=True, or config.loss.name=vlb with variance=small"
        )


def check_energy_objective(reader: Reader, loss: Objective) -> None:
    """Raise ConfigError unless an objective that needs an energy has one, and all that it needs."""
    if not loss.needs_energy:
        return
    what, config = f"config.loss.name={reader.config['loss']['name']!r}", reader.config
    if not config["denoiser"]["energy"]:
        raise ConfigError(
            f"{what} trains the energy of a network; set config.denoiser.energy=True, or choose "
            "config.loss.name=denoising"
        )
    if classes := config["model"]["num_classes"]:
        raise ConfigError(
            f"{what} keeps chains without classes, but config.model.num_classes={classes}; set it "
            "to 0, or choose config.loss.name=denoising"
        )
    chains, batch_size = getattr(loss, "chains", 0), config["training"]["batch_size"]
    if chains < batch_size:
        raise ConfigError(
            f"config.loss.chains={chains} is less than config.training.batch_size={batch_size}, "
            "which takes one per row; give as many chains or more"
        )


def check_cadences(reader: Reader, training: TrainingOptions) -> None:
    """Raise ConfigError for more steps per call than from one measurement or snapshot to the next.

    `TrainingOptions` checks its own cadences.
    """
    for section, name in (("diagnostics", "every"), ("ema", "snapshot_every")):
        every, field = reader.config[section][name], f"config.{section}.{name}"
        with config_errors(section):
            training.require_calls_within(field, every, ", or set it to 0")


def build_optimizer(reader: Reader, training: TrainingOptions) -> Optimizer:
    """Return the update rule with its learning rate."""
    kinds = reader.lookup("optim", OPTIMIZERS), reader.lookup("optim", SCHEDULES, "schedule")
    rule, rate = reader.build_all("optim", kinds, ignore={"name", "schedule"}).values()
    with config_errors("optim"):
        return Optimizer(
            rule=rule, learning_rate=rate, steps=training.steps, batch_size=training.batch_size
        )


def build_averages(reader: Reader, batch_size: int) -> tuple[ExponentialAverage, MoreAverages]:
    """Return the main average of the parameters, and what is kept beside it."""
    rate, half_life = (reader.config["ema"][name] for name in ("rate", "half_life_images"))
    if half_life is not None and "ema.rate" in reader.overrides:
        raise ConfigError(
            f"config.ema.rate={rate} and config.ema.half_life_images={half_life} both say how long "
            "the average remembers; leave out the rate, or set config.ema.half_life_images=None"
        )
    kind = MovingAverage if half_life is None else HalfLifeAverage
    built = reader.build_all("ema", (kind, MoreAverages), fixed={"batch_size": batch_size})
    return built[kind], built[MoreAverages]


def part_trainer(
    section: str,
    options: PartOptions,
    data: Data,
    *,
    init: Callable[[Key[Array, ""]], Any],
    model: Callable[..., Any],
    loss: Objective,
    classes: int,
) -> Trainer:
    """Return the trainer of a network beside the model: a cosine schedule, one average.

    Args:
        section: of the configuration, for errors.
        options: how long and how fast it is trained.
        data: where its batches come from.
        init: parameters from a key.
        model: what `loss` takes, from (parameters, dropout key or None).
        loss: the objective.
        classes: number of classes of the labels that it sees; 0 for none.
    """
    with config_errors(section):
        schedule = Cosine(lr=options.lr, warmup=options.warmup)
        optimizer = Optimizer(learning_rate=schedule, steps=options.steps)
    return Trainer(
        init=init,
        denoiser=model,
        loss=loss,
        optimizer=optimizer,
        average=MovingAverage(rate=0.99),
        parallel=data.parallel,
        classes=classes,
        label_dropout=0.0,
    )
