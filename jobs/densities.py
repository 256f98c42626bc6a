"""The density of an energy over the plane, where its normalizing constant is an integral on a grid.

p(x) = exp(f(x)) / Z,    Z = integral of exp(f) = sum over the cells of exp(f) times their area
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from denoising import Denoiser
from errors import ConfigError
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from files.figures import density_picture

_SIDE = 384  # places along each side
_CHUNK = 16_384
_MARGIN = 2.0  # around the data, in their standard deviations
_POINTS = 2000  # of the data and of the samples in a picture


class Density(NamedTuple):
    """A density at places of the plane, in the range of the network.

    Attributes:
        low, high: corners of the rectangle; outside, the density is taken for 0.
        values: log p in nats, by row and column.
        log_z: the logarithm of the normalizing constant of the energy.
    """

    low: Float[np.ndarray, "2"]
    high: Float[np.ndarray, "2"]
    values: Float[np.ndarray, "side side"]
    log_z: float


def density_on_grid(
    denoiser: Denoiser, points: Float[np.ndarray, "n 2"], t: float, side: int = _SIDE
) -> Density:
    """Return the density at time t in the rectangle around points of the plane.

    Raises:
        ValueError: as `Denoiser.log_density`.
    """
    low, high = points.min(axis=0) - _MARGIN, points.max(axis=0) + _MARGIN
    length = (high - low) / side
    axes = [low[i] + (np.arange(side) + 0.5) * length[i] for i in (0, 1)]
    places = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2).astype(np.float32)
    # Each chunk has the size of the first, so that one program serves all.
    padded = np.pad(places, [(0, -len(places) % _CHUNK), (0, 0)], mode="edge")
    chunks = padded.reshape(-1, _CHUNK, 2)
    found = np.concatenate([np.asarray(_log_density(denoiser, x, t)) for x in chunks])
    values = found[: len(places)].astype(np.float64)
    top = values.max()
    log_z = float(top + np.log(np.sum(np.exp(values - top)) * length.prod()))
    return Density(low, high, (values - log_z).reshape(side, side), log_z)


def draw_density(
    experiment: Experiment, checkpoint: Checkpoint, samples: Shaped[np.ndarray, "n ..."]
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Return a picture of data, samples and density of an energy of points of the plane.

    It is None for other data or networks, and where the data are not at hand.
    """
    data, denoiser = experiment.data, checkpoint.denoiser
    if data.shape != (2,) or denoiser.energy is None or denoiser.labels is not None:
        return None
    if experiment.model.num_classes:
        return None
    try:
        rows = data.splits.train[:_POINTS]
    except ConfigError:  # the run was trained elsewhere
        return None
    t = experiment.sampler.solve.t_min
    found = density_on_grid(denoiser, np.asarray(data.encode(rows)), t)
    corners = data.decode(np.stack([found.low, found.high]))
    return density_picture(rows, samples[:_POINTS], np.exp(found.values), corners, t)


@jax.jit
def _log_density(
    denoiser: Denoiser, x: Float[Array, "k 2"], t: float | Float[Array, ""]
) -> Float[Array, "k"]:
    return denoiser.log_density(x, jnp.asarray(t, x.dtype))
