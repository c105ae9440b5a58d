"""The decoder that every family is: embedding, a stack of equal layers, a final norm.

The layers' parameters are stacked on a leading axis and the stack runs as one `lax.scan`: one
layer is compiled, whatever their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.models.attention import Attention, cached_attention, causal_attention
from distill.models.config import ModelConfig
from distill.models.layers import Embedding, GatedMLP, LayerAdapter, RMSNorm
from distill.models.rotary import rotary_angles

StackedAdapter = Mapping[str, Mapping[str, jax.Array]]
"""An adapter as runs hold it: {"q_proj": {"a": [L, in, r], "b": [L, r, out]}, ...}."""


LayerState: TypeAlias = Any
"""One layer's parameters, as the scan hands them out."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Keys and values of the tokens seen so far, and nothing else.

    A key's slot is its position in its row. Where each row stands is the caller's knowledge.
    Both lie as the two products of attention read them: no step transposes its whole cache.
    """

    keys: tuple[jax.Array, ...]
    """Of each part of the stack [part's layers, B, G, head_dim, S], rotary positions applied."""

    values: tuple[jax.Array, ...]
    """Likewise [part's layers, B, G, S, head_dim]."""


LayerParts: TypeAlias = Sequence[tuple[LayerState, StackedAdapter]]
"""The stack of layers cut into parts, in order: parameters and adapter of each, stacked likewise.

Each part is one scan. Which cut is quick depends on the device: see `engine.layer_parts`.
"""


class DecoderLayer(nnx.Module):
    """Attention and MLP, each after a norm and beside a residual."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: DTypeLike,
        *,
        query_key_norm: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.input_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config, dtype, query_key_norm=query_key_norm, rngs=rngs)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = GatedMLP(config, dtype, rngs=rngs)

    def __call__(
        self,
        hidden: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        adapter: LayerAdapter,
    ) -> jax.Array:
        """Map [B, T, D] to [B, T, D], whole sequences from position 0."""
        query, key, value = self.attention.project(self.input_norm(hidden), angles, adapter)
        mixed = causal_attention(query, key, value)
        hidden = hidden + self.attention.output(mixed, adapter)
        return hidden + self.mlp(self.post_attention_norm(hidden), adapter)

    def with_cache(
        self,
        hidden: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        positions: jax.Array,
        cache: tuple[jax.Array, jax.Array],
        layer: jax.Array,
        adapter: LayerAdapter,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Map [B, T, D] at positions [B, T]; writes this layer's slots, then reads them all.

        The cache is the keys and values of one part, `layer` the index in that part.
        """
        query, key, value = self.attention.project(self.input_norm(hidden), angles, adapter)
        rows = jnp.arange(hidden.shape[0])[:, None]
        keys, values = cache
        # Written in place inside the stacked cache: handing each layer's slice through the scan
        # would copy the whole cache for every generated token.
        keys = keys.at[layer, rows, :, :, positions].set(key.astype(keys.dtype))
        values = values.at[layer, rows, :, positions].set(value.astype(values.dtype))
        mixed = cached_attention(
            query, keys[layer].astype(query.dtype), values[layer].astype(query.dtype), positions
        )
        hidden = hidden + self.attention.output(mixed, adapter)
        hidden = hidden + self.mlp(self.post_attention_norm(hidden), adapter)
        return hidden, (keys, values)


class Decoder(nnx.Module):
    """A whole model. Its state, split off, is the parameter tree; the rest is the graph."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: DTypeLike,
        *,
        query_key_norm: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype, rngs=rngs)
        self.layers = nnx.vmap(
            lambda layer_rngs: DecoderLayer(
                config, dtype, query_key_norm=query_key_norm, rngs=layer_rngs
            ),
            in_axes=0,
            out_axes=0,
        )(rngs.split(config.layer_count))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        if not config.tied_head:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size, dtype, rngs=rngs)

    def __call__(
        self, token_ids: jax.Array, adapter: StackedAdapter | None, *, remat: bool
    ) -> jax.Array:
        """Normed hidden states [B, T, D] of right-padded rows [B, T] at positions 0 to T-1."""
        graph, layers = nnx.split(self.layers)
        angles = rotary_angles(self.config, jnp.arange(token_ids.shape[1]))

        def step(
            hidden: jax.Array, scanned: tuple[LayerState, LayerAdapter]
        ) -> tuple[jax.Array, None]:
            parameters, layer_adapter = scanned
            return nnx.merge(graph, parameters)(hidden, angles, layer_adapter), None

        # A scan is its own barrier against merging the recomputation with the forward pass.
        body = jax.checkpoint(step, prevent_cse=False) if remat else step
        hidden, _ = jax.lax.scan(body, self.embed_tokens(token_ids), (layers, adapter or {}))
        return self.norm(hidden)

    def with_cache(
        self,
        token_ids: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        adapter: StackedAdapter | None,
        parts: LayerParts | None,
    ) -> tuple[jax.Array, KVCache]:
        """Normed hidden states [B, T, D] of tokens at positions [B, T], and the grown cache."""
        graph, layers = nnx.split(self.layers)
        angles = rotary_angles(self.config, positions)

        def step(carry: Any, scanned: tuple[LayerState, LayerAdapter, jax.Array]) -> Any:
            hidden, grown = carry
            parameters, layer_adapter, layer = scanned
            module = nnx.merge(graph, parameters)
            return module.with_cache(hidden, angles, positions, grown, layer, layer_adapter), None

        hidden = self.embed_tokens(token_ids)
        grown = []
        for (part, part_adapter), keys, values in zip(
            parts or [(layers, adapter or {})], cache.keys, cache.values, strict=True
        ):
            layer_count = keys.shape[0]
            (hidden, part_cache), _ = jax.lax.scan(
                step,
                (hidden, (keys, values)),
                (part, part_adapter, jnp.arange(layer_count)),
                unroll=layer_count == 1,
            )
            grown.append(part_cache)
        all_keys, all_values = zip(*grown, strict=True)
        return self.norm(hidden), KVCache(keys=all_keys, values=all_values)
