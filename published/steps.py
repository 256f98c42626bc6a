"""The number of training steps that a checkpoint states."""

from typing import Any

import numpy as np

from errors import FileError

LARGEST_STEP = 2**31 - 1  # a training state counts in int32


def read_step(value: Any) -> int:
    """Return a number of steps, an integer or an array of one.

    Raises:
        FileError: it is of another type, such as bool, or not from 0 to 2^31 - 1.
    """
    if isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iu":
        value = value.item()
    if type(value) is not int:
        raise FileError(
            f"its step is of type {_type_of(value)}; valid is an integer from 0 to {LARGEST_STEP}"
        )
    if not 0 <= value <= LARGEST_STEP:
        shown = value if abs(value) < 2**128 else "too large"
        raise FileError(f"its step is {shown}; valid is an integer from 0 to {LARGEST_STEP}")
    return value


def _type_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array, {value.dtype}{list(value.shape)}"
    return type(value).__name__
