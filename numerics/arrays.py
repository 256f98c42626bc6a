"""Shapes of coefficients and images, per-sample sums and random numbers, and pytrees.

A coefficient such as alpha(t) has the shape of t, () or (batch,). An array x has shape
(batch, ...). Random numbers belong to samples, not to batches: sample k draws from
`fold_in(key, k)`. It is the same in any batch, on any number of devices, and after any restart.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.tree_util import GetAttrKey, register_pytree_with_keys
from jaxtyping import Array, Float, Int, Key, Shaped

Batch = Float[Array, "batch ..."]
Shape = tuple[int, ...]
_Class = TypeVar("_Class", bound=type)


def expand_like(
    coefficient: Shaped[Array, "*batch"], x: Shaped[Array, "*shape"]
) -> Shaped[Array, "*expanded"]:
    """Append axes of length one to `coefficient` until it broadcasts against `x`."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def sum_per_sample(x: Float[Array, "batch ..."]) -> Float[Array, "batch"]:
    """Sum over all axes except the first."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)


def sample_indices(key: Any, shape: Any, indices: Any = None) -> Int[Any, "batch"]:
    """Return the indices of samples of a shape (batch, ...), by default 0 .. batch - 1.

    Raises:
        TypeError: if `key` is not a random key.
        ValueError: if `shape` is not a batch of at least one, or has another number of indices.
    """
    new = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    old = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape == (2,)
    if not (old or (new and not key.shape)):
        raise TypeError(f"key={key!r:.60} is not one random key; give jax.random.key(seed)")
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    if not sizes or not all(isinstance(n, int | np.integer) and n > 0 for n in sizes):
        raise ValueError(
            f"shape={shape!r} must be (batch, ...) of positive integers, such as (64, 28, 28, 1)"
        )
    if indices is None:
        return jnp.arange(sizes[0])
    if np.shape(indices) != sizes[:1]:
        raise ValueError(f"indices {np.shape(indices)} must be one per sample of shape {sizes}")
    return indices


def require_batch(x: Any) -> Batch:
    """Return a batch (batch, ...) of floats, at least one and all finite.

    Raises:
        TypeError: for another dtype.
        ValueError: for no batch, or NaN or infinite numbers.
    """
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x has dtype {x.dtype}; give floats in the network's range, such as "
            "model.from_data(images)"
        )
    if x.ndim < 2 or not x.size:
        raise ValueError(f"x has shape {x.shape}; give a batch (batch, ...) of at least one")
    finite = jnp.isfinite(x).all()
    if not is_traced(finite) and not finite:
        raise ValueError("x holds NaN or infinite numbers; look where they come from")
    return x


def sample_keys(key: Key[Array, ""], indices: Int[Array, "batch"]) -> Key[Array, "batch"]:
    """Return one key per sample index, `fold_in(key, index)`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def fold_in_each(keys: Key[Array, "batch"], data: int | Int[Array, ""]) -> Key[Array, "batch"]:
    """Fold one number, such as a step, into every sample's key."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal_like(
    keys: Key[Array, "batch"], x: Float[Array, "batch *shape"]
) -> Float[Array, "batch *shape"]:
    """Draw standard normal noise shaped like `x`; row k depends on `keys[k]` alone."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def digest(tree: Any) -> str:
    """Return 16 hexadecimal digits that identify the numbers in a tree of NumPy arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()[:16]


def pad_to_block(rows: np.ndarray, *, fill: float = 0) -> np.ndarray:
    """Append rows of `fill` up to a multiple of 1024 rows.

    A program that is compiled for the padded shape then serves any number of rows.
    """
    padding = [(0, -len(rows) % 1024), *[(0, 0)] * (rows.ndim - 1)]
    return np.pad(rows, padding, constant_values=fill)


def is_traced(tree: Any) -> bool:
    """Return whether a leaf stands for numbers that JAX does not know yet, as inside jit."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def require_numbers(sde: Any) -> None:
    """Raise TypeError if JAX traces a process, with whose numbers steps are planned."""
    if is_traced(sde):
        raise TypeError(
            "JAX traces the process, but steps are planned before, with its numbers; where the "
            "denoiser is an argument of jit, vmap or grad, put its process back inside: "
            "dataclasses.replace(denoiser, sde=sde)"
        )


def whole(array: Any) -> Any:
    """Return an array as NumPy, on all hosts, though each may hold a part; all must call this.

    Inside jit it stays as it is.
    """
    if is_traced(array):
        return array
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def stack(arrays: Sequence[Any]) -> Any:
    """Stack arrays as NumPy; inside jit as JAX."""
    return (jnp if is_traced(arrays) else np).stack(arrays)


def in_float64(function: Callable[[Array], Any], values: Any) -> Any:
    """Apply an elementwise `function` to NumPy values in float64, and return NumPy arrays.

    It is for coefficients of a process on a grid of times, computed once before sampling, inside
    jit too. It runs on the CPU, on padded values, so that another number of times needs no
    compilation.
    """
    values = np.asarray(values, np.float64)
    blocks = pad_to_block(values.ravel(), fill=1)

    def compute() -> Any:
        with jax.enable_x64(True), jax.default_device("cpu"):
            result = function(jnp.asarray(blocks))
            return jax.tree.map(
                lambda y: np.asarray(y)[: values.size].reshape(values.shape), result
            )

    if not is_traced(jnp.zeros(())):
        return compute()
    # Inside jit, JAX traces what it does with known numbers too, but each thread by itself.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(compute).result()


def pytree(*, static: tuple[str, ...] = ()) -> Callable[[_Class], _Class]:
    """Return a class decorator that registers a dataclass as a pytree with hashed `static` fields.

    `jax.tree_util.register_dataclass` is not safe here (jaxlib 0.10 to 0.12). The structures of two
    classes that it registered are equal if their numbers of leaves and their static fields are
    equal. If their hashes share a bucket, jit runs the program of one class for the other.
    """

    def register(cls: _Class) -> _Class:
        traced = [f.name for f in dataclasses.fields(cls) if f.name not in static]

        def flatten_with_keys(thing: Any) -> tuple[list, tuple]:
            children = [(GetAttrKey(name), getattr(thing, name)) for name in traced]
            return children, tuple(getattr(thing, name) for name in static)

        def unflatten(fixed: tuple, children: Any) -> Any:
            # Without __init__, whose checks need numbers, not tracers and placeholders.
            thing = object.__new__(cls)
            for name, value in zip((*traced, *static), (*children, *fixed), strict=True):
                object.__setattr__(thing, name, value)
            return thing

        register_pytree_with_keys(cls, flatten_with_keys, unflatten)
        return cls

    return register
