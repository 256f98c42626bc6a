"""The noise that a sampler leaves in its samples, measured before any network is trained.

If all data were one gray image, its exact denoiser would be known, and a sampler should return that
image. The deviation is noise that the schedule and the final step leave in samples of any data.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from denoising import Denoiser
from errors import ScoreSDEError
from experiment.sampler import Sampler
from numerics.arrays import Batch, expand_like
from sde_lib import SDE, Time

_NUMBERS = 4096  # at most, over all samples; their deviation is known to 1%


def _eps_of_one_image(sde: SDE, image: Array, x: Batch, t: Time) -> Batch:
    """Return eps and the smallest variance, for data that are one image."""
    eps = (x - expand_like(sde.alpha(t), x) * image) / expand_like(sde.sigma(t), x)
    return jnp.concatenate([eps, -jnp.ones_like(eps)], axis=-1)


def leftover_noise(sampler: Sampler, sde: SDE) -> float | None:
    """Return the noise left in samples, as a standard deviation in the unit of the data.

    The configured sampler draws a few samples, with all of its steps, but without guidance. Their
    dimension is that of the images where this is at most 4096.

    Args:
        sampler: the sampler of a configuration.
        sde: its process.

    Returns:
        The root mean square deviation, or None if the sampler needs more than a denoiser or fails
        with this one.
    """
    if "moments" in sampler.needs or sampler.solve.uncertainty:
        return None
    dims = min(int(np.prod(sampler.data.shape)), _NUMBERS)
    shape = (max(_NUMBERS // dims, 2), dims)
    image = jnp.full(shape, sampler.data.middle)
    denoiser = Denoiser(
        sde=sde,
        network=Partial(_eps_of_one_image, sde, image[:1]),
        parameterization="eps_learned_variance",
        conditioning="t",
    )
    source = {"source": image} if sampler.starts_at_images else {}
    try:
        samples = sampler.solve(jax.random.key(0), denoiser, shape, None, **source)
    except (ScoreSDEError, ValueError):
        return None
    deviation = np.asarray(samples.x, np.float64) - np.asarray(image, np.float64)
    return float(np.sqrt(np.mean(deviation**2))) / sampler.data.noise_unit[0]
