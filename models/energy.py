"""A network made the gradient of a scalar: then the score is minus the gradient of an energy.

    E(x, c) = <x, h(x, c)> / 2,    grad_x E = (h + J^T x) / 2,    J = dh / dx

A score that is a gradient has a symmetric Jacobian and an energy, which is a density up to a
factor; a network that answers an image has neither (Salimans & Ho 2021, "Should EBMs model the
energy or the score?"). All parameterizations but a learned variance are linear in x and in the
network's answer with coefficients that depend on t alone, so that with grad_x E in the place of h
they stay gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Images = Float[Array, "batch *shape"]


def energies(network: Callable[[Images], Array], x: Images) -> Float[Array, "batch"]:
    """E of each image, by a network closed over all but its images.

    A network that answers (batch,) is taken for E itself, one that answers (batch, *shape) for h.

    Raises:
      ValueError: for an answer of another shape.
    """
    h = network(x)
    if h.shape == x.shape[:1]:
        return h
    if h.shape != x.shape:
        raise ValueError(
            f"energy=True wants a network that answers {x.shape} or {x.shape[:1]}, not {h.shape}; "
            "a network with learned_variance has no energy"
        )
    return jnp.sum((x * h).reshape(x.shape[0], -1), axis=-1) / 2


def energy_gradient(network: Callable[[Images], Array], x: Images) -> Images:
    """grad_x E, of shape (batch, *shape)."""
    # Each energy depends on its own image alone: the gradient of the sum has them all.
    return jax.grad(lambda x: jnp.sum(energies(network, x)))(x)
