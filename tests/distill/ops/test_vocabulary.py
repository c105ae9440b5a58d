"""Passes over the vocabulary against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.ops.vocabulary import (
    SUM_BLOCK,
    TOP_K_BLOCK,
    exact_top_k,
    first_occurrences,
    sum_exponentials,
)


@settings(max_examples=30)
@given(
    st.integers(0, 1000),
    st.sampled_from([1, 63, 64, 1000, 40 * TOP_K_BLOCK, 40 * TOP_K_BLOCK + 7]),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([2, 9, 10_000]),
)
def test_top_k_is_that_of_a_full_sort_ties_included(seed, vocab_size, count, distinct):
    """Few distinct values make many ties, across blocks and within them."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, distinct, (3, vocab_size)).astype(np.float32)
    count = min(count, vocab_size)
    values, ids = exact_top_k(jnp.asarray(logits), count)
    expected = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, axis=-1))


def test_top_k_may_be_the_whole_vocabulary():
    logits = jax.random.normal(jax.random.key(0), (2, 3 * TOP_K_BLOCK + 5))
    _, ids = exact_top_k(logits, logits.shape[1])
    np.testing.assert_array_equal(ids, np.argsort(-np.asarray(logits), axis=-1, kind="stable"))


@pytest.mark.parametrize("vocab_size", [17, SUM_BLOCK, 2 * SUM_BLOCK + 5])
def test_sums_count_each_token_once_and_ignore_the_others(vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(size=(4, vocab_size)).astype(np.float32)
    scale = np.array([1.0, 0.5, 2.0, 1.0], np.float32)
    counted = rng.random(vocab_size) < 0.5
    counted[0] = False
    spoiled = np.where(counted, logits, -np.inf)
    peaks = (spoiled * scale[:, None]).max(-1)
    total, weighted = sum_exponentials(
        jnp.asarray(spoiled), peaks, scale, lambda _, ids: jnp.asarray(counted)[ids]
    )
    below = np.float64(logits[:, counted] * scale[:, None]) - peaks[:, None]
    np.testing.assert_allclose(total, np.exp(below).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(weighted, (np.exp(below) * below).sum(-1), rtol=1e-5)


def test_nothing_counted_sums_to_nothing():
    logits = jnp.full((2, SUM_BLOCK + 3), -jnp.inf)
    zeros = jnp.zeros(2)
    total, weighted = sum_exponentials(logits, zeros, zeros + 1, lambda block, _: block > -jnp.inf)
    assert not np.asarray(total).any()
    assert not np.asarray(weighted).any()


def test_first_occurrences_are_first_and_each_token_has_one():
    ids = jnp.array([[4, 2, 4, 4, 2], [1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(
        first_occurrences(ids), [[True, True, False, False, False], [True] * 5]
    )
