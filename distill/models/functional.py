"""Models as pure functions of (graph, parameters), the form in which the engine uses them.

None of these is compiled here: callers put them into their own `jax.jit`, with the graph static
or closed over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.models.config import ModelConfig
from distill.models.decoder import Decoder, KVCache, LayerParts, StackedAdapter
from distill.models.families import model_class

Graph: TypeAlias = nnx.GraphDef[Decoder]
"""The static part of a model: hashable, and equal for equal configs and dtypes."""

Parameters: TypeAlias = Mapping[str, Any]
"""Nested dict of arrays; those of the layers are stacked on a leading axis L."""

Adapter: TypeAlias = StackedAdapter
"""{"q_proj": {"a": [L, in, r], "b": [L, r, out]}, ...}; already scaled by alpha / rank."""

__all__ = [
    "Adapter",
    "Graph",
    "KVCache",
    "LayerParts",
    "Parameters",
    "build_graph",
    "cached_hidden_states",
    "head_kernel",
    "hidden_states",
    "init_cache",
]


def build_graph(config: ModelConfig, compute_dtype: DTypeLike) -> tuple[Graph, Parameters]:
    """The static graph of a model, and the shapes and dtypes of its parameters.

    Returns:
        The graph, and the parameter tree with `jax.ShapeDtypeStruct` leaves: no memory is used.
    """
    model = nnx.eval_shape(
        lambda: model_class(config.family)(config, compute_dtype, rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def hidden_states(
    graph: Graph,
    parameters: Parameters,
    token_ids: jax.Array,
    *,
    adapter: Adapter | None = None,
    remat: bool = False,
) -> jax.Array:
    """Final hidden states, after the last norm.

    Attention is causal and rows are padded on the right, so that padding changes no real token.

    Args:
        graph: from `build_graph`.
        parameters: the weights.
        token_ids: [B, T] int32 in [0, V); position t of a row is its column t.
        adapter: a low-rank update, already scaled.
        remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
        [B, T, D] in the compute dtype.
    """
    model: Decoder = nnx.merge(graph, parameters)
    return model(token_ids, adapter, remat=remat)


def head_kernel(config: ModelConfig, parameters: Parameters) -> jax.Array:
    """The head [V, D]: logits are hidden @ kernel.T. The embedding itself when it is tied."""
    kernel: jax.Array = parameters["embed_tokens" if config.tied_head else "lm_head"]["embedding"]
    return kernel


def init_cache(
    config: ModelConfig,
    batch_size: int,
    cache_size: int,
    dtype: DTypeLike,
    *,
    part_sizes: Sequence[int] | None = None,
) -> KVCache:
    """An empty cache for `batch_size` rows of at most `cache_size` tokens.

    Args:
        config: the model.
        batch_size: B.
        cache_size: S.
        dtype: of keys and values.
        part_sizes: layers in each part of the stack, for `parts` of `cached_hidden_states`; one
            part of all layers by default.
    """
    sizes = [config.layer_count] if part_sizes is None else part_sizes
    groups, head_dim = config.key_value_head_count, config.head_dim
    return KVCache(
        keys=tuple(
            jnp.zeros((size, batch_size, groups, head_dim, cache_size), dtype) for size in sizes
        ),
        values=tuple(
            jnp.zeros((size, batch_size, groups, cache_size, head_dim), dtype) for size in sizes
        ),
    )


def cached_hidden_states(
    graph: Graph,
    parameters: Parameters,
    token_ids: jax.Array,
    positions: jax.Array,
    cache: KVCache,
    *,
    adapter: Adapter | None = None,
    parts: LayerParts | None = None,
) -> tuple[jax.Array, KVCache]:
    """Hidden states of tokens that continue the cached rows; for a prompt and for one token alike.

    A token at position p writes slot p of its row and sees slots 0 to p. Slots after p are masked,
    so a padded prompt may leave garbage there: the next tokens overwrite it before they see it. A
    position at or past the cache's size is not written, and its hidden state is of no use.

    Args:
        graph: from `build_graph`.
        parameters: the weights.
        token_ids: [B, T] int32.
        positions: [B, T] int32, absolute, of each row its own.
        cache: from `init_cache` or an earlier call.
        adapter: a low-rank update, already scaled.
        parts: the layers' parameters and adapters as the cache is cut; `adapter` and the layers
            among the parameters are then not looked at.

    Returns:
        [B, T, D] in the compute dtype, and the cache with these tokens in it.
    """
    model: Decoder = nnx.merge(graph, parameters)
    return model.with_cache(token_ids, positions, cache, adapter, parts)
