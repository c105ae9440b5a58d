"""The fused, chunked head against dense logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops import head
from distill.ops.head import selected_log_probs

ROWS, HIDDEN, VOCAB, SUPPORT = 64, 12, 50, 4


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (ROWS, HIDDEN))
    kernel = jax.random.normal(keys[1], (VOCAB, HIDDEN))
    token_ids = jax.random.randint(keys[2], (ROWS, SUPPORT), 0, VOCAB)
    return hidden, kernel, token_ids


def dense_log_probs(hidden, kernel, token_ids, temperature=1.0):
    log_probs = jax.nn.log_softmax(hidden @ kernel.T / temperature)
    return jnp.take_along_axis(log_probs, token_ids, axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_head_equals_dense_log_softmax_in_value_and_gradient(inputs, temperature):
    hidden, kernel, token_ids = inputs
    weights = jax.random.normal(jax.random.key(3), (ROWS, SUPPORT))

    def fused(hidden, kernel):
        output = selected_log_probs(hidden, kernel, token_ids, temperature)
        return (output.log_probs * weights).sum()

    def dense(hidden, kernel):
        return (dense_log_probs(hidden, kernel, token_ids, temperature) * weights).sum()

    np.testing.assert_allclose(fused(hidden, kernel), dense(hidden, kernel), rtol=1e-5)
    fused_gradients = jax.grad(fused, argnums=(0, 1))(hidden, kernel)
    dense_gradients = jax.grad(dense, argnums=(0, 1))(hidden, kernel)
    for ours, theirs in zip(fused_gradients, dense_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_chunked_equals_unchunked(inputs, monkeypatch):
    hidden, kernel, token_ids = inputs

    def loss(hidden):
        output = selected_log_probs(hidden, kernel, token_ids, with_tail=True)
        return output.log_probs.sum() + output.tail_log_probs.sum()

    whole_value, whole_gradient = jax.value_and_grad(loss)(hidden)
    monkeypatch.setattr(head, "MAX_CHUNK_BYTES", 4 * VOCAB * 8)
    assert head.chunk_row_count(ROWS, VOCAB) == 8
    chunked_value, chunked_gradient = jax.value_and_grad(loss)(hidden)
    np.testing.assert_allclose(chunked_value, whole_value, rtol=1e-6)
    np.testing.assert_allclose(chunked_gradient, whole_gradient, atol=1e-5)


def test_frozen_kernel_gets_no_gradient_and_changes_nothing_else(inputs):
    hidden, kernel, token_ids = inputs

    def loss(hidden, kernel, kernel_gradient):
        output = selected_log_probs(hidden, kernel, token_ids, kernel_gradient=kernel_gradient)
        return output.log_probs.sum()

    frozen = jax.grad(loss, argnums=(0, 1))(hidden, kernel, False)
    trained = jax.grad(loss, argnums=(0, 1))(hidden, kernel, True)
    np.testing.assert_array_equal(frozen[0], trained[0])
    assert not np.asarray(frozen[1]).any()
    assert np.asarray(trained[1]).any()


def test_repeated_ids_add_their_gradients(inputs):
    hidden, kernel, token_ids = inputs
    repeated = token_ids.at[:, 1].set(token_ids[:, 0])

    def loss(function):
        return jax.grad(lambda h: function(h).sum())(hidden)

    np.testing.assert_allclose(
        loss(lambda h: selected_log_probs(h, kernel, repeated).log_probs),
        loss(lambda h: dense_log_probs(h, kernel, repeated)),
        atol=2e-5,
    )


def test_logits_are_float32_for_bfloat16_weights(inputs):
    hidden, kernel, token_ids = inputs
    half = (hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    output = selected_log_probs(*half, token_ids)
    assert output.log_probs.dtype == jnp.float32
    exact = dense_log_probs(*(array.astype(jnp.float32) for array in half), token_ids)
    np.testing.assert_allclose(output.log_probs, exact, atol=1e-4)


def test_statistics_equal_those_of_the_dense_distribution(inputs):
    hidden, kernel, token_ids = inputs
    log_q = np.asarray(jax.nn.log_softmax(hidden @ kernel.T), np.float64)
    output = selected_log_probs(hidden, kernel, token_ids, with_tail=True)
    np.testing.assert_allclose(output.entropies, -(np.exp(log_q) * log_q).sum(-1), rtol=1e-4)
    np.testing.assert_array_equal(output.top_token_ids, log_q.argmax(-1))
    own_top = np.argsort(-log_q, axis=-1)[:, :SUPPORT]
    overlap = [np.isin(row, top).mean() for row, top in zip(token_ids, own_top, strict=True)]
    np.testing.assert_allclose(output.support_overlaps, overlap)


@pytest.mark.parametrize("vocab_size", [8192, 16384])
def test_temporaries_do_not_grow_with_positions_beyond_a_chunk(vocab_size):
    """Read from the compiled program; all logits would be rows * V * 4 bytes."""

    def temporaries(row_count):
        def loss(hidden, kernel, token_ids):
            output = selected_log_probs(hidden, kernel, token_ids, with_tail=True)
            return output.log_probs.sum() + output.tail_log_probs.sum()

        shapes = (
            jax.ShapeDtypeStruct((row_count, HIDDEN), jnp.float32),
            jax.ShapeDtypeStruct((vocab_size, HIDDEN), jnp.float32),
            jax.ShapeDtypeStruct((row_count, SUPPORT), jnp.int32),
        )
        compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rows = head.chunk_row_count(1 << 20, vocab_size)
    one_chunk, eight_chunks = temporaries(rows), temporaries(8 * rows)
    per_row = 32 * (HIDDEN + SUPPORT + 8)  # inputs, outputs and their gradients, generously
    assert eight_chunks < one_chunk + 7 * rows * per_row
    assert 7 * rows * per_row < rows * vocab_size * 4 / 4  # the bound would see one more chunk


@pytest.mark.parametrize(
    "vocab_size",
    [head.VOCABULARY_BLOCK - 1, 2 * head.VOCABULARY_BLOCK, 2 * head.VOCABULARY_BLOCK + 3],
)
def test_hidden_gradient_sums_over_the_whole_vocabulary(vocab_size):
    # That its blocks also keep the sum accurate shows on a real model: test_fixture_parity.
    keys = jax.random.split(jax.random.key(6), 3)
    hidden = jax.random.normal(keys[0], (ROWS, HIDDEN))
    kernel = jax.random.normal(keys[1], (vocab_size, HIDDEN))
    token_ids = jax.random.randint(keys[2], (ROWS, SUPPORT), 0, vocab_size)
    fused = jax.grad(lambda h: selected_log_probs(h, kernel, token_ids).log_probs.sum())(hidden)
    dense = jax.grad(lambda h: dense_log_probs(h, kernel, token_ids).sum())(hidden)
    np.testing.assert_allclose(fused, dense, atol=2e-5)
