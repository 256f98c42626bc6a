"""The gradient of a batch from parts of it, with the activations of one part in memory.

Random numbers are drawn for the whole batch, so that the loss of an image does not depend on the
number of parts. The gradient is the mean of those of the parts:

    grad mean_i l_i = 1/k sum_j grad mean_(i in part j) l_i
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from training.objective import Context, Losses, Objective
from training.parallel import DataParallel


def accumulated_gradient(
    params: Any,
    *,
    loss: Objective,
    network: Callable[[Any, Int[Array, ""], Any], Any],
    key: Key[Array, ""],
    batch: Float[Array, "batch ..."],
    conditions: Any,
    context: Context,
    parts: int,
    parallel: DataParallel,
) -> tuple[Losses, Any]:
    """Return the losses of a batch and the gradient of their mean, computed in `parts` parts.

    Dropout masks, and further random numbers of the loss such as the directions of sliced score
    matching, are drawn anew for each part.

    Args:
        params: the parameters.
        loss: the objective.
        network: the network, such as a Denoiser, from (params, number of the part, its conditions).
        key: of the objective.
        batch: all images; each device's rows must divide by `parts`.
        conditions: what describes each image, such as its class: a tree of (batch, ...).
        context: what the objective depends on besides.
        parts: number of parts, k above.
        parallel: the devices, of which each has rows in each part.
    """

    def of_part(params: Any, index: Int[Array, ""]) -> tuple[Float[Array, ""], Any]:
        rows = partial(parallel.part, index=index, parts=parts)
        model = network(params, index, jax.tree.map(rows, conditions))
        # Inside the derivative, since a learned process may be part of what is drawn.
        whole = network(params, index, conditions)
        drawn = jax.tree.map(rows, loss.draw(key, whole, batch, context))
        further = jax.random.fold_in(key, index)
        losses = loss.evaluate(further, drawn, model, rows(batch), context)
        return jnp.mean(loss.weighted(drawn, losses, model, context).values), losses

    def add(total: Any, index: Int[Array, ""]) -> tuple[Any, Any]:
        gradient, losses = jax.grad(of_part, has_aux=True)(params, index)
        return jax.tree.map(jnp.add, total, gradient), losses

    total, losses = lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.arange(parts))
    gradient = jax.tree.map(lambda leaf: leaf / parts, total)
    model = network(params, jnp.int32(0), conditions)
    drawn = loss.draw(key, model, batch, context)
    return loss.weighted(drawn, parallel.joined(losses), model, context), gradient
