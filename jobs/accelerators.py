"""Peak numbers of usual accelerators, and what they say about a program.

    seconds = max(FLOP / (utilization x peak FLOP/s), bytes moved / bandwidth)

(the roofline of Williams et al. 2009, doi:10.1145/1498765.1498785). Communication between devices
is not counted.
"""

from dataclasses import dataclass
from typing import NamedTuple

from errors import require_choice

# Share of the peak that matrix products reach in a training step. An assumption, not a measurement:
# docs/benchmarks.md compares it with published training times.
UTILIZATION = 0.4
# Share of the memory that a program can have. The rest is for the runtime, kernels and
# communication. JAX reserves only 75% of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
USABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What one device of JAX has.

    Attributes:
        memory: GB (1e9 bytes) of high-bandwidth memory.
        bandwidth: of this memory, in GB/s.
        bfloat16, float32: peak TFLOP/s of matrix products, dense, as JAX computes them by default
            for arrays of this type.
    """

    memory: float
    bandwidth: float
    bfloat16: float
    float32: float

    @property
    def usable(self) -> float:
        """Bytes that a program can have."""
        return USABLE * self.memory * 1e9

    def speed(self, *, flops: float, traffic: float, dtype: str) -> "Speed":
        """Return the shortest time of a program; `dtype` is "bfloat16" or "float32".

        Args:
            flops: FLOP on one device.
            traffic: bytes that one device reads and writes.
            dtype: what the network computes in.
        """
        require_choice("dtype", dtype, ("bfloat16", "float32"))
        computing = flops / (UTILIZATION * 1e12 * getattr(self, dtype))
        moving = traffic / (1e9 * self.bandwidth)
        bound = "compute" if computing >= moving else "bandwidth"
        return Speed(max(computing, moving), bound)


class Speed(NamedTuple):
    """The seconds of a program, and what bounds them: "compute" or "bandwidth"."""

    seconds: float
    bound: str


# TPUs: cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e, per chip. A TPU v3 chip is two devices of
# JAX. Products of float32 arrays take one pass of bfloat16 there (jax.lax.Precision.DEFAULT).
# GPUs: NVIDIA's data sheets of the V100 SXM2, A100 SXM 80GB, H100 SXM and H200 SXM, without
# sparsity. V100 has no bfloat16, which XLA computes in float32. From the A100 on, products of
# float32 arrays are TF32, JAX's default.
ACCELERATORS = {
    "TPU v3": Accelerator(memory=16, bandwidth=450, bfloat16=61.5, float32=61.5),
    "TPU v4": Accelerator(memory=32, bandwidth=1200, bfloat16=275, float32=275),
    "TPU v5e": Accelerator(memory=16, bandwidth=819, bfloat16=197, float32=197),
    "TPU v5p": Accelerator(memory=95, bandwidth=2765, bfloat16=459, float32=459),
    "TPU v6e": Accelerator(memory=32, bandwidth=1640, bfloat16=918, float32=918),
    "V100": Accelerator(memory=32, bandwidth=900, bfloat16=15.7, float32=15.7),
    "A100": Accelerator(memory=80, bandwidth=2039, bfloat16=312, float32=156),
    "H100": Accelerator(memory=80, bandwidth=3350, bfloat16=989, float32=494),
    "H200": Accelerator(memory=141, bandwidth=4800, bfloat16=989, float32=494),
}
