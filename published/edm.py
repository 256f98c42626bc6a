"""Networks of EDM (Karras et al. 2022, arXiv:2206.00364): SongUNet as NCSNpp, DhariwalUNet as ADM.

    https://github.com/NVlabs/edm

They are published as pickles, which are code. If you trust that code, and it is on the path,

    torch.save(pickle.load(open("edm-cifar10-32x32-cond-vp.pkl", "rb"))["ema"].state_dict(), path)

makes a file that can be read here. It holds the averages alone, which become the parameters too,
and no step. Names are such as "model.enc.32x32_block0.conv0.weight", without "model." for a network
without its preconditioner. These differ besides names and layouts:

    query, key, value    one layer, its outputs in the order "head channel part"
    change of size       belongs to the resolution it enters, ours to the one it leaves
    class k of n         in SongUNet sqrt(n) W e_k + b, and b for "no class"; W e_k and 0 in
                         DhariwalUNet; the rows of our table, the last for "no class"
    embedding            [cos, sin] in DhariwalUNet; SongUNet swaps it to our order

The file contains the fixed filters of resampling, so a network with other filters is refused even
though its parameters fit. A network that was trained with augmentation has a layer for its labels;
so does ours with config.model.augment_labels=9.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from errors import FileError
from models.adm import ADM
from models.ncsnpp import NCSNpp
from published.mapping import (
    CONV,
    CONV_1X1,
    IDENTICAL,
    LINEAR,
    Imported,
    Template,
    Weight,
    fields_to_set,
    translate,
)
from published.pytorch_layers import (
    AFTER_COSINE_FIRST,
    TO_COSINE_FIRST,
    Tensors,
    affine,
    check_groups,
    check_network,
    norm,
    one_set,
    projections,
)

# Tensors without a parameter of ours: filters, and the noise levels of the preconditioner "iDDPM".
UNUSED = ("*.resample_filter", "u")
_ORDER = "head channel part"
_PREFIX = "model."
_LABELS = "map_label.weight"
_AUGMENT = "map_augment.weight"
_FILTER = ".resample_filter"

_SONG = {
    "residual_block": ("biggan",),
    "progressive_output": ("none", "output_skip"),
    "progressive_combine": ("sum",),
    "decoder_attention": ("resolution",),
    "embedding": ("positional", "fourier"),
    "activation": ("swish",),
    "skip_rescale": (True,),
}
_DHARIWAL = {"heads": (0,), "head_width": (64,), "scale_shift": (True,), "resample": ("block",)}


def is_checkpoint(tree: Any) -> bool:
    """Return whether a file's content is a network of EDM."""
    return isinstance(tree, Mapping) and bool(
        {"map_layer0.weight", "model.map_layer0.weight"} & tree.keys()
    )


def import_state(
    tree: Any,
    network: NCSNpp | ADM,
    image_size: int,
    template: Template,
    *,
    source: str,
) -> Imported:
    """Translate the state dict of a network of EDM, averages; arguments as in `published`."""
    if not is_checkpoint(tree):
        raise FileError(
            f"{source}: it is not a state dict of a network of EDM, which has map_layer0.weight. "
            "Make one from the published pickle, as published/edm.py explains"
        )
    rules, tensors = weights(network, image_size), _load(tree, source)
    _check_filters(network, tensors, source)
    labels = np.shape(tensors.get(_AUGMENT, ()))[-1:] or (0,)
    remedy = fields_to_set(network, {"augment_labels": labels[0]})
    params = translate(rules, template, tensors, unused=UNUSED, source=source, remedy=remedy)
    return one_set(params)


def _load(tree: Mapping[str, Any], source: str) -> Tensors:
    """Return the tensors by name, and the labels' layer as a table of classes."""
    tensors = {name.removeprefix(_PREFIX): np.asarray(value) for name, value in tree.items()}
    if tensors.get(_LABELS, np.empty(0)).ndim == 2:
        # In float64, so that the table is rounded once, to the float32 of our parameters.
        classes = tensors[_LABELS].T.astype(np.float64)
        bias = tensors.pop("map_label.bias", None)
        table = np.concatenate([classes, np.zeros_like(classes[:1])])
        if bias is not None:
            if bias.shape != classes.shape[1:]:
                raise FileError(
                    f"{source}: map_label.bias {bias.shape} does not fit {_LABELS} "
                    f"{classes.T.shape}. Make the file again from the published one"
                )
            table = table * math.sqrt(len(classes)) + bias
        tensors[_LABELS] = table
    return tensors


def _check_filters(network: NCSNpp | ADM, tensors: Tensors, source: str) -> None:
    """Raise ValueError unless the network resamples with the filters of the file."""
    fir = isinstance(network, NCSNpp) and network.resample == "fir"
    taps = np.array(network.fir_kernel if fir else (1, 1), np.float32)
    ours = np.outer(taps, taps) / taps.sum() ** 2
    for name, theirs in tensors.items():
        if name.endswith(_FILTER) and not _equal(theirs.squeeze(), ours):
            found = np.atleast_2d(theirs.squeeze()).sum(0)
            found = tuple((found / found.min()).round(2).tolist())
            raise ValueError(
                f"{source} resamples with the filter {found} ({name}), the network with "
                f"{tuple(taps.tolist())}. Set config.model.resample='fir' and "
                f"config.model.fir_kernel={found}, or config.model.resample='plain' for (1.0, 1.0)"
            )


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.allclose(x, y, rtol=1e-2)  # a file may be in half precision


def weights(network: NCSNpp | ADM, image_size: int) -> list[Weight]:
    """Return the rules for the parameters of SongUNet or DhariwalUNet.

    Raises:
        ValueError: EDM has no such network.
    """
    classes = {"ncsnpp": NCSNpp, "adm": ADM}
    song = isinstance(network, NCSNpp)
    check_network(network, "EDM", classes, _SONG if song else _DHARIWAL)
    check_groups(network, "EDM", 0)
    if song and network.progressive_input == "residual" and network.resample == "plain":
        # Ours would convolve without a filter, theirs averages pixels first.
        raise ValueError(
            "config.model.resample='plain'; with progressive_input='residual', networks of EDM "
            "have 'fir'. Set it so, and config.model.fir_kernel=(1, 1) for plain averages"
        )
    return list(_unet(network, image_size))


def _unet(network: NCSNpp | ADM, image_size: int) -> Iterator[Weight]:
    song = isinstance(network, NCSNpp)
    widths = [int(network.features * multiplier) for multiplier in network.channel_multipliers]
    if song and network.embedding == "fourier":
        yield IDENTICAL.weight("fourier/frequencies", "map_noise.freqs")
    yield from affine("embedding_0", "map_layer0", LINEAR if song else AFTER_COSINE_FIRST)
    yield from affine("embedding_1", "map_layer1", LINEAR)
    if network.augment_labels:
        layout = LINEAR if song else TO_COSINE_FIRST
        yield layout.weight("augmentation/kernel", _AUGMENT)
    if network.num_classes:
        yield IDENTICAL.weight("classes/table", _LABELS)
    yield from affine("input_conv", f"enc.{image_size}x{image_size}_conv", CONV)
    before = network.features if song else widths[0]
    for stage, width in enumerate(widths):
        yield from _encoder_stage(network, image_size, stage, before, width)
        yield from _decoder_stage(network, image_size, stage, width)
        before = width
    if song:
        yield from _song_ends(network, image_size)
    else:
        yield from norm("output_norm", "out_norm")
        yield from affine("output_conv", "out_conv", CONV)


def _heads(network: NCSNpp | ADM, width: int) -> int:
    return 1 if isinstance(network, NCSNpp) else width // network.head_width


def _encoder_stage(
    network: NCSNpp | ADM, image_size: int, stage: int, before: int, width: int
) -> Iterator[Weight]:
    """Yield the change of size and the blocks of a resolution; after the last, the middle."""
    size, heads = image_size >> stage, _heads(network, width)
    enc, dec = f"enc.{size}x{size}", f"dec.{size}x{size}"
    if stage:
        shortcut = isinstance(network, NCSNpp)
        yield from _block(f"encoder_{stage - 1}_down", f"{enc}_down", shortcut=shortcut)
    for i in range(network.blocks_per_resolution):
        attends = size in network.attention_resolutions
        yield from _block(
            f"encoder_{stage}_block_{i}",
            f"{enc}_block{i}",
            shortcut=i == 0 and before != width,
            attention=f"encoder_{stage}_attention_{i}" if attends else None,
            heads=heads,
        )
    if stage == len(network.channel_multipliers) - 1:
        middle = "middle_attention"
        yield from _block("middle_block_0", f"{dec}_in0", attention=middle, heads=heads)
        yield from _block("middle_block_1", f"{dec}_in1")


def _decoder_stage(
    network: NCSNpp | ADM, image_size: int, stage: int, width: int
) -> Iterator[Weight]:
    """Yield the change of size from the coarser resolution, and the blocks."""
    size, blocks = image_size >> stage, network.blocks_per_resolution + 1
    song, dec = isinstance(network, NCSNpp), f"dec.{size}x{size}"
    if stage < len(network.channel_multipliers) - 1:
        yield from _block(f"decoder_{stage + 1}_up", f"{dec}_up", shortcut=song)
    attentions: list[str | None] = [None] * blocks
    if size in network.attention_resolutions:
        each: list[str | None] = [f"decoder_{stage}_attention_{i}" for i in range(blocks)]
        attentions = [*attentions[1:], f"decoder_{stage}_attention"] if song else each
    for i, attention in enumerate(attentions):
        yield from _block(
            f"decoder_{stage}_block_{i}",
            f"{dec}_block{i}",
            shortcut=True,
            attention=attention,
            heads=_heads(network, width),
        )


def _song_ends(network: NCSNpp, image_size: int) -> Iterator[Weight]:
    """Yield how the input joins the resolutions of SongUNet, and how they make the output."""
    skip = network.progressive_output == "output_skip"
    for stage in range(len(network.channel_multipliers)):
        size, ours = image_size >> stage, f"encoder_{stage - 1}_input"
        if stage and network.progressive_input == "input_skip":
            yield from affine(ours, f"enc.{size}x{size}_aux_skip", CONV_1X1)
        elif stage and network.progressive_input == "residual":
            yield from affine(f"{ours}/conv", f"enc.{size}x{size}_aux_residual", CONV)
        if skip or stage == 0:
            ours = f"decoder_{stage}_output" if skip else "output"
            yield from norm(f"{ours}_norm", f"dec.{size}x{size}_aux_norm")
            yield from affine(f"{ours}_conv", f"dec.{size}x{size}_aux_conv", CONV)


def _block(
    ours: str,
    theirs: str,
    *,
    shortcut: bool = False,
    attention: str | None = None,
    heads: int = 1,
) -> Iterator[Weight]:
    """Yield a residual block, and the attention inside it, which ours has beside it."""
    yield from norm(f"{ours}/norm_0", f"{theirs}.norm0")
    yield from affine(f"{ours}/conv_0", f"{theirs}.conv0", CONV)
    yield from affine(f"{ours}/embedding", f"{theirs}.affine", LINEAR)
    yield from norm(f"{ours}/norm_1", f"{theirs}.norm1")
    yield from affine(f"{ours}/conv_1", f"{theirs}.conv1", CONV)
    if shortcut:
        yield from affine(f"{ours}/shortcut", f"{theirs}.skip", CONV_1X1)
    if attention:
        yield from norm(f"{attention}/norm", f"{theirs}.norm2")
        yield from projections(attention, f"{theirs}.qkv", CONV_1X1, heads, _ORDER)
        yield from affine(f"{attention}/output", f"{theirs}.proj", CONV_1X1)
