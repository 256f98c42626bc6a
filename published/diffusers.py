"""Networks of diffusers, UNet2DModel, that are DDPM or NCSN++, such as those of Google.

    https://github.com/huggingface/diffusers

              blocks                                  network         such as google/...
    DDPM      DownBlock2D, AttnDownBlock2D            DDPM, NCSNpp    ddpm-cifar10-32
    NCSN++    SkipDownBlock2D, AttnSkipDownBlock2D    NCSNpp          ncsnpp-church-256

A folder holds config.json, which describes the network, and one set of parameters without a step.
They become parameters and averages. These differ besides names and layouts:

    up_blocks              count from coarse to fine
    attention              query, key, value, proj_attn are to_q, to_k, to_v, to_out.0 in new files
    Fourier frequencies    time_proj.W in old files, time_proj.weight in new ones, or both
    output of NCSN++       is divided by sigma inside, ours is not: parameterization "scaled_score"
    center_input_sample    is 2 x - 1 inside, which the same parameterization does outside

Fields of config.json that no parameter shows, such as the epsilon of normalizations, are checked.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from errors import FileError
from models.blocks.checks import is_integer
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from published.mapping import (
    CONV,
    CONV_1X1,
    IDENTICAL,
    LINEAR,
    Imported,
    Template,
    Weight,
    as_tuple,
    translate,
)
from published.pytorch_layers import affine, check_groups, check_network, norm, one_set

_OLD_FREQUENCIES, _FREQUENCIES = "time_proj.W", "time_proj.weight"
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
_OLD_ATTENTION = {"query": "query", "key": "key", "value": "value", "output": "proj_attn"}
_SWISH = ("silu", "swish")

# Fields of config.json: the default where it is absent; the valid values in DDPM and in NCSN++.
_OPTIONS: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
    "act_fn": ("silu", _SWISH, _SWISH),
    "add_attention": (True, (True,), (True,)),
    "attention_head_dim": (8, (None,), (None,)),
    "attn_norm_num_groups": (None, (None,), (None,)),
    "center_input_sample": (False, (False,), (True,)),
    "class_embed_type": (None, (None,), (None,)),
    "downsample_padding": (1, (0,), (0, 1)),
    "downsample_type": ("conv", ("conv",), ("conv",)),
    "flip_sin_to_cos": (True, (False,), (False, True)),
    "freq_shift": (0, (1,), (0, 1)),
    "mid_block_scale_factor": (1, (1,), (math.sqrt(2),)),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",), ("UNetMidBlock2D",)),
    "norm_eps": (1e-5, (1e-6,), (1e-6,)),
    "num_class_embeds": (None, (None,), (None,)),
    "resnet_time_scale_shift": ("default", ("default",), ("default",)),
    "time_embedding_dim": (None, (None,), (None,)),
    "time_embedding_type": ("positional", ("positional",), ("fourier",)),
    "upsample_type": ("conv", ("conv",), ("conv",)),
}
# The same networks as settings of ours.
_DDPM = {
    "residual_block": "ddpm",
    "resample": "plain",
    "progressive_input": "none",
    "progressive_output": "none",
    "decoder_attention": "block",
    "embedding": "positional",
    "activation": "swish",
    "skip_rescale": False,
    "num_classes": 0,
}
_NCSNPP = {
    "residual_block": "biggan",
    "resample": "fir",
    "fir_kernel": (1, 3, 3, 1),
    "progressive_input": "input_skip",
    "progressive_output": "output_skip",
    "progressive_combine": "sum",
    "decoder_attention": "resolution",
    "embedding": "fourier",
    "activation": "swish",
    "skip_rescale": True,
    "num_classes": 0,
}
_GROUPS = 32  # of GroupNorm, unless config.json says otherwise
_LEAST_WIDTH = 128  # of attention in NCSN++, which has 32 groups where the rest has min(c // 4, 32)


def is_checkpoint(tree: Any) -> bool:
    """Return whether a file's content is that of a folder of diffusers."""
    return isinstance(tree, Mapping) and {"config", "tensors"} <= tree.keys()


def import_state(
    tree: Any,
    network: NCSNpp | DDPM,
    image_size: int,
    template: Template,
    *,
    source: str,
) -> Imported:
    """Translate a folder with a UNet2DModel; arguments as in `published`.

    Raises:
        ValueError: the folder does not fit the network; the message names the fields to set.
    """
    if not is_checkpoint(tree):
        raise FileError(
            f"{source}: it is not a folder of diffusers. Use one with config.json and the weights"
        )
    config, tensors = tree["config"], tree["tensors"]
    try:
        needed = settings(config)
    except FileError as error:
        raise FileError(f"{source}: {error}") from error
    name = "ddpm" if needed["residual_block"] == "ddpm" else "ncsnpp"
    classes = {"ddpm": DDPM, "ncsnpp": NCSNpp} if name == "ddpm" else {"ncsnpp": NCSNpp}
    check_network(network, f"{source} (a UNet2DModel)", classes, {})
    _check_settings(network, image_size, _sample_size(config), needed, source)
    unused = (_OLD_FREQUENCIES,) if _FREQUENCIES in tensors else ()
    rules = weights(network, image_size, tensors)
    return one_set(translate(rules, template, tensors, unused=unused, source=source))


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.model, except the name, for the network of a config.json.

    Raises:
        FileError: no network here computes the same.
    """
    try:
        down, up = (tuple(config[f"{part}_block_types"]) for part in ("down", "up"))
        stages = list(zip(down, map(int, config["block_out_channels"]), strict=True))
        blocks = int(config["layers_per_block"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            "config.json is not that of a UNet2DModel, which has down_block_types, up_block_types, "
            "block_out_channels and layers_per_block. Use a folder with one"
        ) from error
    skip = "Skip" if any("Skip" in block for block in down) else ""
    _check_blocks(down, up, skip)
    _check_options(config, index=2 if skip else 1)
    attends = [block.startswith("Attn") for block in down]
    widths = tuple(width for _, width in stages)
    if min(widths) < 1 or any(width % widths[0] for width in widths):
        raise FileError(
            f"config.json has block_out_channels={widths}; valid is multiples of the first. No "
            "network here computes anything else"
        )
    narrow = [width for block, width in stages if block.startswith("Attn") and width < _LEAST_WIDTH]
    if skip and narrow:
        raise FileError(
            f"config.json has block_out_channels={widths} with attention at {narrow[0]}, where it "
            f"has other groups than the rest; valid is {_LEAST_WIDTH} or more. No network here "
            "computes it"
        )
    size = _sample_size(config)
    if size is None and any(attends):
        raise FileError(
            "config.json has no sample_size, which determines the resolutions with attention. "
            'Add it, such as "sample_size": 32'
        )
    found = {
        "features": widths[0],
        "channel_multipliers": tuple(width // widths[0] for width in widths),
        "blocks_per_resolution": blocks,
        "attention_resolutions": tuple((size or 0) >> i for i, here in enumerate(attends) if here),
        "num_groups": _num_groups(config, skip),
    }
    return found | (_NCSNPP if skip else _DDPM)


def _num_groups(config: Mapping[str, Any], skip: str) -> int:
    """Return our field of the same name, which is 0 in NCSN++.

    Raises:
        FileError: no network here has such groups.
    """
    value = config.get("norm_num_groups", _GROUPS)
    if skip and value is not None:
        raise FileError(
            f"config.json has norm_num_groups={value!r}; valid is None. No network here computes "
            "anything else"
        )
    if not skip and not is_integer(value):
        raise FileError(
            f"config.json has norm_num_groups={value!r}; valid is a positive integer, as in the "
            "original file"
        )
    return value or 0


def _sample_size(config: Mapping[str, Any]) -> int | None:
    """Return the height of the images; None where config.json has none."""
    size = config.get("sample_size")
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if isinstance(size, int) else None


def _check_blocks(down: tuple[str, ...], up: tuple[str, ...], skip: str) -> None:
    """Raise FileError unless blocks are of one kind and the decoder mirrors the encoder."""
    valid = (f"{skip}DownBlock2D", f"Attn{skip}DownBlock2D")
    mirrored = tuple(block.replace("Down", "Up") for block in reversed(down))
    if not set(down) <= set(valid) or up != mirrored or not down:
        raise FileError(
            f"config.json has down_block_types={down} and up_block_types={up}; valid is "
            "DownBlock2D and AttnDownBlock2D, or SkipDownBlock2D and AttnSkipDownBlock2D, and "
            "their mirror image. No network here computes it"
        )


def _check_options(config: Mapping[str, Any], index: int) -> None:
    """Raise FileError unless every field is valid in the column `index` of _OPTIONS."""
    for field, columns in _OPTIONS.items():
        value, valid = config.get(field, columns[0]), columns[index]
        if not any(_same(value, one) for one in valid):
            raise FileError(
                f"config.json has {field}={value!r}; valid is {' or '.join(map(repr, valid))}. No "
                "network here computes anything else"
            )


def _same(value: Any, other: Any) -> bool:
    """Return whether values are equal, numbers up to the digits that a JSON file may lack."""
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-6)
    return value == other


def _check_settings(
    network: NCSNpp | DDPM,
    image_size: int,
    sample_size: int | None,
    needed: Mapping[str, Any],
    source: str,
) -> None:
    """Raise ValueError for all fields at once that differ from `settings`."""
    differing = {
        f"model.{field}": value
        for field, value in needed.items()
        if hasattr(network, field) and as_tuple(getattr(network, field)) != value
    }
    if sample_size not in (None, image_size):
        differing["data.image_size"] = sample_size
    if set(differing) == {"model.num_groups"}:  # which makes a difference in narrow layers alone
        check_groups(network, source, needed["num_groups"])
        return
    if differing:
        options = " ".join(
            f"'--config.{field}={value}'"
            if isinstance(value, tuple)
            else f"--config.{field}={value}"
            for field, value in differing.items()
        )
        raise ValueError(
            f"{source} does not fit this network, according to its config.json. Set {options}"
        )


def weights(network: NCSNpp | DDPM, image_size: int, tensors: Mapping[str, Any]) -> list[Weight]:
    """Return the rules for the parameters of a UNet2DModel, whose `tensors` show its age."""
    old = any(name.endswith(".proj_attn.weight") for name in tensors)
    attention = _OLD_ATTENTION if old else _ATTENTION
    frequencies = _FREQUENCIES if _FREQUENCIES in tensors else _OLD_FREQUENCIES
    return list(_unet(network, image_size, attention, frequencies))


def _unet(
    network: NCSNpp | DDPM, image_size: int, attention: Mapping[str, str], frequencies: str
) -> Iterator[Weight]:
    skip = isinstance(network, NCSNpp) and network.residual_block == "biggan"
    if network.embedding == "fourier":
        yield IDENTICAL.weight("fourier/frequencies", frequencies)
    yield from affine("embedding_0", "time_embedding.linear_1", LINEAR)
    yield from affine("embedding_1", "time_embedding.linear_2", LINEAR)
    yield from affine("input_conv", "conv_in", CONV)
    count = len(network.channel_multipliers)
    before = 1
    for stage, multiplier in enumerate(network.channel_multipliers):
        attends = image_size >> stage in network.attention_resolutions
        theirs = f"down_blocks.{stage}"
        for i in range(network.blocks_per_resolution):
            shortcut = i == 0 and multiplier != before
            ours = f"encoder_{stage}_block_{i}"
            yield from _block(ours, f"{theirs}.resnets.{i}", shortcut=shortcut)
            if attends:
                ours = f"encoder_{stage}_attention_{i}"
                yield from _attention(ours, f"{theirs}.attentions.{i}", attention)
        if stage < count - 1:
            yield from _down(f"encoder_{stage}", theirs, skip=skip)
        before = multiplier
        theirs = f"up_blocks.{count - 1 - stage}"
        for i in range(network.blocks_per_resolution + 1):
            ours = f"decoder_{stage}_block_{i}"
            yield from _block(ours, f"{theirs}.resnets.{i}", shortcut=True)
            if attends and not skip:
                ours = f"decoder_{stage}_attention_{i}"
                yield from _attention(ours, f"{theirs}.attentions.{i}", attention)
        if attends and skip:
            ours = f"decoder_{stage}_attention"
            yield from _attention(ours, f"{theirs}.attentions.0", attention)
        if stage > 0:
            yield from _up(f"decoder_{stage}", theirs, skip=skip)
    yield from _block("middle_block_0", "mid_block.resnets.0")
    yield from _attention("middle_attention", "mid_block.attentions.0", attention)
    yield from _block("middle_block_1", "mid_block.resnets.1")
    ours = "decoder_0_output" if skip else "output"
    yield from norm(f"{ours}_norm", "conv_norm_out")
    yield from affine(f"{ours}_conv", "conv_out", CONV)


def _down(ours: str, theirs: str, *, skip: bool) -> Iterator[Weight]:
    """Yield the change to the next coarser resolution, and how the input joins it."""
    if skip:
        yield from _block(f"{ours}_down", f"{theirs}.resnet_down", shortcut=True)
        yield from affine(f"{ours}_input", f"{theirs}.skip_conv", CONV_1X1)
    else:
        yield from affine(f"{ours}_down/conv", f"{theirs}.downsamplers.0.conv", CONV)


def _up(ours: str, theirs: str, *, skip: bool) -> Iterator[Weight]:
    """Yield how this resolution joins the output, and the change to the next finer one."""
    if skip:
        yield from norm(f"{ours}_output_norm", f"{theirs}.skip_norm")
        yield from affine(f"{ours}_output_conv", f"{theirs}.skip_conv", CONV)
        yield from _block(f"{ours}_up", f"{theirs}.resnet_up", shortcut=True)
    else:
        yield from affine(f"{ours}_up/conv", f"{theirs}.upsamplers.0.conv", CONV)


def _block(ours: str, theirs: str, *, shortcut: bool = False) -> Iterator[Weight]:
    yield from norm(f"{ours}/norm_0", f"{theirs}.norm1")
    yield from affine(f"{ours}/conv_0", f"{theirs}.conv1", CONV)
    yield from affine(f"{ours}/embedding", f"{theirs}.time_emb_proj", LINEAR)
    yield from norm(f"{ours}/norm_1", f"{theirs}.norm2")
    yield from affine(f"{ours}/conv_1", f"{theirs}.conv2", CONV)
    if shortcut:
        yield from affine(f"{ours}/shortcut", f"{theirs}.conv_shortcut", CONV_1X1)


def _attention(ours: str, theirs: str, names: Mapping[str, str]) -> Iterator[Weight]:
    yield from norm(f"{ours}/norm", f"{theirs}.group_norm")
    for name, their_name in names.items():
        yield from affine(f"{ours}/{name}", f"{theirs}.{their_name}", LINEAR)
