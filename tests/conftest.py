"""Strict mode: shapes are checked, nothing broadcasts by accident, and four devices are faked.

Warnings are errors too (pyproject.toml). jaxtyping and beartype check every annotation of our
modules at every call, so nothing of ours may be imported before this file has run.

Compiled programs are kept in pytest's cache for the next run, or in JAX_COMPILATION_CACHE_DIR.
"""

import gc
import os
import shutil
from pathlib import Path

import jax
import jaxtyping
import pytest
from xla_flags import set_fast_compilation, trace_fast

set_fast_compilation()
trace_fast()
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# models/ is left out: its tests pass arrays and numbers of wrong types to read its own messages.
UNCHECKED = {"configs", "models", "published"}
COMPILED_BYTES = 500_000_000  # the whole suite takes 155 MB; programs of older code stay, too
ROOT = Path(__file__).resolve().parent.parent

PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")} - UNCHECKED
CHECKED = sorted({path.stem for path in ROOT.glob("*.py")} | PACKAGES)

jaxtyping.install_import_hook(CHECKED, "checking.checked")

from numerics.memory import keep_freed_memory, share_heap  # noqa: E402

share_heap()
keep_freed_memory()

pytest.register_assert_rewrite("networks")


def pytest_collection_finish():
    """Leave what is imported now to the end of the process."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session):
    """Choose the cache of compiled programs, for all workers and the processes that they start."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = ROOT / ".pytest_cache" / "d" / "compiled"  # where --cache-clear deletes it
        folder.mkdir(parents=True, exist_ok=True)
        if sum(file.stat().st_size for file in folder.iterdir()) > COMPILED_BYTES:
            shutil.rmtree(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture
def x64():
    """Double precision for the test that asks for it, and for no other."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The finished run of main.py with command_line.TINY; no test may change it."""
    from command_line import TINY, flags, run

    workdir = tmp_path_factory.mktemp("runs") / "finished"
    call = run(*flags("train", workdir))
    assert call.status == 0, call.stderr
    assert f"trained {TINY['training.steps']} steps" in call.stdout
    return workdir


@pytest.fixture(scope="session")
def sampled(finished, tmp_path_factory):
    """A copy of it, in which samples may be written."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("sampled") / "run")
