"""Base keys: each use of randomness has a key of its own."""

import jax
from jaxtyping import Array, Key

_STREAMS = (
    "init",
    "training",
    "sampling",
    "loss",
    "likelihood",
    "moments",
    "truncation",
    "discrete_bound",
    "continuous_bound",
    "measurement",
)


def base_key(seed: int, stream: str) -> Key[Array, ""]:
    """Return the key of one use of randomness, a name in _STREAMS."""
    return jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
