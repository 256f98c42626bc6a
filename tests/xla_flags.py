"""Fast compilation: XLA flags, of those that the installed XLA knows, and contexts used again.

XLA aborts the whole process on a flag that it does not know, and flags come and go between its
versions. So flags are tried in a child process first.
"""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# Compiling the tests' programs takes far longer than running them. So LLVM does not optimize, and
# XLA emits operations in its plain way, not through MLIR (until JAX 0.10), and in one piece, as the
# workers keep all cores busy.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# Tracing makes many objects and leaves few behind; Python's usual thresholds walk through all of
# them again and again.
GC_THRESHOLD = (200_000, 20, 100)
_CHECKED = "SCORESDE_CHECKED_XLA_FLAGS"  # set for the processes that this one starts


def _starts(*flags: str) -> bool:
    """Whether a child process with these flags starts JAX on the CPU."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode == 0


def known_flags(flags: Sequence[str]) -> list[str]:
    """Return those of `flags` that XLA knows; one child is enough where it knows all."""
    if _starts(*flags):
        return list(flags)
    return [flag for flag in flags if _starts(flag)]


def set_fast_compilation() -> None:
    """Put the known flags into XLA_FLAGS, once; flags that are set already come last and win."""
    if _CHECKED not in os.environ:
        flags = [*known_flags(FAST_COMPILATION), os.environ.get("XLA_FLAGS", "")]
        os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
        os.environ[_CHECKED] = "1"


def used_again(make: Callable[[], Any], times: int) -> Callable[[], Any]:
    """Return `make` with a result that serves so many calls of a thread before the next one."""
    kept = threading.local()

    def make_or_use_again() -> Any:
        if not getattr(kept, "left", 0):
            kept.left, kept.made = times, make()
        kept.left -= 1
        return kept.made

    return make_or_use_again


def use_contexts_again() -> None:
    """Let programs share the MLIR contexts that JAX would make for each of them.

    Making and destroying one is a sixth of the time in which JAX compiles a small program. A
    context keeps the constants of its programs, so each serves a limited number of them.
    """
    from jax._src.interpreters import mlir  # no public way; without it, compilation is as usual

    if hasattr(mlir, "make_ir_context"):
        mlir.make_ir_context = used_again(mlir.make_ir_context, times=200)


def trace_fast() -> None:
    """Spend less time between a function and its program, in this process."""
    gc.set_threshold(*GC_THRESHOLD)
    use_contexts_again()
