"""Networks that are settings of another one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.checks import check_images
from models.blocks.embeddings import Labels
from models.blocks.layers import Images


class Preset(nn.Module):
    """A network with some fields fixed and other defaults; its parameters have the same names.

    Abstract: a subclass lists the fields that can be set, as its own.

    Attributes:
        NETWORK: class of the network.
        FIXED: the fields that have a fixed value.
    """

    NETWORK: ClassVar[type[nn.Module]]
    FIXED: ClassVar[Mapping[str, Any]] = {}

    @nn.compact
    def __call__(
        self, x: Images, cond: Float[Array, "batch"], labels: Labels | None = None, *, train: bool
    ) -> Float[Array, "batch height width channels_out"]:
        """Map images (b, n, n, c) and cond (b,) to images, as the network does."""
        check_images(self, x)
        network = self._network()
        nn.share_scope(self, network)
        return network(x, cond, labels, train=train)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        self._network(parent=None).validate(image_size, channels)

    @nn.nowrap
    def normalized_widths(self) -> set[int]:
        """Return the channels of every normalized layer, as the network does."""
        return self._network(parent=None).normalized_widths()

    @nn.nowrap
    def _network(self, **options: None) -> Any:
        names = {field.name for field in dataclasses.fields(self)} - {"parent", "name"}
        fields = {name: getattr(self, name) for name in names}
        return self.NETWORK(**fields, **self.FIXED, **options)
