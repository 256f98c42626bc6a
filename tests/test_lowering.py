"""Programs lower for GPUs and TPUs on a machine that has neither, so that nothing is for CPUs only.

One configuration per network is here; `python tests/lowering.py` takes them all.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir
from lowering import PLATFORMS, PROGRAMS, lowered, reduced

from experiment.build import build
from experiment.configurations import load_configuration
from jobs.programs import Program
from models.blocks.convolution import image_convolution

# Each is lowered in another way: all together have every network, dtype and program.
CASES = [
    ("ve_cifar10.py:ncsnpp_continuous", "bfloat16", "train"),
    ("vp_cifar10.py:ddpm", "float32", "sample"),
    ("adm_imagenet.py:64", "bfloat16", "sample"),
    ("vp_digits.py:dit", "bfloat16", "train"),
    ("vp_digits.py:dit", "float32", "likelihood"),
    ("ve_cifar10.py:ncsn", "float32", "train"),
    ("ve_cifar10.py:ncsnv2", "float32", "train"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "kind"), CASES)
def test_program_of_a_configuration_lowers_for_other_platforms(name, dtype, kind):
    experiment = build(reduced(load_configuration(f"configs/{name}"), dtype))
    text = lowered(PROGRAMS[kind](experiment))
    assert ("bf16" in text) == (dtype == "bfloat16")


def test_convolutions_for_the_cpu_are_plain_ones_elsewhere():
    """As JAX has them, three for a value and two gradients; for the CPU they are rearranged."""

    def loss(x, kernel):
        y = image_convolution(x, kernel, (2, 2), "SAME")
        return jnp.sum(y**2)

    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 3), (3, 3, 3, 4)))
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    here, *elsewhere = (
        export.export(gradient, platforms=(platform,))(x, kernel).mlir_module()
        for platform in ("cpu", *PLATFORMS)
    )
    for text in (here, *elsewhere):
        assert text.count("stablehlo.convolution(") == 3
    # The gradient of the kernel trades images and channels; so does the CPU, by transposing first.
    assert "[f, 0, 1, b]" not in here
    for text in elsewhere:
        assert "[f, 0, 1, b]" in text
        assert "stablehlo.transpose" not in text


def test_what_only_the_cpu_can_do_is_found():
    only = Primitive("only_for_the_cpu")
    only.def_abstract_eval(lambda x: x)
    mlir.register_lowering(only, mlir.lower_fun(lambda x: x, False), platform="cpu")
    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(NotImplementedError, match="only_for_the_cpu"):
        lowered(Program(jax.jit(only.bind), (x,), 2))
    assert PLATFORMS == ("cuda", "tpu")
