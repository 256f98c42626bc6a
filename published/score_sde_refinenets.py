"""NCSN and NCSNv2 (Song and Ermon 2019, 2020) as the code bases of Song et al. 2021 build them.

The JAX code names a block's modules by class and count. The PyTorch code names them by purpose, as
https://github.com/ermongroup/ncsn and https://github.com/ermongroup/ncsnv2 do. It makes them in an
order of its own, which is the order of the averaged parameters. NCSN has a normalization before
every convolution, with weights per noise level. It does not run in the JAX code, so that there are
no such checkpoints.
"""

from collections.abc import Iterator

from models.ncsn import NCSN
from models.ncsnv2 import NCSNv2
from models.refinenet import SIZES
from published.mapping import Weight
from published.score_sde_layers import Layer, jax_weights, pytorch_weights

RefineNets = NCSN | NCSNv2

# Names of the stages in the PyTorch code, from fine to coarse, by their number. The refine blocks
# have the same names from coarse to fine.
_STAGES = {
    4: ("1", "2", "3", "4"),
    5: ("1", "2", "3", "4", "5"),
    6: ("1", "2", "3", "31", "4", "5"),
}
_REFINED = {
    4: ("4", "3", "2", "1"),
    5: ("5", "4", "3", "2", "1"),
    6: ("5", "4", "3", "31", "2", "1"),
}


def weights_jax(network: RefineNets) -> list[Weight]:
    """Return the rules for the parameters of the JAX code's network.

    Raises:
        ValueError: the JAX code has no such network.
    """
    if isinstance(network, NCSN):
        raise ValueError(
            "config.model.name='ncsn' cannot run in the JAX code of score_sde; use a checkpoint of "
            "the PyTorch code"
        )
    _check_implementation(network, "jax")
    return [weight for layer in _jax_layers(_dilations(network)) for weight in jax_weights(layer)]


def weights_pytorch(network: RefineNets) -> list[Weight]:
    """Return the rules for the parameters of the PyTorch code's network, in its order.

    Raises:
        ValueError: the PyTorch code has no such network.
    """
    _check_implementation(network, "pytorch")
    layers = _pytorch_layers(_dilations(network), conditional=isinstance(network, NCSN))
    return [weight for layer in layers for weight in pytorch_weights(layer)]


def _check_implementation(network: RefineNets, valid: str) -> None:
    if network.implementation != valid:
        raise ValueError(
            f"config.model.implementation={network.implementation!r}; the checkpoint needs "
            f"{valid!r}. Set it so, or the network computes something else"
        )


def _dilations(network: RefineNets) -> list[int]:
    """Return the dilation of each stage, from fine to coarse."""
    size = network.size if isinstance(network, NCSNv2) else 64
    return [dilation for _, dilation in SIZES[size]]


def _is_entry(stage: int, block: int) -> bool:
    return stage > 0 and block == 0


def _jax_layers(dilations: list[int]) -> Iterator[Layer]:
    yield Layer("conv", "input_conv", "Conv_0")
    for stage, dilation in enumerate(dilations):
        for block in range(2):
            ours = f"encoder_{stage}_block_{block}"
            theirs = f"ResidualBlock_{2 * stage + block}"
            yield Layer("instance_norm", f"{ours}/norm_0", f"{theirs}/InstanceNorm2dPlus_0")
            yield Layer("instance_norm", f"{ours}/norm_1", f"{theirs}/InstanceNorm2dPlus_1")
            yield Layer("conv", f"{ours}/conv_0", f"{theirs}/Conv_0")
            pooled = _is_entry(stage, block) and dilation == 1
            last, shortcut = (
                ("ConvMeanPool_0/Conv_0", "ConvMeanPool_1/Conv_0")
                if pooled
                else ("Conv_1", "Conv_2")
            )
            yield Layer("conv", f"{ours}/conv_1", f"{theirs}/{last}")
            if _is_entry(stage, block):
                yield Layer("conv", f"{ours}/shortcut", f"{theirs}/{shortcut}")
    for count, stage in enumerate(reversed(range(len(dilations)))):
        inputs = 1 if count == 0 else 2
        yield from _jax_refine(f"refine_{stage}", f"RefineBlock_{count}", inputs, last=stage == 0)
    yield Layer("instance_norm", "output_norm", "InstanceNorm2dPlus_0")
    yield Layer("conv", "output_conv", "Conv_1")


def _jax_refine(ours: str, theirs: str, inputs: int, *, last: bool) -> Iterator[Layer]:
    """Yield the layers of a refine block."""
    kind = "conv_without_bias"
    groups = [*((f"input_{i}", 2) for i in range(inputs)), ("output", 3 if last else 1)]
    for group, (name, units) in enumerate(groups):
        for unit in range(units):
            for i in range(2):
                yield Layer(
                    kind,
                    f"{ours}/{name}_unit_{unit}/conv_{i}",
                    f"{theirs}/RCUBlock_{group}/Conv_{2 * unit + i}",
                )
    for i in range(inputs if inputs > 1 else 0):
        yield Layer("conv", f"{ours}/fusion/conv_{i}", f"{theirs}/MSFBlock_0/Conv_{i}")
    for i in range(2):
        yield Layer(kind, f"{ours}/pooling/conv_{i}", f"{theirs}/CRPBlock_0/Conv_{i}")


def _pytorch_layers(dilations: list[int], *, conditional: bool) -> Iterator[Layer]:
    norm = "conditional_norm" if conditional else "instance_norm"
    yield Layer("conv", "input_conv", "begin_conv")
    yield Layer(norm, "output_norm", "normalizer")
    yield Layer("conv", "output_conv", "end_conv")
    names, refined = _STAGES[len(dilations)], _REFINED[len(dilations)]
    for stage, (name, dilation) in enumerate(zip(names, dilations, strict=True)):
        for block in range(2):
            ours, theirs = f"encoder_{stage}_block_{block}", f"res{name}.{block}"
            inner = ".conv" if _is_entry(stage, block) and dilation == 1 else ""
            yield Layer("conv", f"{ours}/conv_0", f"{theirs}.conv1")
            yield Layer(norm, f"{ours}/norm_1", f"{theirs}.normalize2")
            yield Layer("conv", f"{ours}/conv_1", f"{theirs}.conv2{inner}")
            if _is_entry(stage, block):
                yield Layer("conv", f"{ours}/shortcut", f"{theirs}.shortcut{inner}")
            yield Layer(norm, f"{ours}/norm_0", f"{theirs}.normalize1")
    for name in names:
        stage = refined.index(name)
        inputs = 1 if stage == len(names) - 1 else 2
        yield from _pytorch_refine(
            f"refine_{stage}", f"refine{name}", inputs, last=stage == 0, conditional=conditional
        )


def _pytorch_refine(
    ours: str, theirs: str, inputs: int, *, last: bool, conditional: bool
) -> Iterator[Layer]:
    """Yield the layers of a refine block."""
    groups = [(f"input_{i}", f"adapt_convs.{i}", 2) for i in range(inputs)]
    for name, unit_name, units in [*groups, ("output", "output_convs", 3 if last else 1)]:
        for unit in range(units):
            for i in range(2):
                here = f"{ours}/{name}_unit_{unit}"
                there = f"{theirs}.{unit_name}.{unit + 1}_{i + 1}"
                if conditional:
                    yield Layer("conditional_norm", f"{here}/norm_{i}", f"{there}_norm")
                yield Layer("conv_without_bias", f"{here}/conv_{i}", f"{there}_conv")
    lists = [("conv_without_bias", "pooling", "crp", 2)]
    if inputs > 1:
        lists.insert(0, ("conv", "fusion", "msf", inputs))
    for kind, name, list_name, count in lists:
        for i in range(count):
            yield Layer(kind, f"{ours}/{name}/conv_{i}", f"{theirs}.{list_name}.convs.{i}")
        for i in range(count if conditional else 0):
            there = f"{theirs}.{list_name}.norms.{i}"
            yield Layer("conditional_norm", f"{ours}/{name}/norm_{i}", there)
