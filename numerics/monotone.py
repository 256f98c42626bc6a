"""A smooth increasing function on [0, 1], from 0 to 1, with parameters that can be trained.

    fraction(t) = (h(t) - h(0)) / (h(1) - h(0))
    h(t) = t + sum_k |height_k| sigmoid(|steepness_k| (t - center_k))

It increases whatever the parameters are, and so it does for averages of them. It is the monotone
network of Kingma et al. 2021 (arXiv:2107.00630, Appendix H). Its first layer is left out, because
the division takes back what that does.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Monotone = dict[str, Any]  # height, steepness, center: (count,)


def linear(count: int = 32) -> Monotone:
    """Return parameters of fraction(t) = t, to 1e-6: low sigmoids, evenly over [0, 1].

    Heights of 0 would never be trained, because |height| has no slope there.
    """
    ones = np.ones(count, np.float32)
    center = np.float32((np.arange(count) + 0.5) / count)
    return {"height": 1e-6 * ones, "steepness": count * ones, "center": center}


def fraction(parameters: Monotone, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the function at t in [0, 1]."""
    height, steepness = (jnp.abs(parameters[name]) for name in ("height", "steepness"))

    def h(t: Any) -> Float[Array, ""]:
        sigmoids = jax.nn.sigmoid(steepness * (t - parameters["center"]))
        return t + jnp.sum(height * sigmoids)

    start, end = h(0.0), h(1.0)
    return jnp.vectorize(lambda t: (h(t) - start) / (end - start))(t)
