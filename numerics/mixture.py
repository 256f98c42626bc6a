r"""Mixtures of Gaussians of one width, known exactly at every noise level: data to learn with.

If x_0 follows sum_k w_k N(m_k, std^2 I), then x = alpha x_0 + sigma eps follows

    p(x) = sum_k w_k N(alpha m_k, (alpha^2 std^2 + sigma^2) I)

One component with std = 0, alpha = 1 and sigma = sqrt(t) is the heat kernel: the density of a
Wiener process at time t that began at its mean.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from errors import require_in
from numerics.arrays import pytree


@pytree()
@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Gaussians N(means[k], std^2 I) with weights[k].

    Args:
        means: (k, dims).
        weights: (k,), positive, which sum to 1; None for equal ones.
        std: from 0, where the data are the means themselves.

    Raises:
        ValueError: for weights that do not fit, or a negative width.
    """

    means: Any
    weights: Any = None
    std: Any = 0.0

    def __post_init__(self) -> None:
        means = np.asarray(self.means, np.float64)
        if means.ndim != 2:
            raise ValueError(f"means {means.shape} must have the shape (components, dims)")
        equal = np.full(len(means), 1 / len(means))
        weights = equal if self.weights is None else np.asarray(self.weights, np.float64)
        if weights.shape != equal.shape or weights.min() <= 0 or abs(weights.sum() - 1) > 1e-6:
            raise ValueError(
                f"weights={self.weights!r:.60} must be {len(means)} positive numbers that sum to 1"
            )
        require_in("std", self.std, "[0, inf)")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "weights", weights)

    def log_prob(
        self, x: Float[Array, "*batch dims"], alpha: Any = 1.0, sigma: Any = 0.0
    ) -> Float[Array, "*batch"]:
        """Return the log-density in nats of alpha x_0 + sigma eps at x; alpha and sigma are ()."""
        means, weights = (jnp.asarray(table, x.dtype) for table in (self.means, self.weights))
        variance = (alpha * self.std) ** 2 + sigma**2

        def at(point: Float[Array, "dims"]) -> Float[Array, ""]:
            squares = jnp.sum((point[None] - alpha * means) ** 2, axis=-1)
            return jax.nn.logsumexp(jnp.log(weights) - squares / (2 * variance))

        logs = jnp.vectorize(at, signature="(d)->()")(x)
        return logs - 0.5 * x.shape[-1] * jnp.log(2 * math.pi * variance)

    def score(
        self, x: Float[Array, "*batch dims"], alpha: Any = 1.0, sigma: Any = 0.0
    ) -> Float[Array, "*batch dims"]:
        """Return the gradient of `log_prob` at x."""

        def at(point: Float[Array, "dims"]) -> Float[Array, "dims"]:
            return jax.grad(lambda x: self.log_prob(x, alpha, sigma))(point)

        return jnp.vectorize(at, signature="(d)->(d)")(x)

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "count dims"]:
        """Draw samples of x_0."""
        means, weights = jnp.asarray(self.means, float), jnp.asarray(self.weights, float)
        which, noise = jax.random.split(key)
        component = jax.random.choice(which, len(weights), (count,), p=weights)
        return means[component] + self.std * jax.random.normal(noise, (count, means.shape[1]))
