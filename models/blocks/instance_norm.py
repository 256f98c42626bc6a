"""InstanceNorm++, the normalization of NCSN and NCSNv2.

    y = gamma ((x - mu) / s + alpha (mu - m) / v) + beta

with mu and s the mean and deviation of a channel over its pixels, m and v those of mu over the
channels. Plain instance normalization would discard mu. NCSN has a gamma, alpha and beta per noise
level (Song and Ermon 2019, arXiv:1907.05600, Appendix A). The paper has the second term outside of
gamma, all published code inside.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from models.blocks.layers import Images, at_least_float32
from models.blocks.parameters import ParameterModule

Timestep = Int[Array, "batch"] | None  # index of the noise level; None without dependence on it


class InstanceNormPlus(ParameterModule):
    """InstanceNorm++, as in the module docstring.

    Attributes:
        num_timesteps: number of noise levels, each with its own gamma, alpha and beta; 0 for
            weights that do not depend on the noise level.
        unbiased: divide the variance over c channels by c - 1, not c.
    """

    num_timesteps: int = 0
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: Images, timestep: Timestep) -> Images:
        """Map (b, h, w, c) to the same shape; a timestep of num_timesteps or more gives NaN."""
        c = x.shape[-1]
        precise = at_least_float32(x)
        mean = precise.mean(axis=(1, 2), keepdims=True)
        centered = precise - mean
        variance = jnp.square(centered).mean(axis=(1, 2), keepdims=True)
        mean = mean - mean.mean(axis=-1, keepdims=True)
        count = c - 1 if self.unbiased else c
        spread = jnp.square(mean).sum(axis=-1, keepdims=True) / count

        def weight(name: str, init: nn.initializers.Initializer) -> Float[Array, "_ 1 1 channels"]:
            if timestep is None:
                rows = self.param(name, init, (c,))[None, :]
            else:
                table = self.param(name, init, (self.num_timesteps, c))
                rows = jnp.take(table, timestep, axis=0)
            return rows[:, None, None, :].astype(precise.dtype)

        gamma, alpha = weight("gamma", near_one), weight("alpha", near_one)
        y = centered * lax.rsqrt(variance + 1e-5) + alpha * (mean * lax.rsqrt(spread + 1e-5))
        return (gamma * y + weight("beta", nn.initializers.zeros)).astype(x.dtype)


def near_one(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw from N(1, 0.02^2)."""
    return 1.0 + 0.02 * jax.random.normal(key, shape)
