"""Attention against a float64 reference that knows nothing of groups or blocks."""

from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from distill.network.attention import QUERY_BLOCK, cached_attention

HEAD_COUNT, GROUP_COUNT, HEAD_DIM = 6, 2, 4


def reference(
    query: NDArray, key: NDArray, value: NDArray, positions: NDArray, window: int | None
) -> NDArray:
    """One head at a time, one query at a time, in float64."""
    B, T = query.shape[:2]
    outputs = np.zeros((B, T, HEAD_COUNT, HEAD_DIM))
    for row in range(B):
        for head in range(HEAD_COUNT):
            group = head // (HEAD_COUNT // GROUP_COUNT)
            for token in range(T):
                end = positions[row, token] + 1
                seen = slice(0 if window is None else max(0, end - window), end)
                scores = key[row, seen, group] @ query[row, token, head] / np.sqrt(HEAD_DIM)
                weights = np.exp(scores - scores.max())
                outputs[row, token, head] = weights / weights.sum() @ value[row, seen, group]
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


@pytest.mark.parametrize("window", [None, 1, 6, 1000])
@pytest.mark.parametrize("length", [1, 7, QUERY_BLOCK + 3])
def test_cached_attention_sees_each_rows_own_slots_alone(length: int, window: int | None) -> None:
    slot_count = QUERY_BLOCK + 20
    inputs = random_inputs(2, length, slot_count)
    positions = np.stack([np.arange(length), np.arange(length) + slot_count - length])
    expected = reference(*inputs, positions, window)
    actual = jax.jit(cached_attention)(*in_cache_layout(*inputs), positions, window)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
