"""Passes over logits [P, V] that read them once: the exact top K, and sums over the vocabulary.

A chunk of logits is larger than the caches of most devices. A sum that is written plainly makes an
array of that size for each of its steps; in blocks of the vocabulary the steps stay in the cache
(docs/adr/0004-measurements.md).

Letters: P positions, V vocabulary, K how many of the most probable.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

TOP_K_BLOCK = 64
"""Tokens of a block whose maximum stands for it in the first stage of the top K."""

SUM_BLOCK = 4096
"""Tokens of a block of a sum."""


def exact_top_k(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of each row with their ids, as `lax.top_k` gives them, ties included.

    In two stages: first the K blocks with the largest maxima, then the K largest entries of those
    blocks. That is exact. Suppose the block of an entry were not chosen. Then each of the K chosen
    blocks would have an entry that comes before it, a larger one or an equal one of a lower id,
    because blocks are ordered like their ids. So the entry is not among the K largest.

    >>> values, ids = exact_top_k(jnp.array([[1.0, 5.0, 2.0, 5.0]]), 3)
    >>> print(values, ids)
    [[5. 5. 2.]] [[1 3 2]]

    Args:
        logits: [P, V].
        count: K, in [1, V].

    Returns:
        Values and ids [P, K], descending; of equals the lower id first.

    Raises:
        ValueError: K exceeds V.
    """
    row_count, vocab_size = logits.shape
    block_count = vocab_size // TOP_K_BLOCK
    if block_count <= count:
        return _top_k(logits, count)
    in_blocks = block_count * TOP_K_BLOCK
    blocks = logits[:, :in_blocks].reshape(row_count, block_count, TOP_K_BLOCK)
    _, chosen = _top_k(blocks.max(-1), count)
    chosen = jnp.sort(chosen, axis=-1)  # so that of equal candidates the lower id comes first
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(row_count, -1)
    ids = (chosen[:, :, None] * TOP_K_BLOCK + jnp.arange(TOP_K_BLOCK)).reshape(row_count, -1)
    if in_blocks < vocab_size:
        rest = jnp.broadcast_to(
            jnp.arange(in_blocks, vocab_size), (row_count, vocab_size - in_blocks)
        )
        candidates = jnp.concatenate([candidates, logits[:, in_blocks:]], axis=1)
        ids = jnp.concatenate([ids, rest], axis=1)
    values, places = _top_k(candidates, count)
    return values, jnp.take_along_axis(ids, places, axis=1)


def _top_k(array: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    # The barrier keeps XLA's CPU backend from merging top_k with a slice of its result: the two
    # together become a full sort, which takes many times as long.
    values, ids = lax.optimization_barrier(  # type: ignore[no-untyped-call]
        lax.top_k(array, count)
    )
    return values, ids


def first_occurrences(token_ids: jax.Array) -> jax.Array:
    """Whether each slot [P, K] is the first of its row with its token.

    >>> print(first_occurrences(jnp.array([[7, 4, 7, 7]])))
    [[ True  True False False]]
    """
    order = jnp.argsort(token_ids, axis=-1, stable=True)
    ordered = jnp.take_along_axis(token_ids, order, axis=-1)
    starts = jnp.concatenate(
        [jnp.ones_like(ordered[:, :1], bool), ordered[:, 1:] != ordered[:, :-1]], axis=-1
    )
    rows = jnp.arange(token_ids.shape[0])[:, None]
    return jnp.zeros(token_ids.shape, bool).at[rows, order].set(starts)


def sum_exponentials(
    logits: jax.Array,
    peaks: jax.Array,
    inverse_temperatures: jax.Array,
    is_counted: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Sums over counted tokens of w = exp(z - peak), and of w · (z - peak), in one pass.

    They give the logsumexp, peak + log(sum w), and the entropy of the counted tokens.

    >>> logits, ones = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.ones(1)
    >>> total, moment = sum_exponentials(logits, ones, ones, lambda block, _: block > -jnp.inf)
    >>> print(total, moment)  # 1 + 1/e, -1/e
    [1.368] [-0.368]

    Args:
        logits: [P, V] before temperature; z are they times the inverse temperature.
        peaks: [P], finite: the largest counted z, or above it.
        inverse_temperatures: [P].
        is_counted: (logits [P, M], their token ids [M]) -> [P, M] bool.

    Returns:
        Two arrays [P], 0 where nothing is counted.
    """
    vocab_size = logits.shape[1]
    block_count = vocab_size // SUM_BLOCK

    def add(
        block: jax.Array, start: jax.Array | int, sums: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        counted = is_counted(block, start + jnp.arange(block.shape[1]))
        # An entry that is not counted may be -inf, and 0 * -inf would be NaN.
        below = jnp.where(counted, block * inverse_temperatures[:, None] - peaks[:, None], 0.0)
        exponentials = jnp.where(counted, jnp.exp(below), 0.0)
        return sums[0] + exponentials.sum(-1), sums[1] + (exponentials * below).sum(-1)

    def add_block(
        index: jax.Array, sums: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        start = index * SUM_BLOCK
        return add(lax.dynamic_slice_in_dim(logits, start, SUM_BLOCK, axis=1), start, sums)

    zeros = jnp.zeros(logits.shape[0], jnp.float32)
    sums: tuple[jax.Array, jax.Array] = (zeros, zeros)
    if block_count:
        sums = lax.fori_loop(0, block_count, add_block, sums)
    rest = block_count * SUM_BLOCK
    return add(logits[:, rest:], rest, sums) if rest < vocab_size else sums
