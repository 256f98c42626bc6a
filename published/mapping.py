"""Rules between a published checkpoint's tensors and our parameters, applied and inverted.

A rule, `Weight`, states that our parameter p is a rearrangement of their tensor w, p = to_ours(w)
and w = to_theirs(p), and gives both names. The rearrangements are:

    theirs                                            ours
    IDENTICAL         any shape                       the same
    CONV              PyTorch (out, in, h, w)         (h, w, in, out)
    LINEAR            PyTorch (out, in)               (in, out)
    CONV_1X1          PyTorch (out, in, 1, 1)         (in, out), since a 1x1 convolution is a dense
    CONV_1D           PyTorch (out, in, 1)            (in, out)   layer over channels
    FLAX_CONV_1X1     Flax (1, 1, in, out)            (in, out)
    IMAGE_CHANNELS    (1, 1, 1, channels),            (channels,)
                      or already (channels,)

`part` cuts one of several matrices out of a fused tensor, such as the queries out of query, key and
value. `translate` applies a list of rules. It raises an error unless they cover every tensor and
every parameter.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

from errors import FileError
from files.nested import flatten, unflatten

Tensor = Shaped[np.ndarray, "..."]
Rearrange = Callable[[Tensor], Tensor]
Template = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

_SHOWN = 2  # items of a long list in a message
REMEDY = "Set the fields of config.model to those the checkpoint was trained with"


class NotFiniteError(FileError):
    """A file that fits the network, and holds NaN or infinite numbers."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One of our parameters, and its place in a published checkpoint.

    Attributes:
        ours: path of our parameter, such as "encoder_0_block_0/conv_0/kernel".
        theirs: name of their tensor, such as "all_modules.4.Conv_0.weight". Several parameters may
            be parts of one tensor.
        to_ours: rearranges theirs to ours.
        to_theirs: rearranges ours to theirs; None where one parameter is only part of a tensor.
    """

    ours: str
    theirs: str
    to_ours: Rearrange
    to_theirs: Rearrange | None


class Imported(NamedTuple):
    """A training state; parameters are nested dicts of float32 arrays, as in our networks."""

    step: int
    params: dict[str, Any]
    ema_params: dict[str, Any]


class Rearrangement(NamedTuple):
    """A rearrangement and its inverse, if it has one."""

    to_ours: Rearrange
    to_theirs: Rearrange | None

    def weight(self, ours: str, theirs: str) -> Weight:
        """Return the rule that `theirs`, so rearranged, is `ours`."""
        return Weight(ours=ours, theirs=theirs, to_ours=self.to_ours, to_theirs=self.to_theirs)


def _transposed(*axes: int) -> Rearrangement:
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    return Rearrangement(lambda w: w.transpose(axes), lambda p: p.transpose(inverse))


def _without_axes(layout: Rearrangement, *axes: int) -> Rearrangement:
    """Return `layout` after the removal of axes of length 1."""
    to_theirs = layout.to_theirs
    return Rearrangement(
        lambda w: layout.to_ours(w.squeeze(axes)),
        None if to_theirs is None else lambda p: np.expand_dims(to_theirs(p), axes),
    )


IDENTICAL = Rearrangement(lambda w: w, lambda p: p)
CONV = _transposed(2, 3, 1, 0)
LINEAR = _transposed(1, 0)
CONV_1X1 = _without_axes(LINEAR, 2, 3)
CONV_1D = _without_axes(LINEAR, 2)
FLAX_CONV_1X1 = _without_axes(IDENTICAL, 0, 1)
IMAGE_CHANNELS = Rearrangement(
    lambda w: w if w.ndim == 1 else w.squeeze((0, 1, 2)), lambda p: p[None, None, None, :]
)


def part(
    index: int,
    layout: Rearrangement,
    *,
    parts: int = 3,
    heads: int = 1,
    order: str = "part head channel",
    axis: int = 0,
) -> Rearrangement:
    """Cut out one of `parts` matrices that share a tensor along `axis`, its outputs sorted by head.

    `order` states how the tensor's axis runs, the slowest first: "part head channel" has one matrix
    after the other, "head part channel" interleaves them per head, "head channel part" per channel.
    There is no inverse, since one part is not the whole tensor.

    Args:
        index: index of the part.
        layout: rearrangement of the part alone.
        parts: number of parts.
        heads: number of heads in the outputs of each part.
        order: the three words in the order of the file.
        axis: axis of the outputs, 0 in PyTorch.

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

    return Rearrangement(lambda w: layout.to_ours(cut(w)), None)


def translate(
    weights: Iterable[Weight],
    template: Template,
    tensors: Mapping[str, Tensor],
    *,
    unused: Sequence[str] = (),
    source: str = "the checkpoint",
    remedy: str = REMEDY,
) -> dict[str, Any]:
    """Translate their tensors to our parameters, nested dicts of float32 arrays.

    Args:
        weights: the rules, one for each parameter of the template.
        template: nested dicts whose leaves have a shape, as `jax.eval_shape` makes them; or a
            function that makes them, which is slow and called only if all names fit.
        tensors: their tensors by name.
        unused: patterns (`fnmatch`) of tensors without a rule, such as "*.sigmas".
        source: the checkpoint's name in messages, such as its path.
        remedy: end of the messages.

    Raises:
        ValueError: tensors are missing, surplus or of the wrong shape, or one of them is not
            finite. The message lists them in one line with both names and shapes.
    """
    rules = list(weights)
    surplus = _surplus(rules, tensors, unused)
    if callable(template):
        missing = [rule.theirs for rule in rules if rule.theirs not in tensors]
        _raise_if_any({"missing": missing, "surplus": surplus}, source, remedy)
        template = template()
    wanted = flatten(template)
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
        if not _is_numeric(tensor):
            problems["not an array of numbers"].append(f"{rule.theirs} for {rule.ours} {shape}")
            continue
        found[rule.ours] = value = _rearranged(rule.to_ours, tensor)
        if value.shape != shape:
            problems["wrongly shaped"].append(
                f"{rule.theirs} {tensor.shape} for {rule.ours} {shape}"
            )
    problems["surplus"] = surplus
    _raise_if_any(problems, source, remedy)
    theirs = {rule.ours: rule.theirs for rule in rules}
    return unflatten(
        {path: _finite(found[path], f"{theirs[path]} ({path})", source) for path in wanted}
    )


def _surplus(
    rules: Iterable[Weight], tensors: Mapping[str, Tensor], unused: Sequence[str]
) -> list[str]:
    """Return the tensors, with their shapes, that no rule names and no pattern covers."""
    named = {rule.theirs for rule in rules}
    return [
        f"{name} {tensor.shape if _is_numeric(tensor) else ''}".rstrip()
        for name, tensor in tensors.items()
        if name not in named and not any(fnmatchcase(name, pattern) for pattern in unused)
    ]


def translate_back(
    weights: Iterable[Weight], params: Mapping[str, Any]
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Translate our parameters to their tensors, float32, by name in the order of the rules.

    Raises:
        ValueError: parameters have no rule, rules have no parameter or no inverse, or a parameter
            is not finite. The message lists them in one line.
    """
    rules, given, source = list(weights), flatten(params), "the network's parameters"
    problems = _unruled(rules, given)
    problems["without an inverse"] = [
        f"{rule.ours} as {rule.theirs}" for rule in rules if rule.to_theirs is None
    ]
    _raise_if_any(problems, source)
    return {
        rule.theirs: _finite(rule.to_theirs(np.asarray(given[rule.ours])), rule.ours, source)
        for rule in rules
        if rule.to_theirs is not None
    }


def fields_to_set(network: Any, found: Mapping[str, Any]) -> str:
    """Return the end of a message: the fields to set, of those that a file determines."""
    section = getattr(network, "SECTION", "model")
    flags = [
        f"'--config.{section}.{field}={value}'"
        for field, value in found.items()
        if as_tuple(getattr(network, field)) != as_tuple(value)
    ]
    return f"Set {' '.join(flags)}" if flags else REMEDY.replace("model", section)


def as_tuple(value: Any) -> Any:
    """Return a field's value with a tuple for any sequence, to compare it."""
    return tuple(value) if isinstance(value, list | tuple) else value


def _unruled(rules: Sequence[Weight], wanted: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return where rules and parameters differ, which is not the checkpoint's fault."""
    counts = Counter(rule.ours for rule in rules)
    return {
        "without a rule": [path for path in wanted if path not in counts],
        "only in the rules": [
            f"{rule.ours} from {rule.theirs}" for rule in rules if rule.ours not in wanted
        ],
        "in two rules": [path for path, count in counts.items() if count > 1],
        "missing": [],
        "wrongly shaped": [],
        "not an array of numbers": [],
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


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _rearranged(rearrange: Rearrange, tensor: Tensor) -> Tensor:
    """Return the rearranged tensor, or a shape that no parameter has where its axes do not fit."""
    try:
        return rearrange(np.asarray(tensor))
    except (ValueError, IndexError):
        return np.empty((*np.shape(tensor), 0))


def _finite(tensor: Tensor, name: str, source: str) -> Float32[np.ndarray, "..."]:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which raises below
        value = np.ascontiguousarray(tensor, dtype=np.float32).reshape(tensor.shape)
    if not np.isfinite(value).all():
        count = int(value.size - np.isfinite(value).sum())
        raise NotFiniteError(
            f"{source}: {name} has {count} of {value.size} numbers that are not finite. The "
            "training has failed; use an earlier checkpoint"
        )
    return value
