"""NCSN (Song and Ermon 2019, arXiv:1907.05600, Appendix A), conditioned by tables of noise levels.

Every normalization has separate weights per noise level, selected by its index.
"""

from flax import linen as nn

from models.blocks.checks import check_integers
from models.blocks.preset import Preset
from models.refinenet import RefineNet


class NCSN(Preset):
    """NCSN's settings of `RefineNet`, which documents the fields; `num_timesteps` is 1 or more."""

    NETWORK = RefineNet

    features: int = 128
    num_timesteps: int = 10
    activation: str = "elu"
    implementation: str = "jax"
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_integers(self, num_timesteps=1)
        super().validate(image_size, channels)
