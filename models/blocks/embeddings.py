"""Embeddings of the noise level, given as one number `cond` per image, and of the class.

    positional:  [sin(w_j cond), cos(w_j cond)],  w_j = 10000^(-j / (d/2 - 1)),  j = 0 .. d/2 - 1
    Fourier:     [sin(2 pi w_j cond), cos(2 pi w_j cond)],  w_j ~ N(0, scale^2),  j = 0 .. d - 1
    class:       a trained vector per class, and one for "no class"

and `with_waves` embeds the pixels of an image.

The first is from Vaswani et al. 2017 (arXiv:1706.03762, Section 3.5) by way of DDPM (Ho et al.
2020, arXiv:2006.11239, Appendix B), for cond = 0 .. 999. The second is from Tancik et al. 2020
(arXiv:2006.10739), for cond = log sigma (Song et al. 2021, arXiv:2011.13456, Appendix H).
Classifier-free guidance needs "no class" (Ho and Salimans 2022, arXiv:2207.12598).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from models.blocks.layers import dense
from models.blocks.parameters import ParameterModule

Labels = Int[Array, "batch"]


def positional_embedding(
    cond: Float[Array, "batch"], features: int, *, endpoint: bool = True
) -> Float[Array, "batch {features}"]:
    """Embed cond of order 0 .. 999 in sinusoids of fixed frequencies; `features` even, >= 4.

    With `endpoint`, the lowest frequency is 1e-4. Without, as in the Transformer and in ADM, the
    exponent of w_j is -j / (d/2), so that the frequency after the lowest would be 1e-4.
    """
    half = features // 2
    # On the host in float64: at cond = 999, one float32 ulp of a frequency moves the sine by 6e-5.
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / (half - 1 if endpoint else half))
    angles = cond[:, None] * jnp.asarray(frequencies, cond.dtype)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def with_waves(
    x: Float[Array, "*rest channels"], frequencies: Sequence[float]
) -> Float[Array, "*rest more"]:
    """Return [x, sin(2 pi f x), cos(2 pi f x), ...] along channels, for all frequencies f."""
    angles = [2.0 * math.pi * frequency * x for frequency in frequencies]
    waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate([x, *waves], axis=-1)


class FourierEmbedding(ParameterModule):
    """Embedding of cond in sinusoids of random frequencies, which are never trained.

    The frequencies are a parameter, so that checkpoints and the EMA contain them. A stop-gradient
    keeps an optimizer without weight decay from changing them.

    Attributes:
        features: number of frequencies, half the width of the embedding.
        scale: standard deviation of the frequencies, in periods per unit of cond.
    """

    features: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, cond: Float[Array, "batch"]) -> Float[Array, "batch {2*self.features}"]:
        """Map (b,) to (b, 2 features)."""
        init = nn.initializers.normal(stddev=self.scale)
        frequencies = self.param("frequencies", init, (self.features,), jnp.float32)
        periods = cond[:, None] * jax.lax.stop_gradient(frequencies)[None, :]
        angles = 2.0 * math.pi * periods
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class LabelEmbedding(ParameterModule):
    """Trained vectors of the classes 0 .. classes - 1, and a last one for "no class".

    Attributes:
        classes: number of classes, which is also the label for "no class".
        features: width of the vectors.
        init_std: standard deviation of their initial values; 1 is that of the noise embedding.
    """

    classes: int
    features: int
    init_std: float = 1.0

    @nn.compact
    def __call__(self, labels: Labels | None, batch: int) -> Float[Array, "batch {self.features}"]:
        """Return the vectors of labels (b,) in 0 .. classes; None for "no class" everywhere."""
        init = nn.initializers.normal(stddev=self.init_std)
        table = self.param("table", init, (self.classes + 1, self.features), jnp.float32)
        labels = jnp.full(batch, self.classes) if labels is None else labels
        return jnp.take(table, labels, axis=0, mode="clip")


def embedding_of(
    noise: Float[Array, "batch _"], labels: Labels | None, features: int, num_classes: int
) -> Float[Array, "batch {features}"]:
    """Map the embedded noise level by two layers, and add the vector of the class, if any.

    The layers are submodules of the caller.
    """
    e = dense(features, name="embedding_0")(noise)
    e = dense(features, name="embedding_1")(nn.silu(e))
    if num_classes:
        classes = LabelEmbedding(num_classes, features, name="classes")
        e = e + classes(labels, len(noise)).astype(e.dtype)
    return e
