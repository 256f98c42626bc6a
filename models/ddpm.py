"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, Appendix B).

It is the U-Net of `models.ncsnpp` with convolutions that change the resolution, plain residual sums
and nothing progressive. Ho et al. attend after every block of the decoder; Song et al. (2021,
arXiv:2011.13456), whose checkpoints are many, once a level.
"""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.embeddings import Labels
from models.blocks.layers import Images
from models.ncsnpp import NCSNpp


class DDPM(nn.Module):
    """DDPM's settings of `NCSNpp`, which documents the fields."""

    features: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks_per_resolution: int = 2
    attention_resolutions: Sequence[int] = (16,)
    decoder_attention: str = "resolution"
    dropout: float = 0.1
    embedding: str = "positional"
    num_classes: int = 0
    activation: str = "swish"
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], labels: Labels | None = None, *, train: bool
    ) -> Float[Array, "batch height width channels_out"]:
        """As `NCSNpp`: images (b, n, n, c) and cond (b,) of order 0 .. 999 to images."""
        network = self._network()
        nn.share_scope(self, network)
        return network(x, cond, labels, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """As `NCSNpp.validate`."""
        self._network(parent=None).validate(image_size, channels)

    @nn.nowrap
    def _network(self, **options: None) -> NCSNpp:
        return NCSNpp(
            features=self.features,
            channel_multipliers=self.channel_multipliers,
            blocks_per_resolution=self.blocks_per_resolution,
            attention_resolutions=self.attention_resolutions,
            decoder_attention=self.decoder_attention,
            dropout=self.dropout,
            residual_block="ddpm",
            resample="plain",
            embedding=self.embedding,
            num_classes=self.num_classes,
            activation=self.activation,
            skip_rescale=False,
            out_channels=self.out_channels,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
            **options,
        )
