"""From a configuration to an Experiment: the only reader of its fields, and where they are checked.

Every choice by name is looked up, every object built, and every shape evaluated abstractly, before
anything is computed or written; what is wrong is told in one line with the config path.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Key
from ml_collections import ConfigDict

import sampling
from denoising import Clipping, Denoiser
from experiment import ConfigError, Experiment
from input_pipeline import ImageScaler
from likelihood import LikelihoodOptions, log_prob
from losses import ScoreMatching
from metrics.frechet import EXTRACTORS
from models import NETWORKS
from ode import ODEOptions
from parallel import Layout
from sampling import Samples
from sde_lib import SDE, SDES
from solvers import ADAPTIVE, SOLVERS
from solvers.analytic_dpm import AnalyticDPM
from solvers.moments import EpsMoments
from solvers.predictor_corrector import CORRECTORS, PREDICTORS, PredictorCorrector
from time_grids import TIME_GRIDS, Schedule
from training import MovingAverage, Optimizer, Trainer

METRICS = ("loss", "bits_per_dim", "frechet")


def build(config: ConfigDict, *, explicit: frozenset[str] = frozenset()) -> Experiment:
    """Build what `config` describes.

    `explicit` names the fields that a person gave by hand ("sampling.churn"): one that the things
    chosen do not have is an error, where the same field set by a file is left unused.

    Raises:
      ConfigError: for the first field that is wrong.
    """
    reader = _Reader(config, explicit)
    layout = Layout.over_all_devices()
    sde = reader.choose("sde", SDES)
    network = reader.choose("model", NETWORKS)
    denoiser = _denoiser_factory(reader, sde, network)
    loss = reader.construct("loss", ScoreMatching)
    _check_levels(reader, sde, loss)
    optimizer = reader.construct("optim", Optimizer)
    average = reader.construct("ema", MovingAverage)
    item_shape, scaler = _image_format(reader)
    with reader.errors("model"):
        network.validate(item_shape[0], item_shape[2])
    _check_training(reader, layout)
    classes = _classes(reader, network)
    _check_eval(reader, layout)
    trainer = Trainer(
        init=partial(_init_network, network, item_shape),
        denoiser=denoiser,
        loss=loss,
        optimizer=optimizer.chain(config.training.steps),
        average=average,
        layout=layout,
        classes=classes,
        label_dropout=config.training.label_dropout,
    )
    sampler, evaluations, with_moments = _sampler(reader, sde, scaler)
    options, ode = reader.construct_all("likelihood", (LikelihoodOptions, ODEOptions), set())
    experiment = Experiment(
        config=reader.resolved,
        layout=layout,
        item_shape=item_shape,
        scaler=scaler,
        loss=loss,
        network=network,
        denoiser=denoiser,
        trainer=trainer,
        sampler=sampler,
        evaluations=evaluations,
        with_moments=with_moments,
        log_prob=partial(log_prob, options=options, ode=ode),
        classes=classes,
    )
    _evaluate_shapes(experiment)
    return experiment


def build_network(config: ConfigDict) -> tuple[nn.Module, int, Any]:
    """The network of `config` alone, the size of its images, and its abstract parameters.

    Raises:
      ConfigError: for the first field that is wrong.
    """
    reader = _Reader(config, frozenset())
    network = reader.choose("model", NETWORKS)
    item_shape, _ = _image_format(reader)
    with reader.errors("model"):
        return network, item_shape[0], _abstract_params(network, item_shape)


@functools.cache
def _abstract_params(network: nn.Module, item_shape: tuple[int, int, int]) -> Any:
    # Many configurations have the same network, and some take seconds to trace.
    return jax.eval_shape(partial(_init_network, network, item_shape), jax.random.key(0))


class _Reader:
    """Reads subtrees of a configuration into objects and notes what each field resolved to."""

    def __init__(self, config: ConfigDict, explicit: frozenset[str]) -> None:
        self.config = config.copy_and_resolve_references()
        self.explicit = explicit
        self.resolved = _plain(config)

    def errors(self, path: str) -> "_Prefix":
        """A context in which a ValueError becomes a ConfigError with the config path in front."""
        return _Prefix(path)

    def lookup(self, path: str, field: str, table: Mapping[str, Any]) -> Any:
        """The entry of `table` named by a field."""
        name = self.config[path][field]
        if name not in table:
            raise ConfigError(
                f"config.{path}.{field}={name!r} is unknown; "
                f"choose one of: {', '.join(sorted(table))}"
            )
        return table[name]

    def choose(self, path: str, table: Mapping[str, type]) -> Any:
        """An object of the class that `name` names, from the other fields of the subtree."""
        return self.construct(path, self.lookup(path, "name", table), ignore={"name"})

    def construct(self, path: str, cls: type, ignore: Set[str] = frozenset()) -> Any:
        """An object of `cls` from a whole subtree; every field must be one of its own."""
        (thing,) = self.construct_all(path, (cls,), ignore)
        return thing

    def construct_all(self, path: str, classes: tuple[type, ...], ignore: Set[str]) -> list[Any]:
        """Objects that share a subtree, each taking the fields that it has."""
        subtree = dict(self.config[path].items())
        owned = {
            cls: {f.name for f in dataclasses.fields(cls)} & subtree.keys() - ignore
            for cls in classes
        }
        known = set().union(*owned.values())
        given = {k: _plain(v) for k, v in subtree.items() if v is not None and k not in ignore}
        for name in sorted(given.keys() - known):
            if f"{path}.{name}" in self.explicit:
                fields = ", ".join(sorted(known | ignore))
                owners = " and ".join(cls.__name__ for cls in classes) or "what is chosen here"
                raise ConfigError(
                    f"config.{path}.{name}={given[name]!r} is not a field of {owners}; "
                    f"its fields are: {fields}"
                )
            self.resolved[path][name] = None
        things = []
        for cls in classes:
            with self.errors(path):
                thing = cls(**{k: v for k, v in given.items() if k in owned[cls]})
            things.append(thing)
            for name in owned[cls]:
                self.resolved[path][name] = _plain(getattr(thing, name))
        return things


class _Prefix:
    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError | TypeError) and not isinstance(error, ConfigError):
            message = str(error)
            prefix = "" if message.startswith("config.") else f"config.{self.path}."
            raise ConfigError(prefix + message) from error


def _plain(value: Any) -> Any:
    """Plain Python, as JSON and hashing want it: dicts, and tuples for all sequences."""
    if isinstance(value, ConfigDict | dict):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def _init_network(network: nn.Module, item_shape: tuple, key: Key[Array, ""]) -> Any:
    images, condition = jnp.zeros((1, *item_shape)), jnp.zeros(1)
    return network.init(key, images, condition, train=False)["params"]


def _denoiser_factory(reader: _Reader, sde: SDE, network: nn.Module) -> Callable[..., Denoiser]:
    """(params, dropout key or None) -> Denoiser."""
    fields = reader.config.denoiser.to_dict()

    # Named functions, made once: a Partial of the same function is the same to jit.
    def apply(params: Any, x: Array, condition: Array, *labels: Array) -> Array:
        return network.apply({"params": params}, x, condition, *labels, train=False)

    def apply_with_dropout(
        params: Any, dropout: Array, x: Array, condition: Array, *labels: Array
    ) -> Array:
        return network.apply(
            {"params": params}, x, condition, *labels, train=True, rngs={"dropout": dropout}
        )

    def denoiser(params: Any, dropout: Key[Array, ""] | None = None) -> Denoiser:
        closed = (
            Partial(apply, params)
            if dropout is None
            else Partial(apply_with_dropout, params, dropout)
        )
        return Denoiser(sde=sde, network=closed, **fields)

    with reader.errors("denoiser"):
        made = denoiser({})  # an unknown name shows now
    levels = getattr(network, "levels", None)  # a network that embeds the number of a level
    if levels and (made.conditioning not in ("index", "sigma_index") or made.levels != levels):
        raise ConfigError(
            f"config.model.levels={levels} needs config.denoiser.levels={levels} and conditioning "
            f"sigma_index or index, not levels={made.levels} and {made.conditioning!r}"
        )
    return denoiser


def _check_levels(reader: _Reader, sde: SDE, loss: ScoreMatching) -> None:
    """The levels of a discrete process are those of its objective and of its network's index."""
    levels, denoiser = getattr(sde, "levels", None), reader.config.denoiser
    pairs = (
        ("loss.levels", loss.levels, loss.times == "levels"),
        (
            "denoiser.levels",
            denoiser.levels,
            denoiser.conditioning in ("index", "rescaled_index", "sigma_index"),
        ),
    )
    for name, value, used in pairs:
        if levels and used and value != levels:
            raise ConfigError(
                f"config.{name}={value}, but config.sde.levels={levels}; set both to the same"
            )
    if loss.times == "levels" and not sde.sigma(jnp.zeros(())) > 0:
        raise ConfigError(
            "config.loss.times='levels' trains at t = 0 too, where config.sde.name="
            f"{reader.config.sde.name!r} has no noise; choose uniform or stratified, or the sde "
            "ddpm, smld or ve"
        )


def _classes(reader: _Reader, network: nn.Module) -> int:
    """The number of classes that the network is told; 0 for none."""
    classes, label = getattr(network, "num_classes", 0), reader.config.sampling.label
    if not -1 <= label <= classes or (label >= 0 and not classes):
        valid = f"-1 (all in turn), 0..{classes - 1}, or {classes} (none)" if classes else "-1"
        raise ConfigError(
            f"config.sampling.label={label} is not a class of the network, which has "
            f"config.model.num_classes={classes}; valid is {valid}"
        )
    dropout = reader.config.training.label_dropout
    if not 0 <= dropout <= 1:
        raise ConfigError(f"config.training.label_dropout={dropout} must lie in [0, 1]")
    return classes


def _image_format(reader: _Reader) -> tuple[tuple[int, int, int], ImageScaler]:
    data = reader.config.data
    for name in ("image_size", "channels"):
        _at_least(f"data.{name}", data[name], 1)
    scaler = ImageScaler(low=-1.0 if data.centered else 0.0, high=1.0)
    return (data.image_size, data.image_size, data.channels), scaler


def _at_least(path: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(f"config.{path}={value} must be at least {low}")


def _check_training(reader: _Reader, layout: Layout) -> None:
    training = reader.config.training
    with reader.errors("training"):
        layout.check_batch(training.batch_size, "batch_size")
    for name in ("steps", "log_every", "checkpoint_every", "sample_count"):
        _at_least(f"training.{name}", training[name], 1)
    for name in ("keep_checkpoints", "sample_every"):
        _at_least(f"training.{name}", training[name], 0)
    for path in ("seed", "sampling.seed", "eval.seed"):
        _at_least(path, reader.config[path], 0)


def _check_eval(reader: _Reader, layout: Layout) -> None:
    evaluation = reader.config.eval
    with reader.errors("eval"):
        layout.check_batch(evaluation.batch_size, "batch_size")
    for name in ("loss_repeats", "dequantizations"):
        _at_least(f"eval.{name}", evaluation[name], 1)
    _at_least("eval.samples", evaluation.samples, 2)
    _at_least("moments.images", reader.config.moments.images, 3)
    _at_least("moments.times", reader.config.moments.times, 3)
    reader.lookup("eval", "features", EXTRACTORS)
    unknown = [name for name in evaluation.metrics if name not in METRICS]
    if unknown or not evaluation.metrics:
        raise ConfigError(
            f"config.eval.metrics={tuple(evaluation.metrics)!r}: choose some of {METRICS!r}"
        )


def _sampler(
    reader: _Reader, sde: SDE, scaler: ImageScaler
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


def _give_way(reader: _Reader) -> None:
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
    reader: _Reader, cls: type, ignore: set[str]
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
    meaning = reader.config.denoiser.parameterization
    if getattr(predictor, "variance", None) == "learned" and meaning != "eps_variance":
        raise ConfigError(
            "config.sampling.variance='learned' needs a network that answers variances, with "
            f"config.denoiser.parameterization=eps_variance, not {meaning!r}; choose small or large"
        )
    return clipping, schedule, dataclasses.replace(whole, predictor=predictor, corrector=corrector)


def _evaluate_shapes(experiment: Experiment) -> None:
    """Trace the network abstractly: what it refuses shows before anything runs."""
    params = experiment.trainer.abstract_state().params
    with _Prefix("denoiser"):
        jax.eval_shape(
            lambda params, x: experiment.denoiser(params).predict(x, 0.5),
            params,
            abstract_batch(experiment),
        )


def abstract_batch(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """Shape of a global training batch."""
    batch_size = experiment.config["training"]["batch_size"]
    return jax.ShapeDtypeStruct((batch_size, *experiment.item_shape), jnp.float32)
