"""The compiled steps of sampling: read prompts into a cache, advance a batch by a block of tokens.

Letters: B sequences, S slots of the cache, L padded prompt length, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from distill.engine.buckets import power_of_two_at_least
from distill.models.config import ModelConfig
from distill.models.functional import (
    Adapter,
    Graph,
    KVCache,
    Parameters,
    cached_hidden_states,
    head_kernel,
    init_cache,
)
from distill.ops.sampling import SamplingSettings, draw_tokens
from distill.tensors import Int32Array

BLOCK_STEPS = 8
"""Tokens per sequence and call: few enough to stop soon after a stop string and to take turns with
other requests, enough to hide the cost of a call."""

_SMALLEST_STOP_COUNT = 4


class DecodeState(NamedTuple):
    """A batch between two blocks. The rows after the last sequence are padding and done."""

    cache: KVCache
    """Of every token before the inputs."""

    inputs: Any
    """[B] int32: the last token of each sequence, not yet in the cache."""

    positions: Any
    """[B] int32: their positions."""

    remaining: Any
    """[B] int32: tokens that each sequence may still generate."""

    is_done: Any
    """[B] bool: sequences that have ended."""

    keys: Any
    """[B, 2] uint32: each sequence's own random key."""

    stop_token_ids: Any
    """[any] int32: ids that end a sequence, padded with -1."""

    settings: SamplingSettings
    """How tokens are drawn."""


def new_state(
    config: ModelConfig,
    *,
    prompts: Sequence[Int32Array],
    budgets: Sequence[int],
    stream_ids: Sequence[tuple[int, int]],
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    stop_token_ids: Sequence[int],
    slot_count: int,
    dtype: DTypeLike,
) -> DecodeState:
    """The state of a batch whose prompts are not yet in the cache.

    Args:
        config: the model.
        prompts: of each sequence, [T] with T >= 1.
        budgets: tokens that each sequence may generate.
        stream_ids: (prompt index, sample index) of each: with the seed, all that its random
            numbers depend on besides the position.
        seed: signed 64-bit integer.
        temperature: 0 takes the most probable token.
        top_k: None: no such limit.
        top_p: 1: no such limit.
        stop_token_ids: ids that end a sequence.
        slot_count: S.
        dtype: of the cache.
    """
    row_count = power_of_two_at_least(len(prompts))
    padding = row_count - len(prompts)
    stops = np.full(
        max(_SMALLEST_STOP_COUNT, power_of_two_at_least(max(1, len(stop_token_ids)))), -1, np.int32
    )
    stops[: len(stop_token_ids)] = stop_token_ids
    # Both halves of the seed: jax.random.key drops the upper one.
    halves = np.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
    ids = np.array([*stream_ids, *[(0, 0)] * padding], np.uint32)
    return DecodeState(
        cache=init_cache(config, row_count, slot_count, dtype),
        inputs=np.array([*[prompt[-1] for prompt in prompts], *[0] * padding], np.int32),
        positions=np.array([*[len(prompt) - 1 for prompt in prompts], *[0] * padding], np.int32),
        remaining=np.array([*budgets, *[0] * padding], np.int32),
        is_done=np.arange(row_count) >= len(prompts),
        keys=np.asarray(_row_keys(halves, ids)),
        stop_token_ids=stops,
        settings=SamplingSettings(
            temperature=jnp.float32(temperature),
            top_k=jnp.int32(config.vocab_size if top_k is None else top_k),
            top_p=jnp.float32(top_p),
        ),
    )


@jax.jit
def _row_keys(halves: jax.Array, stream_ids: jax.Array) -> jax.Array:
    def one(ids: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(halves)
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, ids[0]), ids[1]))

    keys: jax.Array = jax.vmap(one)(stream_ids)
    return keys


def read_prompts(
    graph: Graph,
    config: ModelConfig,
    parameters: Parameters,
    adapter: Adapter | None,
    token_ids: jax.Array,
) -> KVCache:
    """The cache of right-padded prompts [b, L], with L slots."""
    batch_size, length = token_ids.shape
    cache = init_cache(config, batch_size, length, head_kernel(config, parameters).dtype)
    positions = jnp.broadcast_to(jnp.arange(length), token_ids.shape)
    _, cache = cached_hidden_states(graph, parameters, token_ids, positions, cache, adapter=adapter)
    return cache


def place_prompts(cache: KVCache, part: KVCache, source: jax.Array) -> KVCache:
    """Copy rows of a part [.., b, L, ..] into a larger cache [.., B, S, ..].

    Args:
        cache: of the batch.
        part: from `read_prompts`, L <= S.
        source: [B] int32, the part's row for each row of the cache; -1 leaves a row as it is.
    """
    length = part.keys.shape[2]

    def place(whole: jax.Array, piece: jax.Array) -> jax.Array:
        keep = (source < 0)[None, :, None, None, None]
        rows = jnp.where(keep, whole[:, :, :length], piece[:, jnp.maximum(source, 0)])
        return whole.at[:, :, :length].set(rows)

    placed: KVCache = jax.tree.map(place, cache, part)
    return placed


def grow_cache(cache: KVCache, *, slot_count: int) -> KVCache:
    """The same cache with more slots."""

    def grow(array: jax.Array) -> jax.Array:
        widths = [(0, 0)] * array.ndim
        widths[2] = (0, slot_count - array.shape[2])
        return jnp.pad(array, widths)

    grown: KVCache = jax.tree.map(grow, cache)
    return grown


def decode_block(
    graph: Graph,
    config: ModelConfig,
    parameters: Parameters,
    adapter: Adapter | None,
    state: DecodeState,
) -> tuple[DecodeState, jax.Array, jax.Array, jax.Array]:
    """Advance all sequences by up to BLOCK_STEPS tokens; the cache must have that many free slots.

    Returns:
        The new state; token ids [B, BLOCK_STEPS] and their log-probabilities; how many of them
        each sequence generated [B], which is 0 for those that were done.
    """
    row_count = state.inputs.shape[0]
    kernel = head_kernel(config, parameters)
    block = (
        jnp.zeros((row_count, BLOCK_STEPS), jnp.int32),
        jnp.zeros((row_count, BLOCK_STEPS), jnp.float32),
        jnp.zeros(row_count, jnp.int32),
    )

    def is_unfinished(carry: tuple[jax.Array, DecodeState, Any]) -> jax.Array:
        step, current, _ = carry
        unfinished: jax.Array = (step < BLOCK_STEPS) & ~current.is_done.all()
        return unfinished

    def advance(
        carry: tuple[jax.Array, DecodeState, tuple[jax.Array, jax.Array, jax.Array]],
    ) -> tuple[jax.Array, DecodeState, tuple[jax.Array, jax.Array, jax.Array]]:
        step, current, (token_ids, log_probs, counts) = carry
        hidden, cache = cached_hidden_states(
            graph,
            parameters,
            current.inputs[:, None],
            current.positions[:, None],
            current.cache,
            adapter=adapter,
        )
        logits = jnp.einsum(
            "bd,vd->bv",
            hidden[:, 0],
            kernel.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        positions = current.positions + 1
        keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(current.keys), positions)
        drawn, drawn_log_probs = draw_tokens(logits, keys, current.settings)
        is_live = ~current.is_done
        remaining = current.remaining - is_live
        is_stop = (drawn[:, None] == current.stop_token_ids).any(-1)
        advanced = current._replace(
            cache=cache,
            # A sequence that is done stands still and rewrites its last slot.
            inputs=jnp.where(is_live, drawn, current.inputs),
            positions=jnp.where(is_live, positions, current.positions),
            remaining=remaining,
            is_done=current.is_done | is_stop | (remaining <= 0),
        )
        block = (
            token_ids.at[:, step].set(drawn),
            log_probs.at[:, step].set(drawn_log_probs),
            counts + is_live,
        )
        return step + 1, advanced, block

    start = (jnp.int32(0), jax.tree.map(jnp.asarray, state), block)
    _, state, (token_ids, log_probs, counts) = lax.while_loop(is_unfinished, advance, start)
    return state, token_ids, log_probs, counts
