"""Draws the next token from logits.

Letters: B rows, V vocabulary, M candidates.

A row's random numbers come from its own key alone, so its draw does not depend on the other rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

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
    log_probs = jax.nn.log_softmax(
        logits / jnp.where(is_greedy, 1.0, settings.temperature), axis=-1
    )
    is_restricted = (settings.top_k < logits.shape[-1]) | (settings.top_p < 1)
    strategy = jnp.where(is_greedy, 0, jnp.where(is_restricted, 2, 1))
    token_ids = lax.switch(strategy, (_greedy, _free, _restricted), log_probs, keys, settings)
    return token_ids, jnp.take_along_axis(log_probs, token_ids[:, None], axis=-1)[:, 0]


def _greedy(log_probs: jax.Array, keys: jax.Array, settings: SamplingSettings) -> jax.Array:  # noqa: ARG001
    return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)


def _free(log_probs: jax.Array, keys: jax.Array, settings: SamplingSettings) -> jax.Array:  # noqa: ARG001
    return _categorical(log_probs, keys)


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
    rank = _categorical(jnp.where(kept, log_probs, -jnp.inf), keys)
    return jnp.take_along_axis(token_ids, rank[:, None], axis=-1)[:, 0]


def _categorical(log_probs: jax.Array, keys: jax.Array) -> jax.Array:
    """Gumbel-max: unlike a search in cumulative sums it never draws a token of probability 0."""
    return jax.vmap(jax.random.categorical)(keys, log_probs).astype(jnp.int32)
