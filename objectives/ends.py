r"""The other end of each image's path: noise, or the end x1 that a coupling has chosen.

With a coupling of (x0, x1), in place of noise,

    x_t = alpha x0 + sigma eps,    sigma eps = sigma x1 + b z

with standard normal z and b(t) = g sqrt(t (1 - t)) the deviation of a Brownian bridge of diffusion
g. For g = 0, eps = x1: what is trained is flow matching between two data sets (Liu et al. 2022,
arXiv:2209.03003; Albergo & Vanden-Eijnden 2022, arXiv:2209.15571). For g > 0, the predicted x0 is
the drift of the bridge toward x0: bridge matching (Liu et al. 2023, arXiv:2302.05872; Shi et al.
2023, arXiv:2303.16852).
"""

import jax
from jaxtyping import Array, Key

from denoising import Denoiser
from numerics.arrays import Batch, expand_like
from objectives.times import Times


def draw_noise(key: Key[Array, ""], model: Denoiser, x0: Batch, t: Times) -> Batch:
    """Return eps (batch, ...) for x_t = alpha x0 + sigma eps at the times t (batch,).

    It is standard normal, unless `model.end` has the end x1 of each path.
    """
    z = jax.random.normal(key, x0.shape, x0.dtype)
    if model.end is None:
        return z
    sde = model.sde
    return model.end + expand_like(sde.bridge_std(t) / sde.sigma(t), x0) * z
