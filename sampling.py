"""Sampling: the protocol of solvers, and the one loop that runs them.

A solver makes a plan: steps along a grid of decreasing times. A step is the input of the solver's
step function, which one jitted loop applies. Its contents depend on the solver: times for
Predictor-Corrector, weights of a linear combination for the solvers of `solvers/tables.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from denoising import Denoiser
from errors import SamplingError
from numerics.arrays import (
    Batch,
    expand_like,
    fold_in_each,
    is_traced,
    normal_like,
    pad_to_block,
    require_numbers,
    sample_indices,
    sample_keys,
    stack,
    whole,
)
from numerics.clipping import Clipping
from sde_lib import SDE, Time
from time_grids import Schedule

Keys = Key[Array, "batch"]
Scalar = Float[Array, ""]


class Samples(NamedTuple):
    """Samples in the network's range.

    Attributes:
        x: the samples (batch, ...).
        nfe: network evaluations per sample; with guidance at some times only, the most possible.
        trajectory: snapshots (frames, batch, ...), if any were requested.
        times: the times (frames,) of the snapshots.
        acceptance: the fraction of Metropolis steps that each sample accepts in expectation, of a
            sampler that has such steps.
    """

    x: Batch
    nfe: int
    trajectory: np.ndarray | None = None
    times: np.ndarray | None = None
    acceptance: Float[Array, "batch"] | None = None


class Step(NamedTuple):
    """A state x, and its mean: x before the step's fresh noise was added.

    `accepted` is the sum over the steps of the fractions of Metropolis steps accepted; None of a
    sampler that has none.
    """

    x: Batch
    mean: Batch
    accepted: Float[Array, "batch"] | None = None


@runtime_checkable
class Projection(Protocol):
    """Holds samples to known components between the steps of a sampler; a pytree."""

    def project(self, keys: Keys, sde: SDE, x: Batch, t: Time) -> Batch:
        """Replace the known components of x_t; sample k draws its noise from `keys[k]` alone."""
        ...

    def project_final(self, x0: Batch) -> Batch:
        """Replace the known components of the samples."""
        ...


# Projects a state at a time, with keys per sample; the identity where nothing is projected.
Project = Callable[[Keys, Any, Scalar], Any]


@runtime_checkable
class StepFunction(Protocol):
    """A function that the loop applies to each step; hashable, since jit takes it as static."""

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        ...

    def start(self, x: Batch) -> Any:
        """Return the state before the first step: a NamedTuple with x and mean, as in Step."""
        ...

    def step(self, keys: Keys, denoiser: Denoiser, state: Any, step: Any, project: Project) -> Any:
        """Return the state after a step; sample k draws its noise from `keys[k]` alone.

        The loop projects after each step. A step of several parts projects between them.
        """
        ...


def predict_x0(denoiser: Denoiser, x: Batch, t: Scalar) -> Batch:
    """Return Tweedie's estimate of x0 from the state at t."""
    return denoiser.predict(x, t).x0


class Plan(NamedTuple):
    """A solver's work along a grid.

    Attributes:
        function: applies a step.
        steps: a pytree of arrays, whose leading axis counts the steps.
        times: the time before each step, then the final time.
        denoise: (denoiser, state, final time) -> samples, for final_step="denoise"; a hashable
            function of one network evaluation. None if the last step removes the noise itself.
    """

    function: StepFunction
    steps: Any
    times: np.ndarray
    denoise: Callable[[Denoiser, Batch, Scalar], Batch] | None = predict_x0

    @property
    def evaluations(self) -> int:
        """Network evaluations of all steps."""
        return (len(self.times) - 1) * self.function.evaluations

    def require_final_step(self, name: str) -> None:
        """Raise ValueError if the final step `name` would denoise samples without noise."""
        if name == "denoise" and self.denoise is None:
            raise ValueError(
                "final_step='denoise' has nothing to remove, because the last step of this solver "
                "removes the noise itself; choose mean"
            )


@runtime_checkable
class Solver(Protocol):
    """A method to get from the prior to the data in fixed steps."""

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        """Plan the steps along decreasing times.

        Raises:
            ValueError: if the solver does not suit this process or this grid.
        """
        ...


def sample(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    solver: Solver,
    schedule: Schedule = Schedule(),
    steps: int | None = None,
    indices: Int[Array, "batch"] | None = None,
    source: Batch | None = None,
    initial: Batch | None = None,
    projection: Projection | None = None,
    clipping: Clipping | None = None,
    frames: int | Sequence[float] = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Draw samples of `shape` (batch, ...) with a solver along a schedule.

    For example, `sample(key, denoiser, (64, 28, 28, 1), solver=DPMSolver(order=2), steps=20).x` has
    64 images.

    The steps of its plan are one jitted loop. Python runs it in about ten pieces: between them it
    reports the progress, takes snapshots, and can be interrupted.

    Inside jit, vmap and grad it is one loop without pauses. There no progress is reported, and a
    sample that becomes NaN or infinite is NaN in place of an error.

    Args:
        key: sample k depends on `key` and `indices[k]` (default k) alone.
        denoiser: the network, perhaps guided.
        shape: (batch, ...).
        solver: the method.
        schedule: the times and the final step.
        steps: number of steps, instead of the schedule's.
        indices: indices of the samples.
        source: images to which noise is added up to `schedule.start`, which must be below 1
            (SDEdit, Meng et al. 2022, arXiv:2108.01073); None starts from the prior.
        initial: ends x1 (batch, ...) of the paths, where samples start instead of at noise.
        projection: holds the samples to known components after each step.
        clipping: keeps the predicted x0 in the range of the data.
        frames: number of snapshots in `trajectory`, including start and samples, or the times at
            which they are taken (at the nearest step).
        progress: called with the number of steps done and of all steps.

    Raises:
        TypeError, ValueError: if an argument is not what it should be, or the solver does not suit
            this process or this grid.
        SamplingError: if a sample becomes NaN or infinite.
    """
    indices = sample_indices(key, shape, indices)
    if not isinstance(solver, Solver):
        raise TypeError(
            f"solver={solver!r:.60} is no solver; give one, such as solvers.ddim.DDIM()"
        )
    if steps is not None:
        schedule = dataclasses.replace(schedule, steps=steps)
    if clipping is not None:
        denoiser = dataclasses.replace(denoiser, clipping=clipping)
    require_numbers(denoiser.sde)
    times = schedule.of(denoiser.sde)
    if (source is None) != (schedule.start == 1):
        needed = "needs source images to add noise to" if source is None else "takes no source"
        raise ValueError(f"start={schedule.start:g} {needed}; start=1 starts from the prior")
    if projection is not None and not getattr(solver, "takes_projection", True):
        raise ValueError(
            f"{type(solver).__name__} keeps the density of x, which a projection changes; leave "
            "the projection out, or choose another solver"
        )
    plan = solver.plan(denoiser.sde, times)
    keys, x = _start(key, denoiser, indices, shape[1:], source, initial, times[0], projection)
    return run(
        keys,
        denoiser,
        x,
        plan,
        final_step=schedule.final_step,
        projection=projection,
        frames=frames,
        progress=progress,
    )


def run(
    keys: Keys,
    denoiser: Denoiser,
    x: Batch,
    plan: Plan,
    *,
    final_step: str = "none",
    projection: Projection | None = None,
    frames: int | Sequence[float] = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Run a plan from the states x, sample k with the noise of `keys[k]`; the rest as in `sample`.

    Raises:
        ValueError: if the final step does not suit the plan.
        SamplingError: if a sample becomes NaN or infinite.
    """
    plan.require_final_step(final_step)
    count = len(plan.times) - 1
    marks = _marks(plan.times, frames)
    # Padded, so that one program serves any number of steps.
    steps = jax.tree.map(
        lambda leaf: jnp.asarray(pad_to_block(np.asarray(leaf)), x.dtype),
        (plan.steps, plan.times[1:]),
    )
    # Made of x, so that it is spread over the devices as x is.
    progressed = _Progress(plan.function.start(x), jnp.where(_is_finite(x), -1, 0))
    # What is traced has no numbers yet, to look at between the pieces of the loop.
    traced = is_traced((keys, denoiser, projection, progressed))
    advance, pieces = (_apply, 1) if traced else (_advance, min(count, 10))
    snapshots = {0: whole(x)} if 0 in marks else {}
    pauses = sorted({*marks, *np.linspace(0, count, pieces + 1).astype(int).tolist()} - {0})
    for first, last in zip([0, *pauses], pauses, strict=False):
        progressed = advance(
            keys, denoiser, projection, progressed, steps, first, last, plan.function
        )
        if not traced:
            _require_finite(progressed.failed_at, plan.times)
            if progress is not None:
                progress(last, count)
        if last in marks and last != count:
            snapshots[last] = whole(progressed.state.x)
    x, extra = _finish(denoiser, projection, progressed.state, plan, final_step)
    if traced:
        x = jnp.where(expand_like(progressed.failed_at < 0, x), x, jnp.nan)
    elif not jnp.isfinite(x).all():
        raise SamplingError("the last evaluation, which denoises the samples, is NaN or infinite")
    nfe = (plan.evaluations + extra) * denoiser.evaluations
    accepted = getattr(progressed.state, "accepted", None)
    acceptance = None if accepted is None else accepted / count
    if not marks:
        return Samples(x, nfe, acceptance=acceptance)
    if count in marks:
        snapshots[count] = whole(x)
    trajectory = stack([snapshots[mark] for mark in marks])
    return Samples(x, nfe, trajectory, plan.times[marks], acceptance)


def _marks(times: np.ndarray, frames: int | Sequence[float]) -> list[int]:
    """Return the numbers of steps done at which a snapshot is taken, increasing."""
    if isinstance(frames, int):
        return sorted(set(np.linspace(0, len(times) - 1, frames).round().astype(int).tolist()))
    # Of steps at the same time, as the stages of a method may be, the last.
    return sorted({len(times) - 1 - int(np.abs(times[::-1] - t).argmin()) for t in frames})


class _Progress(NamedTuple):
    """The state, and the step after which a sample was first not finite (-1: none)."""

    state: Any
    failed_at: Int[Array, "batch"]


def _project(projection: Projection | None, sde: SDE, keys: Keys, state: Any, t: Scalar) -> Any:
    """Project a state at time t, if there is a projection."""
    if projection is None:
        return state
    keys = fold_in_each(keys, _PROJECTION)
    return state._replace(x=projection.project(keys, sde, state.x, t))


_PROJECTION = 1 << 20  # folded into a step's keys; step functions fold in small numbers


@partial(jax.jit, static_argnames="item_shape")
def _start(
    key: Key[Array, ""],
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    item_shape: tuple,
    source: Batch | None,
    initial: Batch | None,
    t: Float[Array, ""] | float,
    projection: Projection | None,
) -> tuple[Keys, Batch]:
    keys = sample_keys(key, indices)
    noise_keys = fold_in_each(keys, 0)
    if initial is not None:
        x = denoiser.sde.prior_std * initial
    elif source is None:
        x = denoiser.sde.prior_sample(noise_keys, jnp.zeros((indices.shape[0], *item_shape)))
    else:
        t = jnp.asarray(t, source.dtype)
        x = denoiser.sde.perturb(source, t, normal_like(noise_keys, source))
    t = jnp.asarray(t, x.dtype)
    return keys, _project(projection, denoiser.sde, noise_keys, Step(x, x), t).x


def _apply(
    keys: Keys,
    denoiser: Denoiser,
    projection: Projection | None,
    progressed: _Progress,
    steps: Any,
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
    function: Any,
) -> _Progress:
    """Apply steps first to last - 1; between known numbers, the loop has a gradient."""
    project = partial(_project, projection, denoiser.sde)

    def body(number: Int[Array, ""], progressed: _Progress) -> _Progress:
        step, end = jax.tree.map(lambda leaf: leaf[number], steps)
        step_keys = fold_in_each(keys, 1 + number)  # 0 drew the prior
        state = function.step(step_keys, denoiser, progressed.state, step, project)
        state = project(step_keys, state, end)
        failed = (progressed.failed_at < 0) & ~_is_finite(state.x)
        return _Progress(state, jnp.where(failed, number, progressed.failed_at))

    return jax.lax.fori_loop(first, last, body, progressed)


# `first` and `last` are traced: pieces of any length share a program.
_advance = jax.jit(_apply, static_argnames="function")


def _is_finite(x: Batch) -> Bool[Array, "batch"]:
    return jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=-1)


def _require_finite(failed_at: Int[Array, "batch"], times: np.ndarray) -> None:
    count = int((failed_at >= 0).sum())
    if count:
        step = int(jnp.where(failed_at >= 0, failed_at, len(times)).min())
        raise SamplingError(
            f"{count} of {len(failed_at)} samples became NaN or infinite, the first between "
            f"t={times[step]:.4g} and t={times[step + 1]:.4g} (step {step + 1} of "
            f"{len(times) - 1}): either the sampler is unstable (give more config.sampling.steps, "
            "a smaller snr or order, or with guidance config.sampling.clip=range), or the network "
            "returns NaN there"
        )


def _finish(
    denoiser: Denoiser, projection: Projection | None, state: Any, plan: Plan, final_step: str
) -> tuple[Batch, int]:
    x = state.mean if final_step == "mean" else state.x
    if final_step == "denoise":
        x = _denoise(denoiser, x, jnp.asarray(plan.times[-1], x.dtype), plan.denoise)
    if projection is not None:
        x = _project_final(projection, x)
    return x, int(final_step == "denoise")


@partial(jax.jit, static_argnames="denoise")
def _denoise(denoiser: Denoiser, x: Batch, t: Scalar, denoise: Any) -> Batch:
    return denoise(denoiser, x, t)


@jax.jit
def _project_final(projection: Projection, x: Batch) -> Batch:
    return projection.project_final(x)
