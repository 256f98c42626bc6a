"""Attention among all positions of a sequence, or all pixels of an image.

    attention:  y = (x + W_o concat_h softmax(q_h k_h^T / sqrt d) v_h) / sqrt 2,
                q = W_q norm(x),  k = W_k norm(x),  v = W_v norm(x)

with heads h of d channels each (Vaswani et al. 2017, arXiv:1706.03762, Section 3.2).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from models.blocks.layers import GroupNorm, Images, at_least_float32, dense, residual_sum

Heads = Float[Array, "batch length heads width"]
Queries = Float[Array, "batch queries heads width"]


def attend(
    query: Queries, key: Heads, value: Heads, *, train: bool, causal: bool = False
) -> Queries:
    """Compute softmax(q k^T / sqrt d) v per head, with the softmax in float32 at least.

    With `causal`, query k sees keys 0 .. k alone.
    In training on a GPU, where dtype and width allow it, cuDNN's flash kernel computes this. Its
    memory does not grow as length^2, but it has no forward-mode derivative, which likelihoods need.
    Elsewhere plain einsums do: on the CPU `dot_product_attention` takes twice as long or more.
    """
    if train and has_flash_kernel(query):
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    logits = at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", query, key))
    if causal:
        seen = jnp.tri(*logits.shape[-2:], dtype=bool)
        logits = jnp.where(seen[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def has_flash_kernel(query: Queries) -> bool:
    """Return whether cuDNN has a kernel: on a GPU, in half precision, 8, 16 .. 128 channels."""
    width = query.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
    )


class SelfAttention(nn.Module):
    """Self-attention among all pixels of an image, with a residual connection.

    Attributes:
        heads: number of heads, which must divide the channels.
        skip_rescale: divide the sum by sqrt 2.
        init_scale: initial variance scale of the output projection W_o.
        epsilon: added to the variance by GroupNorm.
        num_groups: groups of GroupNorm; 0 for min(channels // 4, 32).
    """

    heads: int = 1
    skip_rescale: bool = True
    init_scale: float = 0.0
    epsilon: float = 1e-6
    num_groups: int = 0

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Images:
        """Map (b, h, w, c) to the same shape; memory grows as b (h w)^2, see `attend`."""
        b, height, width, c = x.shape
        norm = GroupNorm(self.epsilon, self.num_groups, name="norm")
        pixels = norm(x).reshape(b, height * width, c)

        def project(name: str) -> Heads:
            projected = dense(c, init_scale=0.1, name=name)(pixels)
            return projected.reshape(b, height * width, self.heads, c // self.heads)

        h = attend(project("query"), project("key"), project("value"), train=train)
        h = dense(c, init_scale=self.init_scale, name="output")(h.reshape(pixels.shape))
        return residual_sum(x, h.reshape(x.shape), rescale=self.skip_rescale)
