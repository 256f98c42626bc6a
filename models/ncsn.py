"""NCSN (Song and Ermon 2019, arXiv:1907.05600, Appendix A): a table of noise levels conditions it.

Every normalization has weights of its own for every noise level, of which it is told the index.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.checks import check_fields, is_positive
from models.blocks.embeddings import Labels
from models.blocks.layers import Images
from models.refinenet import RefineNet


class NCSN(nn.Module):
    """NCSN's settings of `RefineNet`, which documents the fields; `num_timesteps` is 1 or more."""

    features: int = 128
    num_timesteps: int = 10
    activation: str = "elu"
    implementation: str = "jax"
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], labels: Labels | None = None, *, train: bool
    ) -> Float[Array, "batch height width channels_out"]:
        """As `RefineNet`: images (b, n, n, c) and indices cond (b,) of noise levels to images."""
        _, height, _, channels = x.shape
        self.validate(height, channels)
        network = self._network()
        nn.share_scope(self, network)
        return network(x, cond, labels, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """As `RefineNet.validate`."""
        check_fields(self, ("num_timesteps", is_positive(self.num_timesteps), "a positive integer"))
        self._network(parent=None).validate(image_size, channels)

    @nn.nowrap
    def _network(self, **options: None) -> RefineNet:
        return RefineNet(
            features=self.features,
            num_timesteps=self.num_timesteps,
            activation=self.activation,
            implementation=self.implementation,
            out_channels=self.out_channels,
            compute_dtype=self.compute_dtype,
            remat=self.remat,
            **options,
        )
