"""An Experiment: what a configuration describes, ready to train, sample and evaluate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from bounds.continuous import ContinuousBoundOptions
from bounds.dequantization import Dequantizer
from bounds.discrete import DiscreteBoundOptions
from denoising import Denoiser
from errors import ConfigError
from experiment.data import Data
from experiment.ends import Ends
from experiment.kinds import require_kind
from experiment.options import (
    AnalyticDPMOptions,
    ClassifierOptions,
    DenoiserOptions,
    DequantizerOptions,
    DiagnosticsOptions,
    EvaluationOptions,
    LoggingOptions,
    TrainingOptions,
    VarianceHeadOptions,
)
from experiment.perceptor import PerceptorModel
from experiment.sampler import Checkpoint, Sampler
from guidance.classifier import Classifier, CrossEntropy
from likelihood import LikelihoodOptions
from models import CLASSIFIERS
from numerics.clipping import Clipping
from numerics.ode import ODEOptions
from objectives.uncertainty import VarianceHead
from objectives.variational import VARIANCES
from sde_lib import SDE
from solvers.analytic_dpm import optimal_times
from time_grids import Schedule
from training.parallel import DataParallel
from training.step import Trainer


@dataclass(frozen=True, kw_only=True)
class Model:
    """A process and a network.

    Attributes:
        process: the process's name in `sde_lib.SDES`.
        sde: the process.
        name: the network's name in `models.NETWORKS`.
        network: the raw Flax module.
        options: how the network's output and time input are interpreted.
        num_classes: classes of a class-conditional network; 0 for any other.
        upsampling: factor by which an upsampler enlarges its small image; 1 for any other network.
        denoiser: (params, dropout key or None) -> Denoiser.
    """

    process: str
    sde: SDE
    name: str
    network: Any
    options: DenoiserOptions
    num_classes: int
    upsampling: int
    denoiser: Callable[..., Denoiser]

    def require_no_image(self, doing: str) -> None:
        """Raise ConfigError for an upsampler, where there is no small image; `doing` names it."""
        if self.upsampling > 1:
            raise ConfigError(
                f"config.model.upsampling={self.upsampling} makes an upsampler, which has no small "
                f"image in {doing}; give it one by --mode=sample with config.task.name=upsample "
                "and config.task.input=FILE"
            )

    def require_fixed_process(self, doing: str) -> None:
        """Raise ConfigError for a process that is trained with the network; `doing` names what."""
        if self.sde.parameters():
            raise ConfigError(
                f"config.sde.name={self.process!r} is trained with the network, and {doing} needs "
                "a process that the configuration fixes, such as config.sde.name=vp"
            )


class DiscreteBoundPlan(NamedTuple):
    """The options of the discrete bound, the schedule of its chain, and how x0 is clipped."""

    options: DiscreteBoundOptions
    schedule: Schedule
    clipping: Clipping

    def of(
        self, checkpoint: Checkpoint, limits: tuple[float, float]
    ) -> tuple[Denoiser, Float[np.ndarray, "times"]]:
        """Return the denoiser of a checkpoint for the bound, and the times.

        Args:
            checkpoint: with what `options.needs` names.
            limits: the ends of the interval of the data.

        Raises:
            ConfigError: for moments that do not suit the times.
        """
        sde = checkpoint.denoiser.sde
        times = self.schedule.of(sde)
        source = VARIANCES[self.options.variance].needs
        try:
            if self.options.timestep_choice == "optimal":
                assert checkpoint.moments is not None
                times = optimal_times(sde, checkpoint.moments, len(times) - 1, times[-1])
            denoiser = checkpoint.with_uncertainty(source, times[:-1], limits)
        except ValueError as error:
            raise ConfigError(f"config.discrete_bound: {error}") from error
        return replace(denoiser, clipping=self.clipping), times


@dataclass(frozen=True, kw_only=True)
class ClassifierModel:
    """A noise-conditional classifier, trained beside the model for features and guidance.

    Attributes:
        network: the raw Flax module.
        classifier: (params, dropout key or None) -> Classifier.
        loss: its objective.
        trainer: makes its training states.
        options: how it is trained.
        t_min: the time of clean images, at which features are taken.
    """

    network: Any
    classifier: Callable[..., Classifier]
    loss: CrossEntropy
    trainer: Trainer
    options: ClassifierOptions

    def check(self, data: Data) -> None:
        """Raise ConfigError unless it suits the images and the devices.

        This waits until a classifier is used, so that its limits bind nobody else.
        """
        require_kind("classifier", self.network, CLASSIFIERS, data.kind)
        try:
            self.network.validate(*data.shape[-2:])
            data.parallel.check_batch(self.options.batch_size, "batch_size")
        except ValueError as error:
            raise ConfigError(f"config.classifier.{error}") from error


@dataclass(frozen=True, kw_only=True)
class DequantizerModel:
    """The dequantizer of a run, trained after its model for tighter likelihoods.

    Attributes:
        dequantizer: params -> Dequantizer.
        trainer: makes its training states; the teacher of its steps is the frozen denoiser.
        options: how it is trained.
    """

    dequantizer: Callable[[Any], Dequantizer]
    trainer: Trainer
    options: DequantizerOptions

    def check(self, data: Data) -> None:
        """Raise ConfigError unless its batches divide over the devices, once it is trained."""
        data.kind.require_images("--mode=train_dequantizer", "points and series need no noise")
        try:
            data.parallel.check_batch(self.options.batch_size, "batch_size")
        except ValueError as error:
            raise ConfigError(f"config.dequantizer.{error}") from error


@dataclass(frozen=True, kw_only=True)
class VarianceHeadModel:
    """The variance head of a run, trained after its model for optimal variances of steps.

    Attributes:
        network: the raw Flax module.
        head: params -> VarianceHead.
        trainer: makes its training states; the teacher of its steps is the frozen denoiser.
        options: its width and how it is trained.
    """

    network: Any
    head: Callable[..., VarianceHead]
    trainer: Trainer
    options: VarianceHeadOptions

    def check(self, data: Data) -> None:
        """Raise ConfigError unless it suits the data and the devices, once it is trained."""
        try:
            self.network.validate(*data.shape[-2:])
            data.parallel.check_batch(self.options.batch_size, "batch_size")
        except ValueError as error:
            raise ConfigError(f"config.variance_head.{error}") from error


class Likelihood(NamedTuple):
    """How log-likelihoods and their bounds are computed.

    Attributes:
        options: of the probability flow's log-likelihood.
        ode: its solver.
        continuous_bound: of the bound in continuous time.
        discrete_bound: of the bound of a chain.
    """

    options: LikelihoodOptions
    ode: ODEOptions
    continuous_bound: ContinuousBoundOptions
    discrete_bound: DiscreteBoundPlan


class Parts(NamedTuple):
    """What is trained or measured beside the model, each by a mode of its own.

    Attributes:
        classifier: of noisy images, for features and guidance.
        dequantizer: of gray levels, for likelihoods.
        variance_head: of the variances of steps.
        perceptor: of images and texts, for guidance.
        analytic_dpm: how the moments of the score are measured.
    """

    classifier: ClassifierModel
    dequantizer: DequantizerModel
    variance_head: VarianceHeadModel
    perceptor: PerceptorModel
    analytic_dpm: AnalyticDPMOptions


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that `build` makes of a configuration.

    Construction is cheap: nothing is computed, and data are read at their first use.

    Attributes:
        config: the resolved configuration, nested dicts of built-in types.
        seed: seed of initialization, training noise and data order.
        ends: the other ends of the paths from data: noise, or a second data set.
        parts: what is trained or measured beside the model.
    """

    config: dict[str, Any]
    seed: int
    data: Data
    ends: Ends
    model: Model
    sampler: Sampler
    trainer: Trainer
    parts: Parts
    training: TrainingOptions
    diagnostics: DiagnosticsOptions
    logging: LoggingOptions
    evaluation: EvaluationOptions
    likelihood: Likelihood

    @property
    def parallel(self) -> DataParallel:
        """How arrays are split over the devices."""
        return self.data.parallel

    def sections(self, *names: str) -> dict[str, Any]:
        """Return parts of the configuration, to be recorded and compared."""
        return {name: self.config[name] for name in names}

    def field_that_needs(self, need: str) -> str:
        """Return the field that needs what stands beside a checkpoint, a row of `Sampler.needs`."""
        if need in self.sampler.needs:
            name = "variance" if self.sampler.solve.uncertainty == need else "name"
            return f"config.sampling.{name}={self.config['sampling'][name]}"
        bound = self.likelihood.discrete_bound.options
        if VARIANCES[bound.variance].needs == need:
            return f"config.discrete_bound.variance={bound.variance}"
        return f"config.discrete_bound.timestep_choice={bound.timestep_choice}"

    def require_trainable(self) -> None:
        """Raise ConfigError for an objective on gray levels and images with other noise.

        An evaluation may have such noise: likelihoods need it, and the objective does without.
        """
        if self.trainer.loss.bounds_levels and self.data.dequantization.noisy:
            raise ConfigError(
                f"config.data.dequantization={self.data.options.dequantization!r} adds noise, but "
                f"config.loss.name={self.config['loss']['name']!r} needs images on gray levels; "
                "train with config.data.dequantization=none or truncated_normal"
            )


def with_data_labels(
    experiment: Experiment,
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    labels: Int[np.ndarray, "count"] | None,
) -> Denoiser:
    """Return the denoiser of some images; a class-conditional one has their labels.

    Raises:
        ConfigError: if the data have no labels, or other classes than the network.
    """
    num_classes = experiment.model.num_classes
    if not num_classes:
        return denoiser
    experiment.data.require_classes(labels, num_classes, "model")
    assert labels is not None
    chosen = labels[experiment.parallel.own_rows(indices)]
    return replace(denoiser, labels=experiment.parallel.put_batch(chosen))
