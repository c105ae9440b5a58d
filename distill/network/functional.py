"""Models as pure functions of (graph, parameters), the form in which the engine uses them.

Callers compile them: they put them into their own `jax.jit`, with the graph static or closed over.
Only `head_columns` is compiled here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
from flax import nnx
from jax.typing import DTypeLike

from distill.kernels.head_kernel import kernel_columns
from distill.network.config import ModelConfig
from distill.network.decoder import MIXERS, Cache, Decoder, LayerParts, stacks_by_kind
from distill.network.layer_stack import StackedAdapter
from distill.network.packing import Segments, rows_as_segments
from distill.ops.logits import Head

Graph: TypeAlias = nnx.GraphDef[Decoder]
"""The static part of a model: hashable, and equal for equal configs and dtypes."""

Parameters: TypeAlias = Mapping[str, Any]
"""Nested dict of arrays. Those of the layers are stacked on a leading axis, by kind where there are
several kinds (see `decoder`)."""

Adapter: TypeAlias = StackedAdapter
"""{"q_proj": {"a": [n, in, r], "b": [n, r, out]}, ...}, of the n layers that have the target;
already scaled by alpha / rank."""

HEAD_TARGET = "lm_head"
"""The name of the head in an adapter: {"a": [D, r], "b": [r, V]}. No layer has it."""

__all__ = [
    "HEAD_TARGET",
    "Adapter",
    "Cache",
    "Graph",
    "LayerParts",
    "Parameters",
    "build_graph",
    "cached_hidden_states",
    "head_columns",
    "head_kernel",
    "head_weights",
    "hidden_states",
    "init_cache",
    "layer_adapter",
    "packed_hidden_states",
    "stacks_by_kind",
]


def build_graph(config: ModelConfig, compute_dtype: DTypeLike) -> tuple[Graph, Parameters]:
    """The static graph of a model, and the shapes and dtypes of its parameters.

    Returns:
        The graph, and the parameter tree with `jax.ShapeDtypeStruct` leaves: no memory is used.
    """
    model = nnx.eval_shape(lambda: Decoder(config, compute_dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def packed_hidden_states(
    graph: Graph,
    parameters: Parameters,
    token_ids: jax.Array,
    segments: Segments,
    *,
    adapter: Adapter | None = None,
    remat: bool = False,
) -> jax.Array:
    """Final hidden states of a pack of sequences, after the last norm.

    Args:
        graph: from `build_graph`.
        parameters: the weights.
        token_ids: [N] int32 in [0, V).
        segments: where each sequence lies and what each slot sees.
        adapter: a low-rank update, already scaled.
        remat: recompute each layer in the backward pass instead of keeping its activations.

    Returns:
        [N, D] in the compute dtype.
    """
    model: Decoder = nnx.merge(graph, parameters)
    return model(token_ids, segments, layer_adapter(adapter), remat=remat)


def hidden_states(
    graph: Graph,
    parameters: Parameters,
    token_ids: jax.Array,
    *,
    adapter: Adapter | None = None,
    remat: bool = False,
) -> jax.Array:
    """`packed_hidden_states` of rows: each is a sequence of its own, padded on the right.

    Args:
        token_ids: [B, T] int32 in [0, V); position t of a row is its column t. Attention is
            causal, so padding changes no real token.

    The others are those of `packed_hidden_states`.

    Returns:
        [B, T, D] in the compute dtype.
    """
    row_count, row_length = token_ids.shape
    segments = rows_as_segments(row_count, row_length)
    flat = packed_hidden_states(
        graph, parameters, token_ids.reshape(-1), segments, adapter=adapter, remat=remat
    )
    return flat.reshape(row_count, row_length, -1)


def head_kernel(config: ModelConfig, parameters: Parameters) -> jax.Array:
    """The head [V, D]: logits are hidden @ kernel.T. The embedding itself when it is tied."""
    kernel: jax.Array = parameters["embed_tokens" if config.tied_head else "lm_head"]["embedding"]
    return kernel


def head_weights(
    config: ModelConfig,
    parameters: Parameters,
    adapter: Adapter | None,
    columns: jax.Array | None = None,
) -> Head:
    """The head, with its low-rank update where the adapter has one.

    Args:
        config: the model.
        parameters: the weights.
        adapter: a low-rank update, already scaled.
        columns: of `head_columns`; None where the device has none.
    """
    kernel = head_kernel(config, parameters)
    update = (adapter or {}).get(HEAD_TARGET)
    down, up = (None, None) if update is None else (update["a"], update["b"])
    return Head(kernel, down, up, columns, valid_vocab_size=config.known_vocab_size)


@partial(jax.jit, static_argnames="config")
def head_columns(config: ModelConfig, parameters: Parameters) -> jax.Array | None:
    """The head once more as `kernel_columns` stores it; None on most devices."""
    return kernel_columns(head_kernel(config, parameters))


def layer_adapter(adapter: Adapter | None) -> Adapter:
    """The part of an adapter that updates layers: all but the head's."""
    return {target: pair for target, pair in (adapter or {}).items() if target != HEAD_TARGET}


def init_cache(
    config: ModelConfig,
    batch_size: int,
    cache_size: int,
    dtype: DTypeLike,
    *,
    part_sizes: Sequence[int] | None = None,
) -> Cache:
    """An empty cache for `batch_size` rows of at most `cache_size` tokens.

    Args:
        config: the model.
        batch_size: B.
        cache_size: S.
        dtype: of what the cache holds of tokens, such as keys and values.
        part_sizes: the number of layers in each part of the stack, for `parts` of
            `cached_hidden_states`. None: one part of all layers.
    """
    parts = []
    first = 0
    for size in [config.layer_count] if part_sizes is None else part_sizes:
        counts = Counter(config.kind_of(layer) for layer in range(first, first + size))
        parts.append(
            {
                kind.name: MIXERS[kind.mixer].empty_state(
                    config, count, batch_size, cache_size, dtype
                )
                for kind, count in counts.items()
            }
        )
        first += size
    return Cache(parts=tuple(parts))


def cached_hidden_states(
    graph: Graph,
    parameters: Parameters,
    token_ids: jax.Array,
    positions: jax.Array,
    cache: Cache,
    *,
    adapter: Adapter | None = None,
    parts: LayerParts | None = None,
    token_counts: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Hidden states of tokens that continue the cached rows; for a prompt and for one token alike.

    A token at position p writes slot p of its row and sees slots 0 to p. Slots after p are masked,
    so a padded prompt may leave garbage there: the next tokens overwrite it before they see it. A
    token whose position is not below the cache's size is not written, and its hidden state is of no
    use. A recurrent layer has a state instead of slots. Padding must not change it, so such a layer
    needs to know how many tokens are real.

    Args:
        graph: from `build_graph`.
        parameters: the weights.
        token_ids: [B, T] int32.
        positions: [B, T] int32, absolute, of each row its own.
        cache: from `init_cache` or an earlier call.
        adapter: a low-rank update, already scaled.
        parts: the parameters and adapters of the layers, cut as the cache is. `adapter` and the
            layers among the parameters are then ignored.
        token_counts: [B] int32, how many of the T tokens are real; those after them are padding.
            None: all are real.

    Returns:
        [B, T, D] in the compute dtype, and the cache with these tokens in it.
    """
    model: Decoder = nnx.merge(graph, parameters)
    return model.with_cache(
        token_ids, positions, cache, layer_adapter(adapter), parts, token_counts
    )
