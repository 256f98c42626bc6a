"""Raw networks: Flax Linen modules `network(x, cond, *, train)` that know no SDE and no config.

To add a network, write its module in a file of this folder and give it a name below.
"""

from flax import linen as nn

from models.ncsnpp import NCSNpp

__all__ = ["NETWORKS", "NCSNpp"]

NETWORKS: dict[str, type[nn.Module]] = {"ncsnpp": NCSNpp}
