"""The programs of an experiment on abstract shapes: they can be lowered and compiled, not run.

Lowering takes no memory for arrays. So programs of any size can be looked at on any machine, before
anything is computed.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from denoising import Denoiser
from experiment.build import abstract_batch
from experiment.class_guidance import BadModel, GuidanceOptions
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint, FixedSteps
from numerics.arrays import Batch
from training.step import Trainer


class Program(NamedTuple):
    """A jitted function, and the shapes of its arguments.

    Attributes:
        function: the result of `jax.jit`.
        arguments: pytrees of `jax.ShapeDtypeStruct`.
        batch_size: images that it works on, over all devices.
    """

    function: Any
    arguments: tuple
    batch_size: int

    def lower(self) -> Any:
        """Return the program as `jax.stages.Lowered`."""
        return self.function.lower(*self.arguments)


def train_step(experiment: Experiment, trainer: Trainer | None = None) -> Program:
    """Return the training step, by default of the experiment's own trainer.

    A teacher is taken to have the network of its student.
    """
    trainer = trainer or experiment.trainer
    state, batch = trainer.abstract_state(), abstract_batch(experiment)
    arguments: list[Any] = [_key(), state, batch]
    if trainer.classes:
        arguments.append(jax.ShapeDtypeStruct(batch.shape[:1], jnp.int32))
    if trainer.loss.teacher:
        labels = arguments[3:] or [None]
        arguments = [*arguments[:3], *labels, experiment.model.denoiser(state.params)]
    return Program(trainer.compiled_step(), tuple(arguments), len(batch))


def sampling_step(experiment: Experiment) -> Program:
    """Return one step of the sampler with its guidance, for a batch of an evaluation.

    The first step of a sampler whose steps are known; of others, one prediction. The bad model of
    autoguidance is taken to have the network that it guides.
    """
    params = experiment.trainer.abstract_parameters().ema_params
    classifier = None
    if "classifier" in experiment.sampler.needs:
        classifier = experiment.parts.classifier.trainer.abstract_parameters().ema_params
    plan = first = None
    if (solve := _fixed_steps(experiment)) is not None:
        sde = experiment.model.sde
        plan = solve.solver.plan(sde, solve.schedule.of(sde))
        first = jax.tree.map(lambda leaf: np.float32(leaf[0]), plan.steps)

    def step(params: Any, classifier: Any, keys: Array, x: Batch, first: Any) -> Batch:
        guided = _guided(experiment, params, classifier, x)
        if plan is None:
            return guided.predict(x, jnp.asarray(0.5, x.dtype)).x0
        function = plan.function
        return function.step(keys, guided, function.start(x), first, lambda keys, state, t: state).x

    count, split = experiment.evaluation.batch_size, experiment.parallel.split
    x = jax.ShapeDtypeStruct((count, *experiment.data.shape), jnp.float32, sharding=split)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=split)
    return Program(jax.jit(step), (params, classifier, keys, x, first), count)


def _guided(experiment: Experiment, params: Any, classifier: Any, x: Batch) -> Denoiser:
    """Return the guided denoiser of a batch of samples; guidance by texts is left out."""
    model, sampler = experiment.model, experiment.sampler
    if "perceptor" in sampler.needs:  # which no configuration describes
        sampler = dataclasses.replace(sampler, guidance=GuidanceOptions())
    denoiser = experiment.trainer.with_image(model.denoiser(params), x)
    checkpoint = Checkpoint(
        step=0,
        denoiser=denoiser,
        classifier=experiment.parts.classifier.classifier(classifier) if classifier else None,
        bad_model=BadModel(denoiser, knows_classes=model.num_classes > 0),
    )
    guided = sampler.with_classes(checkpoint, jnp.arange(len(x)))
    return dataclasses.replace(guided, clipping=sampler.solve.clipping)


def sampling_steps(experiment: Experiment) -> int | None:
    """Return how often `sampling_step` runs for a batch of samples; None where it is not known."""
    solve = _fixed_steps(experiment)
    return None if solve is None else len(solve.schedule.of(experiment.model.sde)) - 1


def _fixed_steps(experiment: Experiment) -> FixedSteps | None:
    """Return the sampler's steps if they are known before there is a trained network."""
    solve, needs = experiment.sampler.solve, experiment.sampler.needs
    learned = bool(experiment.model.sde.parameters())
    if not isinstance(solve, FixedSteps) or "moments" in needs or solve.uncertainty or learned:
        return None
    return solve


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
