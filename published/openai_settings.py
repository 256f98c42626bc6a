"""The fields of our networks that the tensors of OpenAI's files determine, for messages.

Names show the number of blocks n of the encoder, whether each has attention, and its channels. With
L resolutions of B blocks each and a change of size after all but the last, n = L (B + 1) - 1. Of
the pairs (L, B), the one is taken that makes all blocks of a resolution alike.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_POOLS = {
    "out.2.positional_embedding": "attention",
    "out.3.weight": "spatial_v2",
    "out.2.weight": "spatial",
}


class _Block(NamedTuple):
    width: int
    attends: bool


def of_unet(tree: Mapping[str, Any], image_size: int, upsampling: int = 1) -> dict[str, Any]:
    """Return fields of ADM for a UNetModel, or for a SuperResModel of color images.

    No file shows the factor of an upsampler: it is `upsampling`, or 4 as published.
    """
    labels = _shape(tree, "label_emb.weight")
    found = _encoder(tree, image_size) | {"num_classes": labels[0] if labels else 0}
    inputs, outputs = _shape(tree, "input_blocks.0.0.weight"), _shape(tree, "out.2.weight")
    if len(inputs) == len(outputs) == 4:
        factor = upsampling if upsampling > 1 else 4
        channels, found["upsampling"] = (3, factor) if inputs[1] == 6 else (inputs[1], 1)
        found["learned_variance"] = outputs[0] == 2 * channels
    return found


def of_classifier(tree: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Return fields of ADMClassifier for an EncoderUNetModel."""
    found = _encoder(tree, image_size)
    pool = next((pool for name, pool in _POOLS.items() if name in tree), "adaptive")
    if pool == "spatial_v2" and len(_shape(tree, "out.3.weight")) == 4:
        pool = "adaptive"  # its last layer is a convolution
    last = {"attention": "out.2.c_proj.bias", "spatial": "out.2.bias"}.get(pool, "out.3.bias")
    classes = _shape(tree, last)
    return found | {"pool": pool} | ({"num_classes": classes[0]} if classes else {})


def _shape(tree: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return np.shape(tree[name]) if name in tree else ()


def _encoder(tree: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    features = _shape(tree, "time_embed.0.weight")[-1]
    blocks = _blocks(tree)
    found: dict[str, Any] = {"features": features}
    embedded = _shape(tree, "middle_block.0.emb_layers.1.weight")
    middle = _shape(tree, "middle_block.0.in_layers.2.weight")
    if embedded and middle:
        found["scale_shift"] = embedded[0] == 2 * middle[0]
    found["resample"] = "conv" if any(name.endswith(".0.op.weight") for name in tree) else "block"
    divisions = [
        division for size in range(2, len(blocks) + 2) if (division := _divided(blocks, size))
    ]
    if len(divisions) == 1:
        (stages,) = divisions
        found["channel_multipliers"] = tuple(_ratio(stage[0].width, features) for stage in stages)
        found["blocks_per_resolution"] = len(stages[0])
        found["attention_resolutions"] = tuple(
            image_size >> i for i, stage in enumerate(stages) if stage[0].attends
        )
    return found


def _blocks(tree: Mapping[str, Any]) -> list[_Block]:
    """Return the blocks of the encoder after the first convolution, in their order."""
    pattern = re.compile(r"input_blocks\.(\d+)\.0\.(?:in_layers\.2|op)\.weight")
    numbers = {int(match[1]): name for name in tree if (match := pattern.fullmatch(name))}
    return [
        _Block(_shape(tree, numbers[i])[0], f"input_blocks.{i}.1.qkv.weight" in tree)
        for i in sorted(numbers)
    ]


def _divided(blocks: list[_Block], size: int) -> list[list[_Block]] | None:
    """Return the blocks by resolution, if each has `size` with its change; else None."""
    if (len(blocks) + 1) % size:
        return None
    stages = []
    for start in range(0, len(blocks), size):
        stage, change = blocks[start : start + size - 1], blocks[start + size - 1 : start + size]
        if len(set(stage)) != 1 or change not in ([], [_Block(stage[0].width, False)]):
            return None
        stages.append(stage)
    return stages


def _ratio(width: int, features: int) -> float:
    divisor = math.gcd(width, features)
    return width // features if divisor == features else width / features
