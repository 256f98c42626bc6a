"""The sampler of an experiment: config.sampling, config.guidance and config.task.

A `Sampler` draws images with a checkpoint. `_FixedSteps` and `_Adaptive` run a solver; both have
`encode` and `decode` where images and latents map to each other.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

import sampling
from denoising import Clipping, Denoiser
from errors import ConfigError
from experiment.class_guidance import Classes, GuidanceOptions
from experiment.data import Data
from experiment.options import SamplingOptions
from experiment.randomness import base_key
from experiment.reader import Reader, config_errors
from experiment.tasks import TASKS, Measurement, SDEdit, Task
from guidance.base import guide
from guidance.classifier import Classifier
from sampling import Projection, Samples
from sde_lib import SDE
from solvers import ADAPTIVE, SOLVERS, ddim, ode
from solvers.analytic_dpm import AnalyticDPM
from solvers.ddim import DDIM
from solvers.moments import EpsMoments
from solvers.predictor_corrector import CORRECTORS, PREDICTORS, PredictorCorrector
from time_grids import Schedule

Batch = Float[Array, "batch ..."]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network and what some samplers need beside it.

    Attributes:
        step: training step.
        denoiser: the network with averaged parameters.
        moments: second moments of the network, for config.sampling.name=analytic.
        classifier: noise-conditional classifier, for config.guidance.name=classifier.
        digests: digests of `moments` and `classifier`, by name, for the protocol of results.
    """

    step: int
    denoiser: Denoiser
    moments: EpsMoments | None = None
    classifier: Classifier | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)


class ImageSamples(NamedTuple):
    """Samples as uint8 images, network evaluations per image, and snapshots of their paths."""

    images: UInt8[np.ndarray, "count height width channels"]
    nfe: int
    frames: list[UInt8[np.ndarray, "count height width channels"]]


class Conditioned(NamedTuple):
    """What a task makes of a batch: a guided denoiser, a projection, images to start from."""

    denoiser: Denoiser
    projection: Projection | None = None
    source: Batch | None = None


Condition = Callable[[Denoiser, Int[Array, "batch"]], Conditioned]


def unconditioned(denoiser: Denoiser, indices: Int[Array, "batch"]) -> Conditioned:
    """Condition a batch on nothing."""
    return Conditioned(denoiser)


@dataclass(frozen=True, kw_only=True)
class _FixedSteps:
    """Runs a solver along a schedule."""

    solver: Any
    schedule: Schedule
    clipping: Clipping

    def __call__(
        self, key: Array, denoiser: Denoiser, shape: tuple, moments: EpsMoments | None, **more: Any
    ) -> Samples:
        solver = self.solver
        if moments is not None:
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
    def inverts(self) -> bool:
        return isinstance(self.solver, DDIM) and self.solver.eta == 0

    def encode(self, denoiser: Denoiser, x: Batch) -> Batch:
        return ddim.encode(denoiser, x, schedule=self.schedule)

    def decode(self, denoiser: Denoiser, latents: Batch) -> Batch:
        return ddim.decode(denoiser, latents, schedule=self.schedule)


@dataclass(frozen=True, kw_only=True)
class _Adaptive:
    """Runs a sampler that chooses its own steps."""

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
        guidance: guidance toward these classes.
        classes: numbers of classes that the networks know.
        sample_classes: number of classes of the samples; 0 if they have none.
        task: what config.task asks for; None for plain samples.
        solve: runs the solver.
        evaluations: network evaluations per image; None for adaptive steps.
        needs: what a checkpoint must come with: "moments", "classifier".
    """

    name: str
    options: SamplingOptions
    guidance: GuidanceOptions
    classes: Classes
    sample_classes: int
    task: Task | None
    solve: _FixedSteps | _Adaptive
    evaluations: int | None
    needs: frozenset[str]
    data: Data

    def draw(
        self,
        checkpoint: Checkpoint,
        indices: Int[np.ndarray, "count"],
        *,
        frames: int = 0,
        seed: int | None = None,
        condition: Condition = unconditioned,
    ) -> ImageSamples:
        """Draw the samples with these indices; each depends on the seed and its index alone.

        Args:
            checkpoint: the network, with what `needs` names.
            indices: indices of the samples.
            frames: number of snapshots of the paths.
            seed: by default that of the configuration.
            condition: conditions a batch on what a task knows of it.

        Raises:
            SamplingError: if a sample becomes NaN or infinite.
        """
        parallel = self.data.parallel
        placed = parallel.place(indices)
        denoiser, projection, source = condition(self.with_classes(checkpoint, placed), placed)
        options: dict[str, Any] = {"indices": placed, "frames": frames}
        if projection is not None:
            options["projection"] = projection
        if source is not None:
            options["source"] = source
        key = base_key(self.options.seed if seed is None else seed, "sampling")
        shape = (placed.shape[0], *self.data.shape)
        with _steps_bar() as progress:
            if self.evaluations is not None:  # adaptive samplers do not know their progress
                options["progress"] = progress
            samples = self.solve(key, denoiser, shape, checkpoint.moments, **options)
        images = self.data.to_uint8(parallel.fetch(samples.x)[: len(indices)])
        path = () if samples.trajectory is None else samples.trajectory
        snapshots = [self.data.to_uint8(x[: len(indices)]) for x in path]
        return ImageSamples(images, samples.nfe, snapshots)

    def with_classes(self, checkpoint: Checkpoint, indices: Int[Array, "batch"]) -> Denoiser:
        """Return the denoiser of the samples with these indices, guided to their classes."""
        denoiser, options = checkpoint.denoiser, self.options
        if not self.sample_classes:
            return denoiser
        if options.labels:
            labels = jnp.asarray(options.labels, indices.dtype)[indices % len(options.labels)]
        elif options.label < 0:
            labels = indices % self.sample_classes
        else:
            labels = jnp.full_like(indices, options.label)
        if self.classes.network:
            denoiser = dataclasses.replace(denoiser, labels=labels)
        method = self.guidance.method
        if method is None:
            return denoiser
        return guide(
            denoiser, method.make(self.guidance, self.classes, checkpoint.classifier, labels)
        )


@contextmanager
def _steps_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a bar of the steps of one batch, if they take long enough."""
    with tqdm(desc="steps", leave=False, delay=5, dynamic_ncols=True) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        yield show


def build_sampler(reader: Reader, sde: SDE, data: Data, classes: Classes) -> Sampler:
    """Build the sampler that the configuration describes.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    guidance = reader.build("guidance", GuidanceOptions)
    method = guidance.method
    with config_errors("guidance"):
        sample_classes = classes.network if method is None else method.sample_classes(classes)
    task = _build_task(reader, data)
    chosen = reader.lookup("sampling", {**SOLVERS, **ADAPTIVE})
    if chosen in ADAPTIVE.values():
        function, option_classes = chosen
        options, solve = _adaptive(reader, function, option_classes, data)
        evaluations = None
    else:
        options, solve = _fixed_steps(reader, chosen, data, task)
        evaluations = _count_evaluations(reader, solve, sde) * guidance.evaluations
    with config_errors("sampling"):
        options.check(
            classes=sample_classes,
            null_label=classes.network if method is None and classes.network else None,
            owner=f"config.{'classifier' if needs_classifier(guidance) else 'model'}.num_classes",
        )
    if task is not None:
        _check_task(reader, task, solve)
    needs = {"classifier"} if needs_classifier(guidance) else set()
    needs |= {"moments"} if chosen is AnalyticDPM else set()
    return Sampler(
        name=reader.config["sampling"]["name"],
        options=options,
        guidance=guidance,
        classes=classes,
        sample_classes=sample_classes,
        task=task,
        solve=solve,
        evaluations=evaluations,
        needs=frozenset(needs),
        data=data,
    )


def needs_classifier(guidance: GuidanceOptions) -> bool:
    """Return whether guidance uses the noise-conditional classifier of the run."""
    return guidance.method is not None and guidance.method.needs_classifier


def require_learned(reader: Reader, path: str) -> None:
    """Raise ConfigError unless the network predicts variances, for `variance` of a section."""
    parameterization = reader.config["denoiser"]["parameterization"]
    if parameterization != "eps_learned_variance":
        raise ConfigError(
            f"config.{path}.variance='learned' needs a network that predicts variances, with "
            f"config.denoiser.parameterization=eps_learned_variance, not {parameterization!r}; "
            "choose small or large"
        )


def _range(data: Data) -> dict[str, float]:
    return {"low": data.scaler.low, "high": data.scaler.high}


def _adaptive(
    reader: Reader, function: Callable[..., Samples], classes: dict[str, type], data: Data
) -> tuple[SamplingOptions, _Adaptive]:
    options, clipping, *built = reader.build_all(
        "sampling",
        (SamplingOptions, Clipping, *classes.values()),
        ignore={"name"},
        fixed=_range(data),
    )
    given = dict(zip(classes, built, strict=True))
    return options, _Adaptive(function=function, options=given, clipping=clipping)


def _fixed_steps(
    reader: Reader, cls: type, data: Data, task: Task | None
) -> tuple[SamplingOptions, _FixedSteps]:
    shared = (SamplingOptions, Clipping, Schedule)
    fixed = _range(data)
    if cls is not PredictorCorrector:
        options, clipping, schedule, solver = reader.build_all(
            "sampling", (*shared, cls), ignore={"name"}, fixed=fixed
        )
        schedule = _with_start(schedule, task)
        return options, _FixedSteps(solver=solver, schedule=schedule, clipping=clipping)
    none = {"none": None}
    predictor = reader.lookup("sampling", PREDICTORS | none, "predictor")
    corrector = reader.lookup("sampling", CORRECTORS | none, "corrector")
    parts = [part for part in (predictor, corrector) if part is not None]
    options, clipping, schedule, order, *built = reader.build_all(
        "sampling",
        (*shared, PredictorCorrector, *parts),
        ignore={"name", "predictor", "corrector"},
        fixed=fixed,
    )
    made = dict(zip(parts, built, strict=True))
    pair = {"predictor": made.get(predictor), "corrector": made.get(corrector)}
    with config_errors("sampling"):
        solver = dataclasses.replace(order, **pair)
    _check_predictor(reader, pair["predictor"])
    schedule = _with_start(schedule, task)
    return options, _FixedSteps(solver=solver, schedule=schedule, clipping=clipping)


def _with_start(schedule: Schedule, task: Task | None) -> Schedule:
    """Return the schedule from the time up to which SDEdit adds noise."""
    if task is None or not isinstance(task.options, SDEdit):
        return schedule
    with config_errors("task"):
        return dataclasses.replace(schedule, start=task.options.start)


def _check_predictor(reader: Reader, predictor: Any) -> None:
    if getattr(predictor, "variance", None) == "learned":
        require_learned(reader, "sampling")
    guidance = reader.config["guidance"]["name"]
    if getattr(predictor, "guidance_form", None) == "mean" and guidance != "classifier":
        raise ConfigError(
            "config.sampling.guidance_form='mean' is used with config.guidance.name=classifier, "
            f"not with {guidance!r}; leave it out"
        )


def _count_evaluations(reader: Reader, solve: _FixedSteps, sde: SDE) -> int:
    """Return the network evaluations per image without guidance; record the number of steps."""
    schedule = solve.schedule
    with config_errors("sampling"):
        times = schedule.of(sde)
        analytic = isinstance(solve.solver, AnalyticDPM)  # it plans once it has its moments
        steps = len(times) - 1 if analytic else solve.solver.plan(sde, times).evaluations
    whole = dataclasses.replace(schedule, start=1.0).of(sde)  # SDEdit takes the rest of it
    reader.record("sampling", steps=len(whole) - (schedule.grid != "timesteps"))
    return steps + (schedule.final_step == "denoise")


def _build_task(reader: Reader, data: Data) -> Task | None:
    classes = reader.lookup("task", TASKS)
    built = reader.build_all("task", classes, ignore={"name"})
    if not built:
        return None
    name = reader.config["task"]["name"]
    source, *inverse_problem, options = built
    if not inverse_problem:
        return Task(name=name, input=source.input, options=options)
    with config_errors("task"):
        operator = options.operator(data.shape)
    return Task(
        name=name,
        input=source.input,
        options=options,
        inverse_problem=inverse_problem[0],
        operator=operator,
    )


def _check_task(reader: Reader, task: Task, solve: _FixedSteps | _Adaptive) -> None:
    """Raise ConfigError for a task that this sampler cannot do."""
    config = reader.config["sampling"]
    adaptive = isinstance(solve, _Adaptive)
    fixed = f"config.sampling.name={config['name']!r} chooses its own steps; choose one of: " + (
        ", ".join(SOLVERS)
    )
    if isinstance(task.options, SDEdit):
        if adaptive:
            raise ConfigError(f"config.task.name='sdedit' needs fixed steps, but {fixed}")
        return
    problem = task.inverse_problem
    if problem is None:
        if not solve.inverts:
            raise ConfigError(
                f"config.task.name={task.name!r} encodes images as latents, which "
                f"config.sampling.name={config['name']!r} cannot do; choose ode, or ddim with eta=0"
            )
        if solve.clipping.clip != "none":
            raise ConfigError(
                f"config.sampling.clip={config['clip']!r} is not used with config.task.name="
                f"{task.name!r}; leave it out"
            )
    elif problem.method == "projection":
        assert isinstance(task.options, Measurement)
        if adaptive:
            raise ConfigError(
                f"config.task.method='projection' acts between fixed steps, but {fixed}; or choose "
                "config.task.method=pigdm"
            )
        if not task.options.can_project:
            raise ConfigError(
                f"config.task.method='projection' is unstable with config.task.name={task.name!r}: "
                "the pseudo-inverse magnifies noise without bounds; choose pigdm"
            )
