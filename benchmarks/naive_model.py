"""A plain decoder in JAX, as one would write it down: baseline (a), apart from this project's own.

Written for itself, so that nothing done to the engine's layers speeds the baseline up too. Weights
come in under the names of Transformers; the same scan over stacked layers, matrix products and
`jax.nn.dot_product_attention`; logits of all positions, in float32.

Letters: B rows, T positions in a row, V vocabulary, L layers, D hidden size, r rank.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill.models.write_directory import hf_tensors
from distill.network.config import ModelConfig

Weights = dict[str, Any]
"""{"embedding": [V, D], "norm": [D], "layers": {"q_proj": [L, in, out], ...}}, and "head" [V, D]
where it is not the embedding."""

Adapter = Mapping[str, Mapping[str, jax.Array]]
"""{"q_proj": {"a": [L, in, r], "b": [L, r, out]}, ...}, not scaled."""


def naive_weights(config: ModelConfig, parameters: Mapping[str, Any]) -> Weights:
    """The weights of a model, or their gradient, in this module's layout."""
    if config.rope_scaling is not None:
        raise ValueError("the plain model has no rope scaling; measure a model without it")
    top: dict[str, jax.Array] = {}
    layers: dict[str, list[jax.Array]] = {}
    for name, tensor in hf_tensors(config, parameters):
        parts = name.split(".")
        if parts[1] == "layers":
            # Torch keeps a linear map as [out, in].
            layers.setdefault(parts[-2], []).append(
                jnp.asarray(tensor.T if tensor.ndim == 2 else tensor)
            )
        else:
            top[parts[-2]] = jnp.asarray(tensor)
    weights: Weights = {
        "embedding": top["embed_tokens"],
        "norm": top["norm"],
        "layers": {name: jnp.stack(tensors) for name, tensors in layers.items()},
    }
    if "lm_head" in top:
        weights["head"] = top["lm_head"]
    return weights


def in_float32(weights: Weights) -> Weights:
    """The same weights, to compute more exactly with."""
    wide: Weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    return wide


def logits(
    config: ModelConfig,
    weights: Weights,
    token_ids: jax.Array,
    adapter: Adapter | None = None,
    scale: float = 1.0,
) -> jax.Array:
    """[B, T] ids, padded on the right, to [B, T, V] float32."""
    angles = _angles(config, token_ids.shape[1])

    def layer(hidden: jax.Array, scanned: tuple[Any, Any]) -> tuple[jax.Array, None]:
        layer_weights, layer_adapter = scanned

        def linear(name: str, inputs: jax.Array) -> jax.Array:
            outputs: jax.Array = inputs @ layer_weights[name]
            if name in layer_adapter:
                pair = layer_adapter[name]
                low = inputs @ pair["a"].astype(inputs.dtype)
                outputs = outputs + scale * (low @ pair["b"].astype(inputs.dtype))
            return outputs

        def heads(name: str, norm: str, inputs: jax.Array) -> jax.Array:
            split = linear(name, inputs).reshape(*inputs.shape[:2], -1, config.head_dim)
            return _norm(config, split, layer_weights[norm]) if norm in layer_weights else split

        normed = _norm(config, hidden, layer_weights["input_layernorm"])
        query = _rotate(heads("q_proj", "q_norm", normed), angles)
        key = _rotate(heads("k_proj", "k_norm", normed), angles)
        value = heads("v_proj", "", normed)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + linear("o_proj", mixed.reshape(*hidden.shape[:2], -1))
        normed = _norm(config, hidden, layer_weights["post_attention_layernorm"])
        gated = jax.nn.silu(linear("gate_proj", normed)) * linear("up_proj", normed)
        return hidden + linear("down_proj", gated), None

    hidden = weights["embedding"][token_ids]
    hidden, _ = jax.lax.scan(layer, hidden, (weights["layers"], adapter or {}))
    hidden = _norm(config, hidden, weights["norm"])
    head = weights["head" if "head" in weights else "embedding"]
    # As one matrix: with an axis for the rows XLA's CPU backend takes three times as long.
    flat = hidden.reshape(-1, config.hidden_size)
    dense = jnp.matmul(flat, head.T, preferred_element_type=jnp.float32)
    return dense.reshape(*token_ids.shape, config.vocab_size)


def _norm(config: ModelConfig, inputs: jax.Array, scale: jax.Array) -> jax.Array:
    wide = inputs.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + config.norm_epsilon) * scale).astype(inputs.dtype)


def _angles(config: ModelConfig, length: int) -> jax.Array:
    exponents = jnp.arange(0, config.head_dim, 2) / config.head_dim
    return jnp.arange(length)[:, None] * config.rope_theta**-exponents  # [T, head_dim / 2]


def _rotate(heads: jax.Array, angles: jax.Array) -> jax.Array:
    """Turn components i and i + head_dim / 2 of [B, T, heads, head_dim] together."""
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    left, right = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(heads.dtype)
