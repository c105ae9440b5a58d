"""Causal depthwise convolution over time, over packs and step by step.

Each channel of a token is a sum over the last K inputs of that channel, each times a tap of the
kernel: out_t = sum_i kernel_{K-1-i} in_{t-i}. Inputs of an earlier sequence of the pack are not
among them. Gated delta nets have it before their memory (https://arxiv.org/abs/2412.06464).

Letters: B rows, T tokens of a row, C channels, K taps of the kernel.
"""

import jax
import jax.numpy as jnp


def packed_convolution(inputs: jax.Array, kernel: jax.Array, starts: jax.Array) -> jax.Array:
    """The convolution over a pack of sequences, summed in float32.

    Args:
        inputs: [T, C], the slots of a pack.
        kernel: [K, C]; the last tap is the token's own.
        starts: [T] int32, first slot of each token's sequence; inputs before it count as zero.

    Returns:
        [T, C] float32.
    """
    tap_count = kernel.shape[0]
    slot_count = inputs.shape[0]
    distances = jnp.arange(slot_count) - starts
    wide, taps = inputs.astype(jnp.float32), kernel.astype(jnp.float32)
    padded = jnp.pad(wide, ((tap_count - 1, 0), (0, 0)))
    total = wide * taps[-1]
    for back in range(1, tap_count):
        earlier = jax.lax.slice_in_dim(padded, tap_count - 1 - back, padded.shape[0] - back)
        total += jnp.where((distances >= back)[:, None], earlier, 0) * taps[-1 - back]
    return total


def cached_convolution(
    inputs: jax.Array, kernel: jax.Array, state: jax.Array, token_counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The convolution over tokens that continue rows, whether many or one; summed in float32.

    Args:
        inputs: [B, T, C].
        kernel: [K, C].
        state: [B, K - 1, C], the last inputs of each row before these; zeros before the first.
        token_counts: [B] int32, how many of the T are real; those after them are padding.

    Returns:
        [B, T, C] float32, and the state after the real tokens, in the dtype of `state`.
    """
    tap_count, length = kernel.shape[0], inputs.shape[1]
    wide, taps = inputs.astype(jnp.float32), kernel.astype(jnp.float32)
    joined = jnp.concatenate([state.astype(jnp.float32), wide], axis=1)
    total = jnp.zeros(inputs.shape, jnp.float32)
    for tap in range(tap_count):
        total += jax.lax.slice_in_dim(joined, tap, tap + length, axis=1) * taps[tap]
    last = token_counts[:, None] + jnp.arange(tap_count - 1)
    new_state = jnp.take_along_axis(joined, last[..., None], axis=1)
    return total, new_state.astype(state.dtype)
