"""A network as the gradient of a scalar, which makes the score minus the gradient of an energy.

    E(x, c) = <x, h(x, c)> / 2,    grad_x E = (h + J^T x) / 2,    J = dh / dx

A score that is a gradient has a symmetric Jacobian and an energy, which is a density up to a
factor. A network that returns an image has neither (Salimans & Ho 2021, "Should EBMs model the
energy or the score?"). All parameterizations except a learned variance are linear in x and in the
network's output, with coefficients that depend on t alone. So they remain gradients when grad_x E
replaces h.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "batch *shape"]


def energies(network: Callable[[Images], Array], x: Images) -> Float[Array, "batch"]:
    """Return E of each image; `network` is a function of the images alone.

    An output of shape (batch,) is E itself, one of shape (batch, *shape) is h.

    Raises:
        ValueError: the output has another shape.
    """
    h = network(x)
    if h.shape == x.shape[:1]:
        return h
    if h.shape != x.shape:
        raise ValueError(
            f"config.denoiser.energy=True needs a network whose output has the shape {x.shape} or "
            f"{x.shape[:1]}, not {h.shape}; set config.model.learned_variance=False"
        )
    return jnp.sum((x * h).reshape(x.shape[0], -1), axis=-1) / 2


def energy_gradient(network: Callable[[Images], Array], x: Images) -> Images:
    """Return grad_x E, of shape (batch, *shape)."""
    # Each energy depends on its own image alone, so the gradient of the sum contains all of them.
    return jax.grad(lambda x: jnp.sum(energies(network, x)))(x)
