"""What every network checks of its fields, without computing anything, and how it says so.

A message names the config field, its value, what is valid and the remedy.
"""

from collections.abc import Iterable, Mapping, Sequence

from flax import linen as nn

from models.blocks.layers import ACTIVATIONS, COMPUTE_DTYPES, group_count


def field_error(network: nn.Module, field: str, valid: str, remedy: str = "") -> ValueError:
    """The error to raise for a field; without a remedy, it tells the default."""
    remedy = remedy or f"The default is {getattr(type(network), field)!r}."
    return ValueError(
        f"config.model.{field} is {getattr(network, field)!r}; valid is {valid}. {remedy}"
    )


def check_choices(network: nn.Module, choices: Mapping[str, Iterable[str]]) -> None:
    """Checks fields that name one of several choices, those that all networks have among them."""
    shared = {"compute_dtype": COMPUTE_DTYPES, "activation": ACTIVATIONS}
    for field, names in {
        **{f: n for f, n in shared.items() if hasattr(network, f)},
        **choices,
    }.items():
        if getattr(network, field) not in names:
            raise field_error(network, field, f"one of {', '.join(map(repr, names))}")


def check_fields(network: nn.Module, *checks: tuple[str, bool, str]) -> None:
    """Checks (field, whether it is valid, what is valid), in order."""
    for field, passed, valid in checks:
        if not passed:
            raise field_error(network, field, valid)


def is_positive(value: object, *, least: int = 1) -> bool:
    """Whether `value` is an integer, `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_image(image_size: int, channels: int) -> None:
    """Checks the format of the data that a network is to work on."""
    for field, value in (("image_size", image_size), ("channels", channels)):
        if value < 1:
            raise ValueError(
                f"config.data.{field} is {value!r}; valid is a positive integer. "
                "Set it to that of the data."
            )


def check_square(height: int, width: int) -> None:
    """Checks the shape of the images that a network is called with."""
    if height != width:
        raise ValueError(
            f"the images have {height}x{width} pixels; valid is square. Crop or pad the data."
        )


def check_resolutions(
    network: nn.Module, image_size: int, levels: int, attention: Sequence[int]
) -> None:
    """Checks that the image halves from level to level and that attention names their sizes."""
    if image_size % 2 ** (levels - 1):
        most = (image_size & -image_size).bit_length()
        raise field_error(
            network,
            "channel_multipliers",
            f"at most {most} levels for config.data.image_size={image_size}, which must be "
            "divisible by 2**(levels - 1)",
            f"Drop levels, or pad the images to a multiple of {2 ** (levels - 1)}.",
        )
    resolutions = [image_size // 2**level for level in range(levels)]
    if not set(attention) <= set(resolutions):
        raise field_error(
            network,
            "attention_resolutions",
            f"any of {resolutions}, the resolutions of the levels for "
            f"config.data.image_size={image_size}",
            "Choose among these, or () for attention in the middle only.",
        )


def check_groups(network: nn.Module, widths: Iterable[int]) -> None:
    """Checks that the groups of GroupNorm divide the channels of every layer."""
    for width in sorted(set(widths)):
        if width % group_count(width):
            raise field_error(
                network,
                "features",
                "one whose layers split into min(channels // 4, 32) equal groups; here a layer "
                f"of {width} channels has {group_count(width)} groups",
                "Take a multiple of 32, which always works.",
            )
