"""The checks that every module shares."""

import math
import os

import jax.numpy as jnp
import pytest

import errors
from errors import memory_bytes, require_choice, require_in


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


@pytest.mark.parametrize(
    ("own", "file", "content", "limit"),
    [
        ("0::/", "memory.max", "5000\n", 5000),
        ("0::/job/step", "job/memory.max", "6000\n", 6000),  # the limit of a group around it
        ("0::/job/step", "job/memory.max", "max\n", None),
        ("3:cpu:/\n4:cpu,memory:/job", "memory/job/memory.limit_in_bytes", "7000\n", 7000),
        ("4:memory:/unseen/group", "memory/memory.limit_in_bytes", "8000\n", 8000),
        ("4:memory:/", "memory/memory.limit_in_bytes", str(2**63 - 4096), None),
        (None, "memory.max", "5000\n", None),
    ],
)
def test_memory_is_that_of_the_container(tmp_path, monkeypatch, own, file, content, limit):
    path = tmp_path / "groups" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    if own is not None:
        (tmp_path / "own").write_text(own + "\n")
    monkeypatch.setattr(errors, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(errors, "_OWN_GROUPS", tmp_path / "own")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes() == (limit or machine)
