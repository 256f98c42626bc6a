r"""A small conditional flow from uniform noise to noise that fits each image.

    z = logit(v),   z <- m z + (1 - m) (z exp(s) + t)  for each coupling,   u = sigmoid(z)

with v uniform on (0, 1), masks m that alternate between the two colors of a checkerboard, and
(s, t) from a convolutional network of m z and the image (Ho et al. 2019, arXiv:1902.00275, Section
3.2, with affine couplings). The pixels of one color change given those of the other. So the
Jacobian is triangular, and

    log q(u | image) = -log |du / dv|,
    log |du / dv| = sum [ log(u (1 - u)) - log(v (1 - v)) ] + sum (1 - m) s.

The last convolutions start at zero, so the flow starts at uniform noise with log q = 0.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from models.blocks.checks import check_integers
from models.blocks.layers import conv3x3

Images = Float[Array, "batch height width channels"]
# Couplings change z by a factor of at most exp(2), so that a step of training cannot break them.
_LARGEST_LOG_SCALE = 2.0


class CouplingDequantizer(nn.Module):
    """A conditional coupling flow on the unit cube.

    Attributes:
        features: channels of the couplings' networks.
        couplings: number of couplings; at least 2, so that each pixel changes.
    """

    SECTION: ClassVar[str] = "dequantizer"

    features: int = 32
    couplings: int = 4

    def validate(self) -> None:
        """Raise ValueError for a field out of range."""
        check_integers(self, features=1, couplings=2)

    @nn.compact
    def __call__(self, images: Images, noise: Images) -> tuple[Images, Float[Array, "batch"]]:
        """Return u in [0, 1], and log |du / dv| of each image in nats.

        Args:
            images: what the noise is for, in the network's range.
            noise: v, in (0, 1).
        """
        height, width, channels = images.shape[1:]
        color = (jnp.arange(height)[:, None] + jnp.arange(width)[None]) % 2
        z = jnp.log(noise) - jnp.log1p(-noise)
        change = -_log_slope(z)
        for index in range(self.couplings):
            mask = (color == index % 2).astype(z.dtype)[None, :, :, None]
            # A pixel sees its own image, but of the noise only the other color.
            seen = jnp.concatenate([images, mask * jnp.tanh(z / 2)], axis=-1)
            h = nn.silu(conv3x3(self.features, name=f"conv_0_{index}")(seen))
            h = nn.silu(conv3x3(self.features, name=f"conv_1_{index}")(h))
            h = conv3x3(2 * channels, init_scale=0.0, name=f"conv_2_{index}")(h)
            log_scale, shift = jnp.split(h, 2, axis=-1)
            log_scale = _LARGEST_LOG_SCALE * jnp.tanh(log_scale) * (1 - mask)
            z = z * jnp.exp(log_scale) + shift * (1 - mask)
            change += log_scale
        change += _log_slope(z)
        return jax.nn.sigmoid(z), change.reshape(change.shape[0], -1).sum(axis=1)


def init_dequantizer(
    network: CouplingDequantizer, shape: tuple[int, ...], key: Key[Array, ""]
) -> dict:
    """Return first parameters for images (height, width, channels)."""
    images = jnp.zeros((1, *shape))
    return dict(network.init(key, images, images + 0.5)["params"])


def apply_dequantizer(
    network: CouplingDequantizer, params: dict, images: Images, noise: Images
) -> tuple[Images, Float[Array, "batch"]]:
    """Return u and log |du / dv| of a network with parameters."""
    return network.apply({"params": params}, images, noise)  # pyright: ignore[reportReturnType]


def _log_slope(z: Images) -> Images:
    """Return log sigmoid'(z) = log(u (1 - u)), without cancellation at large |z|."""
    return -(jax.nn.softplus(z) + jax.nn.softplus(-z))
