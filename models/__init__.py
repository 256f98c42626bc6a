"""Raw networks: Flax Linen modules `network(x, cond, labels, *, train)` without SDE or config.

To add a network, write its module in a file of this folder and give it a name below.
"""

from flax import linen as nn

from models.adm import ADM
from models.ddpm import DDPM
from models.dit import DiT
from models.ncsn import NCSN
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2

__all__ = ["NETWORKS"]

NETWORKS: dict[str, type[nn.Module]] = {
    "adm": ADM,
    "ddpm": DDPM,
    "dit": DiT,
    "ncsn": NCSN,
    "ncsnpp": NCSNpp,
    "ncsnv2": NCSNv2,
}
