r"""Non-leaky augmentation (Karras et al. 2022, arXiv:2206.00364, Appendix F.2 and Table 6).

Each training image is mirrored, scaled, rotated, stretched and moved at random. The network sees
the random parameters as labels, so it learns which images are as they were in the data. Labels of
zero, as in sampling, then make no augmented images: the augmentation does not leak.

Position p of the transformed image, in pixels from the center, shows position M p + b of the
original, after its mirroring:

    M = S(1/s) R(theta) R(-r) diag(1/q, q) R(r),    b = -M t

for scale s = 2^(c_scale u), angle theta, stretch q = 2^(c_anisotropy v) along the direction r, and
translation t = c_translation (w_x, w_y) times the size. The labels are

    x_flip  y_flip  u  cos(theta) - 1  sin(theta)  v cos(r)  v sin(r)  w_x  w_y

Pixels are the coefficients of an orthogonal wavelet, symlet 6, at twice the resolution. With the
matrix A of its synthesis, A^T A = I, a transform is A^T B A: B interpolates bilinearly at the
positions M p + b. Outside, images continue as in mirrors. The identity thus changes no pixel.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from errors import require_in
from numerics.arrays import Batch, sample_keys

LABELS = 9  # numbers that describe a transform to the network

# The low-pass filter of the symlet with 6 vanishing moments (Daubechies 1992, Section 8.1.1).
_SYMLET = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_BEFORE = 5  # taps before the one at the pixel


class Transform(NamedTuple):
    """The random parameters of each image's transform, all zero for none.

    Args:
        x_flip: whether the image is mirrored left to right, 0 or 1.
        y_flip: whether it is mirrored upside down, 0 or 1.
        scale: u, for the scale 2^(c_scale u).
        angle: theta, radians, counterclockwise.
        stretch: v, for the stretch 2^(c_anisotropy v).
        direction: r, radians.
        shift: (w_x, w_y), to the right and down.
    """

    x_flip: Float[Array, "*batch"]
    y_flip: Float[Array, "*batch"]
    scale: Float[Array, "*batch"]
    angle: Float[Array, "*batch"]
    stretch: Float[Array, "*batch"]
    direction: Float[Array, "*batch"]
    shift: Float[Array, "*batch 2"]

    @property
    def labels(self) -> Float[Array, "*batch 9"]:
        """The labels of the module docstring."""
        columns = (
            self.x_flip,
            self.y_flip,
            self.scale,
            jnp.cos(self.angle) - 1,
            jnp.sin(self.angle),
            self.stretch * jnp.cos(self.direction),
            self.stretch * jnp.sin(self.direction),
            self.shift[..., 0],
            self.shift[..., 1],
        )
        return jnp.stack(columns, axis=-1)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How often and how far training images are transformed.

    Args:
        probability: of each kind of transform, for each image; 0 for no augmentation, 0.12 for
            CIFAR-10 in EDM, 0.15 for FFHQ and AFHQ.
        x_flip: mirror half of the images left to right, whatever the probability above 0.
        y_flip: mirror upside down half of the images that the probability chooses.
        scale: standard deviation of log2 of the scale; 0 for no scaling.
        rotation: the largest angle, as a fraction of half a turn; 0 for no rotation.
        anisotropy: standard deviation of log2 of the stretch; 0 for none. Its direction is random
            for half of the images, horizontal for the others.
        translation: standard deviation of the shift over the image's size; 0 for none.

    Raises:
        ValueError: for a number out of range.
    """

    probability: float = 0.0
    x_flip: bool = True
    y_flip: bool = True
    scale: float = 0.2
    rotation: float = 1.0
    anisotropy: float = 0.2
    translation: float = 0.125

    def __post_init__(self) -> None:
        require_in("probability", self.probability, "[0, 1]")
        require_in("rotation", self.rotation, "[0, 1]")
        for name in ("scale", "anisotropy", "translation"):
            require_in(name, getattr(self, name), "[0, inf)")

    def __call__(self, key: Key[Array, ""], x: Batch) -> tuple[Batch, Float[Array, "batch 9"]]:
        """Transform images (batch, height, width, channels); return them and their labels.

        Image k draws from `fold_in(key, k)`: the number of devices does not matter.
        """
        keys = sample_keys(key, jnp.arange(len(x)))
        transform = jax.vmap(partial(self.draw, dtype=x.dtype))(keys)
        return jax.vmap(self.apply)(x, transform), transform.labels

    def draw(self, key: Key[Array, ""], dtype: DTypeLike) -> Transform:
        """Draw the parameters of one image."""
        keys = iter(jax.random.split(key, 14))

        def chosen(probability: float = self.probability) -> Array:
            return jax.random.bernoulli(next(keys), probability).astype(dtype)

        def normal(strength: float, shape: tuple[int, ...] = ()) -> Array:
            value = chosen() * jax.random.normal(next(keys), shape, dtype)
            return value * (strength > 0)

        def angle() -> Array:
            return math.pi * jax.random.uniform(next(keys), (), dtype, -1.0, 1.0)

        return Transform(
            x_flip=chosen(0.5) * self.x_flip,
            y_flip=chosen() * chosen(0.5) * self.y_flip,
            scale=normal(self.scale),
            angle=self.rotation * chosen() * angle(),
            stretch=normal(self.anisotropy),
            direction=chosen(0.5) * angle(),
            shift=normal(self.translation, (2,)),
        )

    def apply(
        self, x: Float[Array, "height width channels"], transform: Transform
    ) -> Float[Array, "height width channels"]:
        """Return one image, transformed."""
        x = jnp.where(transform.x_flip > 0, x[:, ::-1], x)
        x = jnp.where(transform.y_flip > 0, x[::-1], x)
        height, width, _ = x.shape
        size = np.array([width, height])
        matrix = self._matrix(transform)
        offset = -matrix @ (self.translation * transform.shift * size)
        # Twice as fine as pixels, and as far beyond the image as the filter reaches.
        y, x_axis = (
            np.arange(2 * n + 2 * _BEFORE) / 2 - _BEFORE / 2 - (n - 1) / 2 for n in x.shape[:2]
        )
        positions = jnp.stack(jnp.meshgrid(x_axis, y), axis=0).astype(x.dtype)
        found = jnp.einsum("ij,jhw->ihw", matrix, positions, precision="highest")
        columns, rows = 2 * (found + (offset + (size - 1) / 2)[:, None, None])
        fine = _separable(_synthesis(height), _synthesis(width), x)
        sample = partial(map_coordinates, coordinates=[rows, columns], order=1, mode="wrap")
        fine = jax.vmap(sample, in_axes=-1, out_axes=-1)(fine)
        return _separable(_analysis(height), _analysis(width), fine)

    def _matrix(self, transform: Transform) -> Float[Array, "2 2"]:
        """Return M."""
        shrink = jnp.exp2(-self.scale * transform.scale)
        stretch = jnp.exp2(-self.anisotropy * transform.stretch)
        along, across = _rotation(transform.direction), jnp.stack([stretch, 1 / stretch])
        return shrink * _rotation(transform.angle) @ (along.T * across[None]) @ along


def _rotation(angle: Float[Array, ""]) -> Float[Array, "2 2"]:
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])


def _separable(
    rows: np.ndarray, columns: np.ndarray, x: Float[Array, "height width channels"]
) -> Float[Array, "rows columns channels"]:
    """Apply one matrix along the height and one along the width."""
    a, b = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    return jnp.einsum("ij,kl,jlc->ikc", a, b, x, precision="highest")


def _synthesis(size: int) -> Float[np.ndarray, "period size"]:
    """Return A for a line of pixels between mirrors: one period, at half pixels from the first."""
    pixels = max(2 * size - 2, 1)
    matrix = np.zeros((2 * pixels, size))
    for pixel in range(pixels):
        for tap, value in enumerate(_SYMLET):
            matrix[(2 * pixel - _BEFORE + tap) % (2 * pixels), min(pixel, pixels - pixel)] += value
    return matrix


def _analysis(size: int) -> Float[np.ndarray, "size fine"]:
    """Return A^T for a line of pixels, from half pixels as far as the filter reaches."""
    matrix = np.zeros((size, 2 * size + 2 * _BEFORE))
    for pixel in range(size):
        matrix[pixel, 2 * pixel : 2 * pixel + len(_SYMLET)] = _SYMLET
    return matrix
