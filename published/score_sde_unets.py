"""The U-Nets of Song et al. 2021, NCSN++, DDPM++ and DDPM, as their two code bases build them.

Both build a network as one sequence of modules, in the same order, and name a module by its place.
The JAX code counts each class of modules separately, ResnetBlockBigGANpp_3, including modules
without parameters. The PyTorch code counts the modules in its list, all_modules.7. So one walk over
the network in this order finds the names in both. Shapes are never used to find them.

Networks without an embedding of the noise level (`conditional = False`) still make parts of it that
they never use: Fourier frequencies in both codes, which shift the PyTorch code's count by one, and
the layer from the embedding into every block, Dense_0, in the PyTorch code.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from published.mapping import Weight
from published.pytorch_layers import Tensors, check_groups
from published.score_sde_layers import Layer, jax_weights, pytorch_weights


class _Module(NamedTuple):
    """One of their modules: its class in the JAX code, and its layers."""

    kind: str
    layers: tuple[Layer, ...]


FREQUENCIES = "all_modules.0.W"  # of the Fourier embedding in the PyTorch code

# The classes of DDPM's modules in the JAX code, where they differ from those of NCSN++.
_DDPM_KINDS = {"ResnetBlockDDPMpp": "ResnetBlockDDPM", "AttnBlockpp": "AttnBlock"}


def weights_jax(network: NCSNpp | DDPM, image_size: int) -> list[Weight]:
    """Return the rules for the parameters of the JAX code's network.

    Raises:
        ValueError: the JAX code has no such network.
    """
    renamed = _DDPM_KINDS if isinstance(network, DDPM) else {}
    counts: Counter[str] = Counter()
    weights = []
    for module in _modules(_as_ncsnpp(network), image_size):
        kind = renamed.get(module.kind, module.kind)
        prefix = f"{kind}_{counts[kind]}"
        counts[kind] += 1
        for layer in module.layers:
            theirs = f"{prefix}/{layer.theirs}" if layer.theirs else prefix
            weights += jax_weights(layer._replace(theirs=theirs))
    return weights


def weights_pytorch(
    network: NCSNpp | DDPM, image_size: int, *, unused_frequencies: bool = False
) -> list[Weight]:
    """Return the rules for the parameters of the PyTorch code's network, in its order.

    `unused_frequencies` states that a network without an embedding has Fourier frequencies.

    Raises:
        ValueError: the PyTorch code has no such network.
    """
    weights = []
    modules = _modules(_as_ncsnpp(network), image_size)
    with_layers = (module for module in modules if module.layers)
    for index, module in enumerate(with_layers, start=int(unused_frequencies)):
        prefix = f"all_modules.{index}"
        for layer in module.layers:
            theirs = f"{prefix}.{layer.theirs}" if layer.theirs else prefix
            weights += pytorch_weights(layer._replace(theirs=theirs))
    return weights


def unused(network: NCSNpp | DDPM) -> tuple[str, ...]:
    """Return patterns of the tensors, in either code, that the network makes and never uses."""
    if network.embedding != "none":
        return ()
    return ("GaussianFourierProjection_0/W", FREQUENCIES, "all_modules.*.Dense_0.*")


def with_unused(network: NCSNpp | DDPM, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return the PyTorch code's tensors with those that it never uses, as zeros, in its order."""
    if network.embedding != "none":
        return dict(tensors)
    completed: Tensors = {}
    for name, value in tensors.items():
        completed[name] = value
        block = name.removesuffix("Conv_0.bias")
        if block != name and f"{block}GroupNorm_1.weight" in tensors:
            shape = (len(value), 4 * network.features)
            completed[f"{block}Dense_0.weight"] = np.zeros(shape, np.float32)
            completed[f"{block}Dense_0.bias"] = np.zeros(shape[:1], np.float32)
    return completed


def check_resampling(network: NCSNpp | DDPM, names: Collection[str]) -> None:
    """Raise ValueError if a file's network resamples without convolutions, as none here does."""
    indices = {int(name.split(".")[1]) for name in names if name.startswith("all_modules.")}
    skipped = bool(indices) and len(indices) <= max(indices)  # a module without parameters
    if len(network.channel_multipliers) > 1 and not skipped:
        blocks = any(name.startswith("ResnetBlockDDPM") for name in names)
        skipped = blocks and not any(name.startswith("Downsample_") for name in names)
    if skipped:
        raise ValueError(
            "it changes the resolution without convolutions (resamp_with_conv = False), which no "
            "network here does. Use a file of a published configuration"
        )


def _as_ncsnpp(network: NCSNpp | DDPM) -> NCSNpp:
    """Return the network as settings of NCSN++, with the same names of parameters.

    Raises:
        ValueError: neither code base has such a network.
    """
    needed = {"decoder_attention": "resolution", "num_classes": 0, "input_frequencies": ()}
    for field, valid in needed.items():
        value = getattr(network, field, valid)
        if value != valid:
            raise ValueError(
                f"config.model.{field}={value!r}; networks of score_sde have {valid!r}. Set it so, "
                "or use another format"
            )
    if isinstance(network, NCSNpp):
        check_groups(network, "score_sde's ncsnpp", 0)
        return network
    check_groups(network, "score_sde's ddpm", 32)
    return NCSNpp(
        features=network.features,
        channel_multipliers=network.channel_multipliers,
        blocks_per_resolution=network.blocks_per_resolution,
        attention_resolutions=network.attention_resolutions,
        residual_block="ddpm",
        embedding=network.embedding,
        num_groups=network.num_groups,
        parent=None,
    )


def _modules(network: NCSNpp, image_size: int) -> Iterator[_Module]:
    """Yield their modules in the order in which both code bases make them."""
    if network.embedding == "fourier":
        yield _Module("GaussianFourierProjection", (Layer("fourier", "fourier"),))
    if network.embedding != "none":
        yield _Module("Dense", (Layer("dense", "embedding_0"),))
        yield _Module("Dense", (Layer("dense", "embedding_1"),))
    yield _Module("Conv", (Layer("conv", "input_conv"),))
    skips = yield from _encoder(network, image_size)
    width = skips[-1]
    yield _block(network, "middle_block_0", width, width)
    yield _attention("middle_attention")
    yield _block(network, "middle_block_1", width, width)
    yield from _decoder(network, image_size, skips)


def _encoder(network: NCSNpp, image_size: int) -> Iterator[_Module]:
    """Yield the modules of the encoder; return the channels of its skip connections."""
    width = network.features
    skips = [width]
    for stage, multiplier in enumerate(network.channel_multipliers):
        for i in range(network.blocks_per_resolution):
            before, width = width, network.features * multiplier
            yield _block(network, f"encoder_{stage}_block_{i}", before, width)
            if image_size >> stage in network.attention_resolutions:
                yield _attention(f"encoder_{stage}_attention_{i}")
            skips.append(width)
        if stage < len(network.channel_multipliers) - 1:
            yield _resampling(network, f"encoder_{stage}_down", "Downsample", width)
            if network.progressive_input == "input_skip":
                yield _Module("Downsample", ())
                yield _Module("Combine", (Layer("conv1x1", f"encoder_{stage}_input", "Conv_0"),))
                width *= 2 if network.progressive_combine == "cat" else 1
            elif network.progressive_input == "residual":
                yield _resample_conv(network, f"encoder_{stage}_input", "Downsample")
            skips.append(width)
    return skips


def _decoder(network: NCSNpp, image_size: int, skips: list[int]) -> Iterator[_Module]:
    """Yield the modules of the decoder and the output, given the channels of the skips."""
    width = skips[-1]
    last = len(network.channel_multipliers) - 1
    for stage in range(last, -1, -1):
        for i in range(network.blocks_per_resolution + 1):
            before, width = (
                width + skips.pop(),
                network.features * network.channel_multipliers[stage],
            )
            yield _block(network, f"decoder_{stage}_block_{i}", before, width)
        if image_size >> stage in network.attention_resolutions:
            yield _attention(f"decoder_{stage}_attention")
        if network.progressive_output == "output_skip":
            if stage < last:
                yield _Module("Upsample", ())
            yield from _head(f"decoder_{stage}_output")
        elif network.progressive_output == "residual":
            if stage < last:
                yield _resample_conv(network, f"decoder_{stage}_output", "Upsample")
            else:
                yield from _head(f"decoder_{stage}_output")
        if stage > 0:
            yield _resampling(network, f"decoder_{stage}_up", "Upsample", width)
    if network.progressive_output != "output_skip":
        yield from _head("output")


def _head(ours: str) -> Iterator[_Module]:
    yield _Module("GroupNorm", (Layer("norm", f"{ours}_norm"),))
    yield _Module("Conv", (Layer("conv", f"{ours}_conv"),))


def _block(
    network: NCSNpp, ours: str, before: int, after: int, *, resampling: bool = False
) -> _Module:
    """Return a residual block from `before` to `after` channels."""
    layers = [
        Layer("norm", f"{ours}/norm_0", "GroupNorm_0"),
        Layer("conv", f"{ours}/conv_0", "Conv_0"),
        *([] if network.embedding == "none" else [Layer("dense", f"{ours}/embedding", "Dense_0")]),
        Layer("norm", f"{ours}/norm_1", "GroupNorm_1"),
        Layer("conv", f"{ours}/conv_1", "Conv_1"),
    ]
    biggan = network.residual_block == "biggan"
    if before != after or resampling:
        kind, theirs = ("conv1x1", "Conv_2") if biggan else ("nin", "NIN_0")
        layers.append(Layer(kind, f"{ours}/shortcut", theirs))
    return _Module("ResnetBlockBigGANpp" if biggan else "ResnetBlockDDPMpp", tuple(layers))


def _attention(ours: str) -> _Module:
    names = ("query", "key", "value", "output")
    nins = (Layer("nin", f"{ours}/{name}", f"NIN_{i}") for i, name in enumerate(names))
    return _Module("AttnBlockpp", (Layer("norm", f"{ours}/norm", "GroupNorm_0"), *nins))


def _resampling(network: NCSNpp, ours: str, kind: str, width: int) -> _Module:
    """Return the change of resolution."""
    if network.residual_block == "biggan":
        return _block(network, ours, width, width, resampling=True)
    return _resample_conv(network, ours, kind)


def _resample_conv(network: NCSNpp, ours: str, kind: str) -> _Module:
    """Return a convolution that changes the resolution, "Downsample" or "Upsample"."""
    if network.resample == "fir":
        return _Module(kind, (Layer("fir_conv", f"{ours}/conv", "Conv2d_0"),))
    return _Module(kind, (Layer("conv", f"{ours}/conv", "Conv_0"),))
