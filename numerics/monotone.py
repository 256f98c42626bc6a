"""A smooth increasing function on [0, 1], from 0 to 1, with parameters that can be trained.

    fraction(t) = (h(t) - h(0)) / (h(1) - h(0)),
    h(t) = t + sum_k height_k sigmoid(steepness_k (t - center_k))

The parameters are the centers, and what softplus turns into positive heights and steepnesses. So
the function increases for any parameters, and for averages of them. It is the network of Kingma et
al. 2021 (arXiv:2107.00630, appendix H), whose first layer only scales what is normalized here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Steps = dict[str, Any]


def even_steps(count: int = 32) -> Steps:
    """Return `count` equal steps, evenly over [0, 1]: the function is nearly t."""
    height, steepness = (np.log(np.expm1(value)) for value in (1 / count, count))
    center = (np.arange(count) + 0.5) / count
    steps = {"height": height, "steepness": steepness, "center": center}
    return {name: np.float32(value + np.zeros(count)) for name, value in steps.items()}


def fraction(steps: Steps, t: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the function at t in [0, 1]; `steps` holds height, steepness and center."""
    height, steepness = (jax.nn.softplus(steps[name]) for name in ("height", "steepness"))

    def h(t: Any) -> Float[Array, ""]:
        return t + jnp.sum(height * jax.nn.sigmoid(steepness * (t - steps["center"])))

    start, end = h(0.0), h(1.0)
    return jnp.vectorize(lambda t: (h(t) - start) / (end - start))(t)
