"""Dataclasses that JAX takes apart and rebuilds: some fields traced, the others static."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.tree_util import GetAttrKey, register_pytree_with_keys


def pytree(*, static: tuple[str, ...] = ()) -> Callable[[type], type]:
    """A class decorator that registers a dataclass as a pytree; the `static` fields are hashed.

    `jax.tree_util.register_dataclass` would not do: the structures of two classes that it has
    registered compare equal if their numbers of leaves and static fields do (jaxlib 0.10 to 0.12),
    so that jit, when hashes happen to share a bucket, runs the program of one class for the other.
    """

    def register(cls: type) -> type:
        traced = [f.name for f in dataclasses.fields(cls) if f.name not in static]

        def flatten_with_keys(thing: Any) -> tuple[list, tuple]:
            children = [(GetAttrKey(name), getattr(thing, name)) for name in traced]
            return children, tuple(getattr(thing, name) for name in static)

        def unflatten(fixed: tuple, children: Any) -> Any:
            # Not through __init__, whose checks want numbers, not tracers and placeholders.
            thing = object.__new__(cls)
            for name, value in zip((*traced, *static), (*children, *fixed), strict=True):
                object.__setattr__(thing, name, value)
            return thing

        register_pytree_with_keys(cls, flatten_with_keys, unflatten)
        return cls

    return register
