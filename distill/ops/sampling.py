"""Draws the next token from logits.

Letters: B rows, V vocabulary, M candidates, C blocks of the vocabulary, W tokens in a block.

A row's random numbers come from its own key alone, so its draw does not depend on the other rows.
All draws are Gumbel-max: a search in cumulative sums could draw a token of probability 0, and would
turn a rounding error of the logits into another token far more often.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_TOKENS = 256
"""W: near the square root of V, so that a draw needs few random numbers and no pass over V but
those of the softmax."""

CANDIDATE_COUNT = 512
"""Most probable tokens looked at before a full sort: on a CPU a sort of 49152 logits takes ten
times as long, and top_k or top_p rarely reach further."""


class SamplingSettings(NamedTuple):
    """Scalars, so that they are arguments of compiled code and not constants of it."""

    temperature: jax.Array
    """Divides the logits; 0 takes the most probable token."""

    top_k: jax.Array
    """Keep only so many of the most probable tokens; V keeps all."""

    top_p: jax.Array
    """Keep the smallest set whose probability, over the full vocabulary, reaches this; 1 keeps
    all."""


def draw_tokens(
    logits: jax.Array, keys: jax.Array, settings: SamplingSettings
) -> tuple[jax.Array, jax.Array]:
    """Draw a token for every row.

    Args:
        logits: [B, V] float32.
        keys: [B] random keys, each for one draw.
        settings: of all rows.

    Returns:
        Token ids [B] int32, and their log-probabilities [B] float32 over the full vocabulary, after
        temperature and before top_k and top_p (at temperature 0: of the unscaled logits).
    """
    is_greedy = settings.temperature == 0
    logits = logits / jnp.where(is_greedy, 1.0, settings.temperature)
    blocks = _blocks(logits)
    maxima = blocks.max(-1)
    row_maxima = maxima.max(-1, keepdims=True)
    sums = jnp.exp(blocks - row_maxima[..., None]).sum(-1)
    log_total = row_maxima[:, 0] + jnp.log(sums.sum(-1))

    def greedy() -> jax.Array:
        # The first of equals, as an argmax over the whole row, which takes XLA's CPU backend ten
        # times as long.
        block = maxima.argmax(-1)
        return _token(block, _block_logits(blocks, block).argmax(-1))

    def free() -> jax.Array:
        # A block by its probability, then a token in it by its own.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (sum(blocks.shape[1:]),)))(keys)
        block_noise, token_noise = jnp.split(noise, [blocks.shape[1]], axis=-1)
        block = (jnp.log(sums) + block_noise).argmax(-1)
        return _token(block, (_block_logits(blocks, block) + token_noise).argmax(-1))

    def restricted() -> jax.Array:
        return _restricted(logits - log_total[:, None], keys, settings)

    is_restricted = (settings.top_k < logits.shape[-1]) | (settings.top_p < 1)
    strategy = jnp.where(is_greedy, 0, jnp.where(is_restricted, 2, 1))
    token_ids = lax.switch(strategy, (greedy, free, restricted))
    drawn = jnp.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0]
    return token_ids, drawn - log_total


def _blocks(logits: jax.Array) -> jax.Array:
    """[B, V] to [B, C, W]; what fills the last block is never drawn."""
    padding = -logits.shape[-1] % BLOCK_TOKENS
    if padding:
        logits = jnp.pad(logits, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    return logits.reshape(len(logits), -1, BLOCK_TOKENS)


def _block_logits(blocks: jax.Array, block: jax.Array) -> jax.Array:
    """[B, W] of each row's block [B]."""
    return jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _token(block: jax.Array, index: jax.Array) -> jax.Array:
    return (block * BLOCK_TOKENS + index).astype(jnp.int32)


def _restricted(log_probs: jax.Array, keys: jax.Array, settings: SamplingSettings) -> jax.Array:
    candidate_count = min(CANDIDATE_COUNT, log_probs.shape[-1])
    candidates = lax.top_k(log_probs, candidate_count)
    reached = jnp.exp(candidates[0]).sum(-1) >= settings.top_p
    suffices = (settings.top_k <= candidate_count) | reached.all()
    if candidate_count == log_probs.shape[-1]:
        return _draw_ranked(*candidates, keys, settings)
    drawn: jax.Array = lax.cond(
        suffices,
        lambda: _draw_ranked(*candidates, keys, settings),
        lambda: _draw_ranked(*lax.top_k(log_probs, log_probs.shape[-1]), keys, settings),
    )
    return drawn


def _draw_ranked(
    log_probs: jax.Array, token_ids: jax.Array, keys: jax.Array, settings: SamplingSettings
) -> jax.Array:
    """Draw from [B, M] descending candidates.

    The noise belongs to the rank, and the first M numbers of a key are the same for every M. So a
    row draws the same token from few candidates as from all.
    """
    probabilities = jnp.exp(log_probs)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    ranks = jnp.arange(log_probs.shape[-1])
    # The first is always kept, whatever the rounding of the sum.
    kept = ((ranks < settings.top_k) & (before < settings.top_p)) | (ranks == 0)
    rank = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, log_probs, -jnp.inf))
    return jnp.take_along_axis(token_ids, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)
