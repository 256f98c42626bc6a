"""Vectors that tell a network its noise level, from a number `cond` per image, and its class.

    positional:  [sin(w_j cond), cos(w_j cond)],  w_j = 10000^(-j / (d/2 - 1)),  j = 0 .. d/2 - 1
    Fourier:     [sin(2 pi w_j cond), cos(2 pi w_j cond)],  w_j ~ N(0, scale^2),  j = 0 .. d - 1
    class:       a trained vector per class, and one for no class

The first is from Vaswani et al. 2017 (arXiv:1706.03762, Section 3.5) by way of DDPM (Ho et al.
2020, arXiv:2006.11239, Appendix B), made for labels 0 .. 999. The second is from Tancik et al. 2020
(arXiv:2006.10739), made for log sigma (Song et al. 2021, arXiv:2011.13456, Appendix H). No class
is what classifier-free guidance needs (Ho and Salimans 2022, arXiv:2207.12598).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

Labels = Int[Array, "batch"]


def positional_embedding(
    cond: Float[Array, "batch"], features: int, *, endpoint: bool = True
) -> Float[Array, "batch {features}"]:
    """Embeds labels of order 0 .. 999 in sinusoids of fixed frequencies; `features` even, >= 4.

    The lowest frequency is 1e-4 with `endpoint`; without, as in the Transformer and in ADM, the
    exponent of w_j is -j / (d/2), and the next one would be.
    """
    half = features // 2
    # On the host in float64: at cond = 999, one float32 ulp of a frequency moves the sine by 6e-5.
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / (half - 1 if endpoint else half))
    angles = cond[:, None] * jnp.asarray(frequencies, cond.dtype)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FourierEmbedding(nn.Module):
    """Embeds cond in sinusoids of random frequencies that are drawn once and never trained.

    The frequencies are a parameter, so that checkpoints and the EMA carry them, behind a
    stop-gradient, so that an optimizer without weight decay leaves them alone.

    Attributes:
        features: number of frequencies, half the width of the embedding.
        scale: standard deviation of the frequencies, in periods per unit of cond.
    """

    features: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, cond: Float[Array, "batch"]) -> Float[Array, "batch {2*self.features}"]:
        """Maps (b,) to (b, 2 features)."""
        init = nn.initializers.normal(stddev=self.scale)
        frequencies = self.param("frequencies", init, (self.features,), jnp.float32)
        periods = cond[:, None] * jax.lax.stop_gradient(frequencies)[None, :]
        angles = 2.0 * math.pi * periods
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class LabelEmbedding(nn.Module):
    """A trained vector for each class 0 .. classes - 1, and a last one for no class.

    Attributes:
        classes: number of classes; `classes` itself is the label of no class.
        features: width of the vectors.
        init_std: standard deviation of their first values; 1 is that of what they are added to.
    """

    classes: int
    features: int
    init_std: float = 1.0

    @nn.compact
    def __call__(self, labels: Labels | None, batch: int) -> Float[Array, "batch {self.features}"]:
        """The vectors of labels (b,), each in 0 .. classes; None for no class at all."""
        init = nn.initializers.normal(stddev=self.init_std)
        table = self.param("table", init, (self.classes + 1, self.features), jnp.float32)
        labels = jnp.full(batch, self.classes) if labels is None else labels
        return jnp.take(table, labels, axis=0, mode="clip")
