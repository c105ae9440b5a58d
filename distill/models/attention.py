"""Grouped-query attention in blocks of queries (https://arxiv.org/abs/2305.13245).

Over a cache, for sampling; whole sequences use `packed_attention`. Scores and softmax are float32.
A block of queries sees at most [B, H, block, S] scores, so a sequence of 8192 tokens never has its
[T, T] matrix whole.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.models.config import ModelConfig
from distill.models.layers import LayerAdapter, Linear, RMSNorm
from distill.models.rotary import rotate

QUERY_BLOCK = 256
"""Queries per block: large enough that the products run at full speed, small enough that a
block's scores stay near the caches."""


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """softmax(q·k / sqrt(head_dim)) v over the key slots at or before each query's position.

    Args:
        query: [B, T, H, head_dim].
        keys: [B, G, head_dim, S]; head h reads group h // (H / G); a slot's index is its position.
        values: [B, G, S, head_dim].
        positions: [B, T] or [1, T], of the queries.

    Returns:
        [B, T, H · head_dim] in the query's dtype.
    """
    B, T, head_count, head_dim = query.shape
    group_count, slot_count = values.shape[1:3]
    heads_per_group = head_count // group_count
    # The heads of a group become rows of one matrix product, which the CPU runs 1.6 times as
    # fast as the same sum written as one einsum over B, groups and heads.
    grouped = query.reshape(B, T, group_count, heads_per_group, head_dim)
    rows = grouped.transpose(0, 2, 3, 1, 4).reshape(B, group_count, heads_per_group * T, head_dim)
    scores = jnp.matmul(
        rows * jnp.asarray(head_dim**-0.5, query.dtype), keys, preferred_element_type=jnp.float32
    ).reshape(B, group_count, heads_per_group, T, slot_count)
    visible = jnp.arange(slot_count) <= positions[:, :, None]
    # A finite mask would do as well: every query sees at least its own slot.
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(B, group_count, heads_per_group * T, slot_count)
    mixed = jnp.matmul(weights, values).reshape(B, group_count, heads_per_group, T, head_dim)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, head_count * head_dim)


def cached_attention(
    query: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array
) -> jax.Array:
    """`attend` block by block, for any positions [B, T] or [1, T]; shapes as there."""
    length = query.shape[1]
    if length <= QUERY_BLOCK:
        return attend(query, keys, values, positions)
    # Padding queries see some keys and are cut off again.
    padding = -length % QUERY_BLOCK
    query_blocks = _split_blocks(jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0))))
    position_blocks = _split_blocks(jnp.pad(positions, ((0, 0), (0, padding))))

    # A loop and not a list of blocks: XLA would run the list's blocks side by side and hold the
    # scores of all of them.
    def block(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return attend(inputs[0], keys, values, inputs[1])

    blocks = jax.lax.map(block, (query_blocks, position_blocks))
    joined = jnp.moveaxis(blocks, 0, 1).reshape(query.shape[0], length + padding, -1)
    return joined[:, :length]


def _split_blocks(array: jax.Array) -> jax.Array:
    """[B, C · block, ...] to [C, B, block, ...]."""
    rows, length = array.shape[:2]
    split = array.reshape(rows, length // QUERY_BLOCK, QUERY_BLOCK, *array.shape[2:])
    return jnp.moveaxis(split, 1, 0)


class Attention(nnx.Module):
    """Projections, rotary positions and grouped-query attention; Qwen3 also norms q and k."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: DTypeLike,
        *,
        query_key_norm: bool,
        rngs: nnx.Rngs,
    ) -> None:
        shapes = config.projection_shapes
        self.head_dim = config.head_dim
        self.query_key_norm = query_key_norm
        self.q_proj = Linear(*shapes["q_proj"], dtype, rngs=rngs)
        self.k_proj = Linear(*shapes["k_proj"], dtype, rngs=rngs)
        self.v_proj = Linear(*shapes["v_proj"], dtype, rngs=rngs)
        self.o_proj = Linear(*shapes["o_proj"], dtype, rngs=rngs)
        if query_key_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon)
            self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def project(
        self,
        hidden: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        adapter: LayerAdapter,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, head_dim], keys and values [B, T, G, head_dim]; positions applied."""
        query = self._heads(self.q_proj(hidden, adapter.get("q_proj")))
        key = self._heads(self.k_proj(hidden, adapter.get("k_proj")))
        value = self._heads(self.v_proj(hidden, adapter.get("v_proj")))
        if self.query_key_norm:
            query = self.q_norm(query)
            key = self.k_norm(key)
        return rotate(query, angles), rotate(key, angles), value

    def output(self, mixed: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """Map the heads' mixed values [B, T, H · head_dim] to [B, T, D]."""
        return self.o_proj(mixed, adapter.get("o_proj"))

    def _heads(self, features: jax.Array) -> jax.Array:
        return features.reshape(*features.shape[:2], -1, self.head_dim)
