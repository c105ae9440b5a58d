"""The scoring head: the K most probable tokens of a position, and a summary of all others.

Letters: P positions, D hidden size, V vocabulary, K support size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill.ops.logits import Head, chunk_row_count, head_logits
from distill.ops.vocabulary import exact_top_k, sum_exponentials

MAX_CHUNK_ROWS = 256
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
    """Most positions to score in one call: bounds the logits [P, V] in bytes.

    >>> scoring_chunk_rows(49152), scoring_chunk_rows(262144)
    (256, 128)
    """
    return chunk_row_count(MAX_CHUNK_ROWS, vocab_size)


def top_k_rows(
    hidden: jax.Array,
    head: Head,
    prompt_token_ids: jax.Array,
    temperatures: jax.Array,
    support_sizes: jax.Array,
    *,
    top_k: int,
) -> TopKRows:
    """log softmax(logits / temperature) at the K most probable tokens, and a summary of the rest.

    Pure, to be compiled by the caller with `top_k` static.

    The tail is summed from its own logits. 1 - sum(support) would have no correct digit left once
    the tail is below 1e-7, and a sum relative to the row's maximum would underflow below 1e-38.

    >>> head = Head(jnp.log(jnp.array([[1.0], [6.0], [3.0]])))  # probabilities 0.1, 0.6, 0.3
    >>> ones, own = jnp.ones(1), jnp.array([0])
    >>> rows = top_k_rows(jnp.ones((1, 1)), head, own, ones, jnp.array([2]), top_k=2)
    >>> print(rows.token_ids, jnp.exp(rows.log_probs), jnp.exp(rows.tail_log_probs))
    [[1 2]] [[0.6 0.3]] [0.1]

    Args:
        hidden: [P, D] final hidden states. The caller bounds P with `scoring_chunk_rows`.
        head: the weights.
        prompt_token_ids: [P] int32, the tokens whose log-probability is wanted.
        temperatures: [P] float32, greater than 0; divide the logits.
        support_sizes: [P] int32 in [1, top_k]. The tail is what lies outside a row's first
            `support_sizes` tokens; the remaining columns of the result are to be cut off.
        top_k: K, in [1, the head's valid tokens].

    Returns:
        TopKRows.
    """
    logits = head_logits(hidden, head)
    scale = 1.0 / temperatures
    # One more than asked for: the largest logit outside the support.
    candidates, candidate_ids = exact_top_k(logits, min(top_k + 1, head.token_count))
    top = candidates[:, :1]
    least = jnp.take_along_axis(candidates, support_sizes[:, None] - 1, axis=1)
    beyond = jnp.minimum(support_sizes, candidates.shape[1] - 1)[:, None]
    tail_peak = jnp.take_along_axis(candidates, beyond, axis=1)[:, 0] * scale
    in_support = jnp.arange(top_k) < support_sizes[:, None]
    values, token_ids = candidates[:, :top_k], candidate_ids[:, :top_k]
    # Of the tokens that are as probable as the last one of the support, it has those of lower ids.
    last_of_equals = jnp.where(in_support & (values == least), token_ids, -1).max(-1)[:, None]

    def is_outside(block: jax.Array, ids: jax.Array) -> jax.Array:
        below = (block < least) | ((block == least) & (ids > last_of_equals))
        # A token that is not valid is neither in the support nor outside it.
        return below & (ids < head.token_count)

    tail_sums = sum_exponentials(logits, tail_peak, scale, is_outside)
    own = jnp.take_along_axis(logits, prompt_token_ids[:, None], axis=-1)
    # Values relative to the maximum: an entropy near 0 keeps its digits for logits of any size.
    summary = summarize_support(
        (values - top) * scale[:, None], in_support, tail_peak - top[:, 0] * scale, tail_sums
    )
    return _as_rows(token_ids, ((own - top) * scale[:, None])[:, 0], summary)


def relative_logits(hidden: jax.Array, head: Head, temperatures: jax.Array) -> jax.Array:
    """Logits [P, V] after temperature, float32, relative to each row's maximum.

    >>> hidden, head = jnp.ones((1, 1)), Head(jnp.array([[2.0], [4.0]]))
    >>> print(relative_logits(hidden, head, jnp.array([0.5])))
    [[-4.  0.]]

    Args:
        hidden: [P, D] final hidden states.
        head: the weights.
        temperatures: [P] float32, greater than 0.
    """
    logits = head_logits(hidden, head) / temperatures[:, None]
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

    >>> logits = jnp.log(jnp.array([[1.0, 0.5, 0.5]]))
    >>> outside, ids = logits.at[0, 0].set(-jnp.inf), jnp.array([[0]])
    >>> rows = summarize_rows(logits, outside, ids, logits[:, :1], ids == 0, jnp.array([1]))
    >>> print(jnp.exp(rows.log_probs), jnp.exp(rows.tail_log_probs))
    [[0.5]] [0.5]

    Args:
        logits: [P, V], from `relative_logits`.
        outside: [P, V], the logits with -inf at the tokens of the support.
        token_ids: [P, K].
        values: [P, K], the logits of `token_ids`.
        is_counted: [P, K], true in exactly one slot of every token of the support.
        prompt_token_ids: [P].
    """
    tail_peak = outside.max(-1)
    tail_peak = jnp.where(jnp.isfinite(tail_peak), tail_peak, 0.0)  # K = V: nothing is outside
    ones = jnp.ones_like(tail_peak)
    tail_sums = sum_exponentials(outside, tail_peak, ones, lambda block, _: block > -jnp.inf)
    own = jnp.take_along_axis(logits, prompt_token_ids[:, None], axis=-1)[:, 0]
    return _as_rows(token_ids, own, summarize_support(values, is_counted, tail_peak, tail_sums))


class SupportSummary(NamedTuple):
    """A support and everything outside it, normalised together."""

    log_probs: jax.Array
    """[P, K]."""

    tail_log_probs: jax.Array
    """[P]; -inf where nothing is outside."""

    entropies: jax.Array
    """[P], in nats."""

    log_total: jax.Array
    """[P], log Z: of the sum of all exponentials, relative to the row's maximum."""


def summarize_support(
    values: jax.Array,
    is_counted: jax.Array,
    tail_peak: jax.Array,
    tail_sums: tuple[jax.Array, jax.Array],
) -> SupportSummary:
    """Normalise a support together with what is outside it: log q, log q_tail and the entropy.

    With w = exp(values) and Z = sum w over everything, log q = values - log Z, and the entropy is
    log Z minus the mean of the values under q.

    >>> one, peak = jnp.ones((1, 1), bool), jnp.zeros(1)  # one token in the support, two outside
    >>> sums = jnp.array([2.0]), jnp.array([0.0])  # all three of the same probability
    >>> summary = summarize_support(jnp.zeros((1, 1)), one, peak, sums)
    >>> print(jnp.exp(summary.tail_log_probs), jnp.exp(summary.entropies))
    [0.667] [3.]

    Args:
        values: [P, K], logits after temperature, relative to the row's maximum.
        is_counted: [P, K], true in exactly one slot of every token that is not outside.
        tail_peak: [P], what the sums are relative to, relative to the row's maximum.
        tail_sums: over the tokens outside, from `sum_exponentials`.
    """
    tail_total, tail_weighted = tail_sums
    log_tail = tail_peak + jnp.log(tail_total)
    exponentials = jnp.where(is_counted, jnp.exp(values), 0.0)
    log_total = jnp.logaddexp(jnp.log(exponentials.sum(-1)), log_tail)
    tail_share = jnp.exp(log_tail - log_total)
    # tail_total is 0 where nothing is outside, and otherwise at least 1, its largest exponential.
    mean_outside = tail_peak + tail_weighted / jnp.maximum(tail_total, 1.0)
    mean_inside = (exponentials * values).sum(-1) * jnp.exp(-log_total)
    return SupportSummary(
        log_probs=values - log_total[:, None],
        tail_log_probs=log_tail - log_total,
        entropies=log_total - mean_inside - tail_share * mean_outside,
        log_total=log_total,
    )


def _as_rows(token_ids: jax.Array, own: jax.Array, summary: SupportSummary) -> TopKRows:
    """The summary, and the prompt's own tokens: `own` [P] are logits relative to the maximum."""
    return TopKRows(
        token_ids=token_ids,
        log_probs=summary.log_probs,
        prompt_log_probs=own - summary.log_total,
        tail_log_probs=summary.tail_log_probs,
        entropies=summary.entropies,
    )
