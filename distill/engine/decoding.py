"""The compiled steps of sampling: read prompts into caches, move them into a batch, advance it.

A prompt is read into a cache of its own rows, which is then copied into every row of the batch
that continues it. So the shapes of prompts and of batches do not multiply.

Letters: B rows of a batch, S slots of its cache, b prompts, L their padded length, V vocabulary.
"""

from collections import Counter
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from distill.network.config import ModelConfig
from distill.network.functional import (
    Adapter,
    Cache,
    Graph,
    LayerParts,
    Parameters,
    cached_hidden_states,
    head_weights,
)
from distill.ops.logits import head_logits
from distill.ops.sampling import SamplingSettings, draw_tokens

BLOCK_STEPS = 8
"""Tokens per sequence and call: few enough to stop soon after a stop string and to take turns with
other requests, enough to hide the cost of a call."""


class DecodeRows(NamedTuple):
    """Where the rows of a batch stand between two blocks."""

    inputs: Any
    """[B] int32: the last token of each sequence, not yet in the cache."""

    positions: Any
    """[B] int32: their positions."""

    remaining: Any
    """[B] int32: tokens that each sequence may still generate."""

    is_done: Any
    """[B] bool: rows whose sequence has ended, or that have none."""

    sample_ids: Any
    """[B, 2] uint32: (prompt index, sample index). With the seed, all that a sequence's random
    numbers depend on besides the position."""


class DrawSettings(NamedTuple):
    """How the tokens of a job are drawn and when its sequences end."""

    seed: Any
    """[2] uint32, both halves of the job's seed."""

    stop_token_ids: Any
    """[any] int32, padded with -1."""

    sampling: SamplingSettings
    """Temperature and restrictions."""


class DecodedBlock(NamedTuple):
    """What a block generated."""

    token_ids: Any
    """[B, BLOCK_STEPS] int32."""

    log_probs: Any
    """[B, BLOCK_STEPS] float32."""

    token_counts: Any
    """[B] int32: how many of them belong to the row's sequence; 0 for rows that were done."""


_Carry: TypeAlias = tuple[jax.Array, Cache, DecodeRows, DecodedBlock]


def read_prompts(
    graph: Graph,
    parameters: Parameters,
    adapter: Adapter | None,
    token_ids: jax.Array,
    start: jax.Array,
    lengths: jax.Array,
    cache: Cache,
) -> Cache:
    """The cache with tokens [b, L] written from position `start` on; the layers in one part.

    Tokens at or after a row's length [b] are padding.
    """
    width = token_ids.shape[1]
    positions = jnp.broadcast_to(start + jnp.arange(width), token_ids.shape)
    _, cache = cached_hidden_states(
        graph,
        parameters,
        token_ids,
        positions,
        cache,
        adapter=adapter,
        token_counts=jnp.clip(lengths - start, 0, width),
    )
    return cache


def prompt_row(cache: Cache, row: jax.Array) -> Cache:
    """One row of a cache [.., b, ..], as a cache [.., 1, ..]."""
    taken: Cache = jax.tree.map(
        lambda array: lax.dynamic_slice_in_dim(array, row, 1, axis=1), cache
    )
    return taken


def place_prompt(cache: Cache, prompt: Cache, row: jax.Array) -> Cache:
    """Copy a prompt's cache [.., 1, ..] in one part into a row of a batch's in any parts.

    The batch's cache has at least as many slots; those after the prompt's keep what they hold.
    """
    (whole_prompt,) = prompt.parts
    seen: Counter[str] = Counter()
    parts = []
    for part in cache.parts:
        placed = {}
        for kind, state in part.items():
            offset, size = seen[kind], jax.tree.leaves(state)[0].shape[0]
            seen[kind] += size

            def place(
                whole: jax.Array, piece: jax.Array, start: int = offset, count: int = size
            ) -> jax.Array:
                here = piece[start : start + count]
                return lax.dynamic_update_slice_in_dim(whole, here, row, axis=1)

            placed[kind] = jax.tree.map(place, state, whole_prompt[kind])
        parts.append(placed)
    return Cache(parts=tuple(parts))


def take_rows(cache: Cache, rows: jax.Array) -> Cache:
    """The cache of fewer rows [any]."""
    taken: Cache = jax.tree.map(lambda array: array[:, rows], cache)
    return taken


def grow_cache(cache: Cache, *, slot_count: int) -> Cache:
    """The same cache with more slots."""
    return Cache(
        parts=tuple(
            {kind: state.grown(slot_count) for kind, state in part.items()} for part in cache.parts
        )
    )


def decode_block(
    graph: Graph,
    config: ModelConfig,
    parameters: Parameters,
    adapter: Adapter | None,
    head_columns: jax.Array | None,
    parts: LayerParts | None,
    cache: Cache,
    rows: DecodeRows,
    settings: DrawSettings,
) -> tuple[Cache, DecodedBlock]:
    """Advance all sequences by up to BLOCK_STEPS tokens.

    The cache must have a slot for each token that they may generate, except for the last: a token
    without a slot is lost. A row that is done stands still and rewrites the slot of its input.
    """
    row_count = rows.inputs.shape[0]
    head = head_weights(config, parameters, adapter, head_columns)
    block = DecodedBlock(
        token_ids=jnp.zeros((row_count, BLOCK_STEPS), jnp.int32),
        log_probs=jnp.zeros((row_count, BLOCK_STEPS), jnp.float32),
        token_counts=jnp.zeros(row_count, jnp.int32),
    )
    row_keys = jax.vmap(
        lambda ids: jax.random.fold_in(
            jax.random.fold_in(jax.random.wrap_key_data(settings.seed), ids[0]), ids[1]
        )
    )(rows.sample_ids)

    def is_unfinished(carry: _Carry) -> jax.Array:
        step, _, current, _ = carry
        unfinished: jax.Array = (step < BLOCK_STEPS) & ~current.is_done.all()
        return unfinished

    def advance(carry: _Carry) -> _Carry:
        step, cache, current, block = carry
        hidden, cache = cached_hidden_states(
            graph,
            parameters,
            current.inputs[:, None],
            current.positions[:, None],
            cache,
            adapter=adapter,
            parts=parts,
        )
        logits = head_logits(hidden[:, 0], head)
        positions = current.positions + 1
        keys = jax.vmap(jax.random.fold_in)(row_keys, positions)
        drawn, log_probs = draw_tokens(logits, keys, settings.sampling)
        is_live = ~current.is_done
        remaining = current.remaining - is_live
        is_stop = (drawn[:, None] == settings.stop_token_ids).any(-1)
        advanced = current._replace(
            inputs=jnp.where(is_live, drawn, current.inputs),
            positions=jnp.where(is_live, positions, current.positions),
            remaining=remaining,
            is_done=current.is_done | is_stop | (remaining <= 0),
        )
        block = DecodedBlock(
            token_ids=block.token_ids.at[:, step].set(drawn),
            log_probs=block.log_probs.at[:, step].set(log_probs),
            token_counts=block.token_counts + is_live,
        )
        return step + 1, cache, advanced, block

    start = (jnp.int32(0), cache, jax.tree.map(jnp.asarray, rows), block)
    _, cache, _, block = lax.while_loop(is_unfinished, advance, start)
    return cache, block
