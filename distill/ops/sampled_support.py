"""The scoring head on other supports than the K most probable tokens: named tokens, and draws.

Letters: P positions, D hidden size, V vocabulary, K support size, E size of the exact head,
n = K - E draws.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill.ops.logits import Head
from distill.ops.topk import TopKRows, relative_logits, summarize_rows
from distill.ops.vocabulary import exact_top_k, first_occurrences

DRAW_BLOCK = 256
"""Tokens of a block: a draw takes a block by its mass, then a token in it, so that it looks at
V / 256 + 256 numbers instead of V."""


class SampledRows(NamedTuple):
    """Distributions of P positions on a support of an exact head and draws."""

    rows: TopKRows
    """The head by descending probability, then the draws in their order. The tail is what lies
    outside the set of them all."""

    draw_weights: jax.Array
    """[P, K] float32: 0 in the slots of a token's later draws."""


def candidate_rows(
    hidden: jax.Array,
    head: Head,
    prompt_token_ids: jax.Array,
    temperatures: jax.Array,
    support_sizes: jax.Array,
    candidate_ids: jax.Array,
) -> TopKRows:
    """log softmax(logits / temperature) at named tokens, and a summary of the rest.

    Pure, to be compiled by the caller.

    >>> head = Head(jnp.log(jnp.array([[1.0], [6.0], [3.0]])))  # probabilities 0.1, 0.6, 0.3
    >>> ones, own = jnp.ones(1), jnp.array([1])
    >>> named = jnp.array([[2, 0]])
    >>> rows = candidate_rows(jnp.ones((1, 1)), head, own, ones, jnp.array([2]), named)
    >>> print(jnp.exp(rows.log_probs), jnp.exp(rows.tail_log_probs))
    [[0.3 0.1]] [0.6]

    Args:
        hidden: [P, D] final hidden states. The caller bounds P with `scoring_chunk_rows`.
        head: the weights.
        prompt_token_ids: [P] int32, the tokens whose log-probability is wanted.
        temperatures: [P] float32, greater than 0; divide the logits.
        support_sizes: [P] int32 in [1, K]. Columns beyond a row's size are to be cut off.
        candidate_ids: [P, K] int32 in [0, V), distinct within a row's first `support_sizes`.

    Returns:
        TopKRows, in the order of the candidates.
    """
    logits = relative_logits(hidden, head, temperatures)
    named = jnp.arange(candidate_ids.shape[1]) < support_sizes[:, None]
    return _rows_of_set(logits, candidate_ids, named, named, prompt_token_ids)


def sampled_rows(
    hidden: jax.Array,
    head: Head,
    prompt_token_ids: jax.Array,
    temperatures: jax.Array,
    support_sizes: jax.Array,
    exact_counts: jax.Array,
    keys: jax.Array,
    *,
    slot_count: int,
    head_slot_count: int,
) -> SampledRows:
    """Score P positions on an exact head and draws from what is outside it; pure.

    A token of the head has the draw weight p. A token outside that n draws drew m times has the
    draw weight m p_outside / n in the slot of its first draw, and 0 in those of its other draws. So
    sum_j w_j f(x_j) is sum_V p f on average (RS-KD, https://arxiv.org/abs/2503.16870).

    >>> head = Head(jnp.log(jnp.array([[1.0], [9.0]])))  # probabilities 0.1 and 0.9
    >>> ones, two, keys = jnp.ones(1), jnp.array([2]), jax.random.split(jax.random.key(0), 1)
    >>> one, own = jnp.array([1]), jnp.array([0])  # an exact head of 1, own token 0
    >>> sizes = {"slot_count": 2, "head_slot_count": 1}
    >>> result = sampled_rows(jnp.ones((1, 1)), head, own, ones, two, one, keys, **sizes)
    >>> print(result.rows.token_ids, result.draw_weights)  # the one draw has no choice
    [[1 0]] [[0.9 0.1]]

    Arguments not named here are those of `candidate_rows`.

    Args:
        support_sizes: [P] int32 in [1, slot_count], K of each row.
        exact_counts: [P] int32, E of each row, in [0, min(K, head_slot_count + 1)).
        keys: [P] random keys. Slot j of a row draws with the key folded with j, so that its draw
            depends neither on `slot_count` nor on the other rows.
        slot_count: K as it is compiled.
        head_slot_count: E as it is compiled; 0 where no row has an exact head.

    Returns:
        SampledRows of `slot_count` columns.
    """
    logits = relative_logits(hidden, head, temperatures)
    slots = jnp.arange(slot_count)
    rows = jnp.arange(hidden.shape[0])[:, None]
    is_exact = slots < exact_counts[:, None]
    is_drawn = ~is_exact & (slots < support_sizes[:, None])

    outside, head_total = logits, jnp.zeros_like(logits[:, 0])
    head_ids = jnp.zeros((hidden.shape[0], slot_count), jnp.int32)
    if head_slot_count:
        values, ids = exact_top_k(logits, head_slot_count)
        in_head = jnp.arange(head_slot_count) < exact_counts[:, None]
        outside = logits.at[rows, ids].set(jnp.where(in_head, -jnp.inf, values))
        head_total = jnp.where(in_head, jnp.exp(values), 0.0).sum(-1)
        head_ids = head_ids.at[:, :head_slot_count].set(ids)
    peak = outside.max(-1, keepdims=True)
    masses = jnp.exp(outside - peak)
    token_ids = jnp.where(is_exact, head_ids, _draw(masses, keys, slot_count))

    is_first, count = _first_draws(token_ids, is_drawn, logits.shape[1])
    scored = _rows_of_set(
        logits, token_ids, is_exact | is_drawn, is_exact | is_first, prompt_token_ids
    )
    # Summed from its own logits, as every tail: 1 - sum(head) would lose a small one's digits.
    log_outside = peak[:, 0] + jnp.log(masses.sum(-1))
    outside_mass = jnp.exp(log_outside - jnp.logaddexp(jnp.log(head_total), log_outside))
    per_draw = outside_mass / jnp.maximum(support_sizes - exact_counts, 1)
    draw_weights = jnp.where(is_first, count * per_draw[:, None], 0.0)
    return SampledRows(scored, jnp.where(is_exact, jnp.exp(scored.log_probs), draw_weights))


def _rows_of_set(
    logits: jax.Array,
    token_ids: jax.Array,
    is_named: jax.Array,
    is_counted: jax.Array,
    prompt_token_ids: jax.Array,
) -> TopKRows:
    """The rows on the set of the named tokens, each of which is counted in exactly one slot."""
    rows = jnp.arange(logits.shape[0])[:, None]
    values = jnp.take_along_axis(logits, token_ids, axis=-1)
    # min, not set: a slot that is not named may hold the same token as one that is.
    outside = logits.at[rows, token_ids].min(jnp.where(is_named, -jnp.inf, jnp.inf))
    return summarize_rows(logits, outside, token_ids, values, is_counted, prompt_token_ids)


def _first_draws(
    token_ids: jax.Array, is_drawn: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """Whether a slot is the first draw of its token, and how often the token was drawn, [P, K]."""
    slot_count = token_ids.shape[1]
    # A slot that is no draw gets a number of its own, so that it repeats no other slot.
    numbers = jnp.where(is_drawn, token_ids, vocab_size + jnp.arange(slot_count))
    is_first = first_occurrences(numbers) & is_drawn
    ordered = jnp.sort(numbers, axis=-1)

    def occurrences(ordered: jax.Array, numbers: jax.Array) -> jax.Array:
        after = jnp.searchsorted(ordered, numbers, side="right")
        return after - jnp.searchsorted(ordered, numbers, side="left")

    return is_first, jax.vmap(occurrences)(ordered, numbers)


def _draw(masses: jax.Array, keys: jax.Array, slot_count: int) -> jax.Array:
    """Draw `slot_count` tokens of each row in proportion to their masses [P, V], with replacement.

    A draw has two random numbers: one is searched in the cumulative sum of the blocks' masses, the
    other in that of the tokens of the block.

    Returns:
        [P, slot_count] int32.
    """
    row_count, vocab_size = masses.shape
    block_size = min(DRAW_BLOCK, vocab_size)
    block_count = -(-vocab_size // block_size)
    padded = jnp.pad(masses, ((0, 0), (0, block_count * block_size - vocab_size)))
    blocks = padded.reshape(row_count, block_count, block_size)

    def uniforms(key: jax.Array) -> jax.Array:
        slot_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(slot_count))
        return jax.vmap(lambda slot_key: jax.random.uniform(slot_key, (2,)))(slot_keys)

    numbers = jax.vmap(uniforms)(keys)  # [P, slots, 2]
    block = _search(blocks.sum(-1)[:, None], numbers[..., 0])
    drawn_blocks = jnp.take_along_axis(blocks, block[..., None], axis=1)  # [P, slots, block]
    within = _search(drawn_blocks, numbers[..., 1])
    return (block * block_size + within).astype(jnp.int32)


def _search(masses: jax.Array, number: jax.Array) -> jax.Array:
    """The index [...] at which the cumulative sum of masses [..., M] passes the share `number`.

    It never has mass 0. A sum that is computed in parallel need not be monotone in its last digit,
    so the sums alone would let a token of mass 0 pass once in ten million draws.
    """
    has_mass = masses > 0.0
    cumulative = jnp.where(has_mass, jnp.cumsum(masses, axis=-1), 0.0)
    target = number[..., None] * cumulative.max(-1, keepdims=True)
    return jnp.argmax(has_mass & (cumulative > target), axis=-1)
