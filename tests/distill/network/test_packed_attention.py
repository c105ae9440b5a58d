"""Attention over packs against dense attention with a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.network import packed_attention as module
from distill.network.packed_attention import packed_attention
from distill.network.packing import Segments, rows_as_segments, window_segments
from tests.support.suites import slow

HEADS, GROUPS, WIDTH = 6, 2, 8


def dense_attention(query, key, value, segments):
    slots = jnp.arange(len(query))
    own = (slots[None] >= segments.starts[:, None]) & (slots[None] <= slots[:, None])
    prefix = (slots[None] >= segments.prefix_starts[:, None]) & (
        slots[None] < segments.prefix_ends[:, None]
    )
    keys, values = (jnp.repeat(array, HEADS // GROUPS, axis=1) for array in (key, value))
    scores = jnp.einsum("qhd,khd->hqk", query, keys) * WIDTH**-0.5
    weights = jax.nn.softmax(jnp.where(own | prefix, scores, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, values).reshape(len(query), -1)


def inputs(slot_count, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    heads = (HEADS, GROUPS, GROUPS)
    qkv = [jax.random.normal(k, (slot_count, h, WIDTH)) for k, h in zip(keys, heads, strict=False)]
    return qkv, jax.random.normal(keys[3], (slot_count, HEADS * WIDTH))


def segments_of(parts):
    """From (length, prefix start, prefix end) of each part."""
    lengths = [length for length, _, _ in parts]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    prefixes = [np.repeat([part[column] for part in parts], lengths) for column in (1, 2)]
    positions = np.arange(sum(lengths)) - starts + prefixes[1] - prefixes[0]
    return Segments(*(np.asarray(a, np.int32) for a in (positions, starts, *prefixes)))


PACKS = {
    "one sequence in one block": [(13, 0, 0)],
    "one sequence over many blocks": [(75, 0, 0)],
    "sequences that start and end inside blocks": [(5, 0, 0), (20, 0, 0), (1, 0, 0), (38, 0, 0)],
    "a prefix that three sequences continue": [(30, 0, 0), (9, 0, 30), (17, 0, 30), (3, 0, 30)],
    "a prefix after others, with a gap between": [(40, 0, 0), (12, 0, 0), (25, 0, 0), (8, 40, 52)],
}


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("block_slots", [16, slow(8), slow(256)])
def test_values_and_gradients_equal_dense_attention(name, block_slots, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SLOTS", block_slots)
    segments = segments_of(PACKS[name])
    qkv, cotangent = inputs(len(segments.starts))
    ours, theirs = (
        jax.jit(
            jax.value_and_grad(
                lambda q, k, v, f=f: (f(q, k, v, segments) * cotangent).sum(), argnums=(0, 1, 2)
            )
        )(*qkv)
        for f in (packed_attention, dense_attention)
    )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PACKS)
def test_windows_equal_dense_attention_over_the_last_positions(name, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SLOTS", 16)
    segments = segments_of(PACKS[name])
    qkv, cotangent = inputs(len(segments.starts))

    def loss(query, key, value, window):
        mixed = packed_attention(query, key, value, window_segments(segments, window))
        return (mixed * cotangent).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    for window in (1, 5, 16, 1 << 30):
        value, gradients = gradient(*qkv, jnp.int32(window))
        expected, expected_gradients = windowed_in_float64(qkv, segments, window, cotangent)
        np.testing.assert_allclose(value, expected, atol=1e-4, rtol=1e-5)
        for mine, other in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(mine, other, atol=3e-5, rtol=1e-4)
    assert gradient._cache_size() == 1


def windowed_in_float64(qkv, segments, window, cotangent):
    """Sum of outputs times the cotangent, and its gradients, by hand; a key is in the window by its
    position in the sequence and not by its slot."""
    query, key, value = (np.asarray(array, np.float64) for array in qkv)
    cotangent = np.asarray(cotangent, np.float64).reshape(query.shape)
    slots, positions = np.arange(len(query)), segments.positions
    own = (slots >= segments.starts[:, None]) & (slots <= slots[:, None])
    prefix = (slots >= segments.prefix_starts[:, None]) & (slots < segments.prefix_ends[:, None])
    visible = (own | prefix) & (positions[:, None] - positions[None] < window)
    total, gradients = 0.0, [np.zeros_like(array) for array in (query, key, value)]
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        scores = query[:, head] @ key[:, group].T * WIDTH**-0.5
        weights = np.where(visible, np.exp(scores), 0)
        weights /= weights.sum(1, keepdims=True)
        total += (weights @ value[:, group] * cotangent[:, head]).sum()
        of_weights = cotangent[:, head] @ value[:, group].T
        of_scores = weights * (of_weights - (weights * of_weights).sum(1, keepdims=True))
        gradients[0][:, head] += of_scores @ key[:, group] * WIDTH**-0.5
        gradients[1][:, group] += of_scores.T @ query[:, head] * WIDTH**-0.5
        gradients[2][:, group] += weights.T @ cotangent[:, head]
    return total, gradients


def test_blocks_outside_every_window_are_not_visited(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SLOTS", 8)
    (query, key, value), _ = inputs(32)
    segments = window_segments(segments_of([(32, 0, 0)]), jnp.int32(8))
    spoiled = key.at[:16].set(jnp.nan), value.at[:16].set(jnp.nan)
    clean = packed_attention(query, key, value, segments)
    np.testing.assert_array_equal(packed_attention(query, *spoiled, segments)[24:], clean[24:])


def test_blocks_that_nothing_sees_are_not_visited(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SLOTS", 8)
    segments = segments_of([(8, 0, 0)] * 4)
    (query, key, value), _ = inputs(32)
    alone = packed_attention(query[24:], key[24:], value[24:], segments_of([(8, 0, 0)]))
    # A score that were computed and masked would carry the NaN on: 0 · NaN is NaN.
    spoiled = key.at[:24].set(jnp.nan), value.at[:24].set(jnp.nan)
    np.testing.assert_array_equal(packed_attention(query, *spoiled, segments)[24:], alone)


def test_one_program_serves_every_way_to_pack():
    compiled = jax.jit(packed_attention)
    qkv, _ = inputs(64)
    for parts in ([(64, 0, 0)], [(10, 0, 0), (54, 0, 0)], [(32, 0, 0), (16, 0, 32), (16, 0, 32)]):
        compiled(*qkv, segments_of(parts))
    assert compiled._cache_size() == 1


def test_rows_are_sequences_of_their_own():
    segments = rows_as_segments(3, 5)
    np.testing.assert_array_equal(segments.positions, np.tile(np.arange(5), 3))
    np.testing.assert_array_equal(segments.starts, np.repeat([0, 5, 10], 5))


def test_memory_grows_with_the_slots_and_not_with_their_square():
    def temporaries(slot_count):
        def loss(query, key, value, starts):
            nothing = jnp.zeros_like(starts)
            segments = Segments(nothing, starts, nothing, nothing)
            return packed_attention(query, key, value, segments).sum()

        shapes = [
            jax.ShapeDtypeStruct((slot_count, heads, WIDTH), jnp.float32)
            for heads in (HEADS, GROUPS, GROUPS)
        ]
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(
            *shapes, jax.ShapeDtypeStruct((slot_count,), jnp.int32)
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(8192)
    assert large < 4.5 * small
    assert large < 8192 * 8192 * 4  # one head's matrix of scores
