"""The compiled steps of sampling: read prompts into caches, move them into a batch, advance it.

A prompt is read into a cache of its own rows, which is then copied into every row of the batch
that continues it. So the shapes of prompts and of batches do not multiply.

Letters: B rows of a batch, S slots of its cache, b prompts, L their padded length, V vocabulary.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from distill.models.config import ModelConfig
from distill.models.functional import (
    Adapter,
    Graph,
    KVCache,
    LayerParts,
    Parameters,
    cached_hidden_states,
    head_kernel,
)
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

    stream_ids: Any
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


_Carry: TypeAlias = tuple[jax.Array, KVCache, DecodeRows, DecodedBlock]


def read_prompts(
    graph: Graph,
    parameters: Parameters,
    adapter: Adapter | None,
    token_ids: jax.Array,
    start: jax.Array,
    cache: KVCache,
) -> KVCache:
    """The cache with tokens [b, L] written from position `start` on; the layers in one part."""
    positions = jnp.broadcast_to(start + jnp.arange(token_ids.shape[1]), token_ids.shape)
    _, cache = cached_hidden_states(graph, parameters, token_ids, positions, cache, adapter=adapter)
    return cache


def prompt_row(cache: KVCache, row: jax.Array) -> KVCache:
    """One row of a cache [.., b, ..], as a cache [.., 1, ..]."""
    taken: KVCache = jax.tree.map(
        lambda array: lax.dynamic_slice_in_dim(array, row, 1, axis=1), cache
    )
    return taken


def place_prompt(cache: KVCache, prompt: KVCache, row: jax.Array) -> KVCache:
    """Copy a prompt's cache [.., 1, ..] in one part into a row of a batch's in any parts.

    The batch's cache has at least as many slots; those after the prompt's keep what they hold.
    """
    sizes = [keys.shape[0] for keys in cache.keys]
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]

    def place(whole: jax.Array, piece: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(whole, piece, row, axis=1)

    return KVCache(
        keys=tuple(
            place(keys, prompt.keys[0][offset : offset + size])
            for keys, offset, size in zip(cache.keys, offsets, sizes, strict=True)
        ),
        values=tuple(
            place(values, prompt.values[0][offset : offset + size])
            for values, offset, size in zip(cache.values, offsets, sizes, strict=True)
        ),
    )


def take_rows(cache: KVCache, rows: jax.Array) -> KVCache:
    """The cache of fewer rows [any]."""
    taken: KVCache = jax.tree.map(lambda array: array[:, rows], cache)
    return taken


def grow_cache(cache: KVCache, *, slot_count: int) -> KVCache:
    """The same cache with more slots."""

    def grow(array: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, slot_count - array.shape[axis])
        return jnp.pad(array, widths)

    return KVCache(
        keys=tuple(grow(keys, 4) for keys in cache.keys),
        values=tuple(grow(values, 3) for values in cache.values),
    )


def decode_block(
    graph: Graph,
    config: ModelConfig,
    parameters: Parameters,
    adapter: Adapter | None,
    parts: LayerParts | None,
    cache: KVCache,
    rows: DecodeRows,
    settings: DrawSettings,
) -> tuple[KVCache, DecodedBlock]:
    """Advance all sequences by up to BLOCK_STEPS tokens.

    The cache must have slots for all tokens but the last that they may generate: a token without a
    slot is lost. A row that is done stands still and rewrites the slot of its input.
    """
    row_count = rows.inputs.shape[0]
    kernel = head_kernel(config, parameters)
    block = DecodedBlock(
        token_ids=jnp.zeros((row_count, BLOCK_STEPS), jnp.int32),
        log_probs=jnp.zeros((row_count, BLOCK_STEPS), jnp.float32),
        token_counts=jnp.zeros(row_count, jnp.int32),
    )
    row_keys = jax.vmap(
        lambda ids: jax.random.fold_in(
            jax.random.fold_in(jax.random.wrap_key_data(settings.seed), ids[0]), ids[1]
        )
    )(rows.stream_ids)

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
        logits = jnp.einsum(
            "bd,vd->bv",
            hidden[:, 0],
            kernel.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
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
