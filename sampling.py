"""Sampling: the protocol of solvers, and the one loop that runs them.

A solver plans: along a grid of decreasing times it lays out rows, the inputs of its kernel, which
one jitted loop then runs, a row at a time. What a row holds is the solver's own affair: times for
Predictor-Corrector, the coefficients of a linear combination for the solvers of `tables.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from denoising import Denoiser, Projection
from errors import SamplingError
from numerics.arrays import fold_in_each, normal_like, sample_keys
from sde_lib import SDE
from time_grids import Schedule

Batch = Float[Array, "batch ..."]
Keys = Key[Array, "batch"]
Scalar = Float[Array, ""]


class Samples(NamedTuple):
    """Samples in the network's range, what they cost, and the path if frames were asked for.

    nfe is the number of network evaluations an image (with guidance at some times alone, the most
    there can be); trajectory has shape (frames, batch, ...),
    its states at `times`.
    """

    x: Batch
    nfe: int
    trajectory: np.ndarray | None = None
    times: np.ndarray | None = None


# --- the protocol -----------------------------------------------------------------------------


class Step(NamedTuple):
    """A state x and its mean: x before the step's fresh noise was added."""

    x: Batch
    mean: Batch


@runtime_checkable
class Kernel(Protocol):
    """What the loop does with a row; hashable, since it is static to jit."""

    @property
    def evaluations(self) -> int:
        """Network evaluations of one row."""

    def start(self, x: Batch) -> Any:
        """The carry before the first row: a NamedTuple with the members x and mean of a Step."""

    def step(self, keys: Keys, denoiser: Denoiser, carry: Any, row: Any) -> Any:
        """The carry after a row; row k of the batch draws its noise from `keys[k]` alone."""


class Plan(NamedTuple):
    """A solver's work along a grid, laid out beforehand.

    rows is a pytree of arrays whose leading axis is the row; times has the time before each row,
    and in the end the last one's.
    """

    kernel: Kernel
    rows: Any
    times: np.ndarray

    @property
    def evaluations(self) -> int:
        """Network evaluations of all rows."""
        return (len(self.times) - 1) * self.kernel.evaluations


@runtime_checkable
class Solver(Protocol):
    """A way from the prior to the data in fixed steps."""

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        """Lay out the way along decreasing times.

        Raises:
          ValueError: if this solver cannot take this process or this grid.
        """


# --- the loop ---------------------------------------------------------------------------------


def sample(
    key: Key[Array, ""],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    *,
    solver: Solver,
    schedule: Schedule,
    indices: Int[Array, "batch"] | None = None,
    source: Batch | None = None,
    frames: int | Sequence[float] = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Draw samples of `shape` (batch, ...) by running `solver` along the times of `schedule`.

    The rows of its plan are one jitted loop, which Python runs in about ten pieces: between them
    the progress is reported, snapshots are taken, and Ctrl-C works.

    Args:
      key: sample k depends on `key` and `indices[k]` (default k) alone.
      source: images that noise is added to, to where the schedule starts; None for the prior, with
        a schedule that starts at 1 (SDEdit, Meng et al. 2022, arXiv:2108.01073).
      frames: so many snapshots in `trajectory`, the start and the samples among them, or the times
        at which they are taken (on the nearest row of the plan).
      progress: called with the rows done and the number of them all.

    Raises:
      ValueError: if the solver cannot take this process or this grid.
      SamplingError: if a sample becomes NaN or infinite.
    """
    if indices is None:
        indices = jnp.arange(shape[0])
    times = schedule.of(denoiser.sde)
    if (source is None) != (schedule.start == 1):
        raise ValueError(
            f"start={schedule.start:g}: below 1, and only there, a sampler starts at noised "
            f"images, which are {'not ' if source is None else ''}given"
        )
    plan = solver.plan(denoiser.sde, times)
    keys, x = _start(key, denoiser, indices, shape[1:], source, times[0])
    return run(keys, denoiser, x, plan, finish=schedule.finish, frames=frames, progress=progress)


def run(
    keys: Keys,
    denoiser: Denoiser,
    x: Batch,
    plan: Plan,
    *,
    finish: str = "sample",
    frames: int | Sequence[float] = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Run a plan from the states x, sample k with the noise of `keys[k]`; the rest as in `sample`.

    Raises:
      SamplingError: if a sample becomes NaN or infinite.
    """
    count = len(plan.times) - 1
    marks = _marks(plan.times, frames)
    rows = jax.tree.map(lambda rows: _padded(rows, x.dtype), (plan.rows, plan.times[1:]))
    # Made of x, so that it is spread over the devices as x is.
    state = _Progress(plan.kernel.start(x), jnp.where(_is_finite(x), -1, 0))
    snapshots = {0: np.asarray(x)} if 0 in marks else {}
    pauses = sorted({*marks, *np.linspace(0, count, min(count, 10) + 1).astype(int).tolist()} - {0})
    for first, last in zip([0, *pauses], pauses, strict=False):
        state = _advance(keys, denoiser, state, rows, first, last, plan.kernel)
        _require_finite(state.broken, plan.times)
        if progress is not None:
            progress(last, count)
        if last in marks and last != count:
            snapshots[last] = np.asarray(state.carry.x)
    x, extra = _finish(denoiser, state.carry, jnp.asarray(plan.times[-1], x.dtype), finish)
    if not jnp.isfinite(x).all():
        raise SamplingError("the last evaluation, which denoises the samples, is NaN or infinite")
    nfe = (plan.evaluations + extra) * denoiser.evaluations
    if not marks:
        return Samples(x, nfe)
    if count in marks:
        snapshots[count] = np.asarray(x)
    return Samples(x, nfe, np.stack([snapshots[mark] for mark in marks]), plan.times[marks])


def _marks(times: np.ndarray, frames: int | Sequence[float]) -> list[int]:
    """The numbers of rows done at which a snapshot is taken, increasing."""
    if isinstance(frames, int):
        return sorted(set(np.linspace(0, len(times) - 1, frames).round().astype(int).tolist()))
    # Of rows at the same time, as the stages of a step may be, the last.
    return sorted({len(times) - 1 - int(np.abs(times[::-1] - t).argmin()) for t in frames})


_BLOCK = 1024


def _padded(rows: Any, dtype: Any) -> Array:
    """Rows up to a multiple of a block, so that one program serves any number of steps."""
    rows = np.asarray(rows)
    padding = [(0, -len(rows) % _BLOCK), *[(0, 0)] * (rows.ndim - 1)]
    return jnp.asarray(np.pad(rows, padding), dtype)


class _Progress(NamedTuple):
    """The kernel's carry, and the row after which a sample was first not finite (-1: none)."""

    carry: Any
    broken: Int[Array, "batch"]


def project(keys: Keys, denoiser: Denoiser, carry: Any, t: Scalar) -> Any:
    """A kernel's carry at time t, its state held to what the denoiser's projection knows of it."""
    if denoiser.projection is None:
        return carry
    keys = fold_in_each(keys, _PROJECTION)
    return carry._replace(x=denoiser.projection.project(keys, denoiser.sde, carry.x, t))


_PROJECTION = 1 << 20  # what is folded into a step's keys for it; kernels fold in small numbers


@partial(jax.jit, static_argnames="item_shape")
def _start(
    key: Key[Array, ""],
    denoiser: Denoiser,
    indices: Int[Array, "batch"],
    item_shape: tuple,
    source: Batch | None,
    t: Float[Array, ""] | float,
) -> tuple[Keys, Batch]:
    keys = sample_keys(key, indices)
    noise_keys = fold_in_each(keys, 0)
    if source is None:
        x = denoiser.sde.prior_sample(noise_keys, jnp.zeros((indices.shape[0], *item_shape)))
    else:
        t = jnp.asarray(t, source.dtype)
        x = denoiser.sde.perturb(source, t, normal_like(noise_keys, source))
    return keys, project(noise_keys, denoiser, Step(x, x), jnp.asarray(t, x.dtype)).x


@partial(jax.jit, static_argnames="kernel")
def _advance(
    keys: Keys,
    denoiser: Denoiser,
    state: _Progress,
    rows: Any,
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
    kernel: Any,
) -> _Progress:
    """Rows first to last - 1; both are traced, so that pieces of any length are one program."""

    def body(number: Int[Array, ""], state: _Progress) -> _Progress:
        row, end = jax.tree.map(lambda rows: rows[number], rows)
        step_keys = fold_in_each(keys, 1 + number)  # 0 drew the prior
        carry = kernel.step(step_keys, denoiser, state.carry, row)
        carry = project(step_keys, denoiser, carry, end)
        broken = (state.broken < 0) & ~_is_finite(carry.x)
        return _Progress(carry, jnp.where(broken, number, state.broken))

    return jax.lax.fori_loop(first, last, body, state)


def _is_finite(x: Batch) -> Bool[Array, "batch"]:
    return jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=-1)


def _require_finite(broken: Int[Array, "batch"], times: np.ndarray) -> None:
    count = int((broken >= 0).sum())
    if count:
        row = int(jnp.where(broken >= 0, broken, len(times)).min())
        raise SamplingError(
            f"{count} of {len(broken)} samples became NaN or infinite, the first between "
            f"t={times[row]:.4g} and t={times[row + 1]:.4g} (step {row + 1} of {len(times) - 1}): "
            "either the sampler is unstable (give more config.sampling.steps, a smaller snr or "
            "order), or the network answers NaN there"
        )


def _finish(denoiser: Denoiser, carry: Any, t: Scalar, finish: str) -> tuple[Batch, int]:
    x = carry.mean if finish == "mean" else carry.x
    if finish == "denoise":
        x = _denoise(denoiser, x, t)
    if denoiser.projection is not None:
        x = _held(denoiser.projection, x)
    return x, int(finish == "denoise")


@jax.jit
def _denoise(denoiser: Denoiser, x: Batch, t: Scalar) -> Batch:
    return denoiser.predict(x, t).x0


@jax.jit
def _held(projection: Projection, x: Batch) -> Batch:
    return projection.finish(x)


def refuse_projection(denoiser: Denoiser, sampler: str) -> None:
    """Raise ValueError if the denoiser has a projection, which adaptive steps cannot follow."""
    if denoiser.projection is not None:
        raise ValueError(
            f"name={sampler!r} chooses its own steps, between which nothing can be projected; take "
            "a sampler with fixed steps, or a guidance instead of a projection"
        )
