"""The tests set no XLA flag that the installed XLA would abort on."""

import os

from xla_flags import FAST_COMPILATION, known_flags


def test_an_unknown_flag_is_left_out():
    flags = [FAST_COMPILATION[0], "--xla_no_such_flag=1"]
    assert known_flags(flags) == flags[:1]


def test_the_environment_has_known_flags_only():
    flags = os.environ["XLA_FLAGS"].split()
    assert known_flags(flags) == flags
