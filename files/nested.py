"""Nested dicts as flat ones, whose keys are paths such as "encoder/conv/kernel"."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Return the leaves of nested mappings by path; empty mappings leave no trace."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = flatten(value, separator)
            flat |= {f"{key}{separator}{path}": leaf for path, leaf in inner.items()}
        else:
            flat[f"{key}"] = value
    return flat


def numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    """Return the leaves of nested mappings that are single numbers, by path."""
    flat = flatten(tree)
    return {path: value for path, value in flat.items() if isinstance(value, int | float)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dicts that `flatten` maps to `flat`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree
