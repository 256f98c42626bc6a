"""Build an Experiment from a configuration.

Every name is looked up, every object built, and every shape evaluated abstractly before anything is
computed or written. An error names the field and the remedy in one line.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from bounds.continuous import ContinuousBoundOptions
from bounds.discrete import DiscreteBoundOptions
from errors import SEEDS, ConfigError, require_choice, require_in, require_memory
from experiment.build_augmentation import build_augmentation
from experiment.build_data import build_data
from experiment.build_dequantizer import build_dequantizer
from experiment.build_model import (
    abstract_params,
    build_model,
    init_model,
    init_network,
    shrinking,
)
from experiment.build_perceptor import build_perceptor
from experiment.build_sampler import build_sampler, require_learned
from experiment.build_training import (
    build_averages,
    build_loss,
    build_optimizer,
    check_cadences,
    check_energy_objective,
    check_objective,
    part_trainer,
)
from experiment.build_variance_head import build_variance_head
from experiment.check_ends import check_ends
from experiment.class_guidance import Classes
from experiment.data import Data
from experiment.ends import Ends, build_ends
from experiment.experiment import (
    ClassifierModel,
    DiscreteBoundPlan,
    Experiment,
    Likelihood,
    Model,
    Parts,
)
from experiment.few_steps import check_few_steps
from experiment.kinds import KINDS
from experiment.options import (
    AnalyticDPMOptions,
    ClassifierOptions,
    DataOptions,
    DiagnosticsOptions,
    EvaluationOptions,
    LoggingOptions,
    TrainingOptions,
)
from experiment.reader import Reader, config_errors
from experiment.resolve import resolve
from experiment.sampler import Sampler
from guidance.classifier import Classifier, CrossEntropy
from likelihood import LikelihoodOptions
from metrics.inception.network import RECIPES
from models import CLASSIFIERS, NETWORKS, with_features
from numerics.clipping import Clipping
from numerics.ode import ODEOptions
from sde_lib import SDE, SDES
from time_grids import Schedule
from training.objective import Objective
from training.parallel import DataParallel
from training.sharding import Sharding
from training.step import Trainer

# Held in memory for each sample: its features, at least so many bytes. Its image is on disk.
FEATURE_BYTES = 256


def build(config: ConfigDict | Mapping[str, Any], *, overrides: Collection[str] = ()) -> Experiment:
    """Build what a configuration describes.

    Args:
        config: a configuration with the fields of `configs/default.py`, or a resolved one.
        overrides: dotted names of the fields that the command line sets, such as "sampling.churn".
            One that is not used is an error; a field that a file sets may be unused.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    reader = Reader(resolve(config, overrides), overrides)
    parallel = DataParallel.over_all_devices()
    sde = reader.build_named("sde", SDES)
    data = build_data(reader, parallel)
    loss = build_loss(reader, sde, data)
    sharding = reader.build("parallel", Sharding)
    model = build_model(reader, sde, loss, data, sharding)
    check_objective(reader, sde, loss)
    check_energy_objective(reader, loss)
    training = reader.build("training", TrainingOptions)
    evaluation = reader.build("eval", EvaluationOptions)
    _check_sizes(data, training, evaluation)
    with config_errors("seed"):
        require_in("config.seed", reader.config["seed"], SEEDS)
    check_cadences(reader, training)
    classes = Classes(
        network=model.num_classes,
        classifier=reader.config["classifier"]["num_classes"],
        label_dropout=training.label_dropout,
    )
    ends = build_ends(reader, sde, data)
    sampler = build_sampler(reader, sde, data, classes, ends)
    _check_upsampling(model, sampler)
    with config_errors("eval"):
        last = sampler.options.seed + evaluation.sampling_seeds - 1
        require_in("config.sampling.seed + config.eval.sampling_seeds - 1", last, SEEDS)
    likelihood, ode = reader.build_all("likelihood", (LikelihoodOptions, ODEOptions)).values()
    experiment = Experiment(
        config=reader.resolved,
        seed=reader.config["seed"],
        data=data,
        ends=ends,
        model=model,
        sampler=sampler,
        trainer=_build_trainer(reader, data, model, loss, training, sharding, ends),
        training=training,
        diagnostics=reader.build("diagnostics", DiagnosticsOptions),
        logging=reader.build("logging", LoggingOptions),
        evaluation=evaluation,
        likelihood=Likelihood(
            options=likelihood,
            ode=ode,
            continuous_bound=reader.build("continuous_bound", ContinuousBoundOptions),
            discrete_bound=_build_discrete_bound(reader, sde, data),
        ),
        parts=Parts(
            classifier=_build_classifier(reader, sde, data),
            dequantizer=build_dequantizer(reader, data, model.num_classes),
            variance_head=build_variance_head(reader, data, model),
            perceptor=build_perceptor(reader, data),
            analytic_dpm=reader.build("analytic_dpm", AnalyticDPMOptions),
        ),
    )
    check_few_steps(experiment)
    check_ends(experiment)
    _evaluate_shapes(experiment)
    return experiment


def _check_sizes(data: Data, training: TrainingOptions, evaluation: EvaluationOptions) -> None:
    """Raise ConfigError for batches that do not divide, and for what exceeds the memory."""
    parallel = data.parallel
    for path, batch_size in (("training", training.batch_size), ("eval", evaluation.batch_size)):
        with config_errors(path):
            parallel.check_batch(batch_size, "batch_size")
            require_memory("batch_size", batch_size, 4 * batch_size * data.size)
    with config_errors("training"):
        parallel.check_parts(training.batch_size, training.accumulate, "accumulate")
        waiting = (training.prefetch + 1) * training.batch_size
        size = 4 * waiting * training.steps_per_call * data.size
        require_memory("steps_per_call", training.steps_per_call, size)
        require_memory("sample_count", training.sample_count, 4 * training.sample_count * data.size)
    with config_errors("eval"):
        require_memory("samples", evaluation.samples, evaluation.samples * FEATURE_BYTES)
        require_choice("inception_resize", evaluation.inception_resize, RECIPES)


def _build_trainer(
    reader: Reader,
    data: Data,
    model: Model,
    loss: Objective,
    training: TrainingOptions,
    sharding: Sharding,
    ends: Ends,
) -> Trainer:
    """Return what makes the model's training states."""
    average, more_averages = build_averages(reader, training.batch_size)
    return Trainer(
        init=partial(init_model, model, data.shape),
        denoiser=model.denoiser,
        loss=loss,
        optimizer=build_optimizer(reader, training),
        average=average,
        more_averages=more_averages,
        parallel=data.parallel,
        classes=model.num_classes,
        label_dropout=training.label_dropout,
        image=shrinking(model.network),
        augment=build_augmentation(reader, model.network, data.kind),
        accumulate=training.accumulate,
        sharding=sharding,
        coupled=not ends.plain,
    )


def build_network(
    config: ConfigDict, section: str = "model"
) -> tuple[nn.Module, int, Callable[[nn.Module], Any]]:
    """Build a network of a configuration alone.

    `section` is "model", or "classifier" for the classifier of noisy images.

    Returns:
        The network, its image size, and a function from a network to its abstract parameters for
        such images. It may take a second, and keeps what it has made.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    reader = Reader(resolve(config))
    network = reader.build_named(section, NETWORKS if section == "model" else CLASSIFIERS)
    kind = reader.lookup("data", KINDS, "kind")
    kind.require_images("a published network", "choose another configuration")
    options = reader.build("data", DataOptions)
    shape = (options.image_size, options.image_size, options.channels)
    return network, options.image_size, partial(abstract_params, shape=shape)


def _check_upsampling(model: Model, sampler: Sampler) -> None:
    """Raise ConfigError unless the task suits a network that is an upsampler, or is none."""
    task, factor = sampler.task, model.upsampling
    if task is None:
        return
    if task.options.upsamples and factor == 1:
        raise ConfigError(
            "config.task.name='upsample' needs an upsampler, such as configs/adm_upsampler.py, but "
            "config.model.upsampling=1; for this network choose config.task.name=super_resolve"
        )
    if not task.options.upsamples and factor > 1:
        raise ConfigError(
            f"config.task.name={task.name!r} has no small image for the upsampler of "
            f"config.model.upsampling={factor}; choose config.task.name=upsample"
        )
    if task.options.upsamples and sampler.sample_classes and sampler.options.cycles:
        raise ConfigError(
            "config.task.name='upsample' needs the class of each input; set "
            "config.sampling.label=CLASS, or config.sampling.labels=(CLASS,...) in their order"
        )


def _build_classifier(reader: Reader, sde: SDE, data: Data) -> ClassifierModel:
    kind = reader.lookup("classifier", CLASSIFIERS)
    network, loss, options = reader.build_all(
        "classifier", (kind, CrossEntropy, ClassifierOptions), ignore={"name"}
    ).values()
    output = _classifier_function(network)

    def classifier(params: Any, dropout: Key[Array, ""] | None = None) -> Classifier:
        return Classifier(
            sde=sde,
            network=Partial(output, params, dropout),
            conditioning=options.conditioning,
            num_timesteps=options.num_timesteps,
            scale_input=options.scale_input,
        )

    trainer = part_trainer(
        "classifier",
        options,
        data,
        init=partial(init_network, network, data.shape),
        model=classifier,
        loss=loss,
        classes=network.num_classes,
    )
    return ClassifierModel(
        network=network, classifier=classifier, loss=loss, trainer=trainer, options=options
    )


@functools.cache
def _classifier_function(network: nn.Module) -> Callable:
    """Return the function of a classifier's network, made once as in `network_functions`."""

    def output(params: Any, dropout: Any, x: Array, cond: Array) -> tuple[Array, Array]:
        more = {} if dropout is None else {"rngs": {"dropout": dropout}}
        return with_features(network, params, x, cond, train=dropout is not None, **more)

    return output


def _build_discrete_bound(reader: Reader, sde: SDE, data: Data) -> DiscreteBoundPlan:
    options, schedule, clipping = reader.build_all(
        "discrete_bound",
        (DiscreteBoundOptions, Schedule, Clipping),
        fixed=dict(zip(("low", "high"), data.limits, strict=True)),
    ).values()
    if options.variance == "learned":
        require_learned(reader, "discrete_bound")
    with config_errors("discrete_bound"):
        if "discrete_bound" in reader.config["eval"]["metrics"]:
            schedule.of(sde)  # what is wrong with the times shows now
        steps = schedule.count(sde)
    reader.record("discrete_bound", steps=steps + (schedule.grid == "timesteps"))
    return DiscreteBoundPlan(options, schedule, clipping)


def _evaluate_shapes(experiment: Experiment) -> None:
    """Trace the network abstractly, so that what it refuses shows before anything runs."""
    params = experiment.trainer.abstract_state().params

    def denoiser(params: Any, x: Array) -> Any:
        return experiment.trainer.with_image(experiment.model.denoiser(params), x)

    shape = (experiment.training.batch_size, *experiment.data.shape)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with config_errors("denoiser"):
        jax.eval_shape(_predict, jax.eval_shape(denoiser, params, x), x)


@jax.jit
def _predict(denoiser: Any, x: Array) -> Any:
    # Jitted, so that experiments with the same network share its trace.
    return denoiser.predict(x, 0.5)


def abstract_batch(experiment: Experiment) -> jax.ShapeDtypeStruct:
    """Return the shape of a global training batch, of pairs where ends are coupled."""
    pair = () if experiment.ends.plain else (2,)
    shape = (experiment.training.batch_size, *pair, *experiment.data.shape)
    return jax.ShapeDtypeStruct(shape, jnp.float32)
