"""The table of accelerators, and the two bounds on the time of a program."""

import pytest

from jobs.accelerators import ACCELERATORS, USABLE, UTILIZATION, Accelerator

ROUND = Accelerator(memory=10, bandwidth=1000, bfloat16=100, float32=50)


def test_a_program_takes_as_long_as_the_slower_of_computing_and_moving():
    computing = {"flops": 100e12 * UTILIZATION, "traffic": 1e9}
    assert ROUND.speed(**computing, dtype="bfloat16") == (pytest.approx(1), "compute")
    assert ROUND.speed(**computing, dtype="float32") == (pytest.approx(2), "compute")
    moving = {"flops": 1e9, "traffic": 3e12}
    assert ROUND.speed(**moving, dtype="bfloat16") == (pytest.approx(3), "bandwidth")
    assert ROUND.usable == pytest.approx(10e9 * USABLE)


def test_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="float16"):
        ROUND.speed(flops=1.0, traffic=1.0, dtype="float16")


def test_numbers_are_in_the_units_of_their_fields():
    """A slip by a factor of a thousand would stand out."""
    for name, row in ACCELERATORS.items():
        assert 16 <= row.memory <= 141, name
        assert 450 <= row.bandwidth <= 4800, name
        assert row.float32 <= row.bfloat16 <= 1000, name
