"""Rows that are held out for tests, where a data set has no test rows of its own."""

import numpy as np
from jaxtyping import Int64

from data.batches import HOLD_OUT

_FRACTION = 0.1


def held_out_count(count: int) -> int:
    """Return how many of `count` rows are held out: a tenth, and at least one."""
    return max(1, round(count * _FRACTION))


def hold_out(
    name: str, one: str, count: int, held: int, seed: int
) -> dict[str, Int64[np.ndarray, " rows"]]:
    """Split rows into train and test by a seeded draw; return the indices of each in order.

    Args:
        name: of the data set, for the error.
        one: what a row is called.
        count: the number of rows.
        held: how many are for tests.
        seed: of the draw.

    Raises:
        ValueError: if none would be left for training.
    """
    if held >= count:
        raise ValueError(f"config.data.name={name!r} has {count} {one}; train and test need two")
    sequence = np.random.SeedSequence(seed, spawn_key=(HOLD_OUT,))
    order = np.random.default_rng(sequence).permutation(count)
    return {"train": np.sort(order[held:]), "test": np.sort(order[:held])}
