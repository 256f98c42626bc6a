"""What the importers of PyTorch U-Nets share: their layers, and the checks of networks.

A layer is named "a.b" there and "a/b" here, and its parameters differ in layout alone:

    theirs              ours
    a.weight, a.bias    a/kernel, a/bias    convolutions and dense layers, in the layouts of mapping
    a.weight, a.bias    a/scale, a/bias     normalizations

Two conventions need more. Where theirs embeds a noise level as [cos, sin], the halves of the next
layer's rows change places, since ours is [sin, cos] (`AFTER_COSINE_FIRST`). Where one layer makes
query, key and value, each of ours takes its part (`projections`).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from models.adm import ADM
from models.adm_classifier import ADMClassifier
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from published.mapping import IDENTICAL, LINEAR, Imported, Layout, Weight, part

Network = NCSNpp | DDPM | ADM | ADMClassifier
Tensors = dict[str, Shaped[np.ndarray, "..."]]


def affine(ours: str, theirs: str, layout: Layout) -> list[Weight]:
    """The rules for the kernel, in `layout`, and the bias of a convolution or dense layer."""
    return [
        layout.weight(f"{ours}/kernel", f"{theirs}.weight"),
        IDENTICAL.weight(f"{ours}/bias", f"{theirs}.bias"),
    ]


def norm(ours: str, theirs: str) -> list[Weight]:
    """The rules for the scale and bias of a normalization."""
    return [
        IDENTICAL.weight(f"{ours}/scale", f"{theirs}.weight"),
        IDENTICAL.weight(f"{ours}/bias", f"{theirs}.bias"),
    ]


def projections(ours: str, theirs: str, layout: Layout, heads: int, order: str) -> list[Weight]:
    """The rules for query, key and value of a fused layer; see `mapping.part` for `order`."""
    return [
        part(index, own, heads=heads, order=order).weight(
            f"{ours}/{name}/{parameter}", f"{theirs}.{suffix}"
        )
        for index, name in enumerate(("query", "key", "value"))
        for parameter, suffix, own in (("kernel", "weight", layout), ("bias", "bias", IDENTICAL))
    ]


def _swapped(rows: Shaped[np.ndarray, "features _"]) -> Shaped[np.ndarray, "features _"]:
    half = len(rows) // 2
    return np.concatenate([rows[half:], rows[:half]])


AFTER_COSINE_FIRST = Layout(
    lambda w: _swapped(LINEAR.to_ours(w)), lambda p: LINEAR.to_theirs(_swapped(p))
)


def one_set(params: dict[str, Any]) -> Imported:
    """The state of a file with one set of parameters, its averages: step 0, and both sets equal.

    They share no memory, since a training step may overwrite either.
    """
    return Imported(0, params, copy.deepcopy(params))


def check_network(
    network: Network, origin: str, classes: Mapping[str, type], fields: Mapping[str, tuple]
) -> None:
    """Checks that a network is one that `origin` has.

    Args:
        network: ours.
        origin: what the message calls their code base.
        classes: its networks in our words, by their `config.model.name`.
        fields: the values it has for those of our fields that could be otherwise.

    Raises:
        ValueError: naming the field, its value, the valid values and the remedy.
    """
    if not isinstance(network, tuple(classes.values())):
        valid = " and ".join(map(repr, classes))
        raise ValueError(
            f"config.model.name stands for {type(network).__name__}; networks of {origin} are "
            f"{valid}. Set it so"
        )
    for field, valid in fields.items():
        value = getattr(network, field)
        if value not in valid:
            raise ValueError(
                f"config.model.{field} is {value!r}; networks of {origin} have "
                f"{' or '.join(map(repr, valid))}. Set it so"
            )
