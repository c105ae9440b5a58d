"""Attention against a float64 reference that knows nothing of groups or blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from distill.models.attention import (
    CAUSAL_SEGMENTS,
    QUERY_BLOCK,
    attend,
    cached_attention,
    causal_attention,
)

HEAD_COUNT, GROUP_COUNT, HEAD_DIM = 6, 2, 4


def reference(query: NDArray, key: NDArray, value: NDArray, positions: NDArray) -> NDArray:
    """One head at a time, one query at a time, in float64."""
    B, T = query.shape[:2]
    outputs = np.zeros((B, T, HEAD_COUNT, HEAD_DIM))
    for row in range(B):
        for head in range(HEAD_COUNT):
            group = head // (HEAD_COUNT // GROUP_COUNT)
            for token in range(T):
                seen = positions[row, token] + 1
                scores = key[row, :seen, group] @ query[row, token, head] / np.sqrt(HEAD_DIM)
                weights = np.exp(scores - scores.max())
                outputs[row, token, head] = weights / weights.sum() @ value[row, :seen, group]
    return outputs.reshape(B, T, -1)


def random_inputs(row_count: int, length: int, slot_count: int) -> tuple[NDArray, ...]:
    generator = np.random.default_rng(0)
    query = generator.standard_normal((row_count, length, HEAD_COUNT, HEAD_DIM))
    key = generator.standard_normal((row_count, slot_count, GROUP_COUNT, HEAD_DIM))
    value = generator.standard_normal((row_count, slot_count, GROUP_COUNT, HEAD_DIM))
    return tuple(array.astype(np.float32) for array in (query, key, value))


def in_cache_layout(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Keys and values [B, S, G, head_dim] as `attend` reads them."""
    return query, key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)


# One block; a ragged last block; several blocks to a segment, the last one ragged.
LENGTHS = [5, QUERY_BLOCK, QUERY_BLOCK + 3, CAUSAL_SEGMENTS * QUERY_BLOCK + 77]


@pytest.mark.parametrize("length", LENGTHS)
def test_causal_attention_equals_the_plain_sum(length: int) -> None:
    inputs = random_inputs(1, length, length)
    expected = reference(*inputs, np.arange(length)[None])
    np.testing.assert_allclose(jax.jit(causal_attention)(*inputs), expected, atol=2e-6)


@pytest.mark.parametrize("length", [1, 7, QUERY_BLOCK + 3])
def test_cached_attention_sees_each_rows_own_slots_alone(length: int) -> None:
    slot_count = QUERY_BLOCK + 20
    inputs = random_inputs(2, length, slot_count)
    positions = np.stack([np.arange(length), np.arange(length) + slot_count - length])
    expected = reference(*inputs, positions)
    actual = jax.jit(cached_attention)(*in_cache_layout(*inputs), positions)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_blocks_have_the_gradients_of_the_whole() -> None:
    length = 2 * QUERY_BLOCK + 9
    inputs = random_inputs(2, length, length)
    cotangent = np.random.default_rng(1).standard_normal((2, length, HEAD_COUNT * HEAD_DIM))

    def whole(*arrays: jax.Array) -> jax.Array:
        return (attend(*in_cache_layout(*arrays), jnp.arange(length)[None]) * cotangent).sum()

    def blocks(*arrays: jax.Array) -> jax.Array:
        return (causal_attention(*arrays) * cotangent).sum()

    expected = jax.jit(jax.grad(whole, argnums=(0, 1, 2)))(*inputs)
    actual = jax.jit(jax.grad(blocks, argnums=(0, 1, 2)))(*inputs)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_long_sequences_never_hold_the_whole_score_matrix() -> None:
    length = 4096
    shapes = [
        jax.ShapeDtypeStruct((1, length, heads, HEAD_DIM), jnp.float32)
        for heads in (HEAD_COUNT, GROUP_COUNT, GROUP_COUNT)
    ]
    compiled = jax.jit(causal_attention).lower(*shapes).compile()
    whole_bytes = 4 * HEAD_COUNT * length * length
    assert compiled.memory_analysis().temp_size_in_bytes < whole_bytes / 4
