"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, Appendix B).

It is the U-Net of `models.ncsnpp` with convolutions that change the resolution, plain residual
sums, 32 groups in every GroupNorm and no progressive architecture. Ho et al. apply self-attention
after every block of the decoder, Song et al. (2021, arXiv:2011.13456), who published many
checkpoints, once per resolution.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from models.blocks.preset import Preset
from models.ncsnpp import NCSNpp


class DDPM(Preset):
    """DDPM's settings of `NCSNpp`, which documents the fields; cond is of order 0 .. 999."""

    NETWORK = NCSNpp
    FIXED: ClassVar[Mapping[str, Any]] = {
        "residual_block": "ddpm",
        "resample": "plain",
        "skip_rescale": False,
    }

    features: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks_per_resolution: int = 2
    attention_resolutions: Sequence[int] = (16,)
    decoder_attention: str = "resolution"
    dropout: float = 0.1
    embedding: str = "positional"
    num_classes: int = 0
    activation: str = "swish"
    num_groups: int = 32
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False
