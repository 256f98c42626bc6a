"""The tests set no XLA flag that the installed XLA would abort on, and compile as JAX does."""

import itertools
import os
import threading

import jax
import jax.numpy as jnp
import pytest
from xla_flags import FAST_COMPILATION, known_flags, used_again


@pytest.mark.slow
def test_an_unknown_flag_is_left_out():
    flags = [FAST_COMPILATION[0], "--xla_no_such_flag=1"]
    assert known_flags(flags) == flags[:1]


def test_the_environment_has_known_flags_only():
    flags = os.environ["XLA_FLAGS"].split()
    assert known_flags(flags) == flags


def test_what_is_made_serves_some_calls_of_one_thread():
    make = used_again(itertools.count().__next__, times=2)
    other = []
    assert [make(), make(), make()] == [0, 0, 1]
    thread = threading.Thread(target=lambda: other.append(make()))
    thread.start()
    thread.join()
    assert [*other, make(), make()] == [2, 1, 3]


def test_the_text_of_a_program_does_not_depend_on_those_before():
    def text():
        return jax.jit(lambda x: jnp.sin(x) + 1).lower(1.0).as_text()

    first = text()
    jax.jit(lambda x: jnp.cos(x) * 2).lower(jnp.ones(3))
    assert text() == first
