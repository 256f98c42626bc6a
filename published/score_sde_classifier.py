"""The classifier of noisy CIFAR-10 images of Song et al. 2021 (arXiv:2011.13456, Appendix I).

    https://github.com/yang-song/score_sde    WideResnet, in Flax

Its file is {name: {...}}, parameters alone. Every layer is one of ours in the same layout, except
the normalizations, which old versions of Flax wrote as (1, 1, 1, channels).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from errors import FileError
from files.nested import flatten
from models.wide_resnet import WideResNet
from published.mapping import IDENTICAL, IMAGE_CHANNELS, Template, Weight, fields_to_set, translate
from published.pytorch_layers import check_network

_NAMES = ("init_conv", "pre-pool-bn", "WideResnetGroup_0")


def is_classifier(tree: Any) -> bool:
    """Return whether a file's content is score_sde's classifier."""
    return isinstance(tree, Mapping) and set(_NAMES) <= tree.keys()


def import_classifier(
    tree: Any,
    network: WideResNet,
    image_size: int,
    template: Template,
    *,
    source: str,
) -> dict[str, Any]:
    """Translate the parameters of a WideResnet; arguments as in `published`."""
    check_network(network, "score_sde", {"wide_resnet": WideResNet}, {})
    if not is_classifier(tree):
        raise FileError(f"{source}: it is not a WideResnet of score_sde, which has {_NAMES[0]}")
    tensors = {name: np.asarray(value) for name, value in flatten(tree).items()}
    advice = fields_to_set(network, _settings(tensors))
    return translate(_weights(network), template, tensors, source=source, remedy=advice)


def _settings(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of our fields that the shapes of the file determine."""
    blocks = {name.split("/")[1] for name in tensors if name.startswith("WideResnetGroup_0/")}
    found: dict[str, Any] = {"blocks_per_group": len(blocks)}
    for field, name, divisor in (
        ("channel_multiplier", "WideResnetGroup_0/WideResnetBlock_0/conv1/kernel", 16),
        ("num_classes", "Dense_2/bias", 1),
        ("features", "GaussianFourierProjection_0/W", 1),
    ):
        if name in tensors:
            found[field] = tensors[name].shape[-1] // divisor
    return found


def _weights(network: WideResNet) -> Iterator[Weight]:
    yield IDENTICAL.weight("fourier/frequencies", "GaussianFourierProjection_0/W")
    yield from _dense("embedding_0", "Dense_0")
    yield from _dense("embedding_1", "Dense_1")
    yield IDENTICAL.weight("input_conv/kernel", "init_conv/kernel")
    for group in range(3):
        for block in range(network.blocks_per_group):
            ours = f"group_{group}_block_{block}"
            theirs = f"WideResnetGroup_{group}/WideResnetBlock_{block}"
            yield from _norm(f"{ours}/norm_0", f"{theirs}/init_bn")
            yield IDENTICAL.weight(f"{ours}/conv_0/kernel", f"{theirs}/conv1/kernel")
            yield from _dense(f"{ours}/embedding", f"{theirs}/Dense_0")
            yield from _norm(f"{ours}/norm_1", f"{theirs}/bn_2")
            yield IDENTICAL.weight(f"{ours}/conv_1/kernel", f"{theirs}/conv2/kernel")
    yield from _norm("output_norm", "pre-pool-bn")
    yield from _dense("output", "Dense_2")


def _dense(ours: str, theirs: str) -> Iterator[Weight]:
    for name in ("kernel", "bias"):
        yield IDENTICAL.weight(f"{ours}/{name}", f"{theirs}/{name}")


def _norm(ours: str, theirs: str) -> Iterator[Weight]:
    for name in ("scale", "bias"):
        yield IMAGE_CHANNELS.weight(f"{ours}/{name}", f"{theirs}/{name}")
