"""Strict mode: shapes are checked, nothing broadcasts by accident, and four devices are faked.

Warnings are errors too (pyproject.toml). jaxtyping and beartype check every annotation of our
modules at every call, so nothing of ours may be imported before this file has run.

JAX_COMPILATION_CACHE_DIR keeps compiled programs between runs; without it they go to a temporary
folder.
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


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """One for all workers of pytest-xdist, and for the processes that tests start."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = folder.parent  # each worker has a folder of its own in it
        folder = str(folder / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
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
