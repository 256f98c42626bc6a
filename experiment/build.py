"""From a configuration to an Experiment: the only reader of its fields, and where they are checked.

Every choice by name is looked up, every object built, and every shape evaluated abstractly, before
anything is computed or written; what is wrong is told in one line with the config path.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from bounds.continuous import ContinuousBoundOptions
from bounds.discrete import DiscreteBoundOptions
from data.scaling import ImageScaler
from denoising import Clipping, Denoiser
from errors import ConfigError
from experiment.experiment import Experiment
from experiment.reader import Prefix, Reader
from experiment.sampler import build_sampling, require_learned
from experiment.tasks import GuidanceOptions
from guidance.base import guide
from guidance.classifier import Classifier, ClassifierGuidance, CrossEntropy
from guidance.classifier_free import ClassifierFreeGuidance
from likelihood import LikelihoodOptions
from losses import LOSSES, FisherDivergence
from metrics.inception.network import RECIPES
from models import CLASSIFIERS, NETWORKS, with_features
from models.energy import energy_gradient
from numerics.ode import ODEOptions
from sde_lib import SDE, SDES
from time_grids import Schedule
from training.parallel import Layout
from training.step import MovingAverage, Optimizer, Trainer

METRICS = (
    "loss",
    "bits_per_dim",
    "continuous_bound",
    "discrete_bound",
    "frechet",
    "kid",
    "precision_recall",
    "inception_score",
)
# Metrics of samples need so many of them, or they cannot be computed.
_FEWEST_SAMPLES = {"frechet": 5, "kid": 4, "precision_recall": 4, "inception_score": 10}
FEATURES = ("classifier", "inception", "pixels")


def build(config: ConfigDict, *, explicit: frozenset[str] = frozenset()) -> Experiment:
    """Build what `config` describes.

    `explicit` names the fields that a person gave by hand ("sampling.churn"): one that the things
    chosen do not have is an error, where the same field set by a file is left unused.

    Raises:
      ConfigError: for the first field that is wrong.
    """
    reader = Reader(config, explicit)
    layout = Layout.over_all_devices()
    sde = reader.choose("sde", SDES)
    network = reader.choose("model", NETWORKS)
    denoiser = _denoiser_factory(reader, sde, network)
    loss = reader.choose("loss", LOSSES)
    _check_num_timesteps(reader, sde, loss)
    optimizer = reader.construct("optim", Optimizer)
    average = reader.construct("ema", MovingAverage)
    item_shape, scaler = _image_format(reader)
    with reader.errors("model"):
        network.validate(item_shape[0], item_shape[2])
    _check_training(reader, layout)
    classes = getattr(network, "num_classes", 0)  # that the network is told; 0 for none
    sampling = build_sampling(reader, sde, scaler, item_shape)
    sample_classes = _sample_classes(reader, classes, sampling.guidance)
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
    likelihood, ode = reader.construct_all("likelihood", (LikelihoodOptions, ODEOptions), set())
    experiment = Experiment(
        config=reader.resolved,
        layout=layout,
        item_shape=item_shape,
        scaler=scaler,
        loss=loss,
        network=network,
        denoiser=denoiser,
        trainer=trainer,
        sampler=sampling.sampler,
        evaluations=sampling.evaluations,
        with_moments=sampling.with_moments,
        labels=sampling.guidance.labels,
        sample_classes=sample_classes,
        guided=_guided(sampling.guidance, classes),
        with_classifier=_with_classifier(sampling.guidance),
        task=sampling.task,
        likelihood=likelihood,
        ode=ode,
        discrete_bound=_discrete_bound(reader, sde, scaler),
        continuous_bound=reader.construct("continuous_bound", ContinuousBoundOptions),
        classes=classes,
        classifier=None,
    )
    _evaluate_shapes(experiment)
    return dataclasses.replace(experiment, classifier=_classifier(reader, experiment, sde))


def build_network(config: ConfigDict) -> tuple[nn.Module, int, Any]:
    """The network of `config` alone, the size of its images, and its abstract parameters.

    Raises:
      ConfigError: for the first field that is wrong.
    """
    reader = Reader(config, frozenset())
    network = reader.choose("model", NETWORKS)
    item_shape, _ = _image_format(reader)
    with reader.errors("model"):
        return network, item_shape[0], _abstract_params(network, item_shape)


@functools.cache
def _abstract_params(network: nn.Module, item_shape: tuple[int, int, int]) -> Any:
    # Many configurations have the same network, and some take seconds to trace.
    return jax.eval_shape(partial(_init_network, network, item_shape), jax.random.key(0))


def _init_network(network: nn.Module, item_shape: tuple, key: Key[Array, ""]) -> Any:
    images, condition = jnp.zeros((1, *item_shape)), jnp.zeros(1)
    return network.init(key, images, condition, train=False)["params"]


def _denoiser_factory(reader: Reader, sde: SDE, network: nn.Module) -> Callable[..., Denoiser]:
    """(params, dropout key or None) -> Denoiser."""
    fields = reader.config.denoiser.to_dict()
    energy = fields.pop("energy")
    if energy and fields["parameterization"] == "eps_learned_variance":
        raise ConfigError(
            "config.denoiser.energy=True is for networks with one answer, not the two of "
            "config.denoiser.parameterization='eps_learned_variance'; choose eps, or set "
            "energy=False"
        )

    def answer(params: Any, x: Array, *conditions: Array, **options: Any) -> Array:
        def closed(x: Array) -> Array:
            return network.apply({"params": params}, x, *conditions, **options)

        return energy_gradient(closed, x) if energy else closed(x)

    # Named functions, made once: a Partial of the same function is the same to jit.
    def apply(params: Any, x: Array, *conditions: Array) -> Array:
        return answer(params, x, *conditions, train=False)

    def apply_with_dropout(params: Any, dropout: Array, x: Array, *conditions: Array) -> Array:
        return answer(params, x, *conditions, train=True, rngs={"dropout": dropout})

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
    if levels and (
        made.conditioning not in ("timestep", "reversed_timestep") or made.num_timesteps != levels
    ):
        raise ConfigError(
            f"config.model.levels={levels} needs config.denoiser.num_timesteps={levels} and "
            f"conditioning reversed_timestep or timestep, not num_timesteps={made.num_timesteps} "
            f"and {made.conditioning!r}"
        )
    return denoiser


def _check_num_timesteps(reader: Reader, sde: SDE, loss: FisherDivergence) -> None:
    """The levels of a discrete process are those of its objective and of its network's index."""
    num_timesteps, denoiser = getattr(sde, "num_timesteps", None), reader.config.denoiser
    pairs = (
        ("loss.num_timesteps", loss.num_timesteps, loss.time_distribution == "timesteps"),
        (
            "denoiser.num_timesteps",
            denoiser.num_timesteps,
            denoiser.conditioning in ("timestep", "rescaled_timestep", "reversed_timestep"),
        ),
    )
    for name, value, used in pairs:
        if num_timesteps and used and value != num_timesteps:
            raise ConfigError(
                f"config.{name}={value}, but config.sde.num_timesteps={num_timesteps}; set both to "
                "the same"
            )
    if loss.time_distribution == "timesteps" and not sde.sigma(jnp.zeros(())) > 0:
        raise ConfigError(
            "config.loss.time_distribution='timesteps' trains at t = 0 too, where config.sde.name="
            f"{reader.config.sde.name!r} has no noise; choose uniform or stratified, or the sde "
            "ddpm, smld or ve"
        )


def _sample_classes(reader: Reader, classes: int, options: GuidanceOptions) -> int:
    """The number of classes of which samples are drawn; 0 if none are told apart."""
    config = reader.config.sampling
    none = classes  # the label of no class, which a class-conditional network knows
    if options.guidance == "classifier_free" and not classes:
        raise ConfigError(
            "config.sampling.guidance='classifier_free' is for class-conditional networks, and "
            "config.model.num_classes=0; choose classifier, which --mode=train_classifier trains"
        )
    dropout = reader.config.training.label_dropout
    if not 0 <= dropout <= 1:
        raise ConfigError(f"config.training.label_dropout={dropout} must lie in [0, 1]")
    if options.guidance == "classifier_free" and not dropout:
        raise ConfigError(
            "config.sampling.guidance='classifier_free' asks the network for no class too, which "
            "config.training.label_dropout=0 never trains"
        )
    if options.guidance == "classifier":
        others, classes = classes, reader.config.classifier.num_classes
        if others not in (0, classes):
            raise ConfigError(
                f"config.classifier.num_classes={classes}, but config.model.num_classes={others}; "
                "to guide it, they must be the same"
            )
    unguided = options.guidance == "none" and none
    owner = "classifier" if options.guidance == "classifier" else "model"
    for field, labels in (("label", (config.label,)), ("labels", options.labels)):
        for label in labels:
            turn = field == "label" and label == -1
            if not turn and not 0 <= label < classes + bool(unguided):
                valid = [f"0..{classes - 1}"] if classes else []
                valid += ["-1 (all in turn)"] if field == "label" else []
                valid += [f"{none} (none)"] if unguided else []
                raise ConfigError(
                    f"config.sampling.{field}={config[field]!r} is not a class, with config.{owner}"
                    f".num_classes={classes}; valid is {' or '.join(valid) or 'nothing'}"
                )
    if options.labels and config.label != -1:
        raise ConfigError(
            f"config.sampling.labels={options.labels} and label={config.label}; give one of them"
        )
    return classes


def _guided(options: GuidanceOptions, classes: int) -> Callable[..., Denoiser] | None:
    """(denoiser, labels) -> denoiser, of guidance that needs nothing but the network."""
    if options.guidance != "classifier_free":
        return None
    interval = (float(options.guidance_interval[0]), float(options.guidance_interval[1]))
    guidance = ClassifierFreeGuidance(null_label=classes, scale=options.scale, interval=interval)
    return lambda denoiser, labels: guide(denoiser, guidance)


def _with_classifier(options: GuidanceOptions) -> Callable[[Classifier], Callable] | None:
    """Makes `guided` of a trained classifier, where one is asked for."""
    if options.guidance != "classifier":
        return None

    def guided(classifier: Classifier, denoiser: Denoiser, labels: Array) -> Denoiser:
        return guide(
            denoiser, ClassifierGuidance(classifier=classifier, labels=labels, scale=options.scale)
        )

    return lambda classifier: partial(guided, classifier)


def _classifier(reader: Reader, experiment: Experiment, sde: SDE) -> Callable[[], Experiment]:
    """Makes the same experiment with a classifier of noisy images in the denoiser's place.

    Whether it suits the images and the devices is asked only then: who needs none has no use for
    its limits.
    """
    settings = reader.config.classifier
    ours = {"name", "lr", "warmup", "batch_size", "steps", "conditioning", "num_timesteps"}
    kind = reader.lookup("classifier", "name", CLASSIFIERS)
    network, loss = reader.construct_all("classifier", (kind, CrossEntropy), ours)
    size, _, channels = experiment.item_shape
    named = {k: settings[k] for k in ("conditioning", "num_timesteps") if settings[k] is not None}

    def classifier(params: Any, dropout: Key[Array, ""] | None = None) -> Classifier:
        closed = Partial(_answer, params, dropout)
        return Classifier(sde=sde, network=closed, **named)

    def _answer(params: Any, dropout: Any, x: Array, cond: Array) -> tuple[Array, Array]:
        rngs = {} if dropout is None else {"rngs": {"dropout": dropout}}
        return with_features(network, params, x, cond, train=dropout is not None, **rngs)

    training = experiment.config["training"] | {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "sample_every": 0,
        "checkpoint_every": settings.steps,
    }
    with reader.errors("classifier"):
        classifier({})  # an unknown name shows now
        optimizer = Optimizer(lr=settings.lr, warmup=settings.warmup, decay="cosine")
    _at_least("classifier.steps", settings.steps, 1)
    trainer = dataclasses.replace(
        experiment.trainer,
        init=partial(_init_network, network, experiment.item_shape),
        denoiser=classifier,
        loss=loss,
        optimizer=optimizer.chain(settings.steps),
        average=MovingAverage(rate=0.99),
        classes=network.num_classes,
        label_dropout=0.0,
    )
    made = dataclasses.replace(
        experiment,
        config=experiment.config | {"training": training},
        network=network,
        denoiser=classifier,
        loss=loss,
        trainer=trainer,
        classes=network.num_classes,
    )

    def checked() -> Experiment:
        with reader.errors("classifier"):
            network.validate(size, channels)
            experiment.layout.check_batch(settings.batch_size, "batch_size")
        return made

    return checked


def _image_format(reader: Reader) -> tuple[tuple[int, int, int], ImageScaler]:
    data = reader.config.data
    for name in ("image_size", "channels"):
        _at_least(f"data.{name}", data[name], 1)
    scaler = ImageScaler(low=-1.0 if data.centered else 0.0, high=1.0)
    return (data.image_size, data.image_size, data.channels), scaler


def _at_least(path: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(f"config.{path}={value} must be at least {low}")


def _check_training(reader: Reader, layout: Layout) -> None:
    training = reader.config.training
    with reader.errors("training"):
        layout.check_batch(training.batch_size, "batch_size")
    for name in ("steps", "log_every", "checkpoint_every", "sample_count"):
        _at_least(f"training.{name}", training[name], 1)
    for name in ("keep_checkpoints", "sample_every"):
        _at_least(f"training.{name}", training[name], 0)
    for path in ("seed", "sampling.seed", "eval.seed"):
        _at_least(path, reader.config[path], 0)


def _check_eval(reader: Reader, layout: Layout) -> None:
    evaluation = reader.config.eval
    with reader.errors("eval"):
        layout.check_batch(evaluation.batch_size, "batch_size")
    for name in ("loss_repeats", "dequantizations"):
        _at_least(f"eval.{name}", evaluation[name], 1)
    _at_least("eval.samples", evaluation.samples, 2)
    _at_least("eval.sampling_seeds", evaluation.sampling_seeds, 1)
    _at_least("eval.ladder_images", evaluation.ladder_images, 0)
    _at_least("moments.images", reader.config.moments.images, 3)
    _at_least("moments.times", reader.config.moments.times, 3)
    for name, choices in (("metrics", METRICS), ("features", FEATURES)):
        given = tuple(evaluation[name])
        if not given or set(given) - set(choices):
            raise ConfigError(f"config.eval.{name}={given!r}: choose some of {choices!r}")
    for metric in evaluation.metrics:
        if evaluation.samples < (fewest := _FEWEST_SAMPLES.get(metric, 0)):
            raise ConfigError(
                f"config.eval.samples={evaluation.samples} are too few for {metric}; "
                f"give at least {fewest}, or leave it out of config.eval.metrics"
            )
    reader.lookup("eval", "inception_resize", RECIPES)
    if "inception_score" in evaluation.metrics and set(evaluation.features) == {"pixels"}:
        raise ConfigError(
            "config.eval.metrics has inception_score, which needs the classes of "
            "config.eval.features inception or classifier"
        )
    if evaluation.reference and "frechet" not in evaluation.metrics:
        raise ConfigError(
            f"config.eval.reference={evaluation.reference!r} is for frechet, which is not in "
            f"config.eval.metrics={tuple(evaluation.metrics)!r}; add it, or leave the reference out"
        )
    if evaluation.reference and len(evaluation.features) > 1:
        raise ConfigError(
            f"config.eval.reference={evaluation.reference!r} is of one extractor, but "
            f"config.eval.features={tuple(evaluation.features)!r}; choose one"
        )


def _discrete_bound(
    reader: Reader, sde: SDE, scaler: ImageScaler
) -> tuple[DiscreteBoundOptions, np.ndarray, Clipping]:
    """The bound's options, its times, by default all levels of a chain, and its clipping."""
    if reader.config.discrete_bound.grid is None:
        reader.config.discrete_bound.grid = (
            "levels" if getattr(sde, "num_timesteps", 0) else "log_snr"
        )
    classes = (DiscreteBoundOptions, Schedule, Clipping)
    options, schedule, clipping = reader.construct_all("discrete_bound", classes, set())
    if options.variance == "learned":
        require_learned(reader, "discrete_bound")
    with reader.errors("discrete_bound"):
        times = schedule.of(sde)
    reader.resolved["discrete_bound"]["steps"] = len(times) - (schedule.grid != "levels")
    return options, times, dataclasses.replace(clipping, low=scaler.low, high=scaler.high)


def _evaluate_shapes(experiment: Experiment) -> None:
    """Trace the network abstractly: what it refuses shows before anything runs."""
    params = experiment.trainer.abstract_state().params
    with Prefix("denoiser"):
        jax.eval_shape(
            lambda params, x: experiment.denoiser(params).predict(x, 0.5),
            params,
            abstract_batch(experiment),
        )


def abstract_batch(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """Shape of a global training batch."""
    batch_size = experiment.config["training"]["batch_size"]
    return jax.ShapeDtypeStruct((batch_size, *experiment.item_shape), jnp.float32)
