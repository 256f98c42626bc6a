"""What is trained, on what, and how long: the score model, or a network beside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from data.dequantization import CENTERS
from denoising import Denoiser
from experiment.data import Batches, Data
from experiment.ends import Ends
from experiment.experiment import (
    ClassifierModel,
    DequantizerModel,
    Experiment,
    VarianceHeadModel,
)
from experiment.few_steps import require_scores
from experiment.options import TrainingOptions
from experiment.perceptor import PerceptorModel
from experiment.sampler import Sampler
from jobs.diagnostics import Diagnostics
from jobs.pairs import simulate_pairs
from jobs.teacher import load_teacher
from training.step import Trainer


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is trained, on what, and how long.

    Attributes:
        config: the resolved configuration, saved with every checkpoint.
        seed: seed of initialization, noise and data order.
        section: "model" or a name in jobs.workdir.PARTS: what is trained.
        sampler: draws sample grids during training; None draws none.
        ends: where the other ends of the paths come from; None for noise.
        load_pairs: simulates pairs by another run, else None.
        dequantization: how gray levels become numbers, by default config.data.dequantization.
        diagnostics: what is measured during training; None for nothing.
        wandb: a project of Weights & Biases; "" for none.
        load_teacher: loads the frozen network of a distillation or of a part, else None.
    """

    config: dict[str, Any]
    seed: int
    section: str
    data: Data
    trainer: Trainer
    options: TrainingOptions
    sampler: Sampler | None
    ends: Ends | None = None
    load_pairs: Callable[[], Any] = lambda: None
    dequantization: str = ""
    diagnostics: Diagnostics | None = None
    wandb: str = ""
    load_teacher: Callable[[], Denoiser | None] = lambda: None

    @property
    def rate_section(self) -> str:
        """The section of the configuration that holds the learning rate."""
        return "optim" if self.section == "model" else self.section

    def batches(self) -> Batches:
        """Return the training stream.

        Raises:
            ConfigError: if data are missing, or have other classes than the network.
        """
        classes = self.trainer.classes
        if classes:
            self.data.require_classes(self.data.splits.train_labels, classes, self.section)
        batch_size, labels = self.options.batch_size, bool(classes)
        if self.ends is not None and not self.ends.plain:
            pairs = self.load_pairs()
            return self.ends.training_batches(batch_size, self.seed, labels=labels, pairs=pairs)
        return self.data.training_batches(
            batch_size, self.seed, labels=labels, dequantization=self.dequantization
        )

    @property
    def measure_every(self) -> int:
        """The steps between two measurements; 0 for none."""
        return 0 if self.diagnostics is None else self.diagnostics.every

    def measures_at(self, step: int) -> bool:
        """Return whether the state after a step is measured; that of the last step always is."""
        ends = self.diagnostics is not None and step == self.options.steps
        return ends or is_due(step, self.measure_every)


def model_job(experiment: Experiment, diagnostics: Diagnostics | None = None) -> TrainingJob:
    """Return the job that trains an experiment's score model."""
    return TrainingJob(
        config=experiment.config,
        seed=experiment.seed,
        section="model",
        data=experiment.data,
        trainer=experiment.trainer,
        options=experiment.training,
        sampler=experiment.sampler if experiment.training.sample_every else None,
        ends=experiment.ends,
        load_pairs=partial(simulate_pairs, experiment),
        diagnostics=diagnostics,
        wandb=experiment.logging.wandb,
        load_teacher=partial(load_teacher, experiment),
    )


def classifier_job(experiment: Experiment) -> TrainingJob:
    """Return the job that trains an experiment's noise-conditional classifier.

    Raises:
        ConfigError: if the classifier does not suit the process, the images or the devices.
    """
    experiment.model.require_fixed_process("a classifier")
    experiment.ends.require_noise("a classifier of noisy data")
    return _part_job(experiment, "classifier", experiment.parts.classifier)


def dequantizer_job(experiment: Experiment, denoiser: Denoiser) -> TrainingJob:
    """Return the job that trains a dequantizer for a trained denoiser, which stays as it is.

    Raises:
        ConfigError: if its batches do not suit the devices.
    """
    experiment.ends.require_noise("a dequantizer")
    job = _part_job(experiment, "dequantizer", experiment.parts.dequantizer, dequantization=CENTERS)
    return replace(job, load_teacher=lambda: denoiser)


def variance_head_job(experiment: Experiment, denoiser: Denoiser) -> TrainingJob:
    """Return the job that trains a variance head for a trained denoiser, which stays as it is.

    Raises:
        ConfigError: if its network does not suit the data, or its batches the devices; for a model
            of few steps, or of paths between two data sets.
    """
    require_scores(experiment, "a variance head", "take a run with another objective")
    job = _part_job(experiment, "variance_head", experiment.parts.variance_head)
    return replace(job, load_teacher=lambda: denoiser)


def perceptor_job(experiment: Experiment) -> TrainingJob:
    """Return the job that trains an experiment's perceptor.

    Raises:
        ConfigError: if it does not suit the images, their labels or the devices.
    """
    return _part_job(experiment, "perceptor", experiment.parts.perceptor)


def _part_job(
    experiment: Experiment,
    section: str,
    model: ClassifierModel | DequantizerModel | PerceptorModel | VarianceHeadModel,
    dequantization: str = "",
) -> TrainingJob:
    """Return the job that trains a network beside the score model."""
    model.check(experiment.data)
    options = model.options
    return TrainingJob(
        config=experiment.config,
        seed=experiment.seed,
        section=section,
        data=experiment.data,
        trainer=model.trainer,
        options=TrainingOptions(
            batch_size=options.batch_size,
            steps=options.steps,
            log_every=experiment.training.log_every,
            checkpoint_every=options.steps,
            keep_checkpoints=experiment.training.keep_checkpoints,
            sample_every=0,
            prefetch=experiment.training.prefetch,
        ),
        sampler=None,
        dequantization=dequantization,
    )


def is_due(step: int, every: int) -> bool:
    """Return whether something that happens every so many steps is due; 0 for never."""
    return every > 0 and step % every == 0
