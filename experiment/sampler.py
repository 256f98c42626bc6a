"""The sampler of an experiment: config.sampling, config.guidance and config.task.

A `Sampler` draws images with a checkpoint. It runs a solver with `FixedSteps` or `Adaptive` steps.
Both have `encode` and `decode`, for solvers where `inverts` is True.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from tqdm import tqdm

import sampling
from bounds.dequantization import Dequantizer
from denoising import Denoiser
from errors import ConfigError
from experiment.class_guidance import BadModel, Classes, GuidanceOptions, GuidedBatch
from experiment.data import Data
from experiment.ends import Ends
from experiment.options import SamplingOptions
from experiment.prompts import Prompted
from experiment.randomness import base_key
from experiment.tasks import Task
from guidance.base import guide
from guidance.classifier import Classifier
from numerics.arrays import Batch, sample_keys
from numerics.clipping import Clipping
from objectives.uncertainty import VarianceHead
from sampling import Projection, Samples
from solvers import ddim, ode
from solvers.ddim import DDIM
from solvers.moments import EpsMoments
from time_grids import Schedule


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network and what some samplers need beside it.

    Attributes:
        step: training step.
        denoiser: the network with averaged parameters.
        average: the average's name, such as "length_0.08"; "" for the main one.
        moments: second moments of the network, for variance=analytic and optimal times.
        variance_head: predicts the uncertainty of the network, for variance=diagonal.
        classifier: noise-conditional classifier, for config.guidance.name=classifier.
        dequantizer: for bits/dim with config.data.dequantization=variational.
        bad_model: the network of config.guidance.run, for config.guidance.name=autoguidance.
        perceptor: with the prompts of config.guidance, for config.guidance.name=text.
        digests: digests of `moments`, `variance_head`, `classifier`, `bad_model` and `perceptor`,
            by name, for the protocol of results.
    """

    step: int
    denoiser: Denoiser
    average: str = ""
    moments: EpsMoments | None = None
    variance_head: VarianceHead | None = None
    classifier: Classifier | None = None
    dequantizer: Dequantizer | None = None
    bad_model: BadModel | None = None
    perceptor: Prompted | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The start of the names of its files."""
        return checkpoint_name(self.step, self.average)

    def with_uncertainty(
        self, source: str, times: Float[np.ndarray, "times"], limits: tuple[float, float]
    ) -> Denoiser:
        """Return the denoiser with an uncertainty, for the optimal variances of reverse steps.

        Args:
            source: what gives it, "moments" or "variance_head"; "" for none.
            times: the times of the steps.
            limits: the ends of the interval of the data.

        Raises:
            ValueError: for moments of another process, or that end before the times.
        """
        if not source:
            return self.denoiser
        found: Any = self.variance_head
        if source == "moments":
            assert self.moments is not None, "a checkpoint is loaded with what it needs"
            radius = (limits[1] - limits[0]) / 2
            found = self.moments.uncertainty(self.denoiser.sde, times, radius)
        assert found is not None, "a checkpoint is loaded with what it needs"
        return dataclasses.replace(self.denoiser, uncertainty=found)


def checkpoint_name(step: int, average: str = "") -> str:
    """Return the step, and an average other than the main one: "1000-length_0.08"."""
    return f"{step}-{average}" if average else str(step)


class Drawn(NamedTuple):
    """Samples as users see them, network evaluations per sample, and snapshots of their paths.

    Attributes:
        samples: uint8 images, or points or series in the units of the data.
        nfe: network evaluations per sample.
        frames: snapshots, as the samples.
        times: the times of the snapshots.
        predictions: the x0 that is predicted from each snapshot, with `predicts`.
        acceptance: as in `sampling.Samples`; None of a sampler without Metropolis steps.
    """

    samples: Shaped[np.ndarray, "count ..."]
    nfe: int
    frames: list[Shaped[np.ndarray, "count ..."]]
    times: list[float]
    predictions: list[Shaped[np.ndarray, "count ..."]]
    acceptance: Float[np.ndarray, "count"] | None = None


class Conditioned(NamedTuple):
    """A batch conditioned on its inputs.

    Attributes:
        denoiser: perhaps guided.
        projection: onto what is known.
        source: images to which noise is added.
        initial: ends x1, where samples start.
    """

    denoiser: Denoiser
    projection: Projection | None = None
    source: Batch | None = None
    initial: Batch | None = None


Condition = Callable[[Denoiser, Int[Array, "batch"]], Conditioned]


def unconditioned(denoiser: Denoiser, indices: Int[Array, "batch"]) -> Conditioned:
    """Condition a batch on nothing."""
    return Conditioned(denoiser)


@dataclass(frozen=True, kw_only=True)
class FixedSteps:
    """Runs a solver along a schedule.

    `inverts` says whether `encode` maps images to latents, and `decode` latents to images.
    `uncertainty` is the source of the uncertainty that steps need, as in
    `Checkpoint.with_uncertainty`.
    """

    solver: Any
    schedule: Schedule
    clipping: Clipping

    def __call__(
        self, key: Array, denoiser: Denoiser, shape: tuple, moments: EpsMoments | None, **more: Any
    ) -> Samples:
        solver = self.solver
        if hasattr(solver, "moments"):
            solver = dataclasses.replace(solver, moments=moments)
        return sampling.sample(
            key,
            denoiser,
            shape,
            solver=solver,
            schedule=self.schedule,
            clipping=self.clipping,
            **more,
        )

    @property
    def t_min(self) -> float:
        return self.schedule.t_min

    @property
    def uncertainty(self) -> str:
        return getattr(self.solver, "uncertainty", "")

    @property
    def inverts(self) -> bool:
        return isinstance(self.solver, DDIM) and self.solver.eta == 0

    def encode(self, denoiser: Denoiser, x: Batch) -> Batch:
        return ddim.encode(denoiser, x, schedule=self.schedule)

    def decode(self, denoiser: Denoiser, latents: Batch) -> Batch:
        return ddim.decode(denoiser, latents, schedule=self.schedule)


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Runs a sampler that chooses its own steps; the members are those of `FixedSteps`."""

    function: Callable[..., Samples]
    options: dict[str, Any]
    clipping: Clipping

    def __call__(
        self, key: Array, denoiser: Denoiser, shape: tuple, moments: EpsMoments | None, **more: Any
    ) -> Samples:
        return self.function(key, denoiser, shape, clipping=self.clipping, **self.options, **more)

    @property
    def t_min(self) -> float:
        return self.options["options"].t_min

    @property
    def uncertainty(self) -> str:
        return ""

    @property
    def inverts(self) -> bool:
        return self.function is ode.sample_ode

    def encode(self, denoiser: Denoiser, x: Batch) -> Batch:
        return ode.encode(denoiser, x, **self._to_states).x

    def decode(self, denoiser: Denoiser, latents: Batch) -> Batch:
        return ode.decode(denoiser, latents, **self._to_states).x

    @property
    def _to_states(self) -> dict[str, Any]:
        # Images are states at t_min, and latents become states there again.
        options = dataclasses.replace(self.options["options"], final_step="none")
        return {**self.options, "options": options}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws images with a checkpoint.

    Attributes:
        name: its name in `solvers.SOLVERS` or `solvers.ADAPTIVE`.
        options: seed and classes of the samples.
        guidance: guidance toward these classes, or by texts.
        guidance_details: the options that its method alone has; None for none.
        classes: numbers of classes that the networks know.
        sample_classes: number of classes of the samples; 0 if they have none.
        task: what config.task asks for; None for plain samples.
        solve: runs the solver.
        evaluations: network evaluations per image; None for adaptive steps.
        needs: what a checkpoint must come with: "moments", "variance_head", "classifier",
            "bad_model", "perceptor".
        ends: where samples start.
    """

    name: str
    options: SamplingOptions
    guidance: GuidanceOptions
    guidance_details: Any
    classes: Classes
    sample_classes: int
    task: Task | None
    solve: FixedSteps | Adaptive
    evaluations: int | None
    needs: frozenset[str]
    data: Data
    ends: Ends

    def draw(
        self,
        checkpoint: Checkpoint,
        indices: Int[np.ndarray, "count"],
        *,
        frames: int = 0,
        predicts: bool = False,
        seed: int | None = None,
        condition: Condition = unconditioned,
    ) -> Drawn:
        """Draw the samples with these indices; each depends on the seed and its index alone.

        Args:
            checkpoint: the network, with what `needs` names.
            indices: indices of the samples.
            frames: number of snapshots of the paths.
            predicts: whether to predict x0 from each snapshot, too.
            seed: by default that of the configuration.
            condition: conditions a batch on what a task knows of it.

        Raises:
            SamplingError: if a sample becomes NaN or infinite.
        """
        parallel = self.data.parallel
        placed = parallel.place(indices)
        seed = self.options.seed if seed is None else seed
        given = condition(self.with_classes(checkpoint, placed, seed), placed)
        if given.initial is None:
            given = given._replace(initial=self.ends.starts(parallel.fetch(placed), seed))
        denoiser = given.denoiser
        samples = self.states(given, placed, seed, moments=checkpoint.moments, frames=frames)
        drawn = self.data.decode(parallel.fetch(samples.x)[: len(indices)])
        path = () if samples.trajectory is None else samples.trajectory
        times = () if samples.times is None else samples.times
        frames_x0 = map(partial(_predict_x0, denoiser), path, times) if predicts else ()
        snapshots, predictions = (
            [self.data.decode(parallel.fetch(x)[: len(indices)]) for x in found]
            for found in (path, frames_x0)
        )
        found = samples.acceptance
        return Drawn(
            samples=drawn,
            nfe=samples.nfe,
            frames=snapshots,
            times=[float(t) for t in times],
            predictions=predictions,
            acceptance=None if found is None else parallel.fetch(found)[: len(indices)],
        )

    def states(
        self,
        given: Conditioned,
        indices: Int[Array, "batch"],
        seed: int,
        *,
        moments: EpsMoments | None = None,
        frames: int = 0,
    ) -> Samples:
        """Draw the samples with these indices, split over the devices, in the network's range.

        Raises:
            SamplingError: if a sample becomes NaN or infinite.
        """
        options: dict[str, Any] = {"indices": indices, "frames": frames}
        inputs = given._asdict()
        denoiser = inputs.pop("denoiser")
        options |= {name: value for name, value in inputs.items() if value is not None}
        key = base_key(seed, "sampling")
        shape = (indices.shape[0], *self.data.shape)
        with _steps_bar() as progress:
            if self.evaluations is not None:  # adaptive samplers do not know their progress
                options["progress"] = progress
            return self.solve(key, denoiser, shape, moments, **options)

    @property
    def starts_at_images(self) -> bool:
        """Whether sampling starts at noised images, and not at the prior."""
        return isinstance(self.solve, FixedSteps) and self.solve.schedule.start < 1

    def with_classes(
        self, checkpoint: Checkpoint, indices: Int[Array, "batch"], seed: int | None = None
    ) -> Denoiser:
        """Return the guided denoiser of the samples with these indices and their classes.

        `seed` is by default that of the configuration.
        """
        denoiser, labels = self._denoiser(checkpoint), self._labels(indices)
        if self.classes.network:
            denoiser = dataclasses.replace(denoiser, labels=labels)
        method = self.guidance.method
        if method is None:
            return denoiser
        model = getattr(checkpoint, method.needs) if method.needs else None
        assert not method.needs or model is not None, "a checkpoint is loaded with what it needs"
        key = base_key(self.options.seed if seed is None else seed, "guidance")
        batch = GuidedBatch(
            options=self.guidance,
            own=self.guidance_details,
            classes=self.classes,
            model=model,
            labels=labels,
            keys=sample_keys(key, indices),
            limits=self.data.limits,
        )
        return guide(denoiser, method.make(batch))

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigError if the moments of a checkpoint do not suit the steps."""
        if "moments" not in self.needs:
            return
        assert isinstance(self.solve, FixedSteps)
        solver, sde = self.solve.solver, checkpoint.denoiser.sde
        try:
            if hasattr(solver, "moments"):
                solver = dataclasses.replace(solver, moments=checkpoint.moments)
                solver.plan(sde, self.solve.schedule.of(sde))
            self._denoiser(checkpoint)
        except ValueError as error:
            raise ConfigError(f"config.sampling: {error}") from error

    def _denoiser(self, checkpoint: Checkpoint) -> Denoiser:
        """Return the denoiser, with the uncertainty that steps need."""
        source = self.solve.uncertainty
        if not source:
            return checkpoint.denoiser
        assert isinstance(self.solve, FixedSteps)
        times = self.solve.schedule.of(checkpoint.denoiser.sde)
        return checkpoint.with_uncertainty(source, times, self.data.limits)

    def _labels(self, indices: Int[Array, "batch"]) -> Int[Array, "batch"] | None:
        """Return the classes of the samples with these indices, if they have any."""
        options = self.options
        if not self.sample_classes:
            return None
        if options.labels:
            return jnp.asarray(options.labels, indices.dtype)[indices % len(options.labels)]
        if options.label < 0:
            return indices % self.sample_classes
        return jnp.full_like(indices, options.label)


@jax.jit
def _predict_x0(denoiser: Denoiser, x: Batch, t: Float[Array, ""]) -> Batch:
    return denoiser.predict(x, t).x0


@contextmanager
def _steps_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a bar of the steps of one batch, if they take long enough."""
    with tqdm(desc="steps", leave=False, delay=5, dynamic_ncols=True) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        yield show
