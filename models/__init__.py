"""Raw networks: Flax Linen modules `network(x, cond, labels, *, train)` without SDE or config.

A network takes images unless it says otherwise by KINDS. Networks with a field `augment_labels`
take augmentation labels by that name too, and upsamplers a small image per image, `image`.

Classifiers, `network(x, cond, *, train)`, return logits, and sow the input of their last matrix as
features. To add a network, write its module in a file of this folder and name it below.

`network.validate(image_size, channels)` checks every field for square images of a height in pixels,
without parameters; networks of points and series take the coordinates, or the length and the
channels. Sizes are 1 or more. It raises ValueError for the first field that is invalid; the message
names the field and what is valid. Calling a network validates it too.
"""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from models.adm import ADM
from models.adm_classifier import ADMClassifier
from models.ddpm import DDPM
from models.dit import DiT
from models.mlp import MLP, MLPClassifier
from models.ncsn import NCSN
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from models.unet1d import UNet1D
from models.wide_resnet import WideResNet

__all__ = ["CLASSIFIERS", "NETWORKS", "kinds_of", "with_features"]

NETWORKS: dict[str, type[nn.Module]] = {
    "adm": ADM,
    "ddpm": DDPM,
    "dit": DiT,
    "mlp": MLP,
    "ncsn": NCSN,
    "ncsnpp": NCSNpp,
    "ncsnv2": NCSNv2,
    "unet1d": UNet1D,
}

CLASSIFIERS: dict[str, type[nn.Module]] = {
    "adm_classifier": ADMClassifier,
    "mlp_classifier": MLPClassifier,
    "wide_resnet": WideResNet,
}


def kinds_of(network: type[nn.Module] | nn.Module) -> tuple[str, ...]:
    """Return the kinds of data that a network takes, by their names in `experiment.kinds`."""
    return getattr(network, "KINDS", ("images",))


def with_features(
    network: nn.Module, params: Any, x: Array, cond: Array, *, train: bool = False, **options: Any
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
    """Return the logits of a classifier, and the features that its last layer maps to them.

    With the kernel and bias of this layer, logits = features @ kernel + bias.

    Args:
        network: a network of a class in CLASSIFIERS.
        params: its parameters.
        x: images (b, n, n, c).
        cond: noise levels (b,), as the network takes them.
        train: whether dropout acts.
        options: arguments of `Module.apply`, such as `rngs={"dropout": key}`.
    """
    made: Any = network.apply(
        {"params": params}, x, cond, train=train, mutable=["intermediates"], **options
    )
    logits, sown = made
    return logits, sown["intermediates"]["features"][0]
