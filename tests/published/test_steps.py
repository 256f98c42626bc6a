"""Numbers of steps in the files of others."""

import numpy as np
import pytest

from errors import FileError
from published.steps import LARGEST_STEP, read_step


@pytest.mark.parametrize("value", [0, 7, LARGEST_STEP, np.array(7), np.array(7, np.int32)])
def test_integers_of_a_training_state_are_steps(value):
    assert read_step(value) == value
    assert type(read_step(value)) is int


@pytest.mark.parametrize(
    "value",
    [
        *(-1, LARGEST_STEP + 1, 2**63, 10**5000, True, "12", 7.0, None, [7], {}),
        *(np.array([7]), np.array(True), np.array(7.0), np.array(2**63, np.uint64)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_the_valid_range(value):
    with pytest.raises(
        FileError, match=r"its step is .*; valid is an integer from 0 to 2147483647"
    ):
        read_step(value)
