"""Convolutions are XLA's own on CPUs without AVX-512, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from numerics import cpu_kernels
from numerics.cpu_kernels import FLAG, compile_convolutions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """A function that returns XLA_FLAGS afterwards, of those before and the CPU's features."""

    def after(before="", features="fpu avx avx2"):
        monkeypatch.setenv("XLA_FLAGS", before)
        (tmp_path / "cpuinfo").write_text(f"flags : {features}\n")
        compile_convolutions(tmp_path / "cpuinfo")
        return os.environ["XLA_FLAGS"]

    return after


def test_xla_compiles_convolutions_without_avx512_alone(flags):
    assert flags() == f"{FLAG}=-individual_convolution"
    assert flags("--a=1") == f"--a=1 {FLAG}=-individual_convolution"
    assert flags(features="fpu avx avx2 avx512f") == ""
    assert flags(features="neon") == ""


def test_flags_of_the_user_win(flags):
    assert flags(f"{FLAG}=") == f"{FLAG}="


def test_a_cpu_that_nothing_is_known_of_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    compile_convolutions(tmp_path / "none")
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("version", [(0, 9, 2), (0, 13, 0)])
def test_a_version_that_was_not_tried_is_left_alone(flags, monkeypatch, version):
    monkeypatch.setattr(cpu_kernels, "jax_version", version)
    assert flags() == ""


def test_a_tpu_library_is_left_alone(flags, monkeypatch):
    monkeypatch.setattr(cpu_kernels.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert flags() == ""


@pytest.mark.slow
def test_the_installed_xla_knows_the_flag(flags):
    environment = os.environ | {"XLA_FLAGS": flags(), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    subprocess.run(command, env=environment, check=True)


PROGRAM = """
import contextlib, runpy, sys
module = sys.argv.pop()
sys.argv.append("--mode=compare")
import jax
from numerics import cpu_kernels
backends = []
cpu_kernels.compile_convolutions = lambda: backends.append(dict(jax._src.xla_bridge._backends))
with contextlib.suppress(SystemExit):
    runpy.run_module(module, run_name="__main__" if module == "main" else module)
assert backends == [{}], backends
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["main", "scoresde"])
def test_the_program_and_the_library_ask_before_jax_starts(module):
    subprocess.run([sys.executable, "-c", PROGRAM, module], cwd=ROOT, check=True)
