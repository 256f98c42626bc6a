"""Checkpoints of Song et al. 2021 (arXiv:2011.13456) and of the networks before theirs.

    https://github.com/yang-song/score_sde            {step, optimizer: {target}, params_ema, ...}
    https://github.com/yang-song/score_sde_pytorch    {step, model, ema: {shadow_params}, optimizer}
    https://github.com/ermongroup/ncsnv2 and ncsn     [model, optimizer, epoch, step, averages]

The first, in Flax, has the averaged parameters by name; the second, in PyTorch, as a list in the
order of those that are trained. A Fourier embedding's frequencies are not trained, and their
average is the parameter itself. The third may lack what follows the optimizer; then the parameters
stand for their averages.

The names of the tensors are found by walking the networks: `score_sde_unets.py`, and
`score_sde_refinenets.py` for NCSN and NCSNv2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from models.ddpm import DDPM
from models.ncsn import NCSN
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from published import score_sde_refinenets, score_sde_unets
from published.formats.errors import FileError
from published.formats.torch_writer import write_torch
from published.mapping import Imported, Weight, translate, translate_back
from published.pytorch_layers import check_network

Network = NCSNpp | DDPM | NCSN | NCSNv2
_CLASSES = {"ncsnpp": NCSNpp, "ddpm": DDPM, "ncsnv2": NCSNv2, "ncsn": NCSN}
Tensors = dict[str, Shaped[np.ndarray, "..."]]

# Tensors of the PyTorch networks that are no parameters: the table of noise levels.
UNUSED = ("sigmas",)
_FREQUENCIES = "all_modules.0.W"
_STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError)  # of what is not expected


class Published(NamedTuple):
    """A training state of theirs: its step, and both sets of tensors by their names."""

    step: int
    params: Tensors
    ema: Tensors


def is_checkpoint(tree: Any) -> bool:
    """Whether the content of a file is a training state of one of the code bases."""
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
    tree: Any, network: Network, image_size: int, template: Mapping[str, Any], *, source: str
) -> Imported:
    """Our parameters and their averages from the content of a file of any of the code bases.

    Args:
        tree: what `files.read` returns.
        network: our network, with the settings that the file was trained with.
        image_size: height of the images it was trained on.
        template: its abstract parameters, as `jax.eval_shape` makes them.
        source: what messages call the file, such as its path.

    Raises:
        ValueError: the file is of none of the code bases, or does not fit the network.
    """
    try:
        if isinstance(tree, Mapping) and "params_ema" in tree:
            published, weights = load_jax(tree), weights_jax(network, image_size)
        else:
            load = load_ncsn if isinstance(tree, list) else load_pytorch
            published, weights = load(tree), weights_pytorch(network, image_size)
    except ValueError as error:
        raise FileError(f"{source}: {error}") from error
    params, ema_params = (
        translate(weights, template, tensors, unused=UNUSED, source=f"{source} ({name})")
        for name, tensors in (("parameters", published.params), ("averages", published.ema))
    )
    return Imported(published.step, params, ema_params)


def weights_jax(network: Network, image_size: int) -> list[Weight]:
    """The rules for the parameters of the JAX code's network.

    Raises:
        ValueError: the JAX code has no such network.
    """
    check_network(network, "score_sde", _CLASSES, {})
    if isinstance(network, NCSN | NCSNv2):
        return score_sde_refinenets.weights_jax(network)
    return score_sde_unets.weights_jax(network, image_size)


def weights_pytorch(network: Network, image_size: int) -> list[Weight]:
    """The rules for the parameters of the PyTorch code's network, in the order it lists them.

    Raises:
        ValueError: the PyTorch code has no such network.
    """
    check_network(network, "score_sde", _CLASSES, {})
    if isinstance(network, NCSN | NCSNv2):
        return score_sde_refinenets.weights_pytorch(network)
    return score_sde_unets.weights_pytorch(network, image_size)


def load_jax(tree: Any) -> Published:
    """The state in a checkpoint of the JAX code; names are such as "NIN_0/W".

    Raises:
        FileError: `tree` is no such state.
    """
    try:
        params, ema = tree["optimizer"]["target"], tree["params_ema"]
        return Published(int(tree["step"]), _flat(params), _flat(ema))
    except _STRANGE as error:
        raise _foreign(tree, "step, optimizer with target, and params_ema") from error


def load_pytorch(tree: Any) -> Published:
    """The state in a checkpoint of the PyTorch code; names are such as "all_modules.4.NIN_0.W".

    Raises:
        FileError: `tree` is no such state, or has other averages than parameters.
    """
    try:
        params = _without_prefix(tree["model"])
        shadow, step = list(tree["ema"]["shadow_params"]), int(tree["step"])
    except _STRANGE as error:
        raise _foreign(tree, "step, model, and ema with shadow_params") from error
    names = [name for name in params if name not in UNUSED]
    if len(shadow) < len(names) and _FREQUENCIES in names:
        names.remove(_FREQUENCIES)
    shapes = [np.shape(params[name]) for name in names]
    if shapes != [np.shape(value) for value in shadow]:
        raise FileError(
            f"its {len(shadow)} averages do not fit its {len(names)} trained parameters. Take a "
            "checkpoint as score_sde_pytorch writes it"
        )
    return Published(step, params, params | dict(zip(names, shadow, strict=True)))


def load_ncsn(tree: Any) -> Published:
    """The state in a checkpoint of NCSN or NCSNv2; names are such as "res1.0.conv1.weight".

    Raises:
        FileError: `tree` is no such state.
    """
    try:
        params = _without_prefix(tree[0])
        step = int(tree[3]) if len(tree) > 3 else 0
        ema = _without_prefix(tree[4]) if len(tree) > 4 else {}
    except _STRANGE as error:
        raise _foreign(tree, "model, optimizer, epoch, step and averages in a list") from error
    return Published(step, params, params | ema)


def _without_prefix(tensors: Mapping[str, Any]) -> Tensors:
    """The tensors of a module by its own names, which torch.nn.DataParallel changes."""
    return {name.removeprefix("module."): np.asarray(value) for name, value in tensors.items()}


def _foreign(tree: Any, expected: str) -> FileError:
    keys = "no names"
    if isinstance(tree, Mapping):
        keys = ", ".join(map(repr, list(tree)[:6])) + (", ..." if len(tree) > 6 else "")
    return FileError(
        f"it holds {keys} at the top; a checkpoint of score_sde's training holds {expected}. Take "
        "the file that its training wrote, or name the project that this one is from"
    )


def _flat(tree: Mapping[str, Any], path: str = "") -> Tensors:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}/")
        else:
            flat[f"{path}{key}"] = np.asarray(value)
    return flat


def export_pytorch(
    network: Network,
    image_size: int,
    params: Mapping[str, Any],
    ema_params: Mapping[str, Any],
    step: int,
    path: Path,
    *,
    ema_decay: float = 0.9999,
) -> None:
    """Writes a checkpoint that score_sde_pytorch restores, with an optimizer that starts afresh.

    The optimizer's moments, which are not part of a published model, are left out: going on with
    the training there, Adam starts from zero with the paper's settings. Nor is there a place for
    the average of a Fourier embedding's frequencies, which are never trained.

    Raises:
        ValueError: the parameters are not those of the network, or not finite, or averages of the
            frequencies differ from them by more than rounding.
        OSError: the file cannot be written.
    """
    if isinstance(network, NCSN):
        raise ValueError(
            "config.model.name is 'ncsn', which score_sde_pytorch cannot run; valid is one of "
            "'ncsnpp', 'ddpm' and 'ncsnv2'"
        )
    weights = weights_pytorch(network, image_size)
    model, ema = translate_back(weights, params), translate_back(weights, ema_params)
    if not np.allclose(model.get(_FREQUENCIES, 0), ema.get(_FREQUENCIES, 0), rtol=1e-4, atol=0):
        raise ValueError(
            "the averages of fourier/frequencies differ from the parameter, for which a checkpoint "
            "of score_sde_pytorch has no place. Export the averages as the parameters too"
        )
    adam = {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    content = {
        "optimizer": {"state": {}, "param_groups": [{**adam, "params": list(range(len(model)))}]},
        # The prefix is that of torch.nn.DataParallel, without which nothing would be restored.
        "model": {f"module.{name}": value for name, value in model.items()},
        "ema": {
            "decay": ema_decay,
            "num_updates": step,
            "shadow_params": [value for name, value in ema.items() if name != _FREQUENCIES],
        },
        "step": step,
    }
    write_torch(path, content)
