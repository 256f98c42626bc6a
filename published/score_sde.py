"""Checkpoints of Song et al. 2021 (arXiv:2011.13456) and of the networks before theirs.

    https://github.com/yang-song/score_sde            {step, optimizer: {target}, params_ema, ...}
    https://github.com/yang-song/score_sde_pytorch    {step, model, ema: {shadow_params}, optimizer}
    https://github.com/ermongroup/ncsnv2 and ncsn     [model, optimizer, epoch, step, averages]

The first, in Flax, has the averaged parameters by name. The second, in PyTorch, has them as a list
in the order of the trained parameters. A Fourier embedding's frequencies are not trained, so their
average is the parameter itself. The third may end after the optimizer; then the parameters replace
their averages.

`score_sde_unets.py`, and `score_sde_refinenets.py` for NCSN and NCSNv2, find the names of the
tensors by walking the networks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from errors import FileError
from files.nested import flatten
from files.paths import AnyPath
from models.ddpm import DDPM
from models.ncsn import NCSN
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from published import score_sde_refinenets, score_sde_unets
from published.formats.torch_writer import write_torch
from published.mapping import Imported, Template, Weight, translate, translate_back
from published.pytorch_layers import Tensors, check_network
from published.steps import read_step

Network = NCSNpp | DDPM | NCSN | NCSNv2
_CLASSES = {"ncsnpp": NCSNpp, "ddpm": DDPM, "ncsnv2": NCSNv2, "ncsn": NCSN}

# Tensors of the PyTorch networks that are not parameters: the table of noise levels.
UNUSED = ("sigmas",)
_FREQUENCIES = score_sde_unets.FREQUENCIES
# Errors of reading an unexpected structure.
_STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError)


class Published(NamedTuple):
    """Their training state: its step, and both sets of tensors by name."""

    step: int
    params: Tensors
    ema: Tensors


def is_checkpoint(tree: Any) -> bool:
    """Return whether a file's content is a training state of one of the code bases."""
    if isinstance(tree, Mapping):
        return "params_ema" in tree or (
            "model" in tree
            and isinstance(ema := tree.get("ema"), Mapping)
            and "shadow_params" in ema
        )
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], Mapping):
        return False
    return "begin_conv.weight" in {str(name).removeprefix("module.") for name in tree[0]}


def import_state(
    tree: Any, network: Network, image_size: int, template: Template, *, source: str
) -> Imported:
    """Translate a training state of any of the code bases; arguments as in `published`."""
    try:
        if isinstance(tree, Mapping) and "params_ema" in tree:
            published, weights = load_jax(tree), weights_jax(network, image_size)
        else:
            load = load_ncsn if isinstance(tree, list) else load_pytorch
            published = load(tree)
            weights = weights_pytorch(
                network, image_size, unused_frequencies=_FREQUENCIES in published.params
            )
        unused = UNUSED
        if isinstance(network, NCSNpp | DDPM):
            score_sde_unets.check_resampling(network, published.params)
            unused += score_sde_unets.unused(network)
    except ValueError as error:
        raise FileError(f"{source}: {error}") from error
    params, ema_params = (
        translate(weights, template, tensors, unused=unused, source=f"{source} ({name})")
        for name, tensors in (("parameters", published.params), ("averages", published.ema))
    )
    return Imported(published.step, params, ema_params)


def weights_jax(network: Network, image_size: int) -> list[Weight]:
    """Return the rules for the parameters of the JAX code's network.

    Raises:
        ValueError: the JAX code has no such network.
    """
    check_network(network, "score_sde", _CLASSES, {})
    if isinstance(network, NCSN | NCSNv2):
        return score_sde_refinenets.weights_jax(network)
    return score_sde_unets.weights_jax(network, image_size)


def weights_pytorch(
    network: Network, image_size: int, *, unused_frequencies: bool = False
) -> list[Weight]:
    """Return the rules for the parameters of the PyTorch code's network, in its order.

    With `unused_frequencies`, a network without an embedding has Fourier frequencies.

    Raises:
        ValueError: the PyTorch code has no such network.
    """
    check_network(network, "score_sde", _CLASSES, {})
    if isinstance(network, NCSN | NCSNv2):
        return score_sde_refinenets.weights_pytorch(network)
    shifted = unused_frequencies and network.embedding == "none"
    return score_sde_unets.weights_pytorch(network, image_size, unused_frequencies=shifted)


def load_jax(tree: Any) -> Published:
    """Return the state in a checkpoint of the JAX code, named as "NIN_0/W".

    Raises:
        FileError: `tree` is not such a state.
    """
    try:
        params, ema = _arrays(tree["optimizer"]["target"]), _arrays(tree["params_ema"])
        step = tree["step"]
    except _STRANGE as error:
        raise _foreign(tree, "step, optimizer with target, and params_ema") from error
    return Published(read_step(step), params, ema)


def load_pytorch(tree: Any) -> Published:
    """Return the state in a checkpoint of the PyTorch code, named as "all_modules.4.NIN_0.W".

    Raises:
        FileError: `tree` is not such a state, or its averages do not fit its parameters.
    """
    try:
        params = _without_prefix(tree["model"])
        shadow, step = list(tree["ema"]["shadow_params"]), tree["step"]
    except _STRANGE as error:
        raise _foreign(tree, "step, model, and ema with shadow_params") from error
    names = [name for name in params if name not in UNUSED]
    if len(shadow) < len(names) and _FREQUENCIES in names:
        names.remove(_FREQUENCIES)
    shapes = [np.shape(params[name]) for name in names]
    if shapes != [np.shape(value) for value in shadow]:
        raise FileError(
            f"its {len(shadow)} averages do not fit its {len(names)} trained parameters. Use a "
            "checkpoint that score_sde_pytorch has written"
        )
    return Published(read_step(step), params, params | dict(zip(names, shadow, strict=True)))


def load_ncsn(tree: Any) -> Published:
    """Return the state in a checkpoint of NCSN or NCSNv2, named as "res1.0.conv1.weight".

    Raises:
        FileError: `tree` is not such a state.
    """
    try:
        params = _without_prefix(tree[0])
        step = tree[3] if len(tree) > 3 else 0
        ema = _without_prefix(tree[4]) if len(tree) > 4 else {}
    except _STRANGE as error:
        raise _foreign(tree, "model, optimizer, epoch, step and averages in a list") from error
    return Published(read_step(step), params, params | ema)


def _without_prefix(tensors: Mapping[str, Any]) -> Tensors:
    """Return the tensors of a module by its own names, without torch.nn.DataParallel's prefix."""
    return {name.removeprefix("module."): np.asarray(value) for name, value in tensors.items()}


def _foreign(tree: Any, expected: str) -> FileError:
    keys = "no names"
    if isinstance(tree, Mapping):
        keys = ", ".join(map(repr, list(tree)[:6])) + (", ..." if len(tree) > 6 else "")
    return FileError(
        f"it holds {keys} at the top; a checkpoint of score_sde's training holds {expected}. Use "
        "a file that its training has written"
    )


def _arrays(tree: Mapping[str, Any]) -> Tensors:
    return {name: np.asarray(value) for name, value in flatten(tree).items()}


def export_pytorch(
    network: Network,
    image_size: int,
    params: Mapping[str, Any],
    ema_params: Mapping[str, Any],
    step: int,
    path: AnyPath,
    *,
    ema_decay: float = 0.9999,
) -> None:
    """Write a checkpoint that score_sde_pytorch restores, with a new optimizer.

    What the network there makes and never uses, without an embedding, is zero (`embedding="none"`).
    The optimizer's moments are left out: if training continues there, Adam starts from zero with
    the paper's settings. The format has no place for the average of a Fourier embedding's
    frequencies, which are never trained.

    Raises:
        ValueError: the parameters are not those of the network or not finite, or the frequencies
            differ from their averages by more than rounding.
        OSError: the file cannot be written.
    """
    if isinstance(network, NCSN):
        raise ValueError(
            "config.model.name='ncsn' cannot run in score_sde_pytorch; valid is 'ncsnpp', "
            "'ddpm' or 'ncsnv2'"
        )
    weights = weights_pytorch(network, image_size)
    model, ema = translate_back(weights, params), translate_back(weights, ema_params)
    if isinstance(network, NCSNpp | DDPM):
        model, ema = (score_sde_unets.with_unused(network, tensors) for tensors in (model, ema))
    if not np.allclose(model.get(_FREQUENCIES, 0), ema.get(_FREQUENCIES, 0), rtol=1e-4, atol=0):
        raise ValueError(
            "the averages of fourier/frequencies differ from the parameter, and a checkpoint of "
            "score_sde_pytorch holds only one of them. Export the averages as the parameters too"
        )
    adam = {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    content = {
        "optimizer": {"state": {}, "param_groups": [{**adam, "params": list(range(len(model)))}]},
        # score_sde_pytorch restores only names with the prefix of torch.nn.DataParallel.
        "model": {f"module.{name}": value for name, value in model.items()},
        "ema": {
            "decay": ema_decay,
            "num_updates": step,
            "shadow_params": [value for name, value in ema.items() if name != _FREQUENCIES],
        },
        "step": step,
    }
    write_torch(path, content)
