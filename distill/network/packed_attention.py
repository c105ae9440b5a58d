"""Attention over a pack: exact, in blocks, without a matrix of scores (https://arxiv.org/abs/2205.14135).

A block of queries visits only the blocks of keys of which one of its tokens sees something. Their
number is known when the pack is, not when the program is compiled. So one program serves every way
to pack, and its work is that of the sequences alone. JAX has no gradient of a loop whose length is
known so late, so the gradient is written out here.

Letters: N slots of the pack, H query heads, G groups of them with a key and a value head each,
R = H / G, Q slots of a block, d width of a head. Scores, sums and results are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from distill.kernels.bits import as_bits, from_bits
from distill.network.gradient_memory import keep
from distill.network.packing import Segments, pad_segments

BLOCK_SLOTS = 256
"""Q: large enough that the products run at full speed, small enough that a block's scores stay
near the caches and that little of a block is masked."""

_MASKED = -1e30
"""Score of a key that a query does not see. Finite: the difference of two must not be NaN."""

Carry = TypeVar("Carry")


class _Blocks(NamedTuple):
    """The pack cut into C blocks."""

    queries: jax.Array  # [C, G, R * Q, d], scaled
    keys: jax.Array  # [C, G, Q, d]
    values: jax.Array  # [C, G, Q, d]
    segments: Segments  # [C, Q]


class _Statistics(NamedTuple):
    """What the forward pass keeps for the backward pass, by block."""

    outputs: jax.Array  # [C, G, R * Q, d] float32
    log_normalizers: jax.Array  # [C, G, R * Q]


def packed_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> jax.Array:
    """softmax(q·k / sqrt(d)) v over the slots that each slot sees, with a running softmax.

    The backward pass computes the scores again, from the saved log normaliser of each query. With
    s the share of a key, o the output and G its cotangent, a score has the gradient
    s (G·v - G·o) (https://arxiv.org/abs/2205.14135).

    Args:
        query: [N, H, d], rotary positions applied.
        key: [N, G, d]; head h reads group h // R.
        value: [N, G, d].
        segments: what each slot sees; each sees itself at least.

    Returns:
        [N, H · d] in the query's dtype. Differentiable in query, key and value.
    """
    slot_count, head_count, head_dim = query.shape
    block_slots = min(BLOCK_SLOTS, slot_count)
    padded_count = -(-slot_count // block_slots) * block_slots
    if padded_count != slot_count:
        widths = ((0, padded_count - slot_count), (0, 0), (0, 0))
        query, key, value = (jnp.pad(array, widths) for array in (query, key, value))
        segments = pad_segments(segments, padded_count)
    by_block = Segments(*(jnp.asarray(array).reshape(-1, block_slots) for array in segments))
    mixed = _attention(block_slots, query, key, value, by_block)
    return mixed[:slot_count].reshape(slot_count, head_count * head_dim)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    block_slots: int, query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> jax.Array:
    return _forward(block_slots, query, key, value, segments)[0]


def _cut(
    block_slots: int, query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> _Blocks:
    head_dim = query.shape[-1]
    group_count = key.shape[1]

    def by_group(array: jax.Array) -> jax.Array:
        return array.reshape(-1, block_slots, group_count, head_dim).transpose(0, 2, 1, 3)

    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    return _Blocks(
        _queries_by_block(scaled, block_slots, group_count),
        by_group(key),
        by_group(value),
        segments,
    )


def _queries_by_block(array: jax.Array, block_slots: int, group_count: int) -> jax.Array:
    """[N, H, d] to [C, G, R * Q, d]: the heads of a group are rows of one matrix product."""
    head_count, head_dim = array.shape[1:]
    split = array.reshape(-1, block_slots, group_count, head_count // group_count, head_dim)
    return split.transpose(0, 2, 3, 1, 4).reshape(-1, group_count, _rows(split), head_dim)


def _rows(split: jax.Array) -> int:
    return int(split.shape[1] * split.shape[3])


def _queries_by_slot(array: jax.Array, block_slots: int) -> jax.Array:
    """The inverse of `_queries_by_block`: [C, G, R * Q, d] to [N, H, d]."""
    block_count, group_count, row_count, head_dim = array.shape
    heads = (group_count, row_count // block_slots)
    split = array.reshape(block_count, *heads, block_slots, head_dim).transpose(0, 3, 1, 2, 4)
    joined: jax.Array = split.reshape(block_count * block_slots, -1, head_dim)
    return joined


def _keys_by_slot(array: jax.Array) -> jax.Array:
    """[C, G, d, Q] to [N, G, d]."""
    block_count, group_count, head_dim, block_slots = array.shape
    return array.transpose(0, 3, 1, 2).reshape(block_count * block_slots, group_count, head_dim)


def _visible(segments: Segments, query_block: jax.Array, key_block: jax.Array) -> jax.Array:
    """[Q, Q]: which keys of a block each query of a block sees. `segments` [Q] are the queries'."""
    block_slots = segments.starts.shape[0]
    offsets = jnp.arange(block_slots)
    slots = (query_block * block_slots + offsets)[:, None]
    keys = (key_block * block_slots + offsets)[None]
    own = (keys >= segments.starts[:, None]) & (keys <= slots)
    prefix = (keys >= segments.prefix_starts[:, None]) & (keys < segments.prefix_ends[:, None])
    visible: jax.Array = own | prefix
    return visible


def _scores(
    blocks: _Blocks, query_block: jax.Array, key_block: jax.Array, segments: Segments
) -> jax.Array:
    """[G, R * Q, Q] float32, masked."""
    queries, keys = blocks.queries[query_block], blocks.keys[key_block]
    scores = jnp.einsum("gqd,gkd->gqk", queries, keys, preferred_element_type=jnp.float32)
    visible = _visible(segments, query_block, key_block)
    by_head = scores.reshape(scores.shape[0], -1, *visible.shape)
    masked: jax.Array = jnp.where(visible, by_head, _MASKED).reshape(scores.shape)
    return masked


def _visit_keys(
    segments: Segments,
    query_block: jax.Array,
    visit: Callable[[jax.Array, Carry], Carry],
    start: Carry,
) -> Carry:
    """Call `visit` for each block of keys of which a block of queries sees something."""
    block_slots = segments.starts.shape[0]
    has_prefix = segments.prefix_starts < segments.prefix_ends
    first_own = segments.starts.min()
    beyond = (query_block + 1) * block_slots
    first_prefix = jnp.where(has_prefix, segments.prefix_starts, beyond).min()
    end_prefix = jnp.where(has_prefix, segments.prefix_ends, 0).max()

    def visit_if_seen(key_block: jax.Array, carry: Carry) -> Carry:
        low, high = key_block * block_slots, (key_block + 1) * block_slots
        is_seen = (high > first_own) | ((high > first_prefix) & (low < end_prefix))
        visited: Carry = lax.cond(is_seen, lambda: visit(key_block, carry), lambda: carry)
        return visited

    first = jnp.minimum(first_own, first_prefix) // block_slots
    result: Carry = lax.fori_loop(first, query_block + 1, visit_if_seen, start)
    return result


def _forward(
    block_slots: int, query: jax.Array, key: jax.Array, value: jax.Array, segments: Segments
) -> tuple[jax.Array, tuple[Any, ...]]:
    blocks = _cut(block_slots, query, key, value, segments)
    block_count, group_count, row_count, head_dim = blocks.queries.shape

    def attend_block(query_block: jax.Array) -> _Statistics:
        here = Segments(*(array[query_block] for array in segments))

        def visit(
            key_block: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            peak, total, mixed = carry
            scores = _scores(blocks, query_block, key_block, here)
            new_peak = jnp.maximum(peak, scores.max(-1))
            shares = jnp.exp(scores - new_peak[..., None])
            shrink = jnp.exp(peak - new_peak)
            more = jnp.einsum(
                "gqk,gkd->gqd",
                shares.astype(value.dtype),
                blocks.values[key_block],
                preferred_element_type=jnp.float32,
            )
            return (
                new_peak,
                total * shrink + shares.sum(-1),
                mixed * shrink[..., None] + more,
            )

        rows = (group_count, row_count)
        start = (
            jnp.full(rows, _MASKED),
            jnp.zeros(rows),
            jnp.zeros((*rows, head_dim)),
        )
        peak, total, mixed = _visit_keys(here, query_block, visit, start)
        # Never a division by 0: a slot sees itself, and the peak alone adds 1 to the total.
        return _Statistics(mixed / total[..., None], peak + jnp.log(total))

    statistics = lax.map(attend_block, jnp.arange(block_count))
    statistics = _Statistics(*(keep(array) for array in statistics))
    output = _queries_by_slot(statistics.outputs, block_slots).astype(query.dtype)
    return output, (as_bits((query, key, value)), segments, statistics)


def _backward(
    block_slots: int, residuals: tuple[Any, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    stored, segments, statistics = residuals
    query, key, value = from_bits(stored)
    blocks = _cut(block_slots, query, key, value, segments)
    block_count, group_count, _, head_dim = blocks.queries.shape
    cotangents = _queries_by_block(cotangent, block_slots, group_count)
    # The gradients of keys and values are summed as [d, Q]. Their products then need the queries
    # and cotangents transposed, which is done here, once. To transpose the shares instead, which
    # are wider, takes two to four times as long on a CPU.
    queries_across, cotangents_across = (
        array.transpose(0, 1, 3, 2) for array in (blocks.queries, cotangents)
    )

    def block_gradients(
        sums: tuple[jax.Array, jax.Array], query_block: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        here = Segments(*(array[query_block] for array in segments))
        output_gradient = cotangents[query_block]
        mean = (output_gradient * statistics.outputs[query_block]).sum(-1)[..., None]
        log_normalizers = statistics.log_normalizers[query_block][..., None]
        wide = partial(jnp.einsum, preferred_element_type=jnp.float32)

        def visit(
            key_block: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            key_sum, value_sum, query_gradient = carry
            shares = jnp.exp(_scores(blocks, query_block, key_block, here) - log_normalizers)
            share_gradient = wide("gqd,gkd->gqk", output_gradient, blocks.values[key_block])
            score_gradient = (shares * (share_gradient - mean)).astype(key.dtype)
            shares = shares.astype(value.dtype)
            value_sum = value_sum.at[key_block].add(
                wide("gdq,gqk->gdk", cotangents_across[query_block], shares)
            )
            key_sum = key_sum.at[key_block].add(
                wide("gdq,gqk->gdk", queries_across[query_block], score_gradient)
            )
            query_gradient += wide("gqk,gkd->gqd", score_gradient, blocks.keys[key_block])
            return key_sum, value_sum, query_gradient

        start = (*sums, jnp.zeros(blocks.queries.shape[1:]))
        *new_sums, query_gradient = _visit_keys(here, query_block, visit, start)
        return (new_sums[0], new_sums[1]), query_gradient

    zeros = jnp.zeros((block_count, group_count, head_dim, block_slots))
    (key_sum, value_sum), query_gradients = lax.scan(
        block_gradients, (zeros, zeros), jnp.arange(block_count)
    )
    return (
        (_queries_by_slot(query_gradients, block_slots) * head_dim**-0.5).astype(query.dtype),
        _keys_by_slot(key_sum).astype(key.dtype),
        _keys_by_slot(value_sum).astype(value.dtype),
        None,
    )


_attention.defvjp(_forward, _backward)
