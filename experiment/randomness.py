"""Base keys: each use of randomness has a key of its own."""

import jax
from jaxtyping import Array, Key

from errors import SEEDS, require_in

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
    "diagnostics",
    "pairs",
    "guidance",
)


def base_key(seed: int, stream: str) -> Key[Array, ""]:
    """Return the key of one use of randomness, a name in _STREAMS.

    Raises:
        ValueError: for a seed that is not in 0 .. 2^32 - 1.
    """
    require_in("seed", seed, SEEDS)
    return jax.random.fold_in(jax.random.key(seed), _STREAMS.index(stream))
