"""The fused, chunked head against dense logits: chunks, rows in use, memory, what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.kernels import head_kernel
from distill.kernels.profile import ACCELERATOR, CPU
from distill.ops import logits as chunking
from distill.ops.head import HeadTargets
from distill.ops.logits import Head, chunk_row_count, head_logits
from distill.ops.objectives import TargetRows
from tests.distill.ops.head_inputs import (
    HIDDEN,
    RANK,
    ROWS,
    SUPPORT,
    VOCAB,
    WEIGHTED,
    WITH_TAIL,
    assert_close,
    distribution,
    fused_loss,
    head_inputs,
    weighted,
    weights_of_rows,
)


@pytest.fixture
def inputs():
    return head_inputs()


def test_gradient_carries_the_factor_of_what_comes_after_the_loss(inputs):
    hidden, kernel, token_ids = inputs
    targets = weighted(token_ids, weights_of_rows())
    once = jax.grad(lambda h: fused_loss(h, Head(kernel), targets, WEIGHTED))(hidden)
    scaled = jax.grad(lambda h: -3.0 * fused_loss(h, Head(kernel), targets, WEIGHTED))(hidden)
    np.testing.assert_allclose(scaled, -3.0 * once, rtol=1e-6)


def test_chunked_equals_unchunked_also_where_the_last_chunk_is_not_full(inputs, monkeypatch):
    hidden, kernel, token_ids = inputs
    hidden, token_ids = hidden[:-5], token_ids[:-5]
    targets = distribution(token_ids)

    def value_and_gradient():
        return jax.value_and_grad(lambda h: fused_loss(h, Head(kernel), targets, WITH_TAIL))(hidden)

    whole = value_and_gradient()
    monkeypatch.setattr(chunking, "MAX_CHUNK_BYTES", 4 * VOCAB * 8)
    monkeypatch.setattr(chunking, "MIN_CHUNK_ROWS", 8)
    assert chunk_row_count(ROWS, VOCAB) == 8
    assert_close(value_and_gradient(), whole, atol=1e-5)


def test_rows_beyond_the_count_cost_nothing_and_change_nothing(inputs, monkeypatch):
    monkeypatch.setattr(chunking, "MAX_CHUNK_BYTES", 4 * VOCAB * 8)
    monkeypatch.setattr(chunking, "MIN_CHUNK_ROWS", 8)
    hidden, kernel, token_ids = inputs
    used = 13
    targets = distribution(token_ids)
    few = jax.tree.map(lambda array: array[:used], targets)
    # What lies there is never read: a NaN would show.
    garbage = jax.tree.map(
        lambda array: array.at[16:].set(jnp.nan) if array.dtype == jnp.float32 else array, targets
    )._replace(scales=targets.scales.at[used:].set(0.0))
    spoiled = hidden.at[16:].set(jnp.nan)
    function = jax.jit(
        jax.value_and_grad(
            lambda h, t, count: fused_loss(h, Head(kernel), t, WITH_TAIL, row_count=count)
        )
    )
    value, gradient = function(spoiled, garbage, used)
    expected = jax.value_and_grad(lambda h: fused_loss(h, Head(kernel), few, WITH_TAIL))(
        hidden[:used]
    )
    assert_close((value, gradient[:used]), expected, atol=1e-5)
    assert not np.asarray(gradient[used:]).any()


def test_frozen_kernel_gets_no_gradient_and_changes_nothing_else(inputs):
    hidden, kernel, token_ids = inputs
    targets = weighted(token_ids, weights_of_rows())

    def gradients(kernel_gradient):
        settings = WEIGHTED._replace(kernel_gradient=kernel_gradient)
        return jax.grad(lambda h, k: fused_loss(h, Head(k), targets, settings), argnums=(0, 1))(
            hidden, kernel
        )

    frozen, trained = gradients(False), gradients(True)
    np.testing.assert_array_equal(frozen[0], trained[0])
    assert not np.asarray(frozen[1]).any()
    assert np.asarray(trained[1]).any()


def test_loss_and_gradients_are_the_same_with_the_kernel_held_twice(inputs):
    hidden, kernel, token_ids = inputs
    settings = WITH_TAIL._replace(kernel_gradient=False)
    update = jax.random.normal(jax.random.key(7), (HIDDEN + VOCAB, RANK))
    down, up = update[:HIDDEN], update[HIDDEN:].T

    def loss(hidden, down, up, columns):
        head = Head(kernel, down, up, columns)
        return fused_loss(hidden, head, distribution(token_ids), settings)

    with_gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))
    assert_close(with_gradients(hidden, down, up, kernel.T), with_gradients(hidden, down, up, None))


@pytest.mark.parametrize("vocab_size", [1 << 16, 1 << 17])
def test_temporaries_are_a_few_chunks_whatever_the_number_of_rows(vocab_size):
    """Read from the compiled program; all logits would be rows * V * 4 bytes."""

    def temporaries(row_count):
        def loss(hidden, kernel, token_ids, values):
            rows = TargetRows(values, values[:, 0], values)
            targets = HeadTargets(token_ids, rows, values[:, 0])
            settings = WITH_TAIL._replace(kernel_gradient=False)
            return fused_loss(hidden, Head(kernel), targets, settings)

        shapes = (
            jax.ShapeDtypeStruct((row_count, HIDDEN), jnp.float32),
            jax.ShapeDtypeStruct((vocab_size, HIDDEN), jnp.float32),
            jax.ShapeDtypeStruct((row_count, SUPPORT), jnp.int32),
            jax.ShapeDtypeStruct((row_count, SUPPORT), jnp.float32),
        )
        compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rows = chunk_row_count(1 << 20, vocab_size)
    chunk_bytes = 4 * rows * vocab_size
    one_chunk, eight_chunks = temporaries(rows), temporaries(8 * rows)
    assert one_chunk < 4 * chunk_bytes
    per_row = 32 * (HIDDEN + SUPPORT + 8)  # inputs, outputs and their gradients, generously
    assert eight_chunks < one_chunk + 7 * rows * per_row
    assert 7 * rows * per_row < chunk_bytes / 4  # the bound would see one more chunk


def test_gradients_are_the_same_however_the_sum_of_the_kernels_lies(inputs, monkeypatch):
    hidden, kernel, token_ids = inputs

    def gradients():
        return jax.grad(fused_loss, argnums=(0, 1))(
            hidden, Head(kernel), distribution(token_ids), WITH_TAIL
        )

    monkeypatch.setattr(chunking, "MAX_CHUNK_BYTES", 1)
    monkeypatch.setattr(chunking, "MIN_CHUNK_ROWS", 16)
    sums, results = [], []
    for profile in (CPU, ACCELERATOR):
        monkeypatch.setattr(head_kernel, "device_profile", lambda profile=profile: profile)
        sums.append(head_kernel.empty_kernel_sum(kernel).shape)
        results.append(gradients())
    assert sums == [(HIDDEN, VOCAB), (VOCAB, HIDDEN)]
    assert_close(*results)


@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_the_kernel_whether_or_not_it_is_held_twice(inputs, has_columns, dtype):
    hidden, kernel, _ = (array.astype(dtype) for array in inputs)
    head = Head(kernel, columns=kernel.T if has_columns else None)
    logits = jax.jit(head_logits)(hidden, head)
    exact = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)
