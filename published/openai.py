"""Improved DDPM (arXiv:2102.09672) and ADM (arXiv:2105.05233) as OpenAI has published them.

    https://github.com/openai/improved-diffusion    UNetModel
    https://github.com/openai/guided-diffusion      UNetModel; SuperResModel, its upsampler;
                                                    EncoderUNetModel, its classifier

Their .pt files are state dicts, {name: tensor}, of averages alone, which become the parameters too,
without a step. Names count the blocks of the encoder and decoder, "input_blocks.4.1.qkv.weight".
These differ besides names and layouts:

    query, key, value    one layer, its outputs in one of two orders
    embedding            [cos, sin]
    classes              no vector for "no class"; ours is 0 after the import, and never trained
    learned variance     twice the channels of the output, as in ours
    SuperResModel        an upsampler, with twice the channels of the input, as in ours

A file does not show the order. "legacy" is that of improved-diffusion, and of guided-diffusion
without --use_new_attention_order: all published files except 64x64_diffusion.pt. Its classifier,
64x64_classifier.pt, has "legacy" too. The pooling of the classifiers always has "new".

Theirs normalizes 32 groups of channels, ours min(c // 4, 32) by default. Networks of fewer than 128
channels, such as the classifier for 512x512 pixels, need num_groups=32 and are refused without it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from errors import FileError, require_choice
from models.adm import ADM
from models.adm_classifier import ADMClassifier
from published import openai_settings
from published.mapping import (
    CONV,
    CONV_1D,
    CONV_1X1,
    LINEAR,
    Imported,
    Rearrangement,
    Template,
    Weight,
    fields_to_set,
    translate,
)
from published.pytorch_layers import (
    AFTER_COSINE_FIRST,
    affine,
    check_groups,
    check_network,
    norm,
    one_set,
    projections,
)

# Orders of the outputs of the layer for query, key and value.
ATTENTION_ORDERS = {"legacy": "head part channel", "new": "part head channel"}
_NAMES = ("time_embed.0.weight", "middle_block.0.in_layers.0.weight")  # in all their networks
_DECODER = "output_blocks.0.0.in_layers.0.weight"  # not in classifiers
_GROUPS = 32  # of every GroupNorm

_CLASSES = Rearrangement(lambda w: np.concatenate([w, np.zeros_like(w[:1])]), lambda p: p[:-1])


def is_checkpoint(tree: Any) -> bool:
    """Return whether a file's content is a network of OpenAI, or a classifier."""
    return isinstance(tree, Mapping) and set(_NAMES) <= tree.keys()


def is_classifier(tree: Any) -> bool:
    """Return whether a file's content is a classifier of guided-diffusion."""
    return is_checkpoint(tree) and _DECODER not in tree


def import_state(
    tree: Any,
    network: ADM,
    image_size: int,
    template: Template,
    *,
    source: str,
    attention_order: str = "legacy",
) -> Imported:
    """Translate the state dict of a UNetModel or SuperResModel, averages.

    `attention_order` is a name in ATTENTION_ORDERS; other arguments as in `published`.
    """
    _check_file(tree, source, "UNetModel", _DECODER)
    rules = weights(network, image_size, attention_order)
    advice = fields_to_set(network, openai_settings.of_unet(tree, image_size, network.upsampling))
    return one_set(translate(rules, template, tree, source=source, remedy=advice))


def import_classifier(
    tree: Any,
    network: ADMClassifier,
    image_size: int,
    template: Template,
    *,
    source: str,
    attention_order: str = "legacy",
) -> dict[str, Any]:
    """Translate the state dict of an EncoderUNetModel; arguments as in `import_state`."""
    _check_file(tree, source, "EncoderUNetModel")
    rules = classifier_weights(network, image_size, attention_order)
    advice = fields_to_set(network, openai_settings.of_classifier(tree, image_size))
    return translate(rules, template, tree, source=source, remedy=advice)


def _check_file(tree: Any, source: str, kind: str, *names: str) -> None:
    missing = [name for name in names if name not in tree] if is_checkpoint(tree) else list(_NAMES)
    if missing:
        raise FileError(
            f"{source}: it is not a state dict of a {kind} of improved-diffusion or "
            f"guided-diffusion, which has {missing[0]}. Use a .pt file of these projects"
        )


def weights(network: ADM, image_size: int, attention_order: str = "legacy") -> list[Weight]:
    """Return the rules for the parameters of a UNetModel.

    Raises:
        ValueError: OpenAI has no such network, or there is no such order.
    """
    _check(network, {"adm": ADM}, attention_order)
    return list(_unet(network, image_size, ATTENTION_ORDERS[attention_order]))


def classifier_weights(
    network: ADMClassifier, image_size: int, attention_order: str = "legacy"
) -> list[Weight]:
    """Return the rules for the parameters of an EncoderUNetModel, as `weights` does."""
    _check(network, {"adm_classifier": ADMClassifier}, attention_order)
    return list(_classifier(network, image_size, ATTENTION_ORDERS[attention_order]))


def _check(network: ADM | ADMClassifier, classes: Mapping[str, type], attention_order: str) -> None:
    check_network(network, "OpenAI", classes, {})
    require_choice("attention_order", attention_order, ATTENTION_ORDERS)
    check_groups(network, "OpenAI", _GROUPS)


def _widths(network: ADM | ADMClassifier) -> list[int]:
    """Return the channels of each resolution, from fine to coarse."""
    return [int(network.features * multiplier) for multiplier in network.channel_multipliers]


def _encoder(network: ADM | ADMClassifier, image_size: int, order: str) -> Iterator[Weight]:
    """Yield the rules for embedding, encoder and middle."""
    yield from affine("embedding_0", "time_embed.0", AFTER_COSINE_FIRST)
    yield from affine("embedding_1", "time_embed.2", LINEAR)
    yield from affine("input_conv", "input_blocks.0.0", CONV)
    widths = _widths(network)
    index, before = 1, widths[0]
    for stage, width in enumerate(widths):
        for i in range(network.blocks_per_resolution):
            ours, theirs = f"encoder_{stage}_block_{i}", f"input_blocks.{index}"
            yield from _block(ours, f"{theirs}.0", shortcut=before != width)
            if image_size >> stage in network.attention_resolutions:
                ours = f"encoder_{stage}_attention_{i}"
                yield from _attention(network, ours, f"{theirs}.1", width, order)
            before, index = width, index + 1
        if stage < len(widths) - 1:
            yield from _change_of_size(
                network, f"encoder_{stage}_down", f"input_blocks.{index}.0", "op"
            )
            index += 1
    yield from _block("middle_block_0", "middle_block.0")
    yield from _attention(network, "middle_attention", "middle_block.1", widths[-1], order)
    yield from _block("middle_block_1", "middle_block.2")


def _unet(network: ADM, image_size: int, order: str) -> Iterator[Weight]:
    yield from _encoder(network, image_size, order)
    if network.num_classes:
        yield _CLASSES.weight("classes/table", "label_emb.weight")
    index = 0
    for stage, width in reversed(list(enumerate(_widths(network)))):
        for i in range(network.blocks_per_resolution + 1):
            theirs, last = f"output_blocks.{index}", 1
            yield from _block(f"decoder_{stage}_block_{i}", f"{theirs}.0", shortcut=True)
            if image_size >> stage in network.attention_resolutions:
                ours, last = f"decoder_{stage}_attention_{i}", 2
                yield from _attention(network, ours, f"{theirs}.1", width, order)
            if stage > 0 and i == network.blocks_per_resolution:
                ours = f"decoder_{stage}_up"
                yield from _change_of_size(network, ours, f"{theirs}.{last}", "conv")
            index += 1
    yield from norm("output_norm", "out.0")
    yield from affine("output_conv", "out.2", CONV)


def _classifier(network: ADMClassifier, image_size: int, order: str) -> Iterator[Weight]:
    yield from _encoder(network, image_size, order)
    if network.pool == "spatial":
        yield from affine("output_0", "out.0", LINEAR)
        yield from affine("output_1", "out.2", LINEAR)
    elif network.pool == "spatial_v2":
        yield from affine("output_0", "out.0", LINEAR)
        yield from norm("output_norm", "out.1")
        yield from affine("output_1", "out.3", LINEAR)
    elif network.pool == "adaptive":
        yield from norm("output_norm", "out.0")
        yield from affine("output", "out.3", CONV_1X1)
    else:
        yield from norm("output_norm", "out.0")
        yield LINEAR.weight("pool/positions", "out.2.positional_embedding")
        heads = _heads(network, _widths(network)[-1])
        yield from projections("pool", "out.2.qkv_proj", CONV_1D, heads, ATTENTION_ORDERS["new"])
        yield from affine("pool/output", "out.2.c_proj", CONV_1D)


def _heads(network: ADM | ADMClassifier, width: int) -> int:
    return network.heads or width // network.head_width


def _attention(
    network: ADM | ADMClassifier, ours: str, theirs: str, width: int, order: str
) -> Iterator[Weight]:
    yield from norm(f"{ours}/norm", f"{theirs}.norm")
    yield from projections(ours, f"{theirs}.qkv", CONV_1D, _heads(network, width), order)
    yield from affine(f"{ours}/output", f"{theirs}.proj_out", CONV_1D)


def _change_of_size(
    network: ADM | ADMClassifier, ours: str, theirs: str, name: str
) -> Iterator[Weight]:
    """Yield the rules for the block, or for the convolution `name`, between resolutions."""
    if network.resample == "block":
        yield from _block(ours, theirs)
    else:
        yield from affine(f"{ours}/conv", f"{theirs}.{name}", CONV)


def _block(ours: str, theirs: str, *, shortcut: bool = False) -> Iterator[Weight]:
    yield from norm(f"{ours}/norm_0", f"{theirs}.in_layers.0")
    yield from affine(f"{ours}/conv_0", f"{theirs}.in_layers.2", CONV)
    yield from affine(f"{ours}/embedding", f"{theirs}.emb_layers.1", LINEAR)
    yield from norm(f"{ours}/norm_1", f"{theirs}.out_layers.0")
    yield from affine(f"{ours}/conv_1", f"{theirs}.out_layers.3", CONV)
    if shortcut:
        yield from affine(f"{ours}/shortcut", f"{theirs}.skip_connection", CONV_1X1)
