"""Improved DDPM (arXiv:2102.09672) and ADM (arXiv:2105.05233) as OpenAI has published them.

    https://github.com/openai/improved-diffusion    UNetModel
    https://github.com/openai/guided-diffusion      UNetModel, and EncoderUNetModel, its classifier

Their .pt files are state dicts, {name: tensor}, one set of parameters, which are averages, without
a step: the averages become the parameters too. Names count the blocks of the encoder and decoder,
"input_blocks.4.1.qkv.weight". Besides names and layouts:

    query, key, value    one layer, its outputs in one of two orders
    embedding            [cos, sin]
    classes              have no vector for no class; ours is 0, as it starts, and is never trained
    learned variance     twice the channels of output, as ours

The order cannot be seen in a file. "legacy" is that of improved-diffusion, and of guided-diffusion
without --use_new_attention_order, which is all published files but 64x64_diffusion.pt; the pooling
of the classifiers has "new", whatever the rest.

Theirs normalizes 32 groups of channels, ours min(c // 4, 32): networks of fewer than 128 channels,
such as the classifier for 512x512 pixels, would compute something else here and are refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.adm import ADM
from models.adm_classifier import ADMClassifier
from published.formats.errors import FileError
from published.mapping import CONV, CONV_1D, CONV_1X1, LINEAR, Imported, Layout, Weight, translate
from published.pytorch_layers import (
    AFTER_COSINE_FIRST,
    affine,
    check_network,
    norm,
    one_set,
    projections,
)

# How the outputs of the layer for query, key and value run, by the name of the order.
ATTENTION_ORDERS = {"legacy": "head part channel", "new": "part head channel"}
_NAMES = ("time_embed.0.weight", "middle_block.0.in_layers.0.weight")  # of all their networks
_LEAST_WIDTH = 128  # from which on they and we normalize the same groups

_CLASSES = Layout(lambda w: np.concatenate([w, np.zeros_like(w[:1])]), lambda p: p[:-1])


def is_checkpoint(tree: Any) -> bool:
    """Whether a file's content is that of a network of OpenAI's, a classifier too."""
    return isinstance(tree, Mapping) and set(_NAMES) <= tree.keys()


def import_state(
    tree: Any,
    network: ADM,
    image_size: int,
    template: Mapping[str, Any],
    *,
    source: str,
    attention_order: str = "legacy",
) -> Imported:
    """Our parameters, which are averages, from the state dict of a UNetModel.

    Args:
        tree: what `files.read` returns.
        network: our network, with the settings that the file was trained with.
        image_size: height of the images it was trained on.
        template: its abstract parameters, as `jax.eval_shape` makes them.
        source: what messages call the file, such as its path.
        attention_order: a name in ATTENTION_ORDERS, as the module docstring says.

    Raises:
        ValueError: the file is no such state dict, or does not fit the network.
    """
    _check_file(tree, source, "UNetModel", "output_blocks.0.0.in_layers.0.weight")
    rules = weights(network, image_size, attention_order)
    return one_set(translate(rules, template, tree, source=source))


def import_classifier(
    tree: Any,
    network: ADMClassifier,
    image_size: int,
    template: Mapping[str, Any],
    *,
    source: str,
    attention_order: str = "legacy",
) -> dict[str, Any]:
    """Our parameters from the state dict of an EncoderUNetModel; otherwise as `import_state`."""
    _check_file(tree, source, "EncoderUNetModel")
    rules = classifier_weights(network, image_size, attention_order)
    return translate(rules, template, tree, source=source)


def _check_file(tree: Any, source: str, kind: str, *names: str) -> None:
    missing = [name for name in names if name not in tree] if is_checkpoint(tree) else list(_NAMES)
    if missing:
        raise FileError(
            f"{source}: it is no state dict of a {kind} of improved-diffusion or guided-diffusion, "
            f"which has {missing[0]}. Take a .pt file of theirs, or name the project it is from"
        )


def weights(network: ADM, image_size: int, attention_order: str = "legacy") -> list[Weight]:
    """The rules for the parameters of a UNetModel.

    Raises:
        ValueError: theirs has no such network, or there is no such order.
    """
    _check(network, {"adm": ADM}, attention_order)
    return list(_unet(network, image_size, ATTENTION_ORDERS[attention_order]))


def classifier_weights(
    network: ADMClassifier, image_size: int, attention_order: str = "legacy"
) -> list[Weight]:
    """The rules for the parameters of an EncoderUNetModel; raises as `weights`."""
    _check(network, {"adm_classifier": ADMClassifier}, attention_order)
    return list(_classifier(network, image_size, ATTENTION_ORDERS[attention_order]))


def _check(network: ADM | ADMClassifier, classes: Mapping[str, type], attention_order: str) -> None:
    check_network(network, "OpenAI", classes, {})
    if attention_order not in ATTENTION_ORDERS:
        raise ValueError(
            f"attention_order={attention_order!r} is unknown; choose one of: "
            f"{', '.join(ATTENTION_ORDERS)}"
        )
    if min(_widths(network)) < _LEAST_WIDTH:
        raise ValueError(
            f"config.model.features is {network.features} and the narrowest level has "
            f"{min(_widths(network))} channels; valid is {_LEAST_WIDTH} or more, below which "
            "networks of OpenAI normalize other groups than ours. Take a wider one"
        )


def _widths(network: ADM | ADMClassifier) -> list[int]:
    """The channels of each level, from fine to coarse."""
    return [int(network.features * multiplier) for multiplier in network.channel_multipliers]


def _encoder(network: ADM | ADMClassifier, image_size: int, order: str) -> Iterator[Weight]:
    """Embedding, encoder and middle."""
    yield from affine("embedding_0", "time_embed.0", AFTER_COSINE_FIRST)
    yield from affine("embedding_1", "time_embed.2", LINEAR)
    yield from affine("input_conv", "input_blocks.0.0", CONV)
    widths = _widths(network)
    index, before = 1, widths[0]
    for level, width in enumerate(widths):
        for i in range(network.blocks_per_resolution):
            ours, theirs = f"encoder_{level}_block_{i}", f"input_blocks.{index}"
            yield from _block(ours, f"{theirs}.0", shortcut=before != width)
            if image_size >> level in network.attention_resolutions:
                ours = f"encoder_{level}_attention_{i}"
                yield from _attention(network, ours, f"{theirs}.1", width, order)
            before, index = width, index + 1
        if level < len(widths) - 1:
            yield from _change_of_size(
                network, f"encoder_{level}_down", f"input_blocks.{index}.0", "op"
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
    for level, width in reversed(list(enumerate(_widths(network)))):
        for i in range(network.blocks_per_resolution + 1):
            theirs, last = f"output_blocks.{index}", 1
            yield from _block(f"decoder_{level}_block_{i}", f"{theirs}.0", shortcut=True)
            if image_size >> level in network.attention_resolutions:
                ours, last = f"decoder_{level}_attention_{i}", 2
                yield from _attention(network, ours, f"{theirs}.1", width, order)
            if level > 0 and i == network.blocks_per_resolution:
                ours = f"decoder_{level}_up"
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
    """The block between levels, or the convolution of some name."""
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
