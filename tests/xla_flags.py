"""XLA flags that make compilation fast, of those that the installed XLA knows.

XLA aborts the whole process on a flag that it does not know, and flags come and go between its
versions. So each flag is tried in a child process first.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

# Compiling the tests' programs takes far longer than running them. So LLVM does not optimize, and
# XLA emits operations in its plain way, not through MLIR (until JAX 0.10), and in one piece, as the
# workers keep all cores busy.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
_CHECKED = "SCORESDE_CHECKED_XLA_FLAGS"  # set for the processes that this one starts


def known_flags(flags: Sequence[str]) -> list[str]:
    """Those of `flags` with which a child process starts JAX on the CPU."""
    program = "import jax; jax.devices()"
    children = []
    for flag in flags:
        environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", program]
        quiet = subprocess.DEVNULL
        children.append(subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet))
    return [flag for flag, child in zip(flags, children, strict=True) if child.wait() == 0]


def set_fast_compilation() -> None:
    """Put the known flags into XLA_FLAGS, once; flags that are set already come last and win."""
    if _CHECKED not in os.environ:
        flags = [*known_flags(FAST_COMPILATION), os.environ.get("XLA_FLAGS", "")]
        os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
        os.environ[_CHECKED] = "1"
