"""Gated delta-net layers (https://arxiv.org/abs/2412.06464), as Qwen3.5 has them.

Queries, keys and values pass a causal convolution over the last few tokens. Then each head writes
into and reads from a memory by the gated delta rule (`delta_rule`). The values that it reads are
normed and multiplied by a gate. The memory of a sequence has one size, whatever the length.

Letters: B rows, T tokens, D hidden size, C channels of the convolution, K taps, G key heads, H
value heads, dk and dv widths.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.kernels.bits import bits_like, from_bits, zeros_as_bits
from distill.network.attention import CachePlace, PackPlace
from distill.network.config import ModelConfig
from distill.network.convolution import cached_convolution, packed_convolution
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.delta_rule import DeltaTokens, chunked_delta_rule, step_delta_rule
from distill.network.layer_kinds import LayerKind
from distill.network.layers import LayerAdapter, Linear
from distill.network.projections import kind_projections

_UNIT_EPSILON = 1e-6
"""Added to the squared length of queries and keys before they are divided by its root."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DeltaNetState:
    """What n layers remember of B rows."""

    inputs: jax.Array
    """[n, B, K - 1, C]: the last inputs of the convolution, zeros before the first token. bfloat16
    as bits."""

    memory: jax.Array
    """[n, B, H, dk, dv] float32."""

    def grown(self, slot_count: int) -> "DeltaNetState":
        """Itself: the memory holds any number of tokens."""
        del slot_count
        return self


class DepthwiseKernel(nnx.Module):
    """The taps [K, 1, C] of a convolution of each channel on its own. Few, so float32."""

    def __init__(self, tap_count: int, channel_count: int, *, rngs: nnx.Rngs) -> None:
        shape = (tap_count, 1, channel_count)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) / math.sqrt(tap_count))

    @property
    def taps(self) -> jax.Array:
        """[K, C]."""
        taps: jax.Array = self.kernel[...][:, 0]
        return taps


class GatedRMSNorm(nnx.Module):
    """RMSNorm(x) · silu(gate) over the last axis, float32."""

    def __init__(self, features: int, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, inputs: jax.Array, gate: jax.Array) -> jax.Array:
        """Normalise [..., features] float32 and multiply; the dtype is the gate's."""
        inverse = jax.lax.rsqrt(jnp.mean(inputs * inputs, axis=-1, keepdims=True) + self.epsilon)
        gated = inputs * inverse * self.scale[...] * jax.nn.silu(gate.astype(jnp.float32))
        return gated.astype(gate.dtype)


class DeltaNet(nnx.Module):
    """The mixer of a gated delta-net layer."""

    def __init__(
        self, config: ModelConfig, kind: LayerKind, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        sizes = _sizes(config)
        shapes = kind_projections(config, kind)
        self.sizes = sizes
        self.in_proj_qkv = Linear(*shapes["in_proj_qkv"], dtype, rngs=rngs)
        self.in_proj_z = Linear(*shapes["in_proj_z"], dtype, rngs=rngs)
        self.in_proj_b = Linear(*shapes["in_proj_b"], dtype, rngs=rngs)
        self.in_proj_a = Linear(*shapes["in_proj_a"], dtype, rngs=rngs)
        self.conv1d = DepthwiseKernel(sizes.tap_count, sizes.channel_count, rngs=rngs)
        # float32: the decay is an exponential of an exponential of these, which magnifies an error.
        heads = (sizes.value_head_count,)
        self.a_log = nnx.Param(
            jnp.log(jax.random.uniform(rngs.params(), heads, minval=0.01, maxval=16.0))
        )
        self.dt_bias = nnx.Param(jnp.ones(heads, jnp.float32))
        self.norm = GatedRMSNorm(sizes.value_width, config.norm_epsilon)
        self.out_proj = Linear(*shapes["out_proj"], dtype, rngs=rngs)

    @staticmethod
    def empty_state(
        config: ModelConfig, layer_count: int, row_count: int, slot_count: int, dtype: DTypeLike
    ) -> DeltaNetState:
        """The memory of `layer_count` layers and of rows without tokens."""
        del slot_count
        sizes = _sizes(config)
        stack = (layer_count, row_count)
        return DeltaNetState(
            inputs=zeros_as_bits((*stack, sizes.tap_count - 1, sizes.channel_count), dtype),
            memory=jnp.zeros((*stack, *_memory_shape(sizes)), jnp.float32),
        )

    def packed(self, hidden: jax.Array, place: PackPlace, adapter: LayerAdapter) -> jax.Array:
        """Mix the tokens of a pack [1, N, D] without shared prefixes."""
        starts = jnp.asarray(place.segments.starts)
        inputs = self.in_proj_qkv(hidden, adapter.get("in_proj_qkv"))
        convolved = packed_convolution(inputs[0], self.conv1d.taps, starts)[None]
        tokens = self._tokens(hidden, convolved, adapter)
        empty = jnp.zeros((1, *_memory_shape(self.sizes)), jnp.float32)
        read, _ = chunked_delta_rule(tokens, empty, starts)
        return self._output(hidden, read, adapter)

    def cached(
        self,
        hidden: jax.Array,
        place: CachePlace,
        state: DeltaNetState,
        layer: jax.Array,
        adapter: LayerAdapter,
    ) -> tuple[jax.Array, DeltaNetState]:
        """Mix tokens [B, T, D] with the memory of the state's `layer`, and write them into it."""
        B, T, _ = hidden.shape
        counts = jnp.full(B, T, jnp.int32) if place.token_counts is None else place.token_counts
        projected = self.in_proj_qkv(hidden, adapter.get("in_proj_qkv"))
        convolved, inputs = cached_convolution(
            projected, self.conv1d.taps, from_bits(state.inputs[layer]), counts
        )
        tokens = self._tokens(hidden, convolved, adapter)
        if place.token_counts is not None:
            # Padding gets g = 0 and β = 0, with which a token leaves the memory as it is.
            is_real = (jnp.arange(T) < counts[:, None])[..., None]
            tokens = tokens._replace(
                log_decays=jnp.where(is_real, tokens.log_decays, 0),
                rates=jnp.where(is_real, tokens.rates, 0),
            )
        rule = step_delta_rule if T == 1 else chunked_delta_rule
        read, memory = rule(tokens, state.memory[layer])
        return self._output(hidden, read, adapter), DeltaNetState(
            inputs=state.inputs.at[layer].set(bits_like(inputs, state.inputs)),
            memory=state.memory.at[layer].set(memory),
        )

    def _tokens(
        self, hidden: jax.Array, convolved: jax.Array, adapter: LayerAdapter
    ) -> DeltaTokens:
        """The inputs of the rule.

        Args:
            hidden: [B, T, D].
            convolved: [B, T, C] float32, their queries, keys and values behind the convolution.
            adapter: of the layer.
        """
        sizes = self.sizes
        keys = sizes.key_head_count * sizes.key_width
        query, key, value = jnp.split(jax.nn.silu(convolved), (keys, 2 * keys), axis=-1)
        rates = self.in_proj_b(hidden, adapter.get("in_proj_b")).astype(jnp.float32)
        steps = self.in_proj_a(hidden, adapter.get("in_proj_a")).astype(jnp.float32)
        return DeltaTokens(
            queries=_unit(_heads(query, sizes.key_width)),
            keys=_unit(_heads(key, sizes.key_width)),
            values=_heads(value, sizes.value_width),
            log_decays=-jnp.exp(self.a_log[...]) * jax.nn.softplus(steps + self.dt_bias[...]),
            rates=jax.nn.sigmoid(rates),
        )

    def _output(self, hidden: jax.Array, read: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """Map the values that were read, [B, T, H, dv], to [B, T, D]."""
        gate = self.in_proj_z(hidden, adapter.get("in_proj_z"))
        normed = self.norm(read, _heads(gate, self.sizes.value_width))
        return self.out_proj(normed.reshape(gate.shape), adapter.get("out_proj"))


def _sizes(config: ModelConfig) -> DeltaNetConfig:
    assert config.delta_net is not None
    return config.delta_net


def _memory_shape(sizes: DeltaNetConfig) -> tuple[int, int, int]:
    return sizes.value_head_count, sizes.key_width, sizes.value_width


def _heads(features: jax.Array, width: int) -> jax.Array:
    return features.reshape(*features.shape[:2], -1, width)


def _unit(heads: jax.Array) -> jax.Array:
    return heads * jax.lax.rsqrt((heads * heads).sum(-1, keepdims=True) + _UNIT_EPSILON)
