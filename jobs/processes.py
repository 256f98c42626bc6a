"""The processes of points of the plane, in three rows: data to noise, noise to samples, the drift.

The drift is that of the reverse-time SDE, g^2 score - f x, in the direction of falling time.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from denoising import Denoiser
from errors import ConfigError
from experiment.experiment import Experiment
from experiment.randomness import base_key
from experiment.sampler import Checkpoint
from files.figures import Drift, Processes, grid_of, process_frames, process_picture
from numerics.arrays import normal_like, sample_keys
from sde_lib import reverse_drift

_TIMES = 6  # columns of the picture
_POINTS = 1000  # of each row
_LONGEST = 2.0  # arrows over the median one


def draw_processes(
    experiment: Experiment, checkpoint: Checkpoint
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Return the picture for points of the plane whose data are at hand, else None.

    It is None for a sampler that stays at one noise level, too.

    Raises:
        SamplingError, IntegrationError: if a sample becomes NaN or infinite.
    """
    found = _processes(experiment, checkpoint, _TIMES)
    return None if found is None else process_picture(found)


def animate_processes(
    experiment: Experiment, checkpoint: Checkpoint, count: int
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Return frames at `count` times; none where `draw_processes` is None, and raise as it does."""
    found = _processes(experiment, checkpoint, count)
    return [] if found is None else process_frames(found)


def _processes(experiment: Experiment, checkpoint: Checkpoint, count: int) -> Processes | None:
    data, sampler = experiment.data, experiment.sampler
    if data.shape != (2,) or not experiment.ends.plain:
        return None
    try:
        rows = data.splits.test[:_POINTS]
    except ConfigError:  # the run was trained elsewhere
        return None
    drawn = sampler.draw(checkpoint, np.arange(min(_POINTS, 4 * len(rows))), frames=count)
    if len(set(drawn.times)) == 1:
        return None
    denoiser, times = checkpoint.denoiser, drawn.times[::-1]
    x0 = jnp.asarray(data.encode(rows))
    key = base_key(sampler.options.seed, "sampling")
    eps = normal_like(sample_keys(jax.random.fold_in(key, 1), jnp.arange(len(x0))), x0)
    forward = [data.decode(denoiser.sde.perturb(x0, jnp.asarray(t), eps)) for t in times]
    around = np.concatenate(forward)
    drifts = [_drift(experiment, denoiser, around, t) for t in drawn.times]
    return Processes(times, forward, drawn.frames, drifts)


def _drift(
    experiment: Experiment, denoiser: Denoiser, points: Float[np.ndarray, "n 2"], t: float
) -> Drift:
    """Return the drift at places of the plane around some points, in the units of the data."""
    data, places = experiment.data, grid_of(points)
    x = data.encode(places)
    arrows = (
        data.decode(x + np.asarray(_reverse_drift(denoiser, x, jnp.asarray(t, jnp.float32))))
        - places
    )
    lengths = np.linalg.norm(arrows, axis=1)
    longest = _LONGEST * max(np.median(lengths), 1e-12)
    return Drift(places, arrows * np.minimum(1, longest / np.maximum(lengths, 1e-12))[:, None])


@jax.jit
def _reverse_drift(
    denoiser: Denoiser, x: Float[Array, "k 2"], t: Float[Array, ""]
) -> Float[Array, "k 2"]:
    return -reverse_drift(denoiser.sde, denoiser.score(x, t), x, t)
