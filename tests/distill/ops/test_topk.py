"""The scoring head against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.ops.logits import Head
from distill.ops.topk import TopKRows, scoring_chunk_rows, top_k_rows

FloatArray = NDArray[np.float64]

score = jax.jit(top_k_rows, static_argnames="top_k")


def log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def rows_of(
    logits: FloatArray,
    *,
    top_k: int,
    temperatures: object = 1.0,
    support_sizes: object = None,
    own: object = 0,
) -> TopKRows:
    """Score given logits: with D = V and the identity as the kernel they pass through."""
    row_count, vocab_size = logits.shape
    sizes = top_k if support_sizes is None else support_sizes
    return score(
        jnp.asarray(logits, jnp.float32),
        Head(jnp.eye(vocab_size, dtype=jnp.float32)),
        jnp.broadcast_to(jnp.asarray(own, jnp.int32), row_count),
        jnp.broadcast_to(jnp.asarray(temperatures, jnp.float32), row_count),
        jnp.broadcast_to(jnp.asarray(sizes, jnp.int32), row_count),
        top_k=top_k,
    )


def random_logits(seed: int, row_count: int, vocab_size: int, scale: float = 3.0) -> FloatArray:
    generator = np.random.default_rng(seed)
    # float32 values, so that both sides see the same numbers.
    values = scale * generator.standard_normal((row_count, vocab_size))
    return values.astype(np.float32).astype(np.float64)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab_size=st.sampled_from([5, 64]),
    top_k=st.sampled_from([1, 3, 5]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 5.0]),
)
def test_everything_equals_the_float64_reference(
    seed: int, vocab_size: int, top_k: int, temperature: float
) -> None:
    logits = random_logits(seed, 6, vocab_size)
    own = np.random.default_rng(seed).integers(0, vocab_size, 6)
    rows = rows_of(logits, top_k=top_k, temperatures=temperature, own=own)

    # The temperature as the op sees it: in float32.
    log_probs = log_softmax(logits / np.float64(np.float32(temperature)))
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    np.testing.assert_array_equal(rows.token_ids, order[:, :top_k])
    expected = np.take_along_axis(log_probs, order, -1)
    tolerance = {"rtol": 2e-6, "atol": 1e-5}
    np.testing.assert_allclose(rows.log_probs, expected[:, :top_k], **tolerance)
    np.testing.assert_allclose(rows.prompt_log_probs, log_probs[np.arange(6), own], **tolerance)
    entropies = -(np.exp(log_probs) * log_probs).sum(-1)
    np.testing.assert_allclose(rows.entropies, entropies, **tolerance)
    if top_k < vocab_size:
        tails = np.logaddexp.reduce(expected[:, top_k:], axis=-1)
        np.testing.assert_allclose(rows.tail_log_probs, tails, **tolerance)
    else:
        np.testing.assert_array_equal(rows.tail_log_probs, -np.inf)


def test_full_support_sums_to_one_and_leaves_no_tail() -> None:
    rows = rows_of(random_logits(1, 4, 33), top_k=33)
    np.testing.assert_allclose(np.exp(np.asarray(rows.log_probs, np.float64)).sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows.tail_log_probs, -np.inf)


@pytest.mark.parametrize("gap", [30.0, 80.0, 300.0])
def test_a_tiny_tail_keeps_its_digits(gap: float) -> None:
    # 1 - sum would give 0 from gap 17 on, and exp(-gap) itself underflows from 104 on.
    logits = np.zeros((1, 64))
    logits[0, 7] = gap
    rows = rows_of(logits, top_k=1)
    np.testing.assert_allclose(rows.tail_log_probs, np.log(63) - gap, rtol=1e-6)
    assert np.isfinite(rows.entropies).all()


def test_the_tail_is_that_of_the_support_asked_for_and_not_of_the_compiled_one() -> None:
    logits = random_logits(2, 3, 40)
    padded = rows_of(logits, top_k=16, support_sizes=[1, 5, 16])
    for row, size in enumerate((1, 5, 16)):
        exact = rows_of(logits[row : row + 1], top_k=size)
        np.testing.assert_allclose(padded.tail_log_probs[row], exact.tail_log_probs[0], rtol=1e-6)
        np.testing.assert_array_equal(padded.token_ids[row, :size], exact.token_ids[0])
        np.testing.assert_allclose(padded.log_probs[row, :size], exact.log_probs[0], rtol=1e-6)
        np.testing.assert_allclose(padded.entropies[row], exact.entropies[0], rtol=1e-5)


def test_of_equal_tokens_the_lower_id_comes_first() -> None:
    rows = rows_of(np.zeros((2, 9)), top_k=4)
    np.testing.assert_array_equal(rows.token_ids, [[0, 1, 2, 3]] * 2)
    np.testing.assert_allclose(rows.log_probs, -np.log(9), rtol=1e-6)
    np.testing.assert_allclose(rows.tail_log_probs, np.log(5 / 9), rtol=1e-6)


def test_each_row_has_its_own_temperature() -> None:
    logits = np.repeat(random_logits(3, 1, 20), 2, axis=0)
    rows = rows_of(logits, top_k=20, temperatures=[0.5, 4.0])
    np.testing.assert_allclose(
        rows.log_probs[0], np.sort(log_softmax(logits[0] / 0.5))[::-1], atol=1e-5
    )
    np.testing.assert_allclose(
        rows.log_probs[1], np.sort(log_softmax(logits[1] / 4.0))[::-1], atol=1e-5
    )
    assert rows.entropies[0] < rows.entropies[1]


def test_bfloat16_weights_still_give_float32_log_probs() -> None:
    generator = np.random.default_rng(4)
    hidden = jnp.asarray(generator.standard_normal((5, 16)), jnp.bfloat16)
    kernel = jnp.asarray(generator.standard_normal((300, 16)), jnp.bfloat16)
    rows = score(
        hidden,
        Head(kernel),
        jnp.zeros(5, jnp.int32),
        jnp.ones(5),
        jnp.full(5, 300),
        top_k=300,
    )
    exact = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T
    # A bfloat16 logit near 10 is off by up to 0.03.
    np.testing.assert_allclose(
        rows.log_probs, np.sort(log_softmax(exact), -1)[:, ::-1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("vocab_size", [64, 32000, 49152, 151936, 262144])
def test_a_chunk_of_logits_is_bounded(vocab_size: int) -> None:
    row_count = scoring_chunk_rows(vocab_size)
    assert 1 <= row_count <= 256
    assert row_count & (row_count - 1) == 0
    assert row_count == 128 or row_count * vocab_size * 4 <= 64 << 20
