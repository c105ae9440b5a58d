"""Draws the next token from logits.

Letters: B rows, V vocabulary, C blocks of the vocabulary, W tokens in a block.

A row's random numbers come from its own key alone, so its draw does not depend on the other rows.
All draws are Gumbel-max (https://arxiv.org/abs/1611.00712). A search in cumulative sums could draw
a token of probability 0, and a rounding error of the logits would change the token far more often.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_TOKENS = 256
"""W: near the square root of V, so that a draw needs few random numbers and no pass over V but
those of the softmax."""


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
    """Draw a token for every row from softmax(logits / temperature), restricted by top_k and top_p.

    >>> settings = SamplingSettings(jnp.float32(0.0), jnp.int32(3), jnp.float32(1.0))
    >>> logits, keys = jnp.log(jnp.array([[1.0, 6.0, 3.0]])), jax.random.split(jax.random.key(0), 1)
    >>> token_ids, log_probs = draw_tokens(logits, keys, settings)  # temperature 0
    >>> print(token_ids, jnp.exp(log_probs))
    [1] [0.6]

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
        return _draw(blocks, sums, keys)

    def restricted() -> jax.Array:
        kept = _blocks(_restrict(logits - log_total[:, None], settings))
        return _draw(kept, jnp.exp(kept).sum(-1), keys)

    is_restricted = (settings.top_k < logits.shape[-1]) | (settings.top_p < 1)
    strategy = jnp.where(is_greedy, 0, jnp.where(is_restricted, 2, 1))
    token_ids = lax.switch(strategy, (greedy, free, restricted))
    drawn = jnp.take_along_axis(logits, token_ids[:, None], axis=-1)[:, 0]
    return token_ids, drawn - log_total


def _blocks(logits: jax.Array) -> jax.Array:
    """[B, V] to [B, C, W]. The last block is filled up with -inf, which is never drawn."""
    padding = -logits.shape[-1] % BLOCK_TOKENS
    if padding:
        logits = jnp.pad(logits, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    return logits.reshape(len(logits), -1, BLOCK_TOKENS)


def _block_logits(blocks: jax.Array, block: jax.Array) -> jax.Array:
    """[B, W] of each row's block [B]."""
    return jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _token(block: jax.Array, index: jax.Array) -> jax.Array:
    return (block * BLOCK_TOKENS + index).astype(jnp.int32)


def _draw(blocks: jax.Array, sums: jax.Array, keys: jax.Array) -> jax.Array:
    """Draw a block by its probability, then a token in it by its own.

    Args:
        blocks: [B, C, W] logits.
        sums: [B, C] of their exponentials, up to a factor of the row.
        keys: [B].
    """
    block_count = sums.shape[-1]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (block_count + BLOCK_TOKENS,)))(keys)
    block = (jnp.log(sums) + noise[:, :block_count]).argmax(-1)
    return _token(block, (_block_logits(blocks, block) + noise[:, block_count:]).argmax(-1))


def _restrict(log_probs: jax.Array, settings: SamplingSettings) -> jax.Array:
    """Put -inf where top_k and top_p leave a token out; of equal tokens the lower ids stay.

    Both keep the most probable tokens down to some threshold. It is searched bit by bit, with a
    pass over [B, V] for each bit: on every kind of device many times quicker than sorting V.
    """
    probabilities = jnp.exp(log_probs)
    # At top_p = 1 a bound that no sum reaches: rounding must not cut off a tail that 1 keeps.
    top_p = jnp.where(settings.top_p < 1, settings.top_p, jnp.inf)
    order = _order(log_probs)

    def reaches(threshold: jax.Array) -> jax.Array:
        kept = order >= threshold[:, None]
        mass = jnp.where(kept, probabilities, 0).sum(-1)
        return (kept.sum(-1) >= settings.top_k) | (mass >= top_p)

    threshold = _largest(reaches, 32, len(log_probs))[:, None]
    above, equal = order > threshold, order == threshold
    missing_mass = top_p - jnp.where(above, probabilities, 0).sum(-1)
    equal_probability = jnp.where(equal, probabilities, 0).max(-1)
    # At least one of the equals: without any, the sum would not have reached top_p or top_k.
    quota = jnp.clip(jnp.ceil(missing_mass / equal_probability), 1, settings.top_k - above.sum(-1))
    ids = jnp.arange(log_probs.shape[-1], dtype=jnp.uint32)

    def last_id() -> jax.Array:
        def is_before(bound: jax.Array) -> jax.Array:
            return (equal & (ids < bound[:, None])).sum(-1) < quota

        return _largest(is_before, log_probs.shape[-1].bit_length(), len(log_probs))

    # More equal tokens than the quota are rare, so the search for the last id is seldom run.
    last = lax.cond(
        (equal.sum(-1) > quota).any(),
        last_id,
        lambda: jnp.full(len(log_probs), log_probs.shape[-1], jnp.uint32),
    )
    return jnp.where(above | (equal & (ids <= last[:, None])), log_probs, -jnp.inf)


def _order(values: jax.Array) -> jax.Array:
    """Floats as uint32 of the same order."""
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds: Callable[[jax.Array], jax.Array], bit_count: int, row_count: int) -> jax.Array:
    """The largest number [B] uint32 for which `holds` is true, as it is for all below; or 0."""

    def step(index: jax.Array, found: jax.Array) -> jax.Array:
        trial = found | (jnp.uint32(1) << (bit_count - 1 - index).astype(jnp.uint32))
        return jnp.where(holds(trial), trial, found)

    found: jax.Array = lax.fori_loop(0, bit_count, step, jnp.zeros(row_count, jnp.uint32))
    return found
