"""Layers of PyTorch U-Nets, and checks of networks, for the modules of several projects.

A layer is "a.b" in PyTorch and "a/b" here, and its parameters differ in layout alone:

    theirs              ours
    a.weight, a.bias    a/kernel, a/bias    convolutions and dense layers, in the layouts of mapping
    a.weight, a.bias    a/scale, a/bias     normalizations

Two conventions need more. Some embed a noise level as [cos, sin], ours is [sin, cos]: then the
halves of the next layer's rows are swapped (`AFTER_COSINE_FIRST`), and the halves of the columns of
a layer that adds to the embedding (`TO_COSINE_FIRST`). Some have one layer for query, key and
value: then each of ours is a part of it (`projections`).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from models import CLASSIFIERS, NETWORKS
from models.blocks.checks import field_name
from models.blocks.layers import group_count
from published.mapping import IDENTICAL, Imported, Rearrangement, Weight, part

Tensors = dict[str, Shaped[np.ndarray, "..."]]


def affine(ours: str, theirs: str, layout: Rearrangement) -> list[Weight]:
    """Return the rules for the kernel, in `layout`, and the bias of a layer."""
    return [
        layout.weight(f"{ours}/kernel", f"{theirs}.weight"),
        IDENTICAL.weight(f"{ours}/bias", f"{theirs}.bias"),
    ]


def norm(ours: str, theirs: str) -> list[Weight]:
    """Return the rules for the scale and bias of a normalization."""
    return [
        IDENTICAL.weight(f"{ours}/scale", f"{theirs}.weight"),
        IDENTICAL.weight(f"{ours}/bias", f"{theirs}.bias"),
    ]


def projections(
    ours: str, theirs: str, layout: Rearrangement, heads: int, order: str
) -> list[Weight]:
    """Return the rules for query, key and value of a fused layer; see `mapping.part`."""
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


AFTER_COSINE_FIRST = Rearrangement(lambda w: _swapped(w.T), lambda p: _swapped(p).T)
TO_COSINE_FIRST = Rearrangement(lambda w: _swapped(w).T, lambda p: _swapped(p.T))


def one_set(params: dict[str, Any]) -> Imported:
    """Return the state of a file that holds averages alone: step 0, and both sets equal.

    The sets share no memory, since a training step may overwrite either.
    """
    return Imported(0, params, copy.deepcopy(params))


def check_network(
    network: object, origin: str, classes: Mapping[str, type], fields: Mapping[str, tuple]
) -> None:
    """Raise ValueError unless `origin` has such a network.

    Args:
        network: our network.
        origin: the code base's name in messages.
        classes: our classes of its networks, by their `config.model.name`.
        fields: the values of our fields that its networks have.

    Raises:
        ValueError: the network has another class or another value of a field.
    """
    if not isinstance(network, tuple(classes.values())):
        valid = " and ".join(map(repr, classes))
        known = NETWORKS | CLASSIFIERS
        name = next((name for name, kind in known.items() if type(network) is kind), None)
        raise ValueError(f"config.model.name={name!r}; networks of {origin} are {valid}. Set it so")
    for field, valid in fields.items():
        value = getattr(network, field)
        if value not in valid:
            raise ValueError(
                f"config.model.{field}={value!r}; networks of {origin} have "
                f"{' or '.join(map(repr, valid))}. Set it so"
            )


def check_groups(network: Any, origin: str, num_groups: int) -> None:
    """Raise ValueError unless GroupNorm has the groups of `origin`, which no parameter shows.

    Args:
        network: our network.
        origin: the code base's name in messages.
        num_groups: the value of our field that its networks have; others with the same groups are
            valid.
    """
    for width in sorted(network.normalized_widths()):
        ours, theirs = group_count(width, network.num_groups), group_count(width, num_groups)
        if ours != theirs:
            field = field_name(network, "num_groups")
            raise ValueError(
                f"{field}={network.num_groups} makes {ours} groups of {width} channels; networks "
                f"of {origin} have {theirs}. Set --{field}={num_groups}"
            )
