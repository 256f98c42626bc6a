"""The checks that every module shares."""

import math

import jax.numpy as jnp
import pytest

from errors import require_choice, require_in


def test_unknown_name_lists_the_valid_ones():
    require_choice("name", "vp", ("vp", "ve"))
    with pytest.raises(ValueError, match=r"^name='vq' is unknown; choose one of: ve, vp$"):
        require_choice("name", "vq", ("vp", "ve"))


@pytest.mark.parametrize(
    ("value", "interval", "message"),
    [
        (0, "(0, 1)", r"x=0 must lie in \(0, 1\)"),
        (1, "[0, 1)", r"x=1 must lie in \[0, 1\)"),
        (0, "[1, inf)", "x=0 must be at least 1"),
        (0.0, "(0, inf)", "x=0.0 must be above 0"),
        (math.inf, "(0, inf)", "x=inf must be above 0 and finite"),
        (math.nan, "[0, 1]", r"x=nan must lie in \[0, 1\]"),
    ],
)
def test_number_outside_its_interval(value, interval, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        require_in("x", value, interval)


@pytest.mark.parametrize(("value", "interval"), [(0, "[0, 1)"), (1, "(0, 1]"), (9, "[1, inf)")])
def test_number_in_its_interval(value, interval):
    require_in("x", value, interval)


def test_arrays_pass():
    require_in("x", jnp.asarray(-1.0), "(0, 1)")
