"""The layers of the networks of Song et al., in their two code bases and in ours.

Every parameter of a layer has three names, and up to three layouts. Ours is Flax's. GroupNorm of
Flax has (1, 1, 1, channels) up to version 0.3.5, which the JAX code's files were made with, and
(channels,) since.
"""

from typing import NamedTuple

from published.mapping import (
    CONV,
    CONV_1X1,
    FLAX_CONV_1X1,
    IDENTICAL,
    IMAGE_CHANNELS,
    LINEAR,
    Rearrangement,
    Weight,
    part,
)


class Parameter(NamedTuple):
    """The three names of a layer's parameter, and its layout in either code base."""

    ours: str
    jax: str
    jax_layout: Rearrangement
    pytorch: str
    pytorch_layout: Rearrangement


def _same(name: str) -> Parameter:
    return Parameter(name, name, IDENTICAL, name, IDENTICAL)


def _statistics(name: str, index: int) -> Parameter:
    """Return a weight of InstanceNorm++ per noise level, a third of an embedding's columns."""
    columns = part(index, IDENTICAL, axis=1)
    return Parameter(name, "Embed_0/embedding", columns, "embed.weight", columns)


_KERNEL = Parameter("kernel", "kernel", IDENTICAL, "weight", CONV)
_BIAS = _same("bias")
_NORM_BIAS = Parameter("bias", "bias", IMAGE_CHANNELS, "bias", IDENTICAL)

# By kind. Parameters have the order in which the PyTorch code makes them.
LAYERS: dict[str, tuple[Parameter, ...]] = {
    "norm": (Parameter("scale", "scale", IMAGE_CHANNELS, "weight", IDENTICAL), _NORM_BIAS),
    "conv": (_KERNEL, _BIAS),
    "conv_without_bias": (_KERNEL,),
    "fir_conv": (Parameter("kernel", "weight", IDENTICAL, "weight", CONV), _BIAS),
    "conv1x1": (Parameter("kernel", "kernel", FLAX_CONV_1X1, "weight", CONV_1X1), _BIAS),
    "dense": (Parameter("kernel", "kernel", IDENTICAL, "weight", LINEAR), _BIAS),
    "nin": (
        Parameter("kernel", "W", IDENTICAL, "W", IDENTICAL),
        Parameter("bias", "b", IDENTICAL, "b", IDENTICAL),
    ),
    "fourier": (Parameter("frequencies", "W", IDENTICAL, "W", IDENTICAL),),
    "instance_norm": tuple(
        Parameter(name, name, IMAGE_CHANNELS, name, IDENTICAL)
        for name in ("alpha", "gamma", "beta")
    ),
    "conditional_norm": tuple(
        _statistics(name, index) for index, name in enumerate(("gamma", "alpha", "beta"))
    ),
}


class Layer(NamedTuple):
    """A layer: its kind in `LAYERS`, our path, and their name."""

    kind: str
    ours: str
    theirs: str = ""


def jax_weights(layer: Layer) -> list[Weight]:
    """Return the rules for the parameters of a layer that the JAX code calls "a/b"."""
    return [
        parameter.jax_layout.weight(
            f"{layer.ours}/{parameter.ours}", f"{layer.theirs}/{parameter.jax}"
        )
        for parameter in LAYERS[layer.kind]
    ]


def pytorch_weights(layer: Layer) -> list[Weight]:
    """Return the rules for the parameters of a layer that the PyTorch code calls "a.b"."""
    return [
        parameter.pytorch_layout.weight(
            f"{layer.ours}/{parameter.ours}", f"{layer.theirs}.{parameter.pytorch}"
        )
        for parameter in LAYERS[layer.kind]
    ]
