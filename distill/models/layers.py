"""The parts that the decoder families share.

Letters: B rows, T positions in a row, S key slots, H query heads, D hidden size.

A kernel is [in, out] and the activations multiply from the left, so that forward, and both
products of the backward pass, are plain row-major matrix products.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.models.config import ModelConfig

LoraPair = Mapping[str, jax.Array]
"""{"a": [in, r], "b": [r, out]}: one projection's low-rank update in one layer."""

LayerAdapter = Mapping[str, LoraPair]
"""The pairs of one layer by the name of the projection; those without one are absent."""


class Linear(nnx.Module):
    """x @ kernel, plus a low-rank update when one is given. No bias: no family here has one."""

    def __init__(
        self, in_features: int, out_features: int, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        shape = (in_features, out_features)
        scale = 1 / math.sqrt(in_features)
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape, dtype))

    def __call__(self, inputs: jax.Array, lora: LoraPair | None = None) -> jax.Array:
        """Map [..., in] to [..., out]."""
        # As a plain matrix: XLA's CPU backend runs the gradient of a low-rank pair, a product
        # summed over rows and positions, several times slower on [B, T, in] than on [B · T, in].
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = rows @ self.kernel[...]
        if lora is not None:
            # The adapter may be float32 beside bfloat16 weights: it is the optimizer's copy.
            down = rows @ lora["a"].astype(rows.dtype)
            outputs = outputs + down @ lora["b"].astype(rows.dtype)
        return outputs.reshape(*inputs.shape[:-1], -1)


class Embedding(nnx.Module):
    """A [V, D] table: rows looked up by token id, or the kernel of the head."""

    def __init__(
        self, vocab_size: int, hidden_size: int, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        shape = (vocab_size, hidden_size)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, dtype))

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Look up [B, T] ids: [B, T, D]."""
        return self.embedding[...][token_ids]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + epsilon) · scale over the last axis (https://arxiv.org/abs/1910.07467).

    Scale and arithmetic are float32 whatever the compute dtype: a bfloat16 mean square has two
    to three digits.
    """

    def __init__(self, features: int, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalise [..., features]; the dtype is kept."""
        wide = inputs.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale[...]).astype(inputs.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) · up(x)) (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs) -> None:
        shapes = config.projection_shapes
        self.gate_proj = Linear(*shapes["gate_proj"], dtype, rngs=rngs)
        self.up_proj = Linear(*shapes["up_proj"], dtype, rngs=rngs)
        self.down_proj = Linear(*shapes["down_proj"], dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """Map [B, T, D] to [B, T, D]."""
        gate = self.gate_proj(hidden, adapter.get("gate_proj"))
        up = self.up_proj(hidden, adapter.get("up_proj"))
        return self.down_proj(jax.nn.silu(gate) * up, adapter.get("down_proj"))
