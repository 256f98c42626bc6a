"""NCSNv2 (Song and Ermon 2020, arXiv:2006.09011): one score network for all noise levels.

The noise level is not an input. The paper divides the output by sigma instead (there, Technique 3);
here the parameterization does, as it does all scaling.
"""

from models.blocks.preset import Preset
from models.refinenet import RefineNet


class NCSNv2(Preset):
    """NCSNv2's settings of `RefineNet`, which documents the fields; cond is ignored."""

    NETWORK = RefineNet

    features: int = 128
    size: int = 64
    activation: str = "elu"
    implementation: str = "jax"
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False
