"""Let XLA compile convolutions itself on CPUs without AVX-512.

By default XLA hands them to YNNPACK, which takes longer there, most for gradients by kernels of few
channels. docs/benchmarks.md, Networks, has times.
"""

import importlib.util
import os
from pathlib import Path

from jax.version import __version_info__ as jax_version

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VERSIONS = (0, 10), (0, 12)  # the first and last JAX that was tried; XLA aborts at unknown flags


def compile_convolutions(cpu: Path = Path("/proc/cpuinfo")) -> None:
    """Set XLA's flag in the environment, unless the user has.

    Call it before JAX is used, for XLA reads its flags once. A TPU's library reads them too and may
    not know this one, so nothing is set where it is installed.

    Args:
        cpu: Linux's file of the CPU's features.
    """
    given = os.environ.get("XLA_FLAGS", "")
    known = VERSIONS[0] <= jax_version[:2] <= VERSIONS[1] and not importlib.util.find_spec("libtpu")
    features = cpu.read_text().split() if cpu.exists() else []
    if known and FLAG not in given and "avx" in features and "avx512f" not in features:
        os.environ["XLA_FLAGS"] = f"{given} {FLAG}=-individual_convolution".strip()
