"""Compiled programs that a kill has cut short are written again, without a warning."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from files.cache import replace_unreadable_programs


@pytest.fixture
def folder(tmp_path):
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", kept)
    compilation_cache.reset_cache()


@pytest.fixture
def said(monkeypatch):
    said = []
    monkeypatch.setattr(
        warnings, "showwarning", lambda message, *more, **named: said.append(message)
    )
    return said


def compile_anew():
    """A new function each time, so that JAX finds the program in the folder at best."""
    return jax.jit(lambda x: x + 1)(jnp.float32(1))


@pytest.mark.parametrize("size", [0, 100])
def test_a_program_cut_short_is_written_again(folder, said, size):
    compile_anew()
    (file,) = folder.glob("jit__lambda*")
    file.write_bytes(file.read_bytes()[:size])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        compile_anew()
        assert "jit__lambda" in str(said.pop())
        assert file.stat().st_size == size  # as JAX leaves it

        replace_unreadable_programs(folder)
        compile_anew()
        assert file.stat().st_size > 1000
        warnings.warn("another", stacklevel=1)
    assert [str(message) for message in said] == ["another"]


@pytest.mark.parametrize("place", ["a bucket", "another user's cache"])
def test_what_cannot_be_deleted_is_told(said, tmp_path, place):
    if place == "a bucket":
        folder = tmp_path / "not here"
    else:  # a folder in the place of the file cannot be unlinked, by root either
        folder = tmp_path
        (folder / "jit_f-1-cache").mkdir()
    replace_unreadable_programs(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Error reading persistent compilation cache entry for 'jit_f'", stacklevel=1)
    assert len(said) == 1
