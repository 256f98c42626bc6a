"""What measurements during training share: images, programs, a sampler, a reference.

All of it is made once for a run, at its first use, and depends on the configuration alone.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data.streamed import Converted
from denoising import Denoiser
from experiment.class_guidance import GuidanceOptions
from experiment.experiment import Experiment
from experiment.randomness import base_key
from experiment.sampler import FixedSteps, Sampler
from losses import Noise, NoiseObjective
from metrics.features import Extractor
from metrics.frechet import Accumulator, Statistics, frechet_distance
from numerics.arrays import sum_per_sample
from solvers.unipc import UniPC
from time_grids import Schedule
from training.objective import Context

SPLITS = ("train", "test")
_IMAGES = 256
_PER_LEVEL = 8  # draws at each noise level, at least
_REFERENCE_IMAGES = 10_000  # training images for the Frechet distance, at most


class AtNoise(NamedTuple):
    """What the network makes of images at given times and noise.

    Attributes:
        squares: ||eps_hat - eps||^2.
        size: ||eps||^2.
        losses: the training objective; 0 if it draws other random numbers.
    """

    squares: Float[Array, "batch"]
    size: Float[Array, "batch"]
    losses: Float[Array, "batch"]


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What measurements of one run share.

    Attributes:
        experiment: what is trained.
        extractor: features of the Frechet distance.
    """

    experiment: Experiment
    extractor: Extractor

    @cached_property
    def chosen(self) -> dict[str, Int[np.ndarray, "images"]]:
        """The indices of the images of each split, drawn once for the run."""
        images, rng = self.experiment.data.splits, np.random.default_rng(self.experiment.seed)
        count = min(self.experiment.diagnostics.images or _IMAGES, len(images.test))
        return {split: rng.permutation(len(getattr(images, split)))[:count] for split in SPLITS}

    @property
    def per_level(self) -> int:
        """Draws at each noise level: one for each image, and no fewer than 8."""
        count = max(len(indices) for indices in self.chosen.values())
        return max(count // self.experiment.diagnostics.levels, _PER_LEVEL)

    @property
    def batch_size(self) -> int:
        """Images per batch, those of a training step."""
        return self.experiment.training.batch_size

    @property
    def key(self) -> Array:
        return base_key(self.experiment.seed, "diagnostics")

    @cached_property
    def at_noise(self) -> Callable[..., AtNoise]:
        """The program (key, denoiser, x0, noise, context) -> errors and losses at this noise.

        Both call the network alike, for most objectives, and XLA then evaluates it once. So one
        program is compiled for all that is measured, which on a CPU takes longer than to run it.
        """
        objective = self.experiment.trainer.loss

        def compute(
            key: Array, denoiser: Denoiser, x0: Array, noise: Noise, context: Context
        ) -> AtNoise:
            t, eps = noise
            error = denoiser.predict(denoiser.sde.perturb(x0, t, eps), t).eps - eps
            squares, size = sum_per_sample(error**2), sum_per_sample(eps**2)
            if not isinstance(objective, NoiseObjective):  # it draws other numbers
                return AtNoise(squares, size, jnp.zeros_like(squares))
            losses = objective.evaluate(key, noise, denoiser, x0, context)
            losses = objective.weighted(noise, losses, denoiser, context).values
            return AtNoise(squares, size, losses)

        return jax.jit(compute, compiler_options=self.experiment.parallel.once)

    @cached_property
    def losses(self) -> Callable[..., Float[Array, "batch"]]:
        """The objective of each image, from (key, denoiser, x0, context)."""
        objective = self.experiment.trainer.loss
        if not isinstance(objective, NoiseObjective):
            return jax.jit(lambda *arguments: objective(*arguments).values)
        parallel = self.experiment.parallel
        draw = jax.jit(objective.draw, out_shardings=parallel.split, compiler_options=parallel.once)

        def compute(key: Array, denoiser: Denoiser, x0: Array, context: Context) -> Array:
            noise = draw(key, denoiser, x0, context)
            return self.at_noise(key, denoiser, x0, noise, context).losses

        return compute

    @cached_property
    def variances(self) -> Float[np.ndarray, "numbers"]:
        """The variance of every number of a row over training data, in the network's range."""
        return self.experiment.data.variances(_REFERENCE_IMAGES)

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler of few steps, without guidance."""
        sampler, options = self.experiment.sampler, self.experiment.diagnostics
        schedule = Schedule(
            grid="log_snr",
            steps=options.sampling_steps - 1,
            t_min=sampler.solve.t_min,
            final_step="denoise",
        )
        return dataclasses.replace(
            sampler,
            guidance=GuidanceOptions(),
            sample_classes=sampler.classes.network,
            task=None,
            solve=FixedSteps(solver=UniPC(), schedule=schedule, clipping=sampler.solve.clipping),
            evaluations=options.sampling_steps,
            needs=frozenset(),
        )

    @cached_property
    def reference(self) -> tuple[Statistics, float | None]:
        """The statistics of training images, and the distance of as many test images as samples.

        It is None if there are fewer test images, because few images are farther away.
        """
        images, as_samples = self.experiment.data.splits, self.experiment.data.as_samples
        rng, count = (
            np.random.default_rng(self.experiment.seed),
            self.experiment.diagnostics.samples,
        )
        train = rng.permutation(len(images.train))[:_REFERENCE_IMAGES]
        shown = Converted(images.train, train, as_samples)
        statistics = self.accumulated(shown).statistics()
        if len(images.test) < count:
            return statistics, None
        test = rng.permutation(len(images.test))[:count]
        real = self.accumulated(Converted(images.test, test, as_samples)).statistics()
        return statistics, frechet_distance(statistics, real)

    def accumulated(self, images: np.ndarray | Converted, *, groups: int = 1) -> Accumulator:
        """Return the features of rows as samples are."""
        accumulator = Accumulator(len(images), groups=groups)
        size = self.experiment.evaluation.batch_size
        for first in range(0, len(images), size):
            accumulator.add(self.extractor(images[first : first + size]).features)
        return accumulator
