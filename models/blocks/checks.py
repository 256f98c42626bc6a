"""Checks of a network's fields, made before anything is computed.

A message names the field of the configuration, its value, what is valid, and the remedy.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from errors import require_choice, require_in
from models.blocks.layers import ACTIVATIONS, COMPUTE_DTYPES, group_count

MOST = 2**20  # of any size: more would be traced, or allocated, without end
MOST_BLOCKS = 1000


def field_name(network: Any, field: str) -> str:
    """Return a field's name in a configuration, such as "config.model.features"."""
    return f"config.{getattr(network, 'SECTION', 'model')}.{field}"


def field_error(network: Any, field: str, valid: str, remedy: str = "") -> ValueError:
    """Return the error to raise for a field; without a remedy, it names the default."""
    remedy = remedy or f"The default is {getattr(type(network), field)!r}."
    value = getattr(network, field)
    return ValueError(f"{field_name(network, field)}={value!r}; valid is {valid}. {remedy}")


def check_field(network: Any, field: str, passed: bool, valid: str) -> None:
    """Raise ValueError unless `passed`, saying what is valid."""
    if not passed:
        raise field_error(network, field, valid)


def check_choices(network: Any, choices: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError unless each field names one of its choices.

    Fields that several networks have, `compute_dtype` and `activation`, are checked without being
    listed in `choices`.
    """
    shared = {"compute_dtype": COMPUTE_DTYPES, "activation": ACTIVATIONS}
    present = {field: names for field, names in shared.items() if hasattr(network, field)}
    for field, names in {**present, **choices}.items():
        require_choice(field_name(network, field), getattr(network, field), names)


def check_numbers(network: Any, **intervals: str) -> None:
    """Raise ValueError unless each field lies in its interval, such as "[0, 1)"."""
    for field, interval in intervals.items():
        require_in(field_name(network, field), getattr(network, field), interval)


def check_frequencies(network: Any) -> None:
    """Raise ValueError unless `input_frequencies` are positive numbers."""
    values = network.input_frequencies
    numbers = all(isinstance(value, int | float) and 0 < value < math.inf for value in values)
    check_field(network, "input_frequencies", numbers, "positive numbers, such as (127.5,)")


def check_integers(network: Any, *, most: int = MOST, **least: int) -> None:
    """Raise ValueError unless each field is an integer, from the number given to `most`.

    None is valid where it is the default.
    """
    for field, low in least.items():
        value = getattr(network, field)
        optional = value is None and getattr(type(network), field) is None
        valid = f"an integer, {low} or more" if not is_integer(value, low) else f"at most {most}"
        check_field(network, field, optional or is_integer(value, low, most), valid)


def is_integer(value: object, least: int = 1, most: float = math.inf) -> bool:
    """Return whether `value` is an integer between `least` and `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_images(network: Any, x: Array) -> None:
    """Raise ValueError unless images are square and `network.validate` accepts their size."""
    _, height, width, channels = x.shape
    if height != width:
        raise ValueError(
            f"the images have {height}x{width} pixels; valid is square. Crop or pad the data."
        )
    network.validate(height, channels)


def check_data(image_size: int, channels: int) -> None:
    """Raise ValueError unless the size of the data is positive."""
    require_in("config.data.image_size", image_size, "[1, inf)")
    require_in("config.data.channels", channels, "[1, inf)")


def check_unet(network: Any, image_size: int, channels: int) -> None:
    """Raise ValueError unless the fields that all U-Nets have are valid."""
    check_data(image_size, channels)
    even = is_integer(network.features, 4) and network.features % 2 == 0
    check_field(network, "features", even, "an even integer, 4 or more")
    check_integers(network, features=4)
    count = len(network.channel_multipliers)
    check_field(network, "channel_multipliers", count > 0, "one number per resolution")
    numbers = [m for m in network.channel_multipliers if isinstance(m, int | float)]
    fits = network.features * max(numbers, default=0) <= MOST
    check_field(network, "channel_multipliers", fits, f"at most {MOST} channels in a layer")
    check_integers(network, most=MOST_BLOCKS, blocks_per_resolution=1)
    check_numbers(network, dropout="[0, 1)")
    _check_resolutions(network, image_size)


def _check_resolutions(network: Any, image_size: int) -> None:
    """Raise ValueError unless the image halves evenly and attention names its sizes."""
    count = len(network.channel_multipliers)
    factor = 2 ** (count - 1)
    if image_size % factor:
        most = (image_size & -image_size).bit_length()
        raise field_error(
            network,
            "channel_multipliers",
            f"at most {most} resolutions for config.data.image_size={image_size}, which halves "
            "from one to the next",
            f"Drop resolutions, or pad the images to a multiple of {factor}.",
        )
    resolutions = [image_size // 2**stage for stage in range(count)]
    if not set(network.attention_resolutions) <= set(resolutions):
        raise field_error(
            network,
            "attention_resolutions",
            f"any of {resolutions}, the heights of the features for "
            f"config.data.image_size={image_size}",
            "Choose among these, or () for attention in the middle only.",
        )


def unet_widths(first: int, widths: Sequence[int], blocks: int, joined: int = 1) -> set[int]:
    """Return the channels of every layer of a U-Net that is normalized.

    Args:
        first: channels of the first convolution.
        widths: channels of each resolution, from fine to coarse.
        blocks: residual blocks of each resolution of the encoder.
        joined: factor of the channels where the input has joined a coarser resolution.
    """
    skips = [first]
    for width in widths:
        skips += [width] * blocks + [joined * width]
    skips.pop()  # the coarsest resolution is not halved
    normalized, h = set(skips), skips[-1]
    for width in reversed(widths):
        for _ in range(blocks + 1):
            normalized.add(h + skips.pop())
            h = width
    return normalized


def check_groups(network: Any) -> None:
    """Raise ValueError unless the groups of GroupNorm divide the channels of every layer.

    The network has the field `num_groups` and the method `normalized_widths`.
    """
    check_integers(network, num_groups=0)
    for width in sorted(network.normalized_widths()):
        if network.num_groups and width % network.num_groups:
            raise field_error(
                network,
                "num_groups",
                "a number that divides the channels of every normalized layer, here "
                f"{sorted(network.normalized_widths())}",
                f"Take a multiple of it for {field_name(network, 'features')}, or 0 for "
                "min(channels // 4, 32) groups.",
            )
        if width % group_count(width, network.num_groups):
            raise field_error(
                network,
                "features",
                "one whose layers split into min(channels // 4, 32) equal groups; here a layer "
                f"of {width} channels has {group_count(width)} groups",
                "Take a multiple of 32, which always works.",
            )
