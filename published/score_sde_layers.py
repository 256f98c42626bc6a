"""The layers of which the networks of Song et al. are made, in their two code bases and in ours.

Every parameter of a layer has three names, and up to three layouts: ours is that of Flax.
"""

from typing import NamedTuple

from published.mapping import (
    CONV,
    CONV_1X1,
    FLAX_CONV_1X1,
    IDENTICAL,
    IMAGE_CHANNELS,
    LINEAR,
    Layout,
    Weight,
    part,
)


class Tensor(NamedTuple):
    """The three names of a layer's parameter, and how either code base lays it out."""

    ours: str
    jax: str
    jax_layout: Layout
    pytorch: str
    pytorch_layout: Layout


def _same(name: str) -> Tensor:
    return Tensor(name, name, IDENTICAL, name, IDENTICAL)


def _statistics(name: str, index: int) -> Tensor:
    """A weight of InstanceNorm++ for every noise level: a third of an embedding's columns."""
    columns = part(index, IDENTICAL, axis=1)
    return Tensor(name, "Embed_0/embedding", columns, "embed.weight", columns)


_KERNEL = Tensor("kernel", "kernel", IDENTICAL, "weight", CONV)
_BIAS = _same("bias")

# By kind; the parameters in the order in which the PyTorch code makes them.
LAYERS: dict[str, tuple[Tensor, ...]] = {
    "norm": (Tensor("scale", "scale", IDENTICAL, "weight", IDENTICAL), _BIAS),
    "conv": (_KERNEL, _BIAS),
    "conv_without_bias": (_KERNEL,),
    "fir_conv": (Tensor("kernel", "weight", IDENTICAL, "weight", CONV), _BIAS),
    "conv1x1": (Tensor("kernel", "kernel", FLAX_CONV_1X1, "weight", CONV_1X1), _BIAS),
    "dense": (Tensor("kernel", "kernel", IDENTICAL, "weight", LINEAR), _BIAS),
    "nin": (
        Tensor("kernel", "W", IDENTICAL, "W", IDENTICAL),
        Tensor("bias", "b", IDENTICAL, "b", IDENTICAL),
    ),
    "fourier": (Tensor("frequencies", "W", IDENTICAL, "W", IDENTICAL),),
    "instance_norm": tuple(
        Tensor(name, name, IMAGE_CHANNELS, name, IDENTICAL) for name in ("alpha", "gamma", "beta")
    ),
    "conditional_norm": tuple(
        _statistics(name, index) for index, name in enumerate(("gamma", "alpha", "beta"))
    ),
}


class Layer(NamedTuple):
    """A layer of `LAYERS`: its kind, our path to it, and the name of theirs."""

    kind: str
    ours: str
    theirs: str = ""


def jax_weights(layer: Layer) -> list[Weight]:
    """The rules for the parameters of a layer that the JAX code calls "a/b"."""
    return [
        tensor.jax_layout.weight(f"{layer.ours}/{tensor.ours}", f"{layer.theirs}/{tensor.jax}")
        for tensor in LAYERS[layer.kind]
    ]


def pytorch_weights(layer: Layer) -> list[Weight]:
    """The rules for the parameters of a layer that the PyTorch code calls "a.b"."""
    return [
        tensor.pytorch_layout.weight(
            f"{layer.ours}/{tensor.ours}", f"{layer.theirs}.{tensor.pytorch}"
        )
        for tensor in LAYERS[layer.kind]
    ]
