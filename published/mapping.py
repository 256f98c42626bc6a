"""Rules between a published checkpoint's tensors and our parameters, applied and inverted.

A rule, `Weight`, says that our parameter p at a path is a rearrangement of their tensor w of some
name, p = to_ours(w) and w = to_theirs(p). The rearrangements are pairs with a name:

    theirs                                            ours
    IDENTICAL         any shape                       the same
    CONV              PyTorch (out, in, h, w)         (h, w, in, out)
    LINEAR            PyTorch (out, in)               (in, out)
    CONV_1X1          PyTorch (out, in, 1, 1)         (in, out), since a 1x1 convolution is a dense
    CONV_1D           PyTorch (out, in, 1)            (in, out)   layer over channels
    FLAX_CONV_1X1     Flax (1, 1, in, out)            (in, out)
    IMAGE_CHANNELS    (1, 1, 1, channels)             (channels,)

`part` cuts one of several matrices out of a fused tensor, such as the queries out of query, key and
value. `translate` applies a list of rules, and refuses unless they account for every tensor there
and every parameter here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

Tensor = Shaped[np.ndarray, "..."]
Rearrange = Callable[[Tensor], Tensor]

_SHOWN = 4  # how many of a long list a message names
REMEDY = "Set the fields of config.model to those the checkpoint was trained with"


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter of ours and where it is in a published checkpoint.

    Attributes:
        ours: path of our parameter, such as "encoder_0_block_0/conv_0/kernel".
        theirs: name of their tensor, such as "all_modules.4.Conv_0.weight". Several parameters may
            be parts of one tensor.
        to_ours: rearranges theirs to ours.
        to_theirs: rearranges ours to theirs; None where one parameter does not make a whole tensor.
    """

    ours: str
    theirs: str
    to_ours: Rearrange
    to_theirs: Rearrange | None


class Imported(NamedTuple):
    """A training state in our words, its parameters nested dicts of float32 arrays."""

    step: int
    params: dict[str, Any]
    ema_params: dict[str, Any]


class Layout(NamedTuple):
    """Two rearrangements, each the other's inverse."""

    to_ours: Rearrange
    to_theirs: Rearrange | None

    def weight(self, ours: str, theirs: str) -> Weight:
        """The rule that `theirs` in this layout is `ours`."""
        return Weight(ours=ours, theirs=theirs, to_ours=self.to_ours, to_theirs=self.to_theirs)


def _transposed(*axes: int) -> Layout:
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Layout(lambda w: w.transpose(axes), lambda p: p.transpose(inverse))


def _without_axes(layout: Layout, *axes: int) -> Layout:
    """`layout`, behind axes of length 1 that theirs has and ours lacks."""
    return Layout(
        lambda w: layout.to_ours(w.squeeze(axes)),
        lambda p: np.expand_dims(layout.to_theirs(p), axes),
    )


IDENTICAL = Layout(lambda w: w, lambda p: p)
CONV = _transposed(2, 3, 1, 0)
LINEAR = _transposed(1, 0)
CONV_1X1 = _without_axes(LINEAR, 2, 3)
CONV_1D = _without_axes(LINEAR, 2)
FLAX_CONV_1X1 = _without_axes(IDENTICAL, 0, 1)
IMAGE_CHANNELS = _without_axes(IDENTICAL, 0, 1, 2)


def part(
    index: int,
    layout: Layout,
    *,
    parts: int = 3,
    heads: int = 1,
    order: str = "part head channel",
    axis: int = 0,
) -> Layout:
    """One of `parts` matrices that share a tensor along `axis`, its outputs sorted by head.

    `order` says how the tensor's axis runs, the slowest first: "part head channel" is all of one
    matrix after the other; "head part channel" interleaves them head by head, "head channel part"
    channel by channel. One part does not make the tensor, so that there is no way back.

    Args:
        index: which part, from 0.
        layout: that of the part alone.
        parts: how many there are.
        heads: how many heads the outputs of each part belong to.
        order: the three words in the order of the file.
        axis: the axis of the outputs, 0 in PyTorch.

    Raises:
        ValueError: `order` is not a permutation of the three words, or there is no part `index`.
    """
    words = order.split()
    if sorted(words) != ["channel", "head", "part"] or not 0 <= index < parts:
        raise ValueError(
            f"part {index} of {parts} in order {order!r}; valid is 0 .. parts - 1 and an order of "
            "the words part, head and channel"
        )

    def cut(w: Tensor) -> Tensor:
        sizes = {"part": parts, "head": heads, "channel": -1}
        w = np.moveaxis(w, axis, 0)
        split = w.reshape(*(sizes[word] for word in words), *w.shape[1:])
        mine = split.take(index, axis=words.index("part"))
        outputs = mine.shape[0] * mine.shape[1]
        return np.moveaxis(mine.reshape(outputs, *w.shape[1:]), 0, axis)

    return Layout(lambda w: layout.to_ours(cut(w)), None)


def translate(
    weights: Iterable[Weight],
    template: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    unused: Sequence[str] = (),
    source: str = "the checkpoint",
    remedy: str = REMEDY,
) -> dict[str, Any]:
    """Our parameters from their tensors, as nested dicts of float32 arrays.

    Args:
        weights: the rules, one for each parameter of the template.
        template: nested dicts whose leaves have a shape, as `jax.eval_shape` makes them.
        tensors: their tensors by name.
        unused: patterns (`fnmatch`) of tensors that no rule needs to name, such as "*.sigmas".
        source: what messages call the checkpoint, such as its path.
        remedy: what messages end with.

    Raises:
        ValueError: in one line, which tensors are missing, surplus or of the wrong shape, with both
            names and both shapes; or the first tensor with a number that is not finite.
    """
    rules, wanted = list(weights), dict(_leaves(template))
    problems = _unruled(rules, wanted)
    found: dict[str, Tensor] = {}
    for rule in rules:
        if rule.ours not in wanted:
            continue
        shape = tuple(wanted[rule.ours].shape)
        if rule.theirs not in tensors:
            problems["missing"].append(f"{rule.theirs} for {rule.ours} {shape}")
            continue
        tensor = tensors[rule.theirs]
        found[rule.ours] = value = _rearranged(rule.to_ours, tensor)
        if value.shape != shape:
            problems["wrongly shaped"].append(
                f"{rule.theirs} {tensor.shape} for {rule.ours} {shape}"
            )
    named = {rule.theirs for rule in rules}
    problems["surplus"] = [
        f"{name} {np.shape(tensor)}"
        for name, tensor in tensors.items()
        if name not in named and not any(fnmatchcase(name, pattern) for pattern in unused)
    ]
    _raise_if_any(problems, source, remedy)
    theirs = {rule.ours: rule.theirs for rule in rules}
    return _nested(
        {path: _finite(found[path], f"{theirs[path]} ({path})", source) for path in wanted}
    )


def translate_back(
    weights: Iterable[Weight], params: Mapping[str, Any]
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Their tensors from our parameters, float32, by name in the order of the rules.

    Raises:
        ValueError: in one line, which parameters no rule knows, or which rules have no parameter
            or no way back; or the first parameter with a number that is not finite.
    """
    rules, given = list(weights), dict(_leaves(params))
    problems = _unruled(rules, given)
    problems["without a way back"] = [
        f"{rule.ours} as {rule.theirs}" for rule in rules if rule.to_theirs is None
    ]
    _raise_if_any(problems, "the network's parameters")
    return {
        rule.theirs: _finite(
            rule.to_theirs(np.asarray(given[rule.ours])), rule.ours, "the network's parameters"
        )
        for rule in rules
    }


def _unruled(rules: Sequence[Weight], wanted: Mapping[str, Any]) -> dict[str, list[str]]:
    """Where rules and parameters differ, which is the rules' fault and not the checkpoint's."""
    counts = Counter(rule.ours for rule in rules)
    return {
        "without a rule": [path for path in wanted if path not in counts],
        "only in the rules": [
            f"{rule.ours} from {rule.theirs}" for rule in rules if rule.ours not in wanted
        ],
        "in two rules": [path for path, count in counts.items() if count > 1],
        "missing": [],
        "wrongly shaped": [],
        "surplus": [],
    }


def _raise_if_any(problems: Mapping[str, Sequence[str]], source: str, remedy: str = REMEDY) -> None:
    texts = []
    for kind, items in problems.items():
        if items:
            more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
            texts.append(f"{len(items)} {kind}: {', '.join(items[:_SHOWN])}{more}")
    if texts:
        raise ValueError(f"{source} does not fit this network; {'; '.join(texts)}. {remedy}")


def _rearranged(rearrange: Rearrange, tensor: Tensor) -> Tensor:
    """The tensor in our layout, or as it is where it has not the axes to be rearranged."""
    try:
        return rearrange(np.asarray(tensor))
    except (ValueError, IndexError):
        return np.empty((*np.shape(tensor), 0))  # a shape that no parameter has


def _finite(tensor: Tensor, name: str, source: str) -> Float32[np.ndarray, "..."]:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is told below
        value = np.ascontiguousarray(tensor, dtype=np.float32).reshape(tensor.shape)
    if not np.isfinite(value).all():
        count = int(value.size - np.isfinite(value).sum())
        raise ValueError(
            f"{source}: {name} has {count} of {value.size} numbers that are not finite. The "
            "training it is from has failed; take an earlier checkpoint"
        )
    return value


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_leaves`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree
