"""NCSNv2 (Song and Ermon 2020, arXiv:2006.09011): one score network for all noise levels.

It is not told the noise level. Its output is divided by sigma instead (there, Technique 3), but by
the parameterization, as are all scalings.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.embeddings import Labels
from models.blocks.layers import Images
from models.refinenet import RefineNet


class NCSNv2(nn.Module):
    """NCSNv2's settings of `RefineNet`, which documents the fields."""

    features: int = 128
    size: int = 64
    activation: str = "elu"
    implementation: str = "jax"
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], labels: Labels | None = None, *, train: bool
    ) -> Float[Array, "batch height width channels_out"]:
        """As `RefineNet`: images (b, n, n, c) to images; cond (b,) is not looked at."""
        network = self._network()
        nn.share_scope(self, network)
        return network(x, cond, labels, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """As `RefineNet.validate`."""
        self._network(parent=None).validate(image_size, channels)

    @nn.nowrap
    def _network(self, **options: None) -> RefineNet:
        return RefineNet(
            features=self.features,
            size=self.size,
            activation=self.activation,
            implementation=self.implementation,
            out_channels=self.out_channels,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
            **options,
        )
