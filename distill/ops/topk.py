"""The scoring head: the K most probable tokens of a position, and a summary of all others.

Letters: P positions, D hidden size, V vocabulary, K support size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from distill.ops.head import chunk_row_count

MAX_CHUNK_ROWS = 128
"""Positions per call where V allows it: the matmul runs at full speed and a call stays short."""


class TopKRows(NamedTuple):
    """Distributions of P positions. All log-probabilities are over the full vocabulary."""

    token_ids: jax.Array
    """[P, K] int32, by descending probability; of equals the lower id first."""

    log_probs: jax.Array
    """[P, K] float32, descending."""

    prompt_log_probs: jax.Array
    """[P] float32: of the given token."""

    tail_log_probs: jax.Array
    """[P] float32: of everything outside the support; -inf where the support is everything."""

    entropies: jax.Array
    """[P] float32, in nats."""


def scoring_chunk_rows(vocab_size: int) -> int:
    """Most positions to score in one call: bounds the logits [P, V] in bytes."""
    return chunk_row_count(MAX_CHUNK_ROWS, vocab_size)


def top_k_rows(
    hidden: jax.Array,
    kernel: jax.Array,
    prompt_token_ids: jax.Array,
    temperatures: jax.Array,
    support_sizes: jax.Array,
    *,
    top_k: int,
) -> TopKRows:
    """Score P positions; pure, to be compiled by the caller with `top_k` static.

    The tail is summed from its own logits. 1 - sum(support) would have no correct digit left once
    the tail is below 1e-7, and a sum relative to the row's maximum would underflow below 1e-38.

    Args:
        hidden: [P, D] final hidden states. The caller bounds P with `scoring_chunk_rows`.
        kernel: [V, D] head weights.
        prompt_token_ids: [P] int32, the tokens whose log-probability is wanted.
        temperatures: [P] float32, greater than 0; divide the logits.
        support_sizes: [P] int32 in [1, top_k]. The tail is what lies outside a row's first
            `support_sizes` tokens; the remaining columns of the result are to be cut off.
        top_k: K, in [1, V].

    Returns:
        TopKRows.
    """
    logits = relative_logits(hidden, kernel, temperatures)
    values, token_ids = lax.top_k(logits, top_k)

    rows = jnp.arange(hidden.shape[0])[:, None]
    in_support = jnp.arange(top_k) < support_sizes[:, None]
    outside = logits.at[rows, token_ids].set(jnp.where(in_support, -jnp.inf, values))
    return summarize_rows(logits, outside, token_ids, values, in_support, prompt_token_ids)


def relative_logits(hidden: jax.Array, kernel: jax.Array, temperatures: jax.Array) -> jax.Array:
    """Logits [P, V] after temperature, float32, relative to each row's maximum."""
    # float32 before everything else: bf16 logits are off by 0.06 nats at V = 151936.
    logits = jnp.einsum(
        "pd,vd->pv", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    logits = logits / temperatures[:, None]
    # Relative to the maximum: an entropy near 0 keeps its digits however large the logits are.
    return logits - logits.max(-1, keepdims=True)


def summarize_rows(
    logits: jax.Array,
    outside: jax.Array,
    token_ids: jax.Array,
    values: jax.Array,
    is_counted: jax.Array,
    prompt_token_ids: jax.Array,
) -> TopKRows:
    """Log-probabilities of a support, and the summary of everything else.

    Args:
        logits: [P, V], from `relative_logits`.
        outside: [P, V], the logits with -inf at the tokens of the support.
        token_ids: [P, K].
        values: [P, K], the logits of `token_ids`.
        is_counted: [P, K], true in exactly one slot of every token of the support.
        prompt_token_ids: [P].
    """
    tail_peak = outside.max(-1, keepdims=True)
    tail_peak = jnp.where(jnp.isfinite(tail_peak), tail_peak, 0.0)  # K = V: nothing is outside
    tail_weights = jnp.exp(outside - tail_peak)
    tail_total = tail_weights.sum(-1)
    log_tail = tail_peak[:, 0] + jnp.log(tail_total)

    support_weights = jnp.where(is_counted, jnp.exp(values), 0.0)
    log_total = jnp.logaddexp(jnp.log(support_weights.sum(-1)), log_tail)
    tail_share = jnp.exp(log_tail - log_total)
    mean_outside = (tail_weights * logits).sum(-1) / jnp.maximum(tail_total, 1.0)
    # tail_total is at least 1, its largest weight, or 0 where nothing is outside.
    mean_inside = (support_weights * values).sum(-1) * jnp.exp(-log_total)
    own = jnp.take_along_axis(logits, prompt_token_ids[:, None], axis=-1)[:, 0]
    return TopKRows(
        token_ids=token_ids,
        log_probs=values - log_total[:, None],
        prompt_log_probs=own - log_total,
        tail_log_probs=log_tail - log_total,
        entropies=log_total - mean_inside - tail_share * mean_outside,
    )
