"""The fused, chunked head against dense logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.kernels.profile import is_on_cpu
from distill.ops import logits as chunking
from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.logits import FEW_ROWS, Head, chunk_row_count, head_logits, kernel_columns
from distill.ops.objectives import TargetRows, cross_entropy, tail_bucket

ROWS, HIDDEN, VOCAB, SUPPORT, RANK = 64, 12, 50, 4, 3


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (ROWS, HIDDEN))
    kernel = jax.random.normal(keys[1], (VOCAB, HIDDEN))
    ids = jax.vmap(lambda key: jax.random.choice(key, VOCAB, (SUPPORT,), replace=False))
    return hidden, kernel, ids(jax.random.split(keys[2], ROWS))


def weights_of_rows(row_count=ROWS):
    return jax.random.normal(jax.random.key(3), (row_count, SUPPORT))


def weighted(token_ids, weights, scales=None):
    """Targets of a cross entropy."""
    row_count = len(token_ids)
    rows = TargetRows(weights, jnp.zeros(row_count), jnp.zeros_like(weights))
    return HeadTargets(token_ids, rows, jnp.ones(row_count) if scales is None else scales)


def distribution(token_ids, seed=4):
    """Targets of a KL: random log-probabilities of the support and the tail."""
    logits = jax.random.normal(jax.random.key(seed), (len(token_ids), SUPPORT + 1))
    log_p = jax.nn.log_softmax(logits)
    rows = TargetRows(log_p[:, :-1], log_p[:, -1], jnp.zeros_like(log_p[:, :-1]))
    return HeadTargets(token_ids, rows, jax.random.normal(jax.random.key(5), (len(token_ids),)))


WEIGHTED = HeadSettings(cross_entropy, with_tail=False)
WITH_TAIL = HeadSettings(tail_bucket, with_tail=True)


def fused_loss(hidden, head, targets, settings, **rest):
    return head_loss(hidden, head, targets, settings, **rest)[0]


def dense_loss(hidden, head, targets, settings, temperature=1.0):
    kernel = head.kernel if head.down is None else head.kernel + (head.down @ head.up).T
    log_q = jax.nn.log_softmax(hidden @ kernel.T / temperature)
    named = jnp.take_along_axis(log_q, targets.token_ids, axis=-1)
    if not settings.with_tail:
        losses = -(targets.rows.values * named).sum(-1)
    else:
        rows = jnp.arange(len(hidden))[:, None]
        tail = jax.nn.logsumexp(log_q.at[rows, targets.token_ids].set(-jnp.inf), axis=-1)
        log_p, p_tail = targets.rows.values, targets.rows.tail_log_probs
        losses = (jnp.exp(log_p) * (log_p - named)).sum(-1) + jnp.exp(p_tail) * (p_tail - tail)
    return (losses * targets.scales).sum()


def assert_close(ours, theirs, atol=3e-5):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("with_tail", [False, True])
@pytest.mark.parametrize("has_update", [False, True])
def test_loss_and_gradients_equal_the_dense_ones(inputs, temperature, with_tail, has_update):
    hidden, kernel, token_ids = inputs
    keys = jax.random.split(jax.random.key(9))
    down, up = jax.random.normal(keys[0], (HIDDEN, RANK)), jax.random.normal(keys[1], (RANK, VOCAB))
    head = Head(kernel, down, up) if has_update else Head(kernel)
    settings = WITH_TAIL if with_tail else WEIGHTED
    targets = distribution(token_ids) if with_tail else weighted(token_ids, weights_of_rows())
    ours, theirs = (
        jax.jit(
            jax.value_and_grad(
                lambda h, w, loss=loss: loss(h, w, targets, settings, temperature=temperature),
                argnums=(0, 1),
            )
        )(hidden, head)
        for loss in (fused_loss, dense_loss)
    )
    assert_close(ours, theirs, atol=1e-4)


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


def test_a_row_of_scale_0_adds_exactly_0_whatever_its_targets_hold(inputs):
    hidden, kernel, token_ids = inputs
    targets = distribution(token_ids)
    empty = targets.rows._replace(values=targets.rows.values.at[7].set(-jnp.inf))
    targets = HeadTargets(
        token_ids.at[7].set(0), empty, jnp.ones(ROWS).at[7].set(0.0).at[8].set(0.0)
    )
    value, gradient = jax.value_and_grad(lambda h: fused_loss(h, Head(kernel), targets, WITH_TAIL))(
        hidden
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient[7:9]).any()


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


def test_repeated_ids_add_their_gradients(inputs):
    hidden, kernel, token_ids = inputs
    targets = weighted(token_ids.at[:, 1].set(token_ids[:, 0]), weights_of_rows())
    ours, theirs = (
        jax.value_and_grad(lambda h, loss=loss: loss(h, Head(kernel), targets, WEIGHTED))(hidden)
        for loss in (fused_loss, dense_loss)
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("gap", [5.0, 40.0, 90.0, 300.0])
def test_a_vanishing_tail_keeps_its_log_probability_and_its_gradient(gap):
    """Against float64: far below what 1 - sum(q) or a sum relative to the maximum could give."""
    rng = np.random.default_rng(int(gap))
    logits = rng.normal(size=(1, VOCAB))
    support = np.arange(SUPPORT)
    logits[0, :SUPPORT] += gap
    log_p = np.log(np.array([0.5, 0.2, 0.1, 0.1, 0.1]))
    targets = HeadTargets(
        jnp.asarray(support, jnp.int32)[None],
        TargetRows(jnp.float32(log_p[None, :-1]), jnp.float32(log_p[-1:]), jnp.zeros((1, SUPPORT))),
        jnp.ones(1),
    )
    head = Head(jnp.eye(VOCAB))
    value, gradient = jax.value_and_grad(lambda z: fused_loss(z, head, targets, WITH_TAIL))(
        jnp.float32(logits)
    )
    shifted = np.float64(np.float32(logits[0])) - logits.max()
    log_q = shifted - np.log(np.exp(shifted).sum())
    peak = log_q[SUPPORT:].max()
    log_tail = peak + np.log(np.exp(log_q[SUPPORT:] - peak).sum())
    p, p_tail = np.exp(log_p[:-1]), np.exp(log_p[-1])
    expected = (p * (log_p[:-1] - log_q[:SUPPORT])).sum() + p_tail * (log_p[-1] - log_tail)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    q = np.exp(log_q)
    tail_only = np.where(np.arange(VOCAB) < SUPPORT, 0.0, np.exp(log_q - log_tail))
    exact = q - p_tail * tail_only
    exact[:SUPPORT] -= p
    np.testing.assert_allclose(gradient[0], exact, atol=2e-6)


def test_logits_are_float32_for_bfloat16_weights(inputs):
    hidden, kernel, token_ids = inputs
    half = hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    _, rows = head_loss(half[0], Head(half[1]), weighted(token_ids, weights_of_rows()), WEIGHTED)
    assert rows.log_probs.dtype == jnp.float32
    dense = jax.nn.log_softmax(half[0].astype(jnp.float32) @ half[1].astype(jnp.float32).T)
    exact = jnp.take_along_axis(dense, token_ids, axis=-1)
    np.testing.assert_allclose(rows.log_probs, exact, atol=1e-4)


@pytest.mark.parametrize("row_count", [1, 2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_the_same_however_the_kernel_is_read(inputs, row_count, has_columns, dtype):
    hidden, kernel, _ = (array.astype(dtype) for array in inputs)
    head = Head(kernel, columns=kernel.T if has_columns else None)
    logits = jax.jit(head_logits)(hidden[:row_count], head)
    assert logits.dtype == jnp.float32
    exact = np.asarray(hidden[:row_count], np.float64) @ np.asarray(kernel, np.float64).T
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)


def test_gradients_are_the_same_however_the_sum_of_the_kernels_lies(inputs, monkeypatch):
    hidden, kernel, token_ids = inputs

    def gradients():
        return jax.grad(fused_loss, argnums=(0, 1))(
            hidden, Head(kernel), distribution(token_ids), WITH_TAIL
        )

    monkeypatch.setattr(chunking, "MAX_CHUNK_BYTES", 1)
    monkeypatch.setattr(chunking, "MIN_CHUNK_ROWS", 16)
    sums, results = [], []
    for on_cpu in (True, False):
        monkeypatch.setattr(chunking, "is_on_cpu", lambda on_cpu=on_cpu: on_cpu)
        sums.append(chunking.empty_kernel_sum(kernel).shape)
        results.append(gradients())
    assert sums == [(HIDDEN, VOCAB), (VOCAB, HIDDEN)]
    assert_close(*results)


def test_kernel_is_held_twice_only_where_its_products_are_quicker_so(inputs):
    _, kernel, _ = inputs
    assert kernel_columns(kernel) is None
    columns = kernel_columns(kernel.astype(jnp.bfloat16))
    if not is_on_cpu():
        assert columns is None
    else:
        np.testing.assert_array_equal(columns, kernel.astype(jnp.bfloat16).T)


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


def test_statistics_equal_those_of_the_dense_distribution(inputs):
    hidden, kernel, token_ids = inputs
    log_q = np.asarray(jax.nn.log_softmax(hidden @ kernel.T), np.float64)
    _, rows = head_loss(hidden, Head(kernel), distribution(token_ids), WITH_TAIL)
    np.testing.assert_allclose(rows.entropies, -(np.exp(log_q) * log_q).sum(-1), rtol=1e-4)
    np.testing.assert_array_equal(rows.top_token_ids, log_q.argmax(-1))
    np.testing.assert_allclose(
        rows.log_probs, np.take_along_axis(log_q, np.asarray(token_ids), axis=-1), atol=1e-5
    )
    own_top = np.argsort(-log_q, axis=-1)[:, :SUPPORT]
    overlap = [np.isin(row, top).mean() for row, top in zip(token_ids, own_top, strict=True)]
    np.testing.assert_allclose(rows.support_overlaps, overlap)


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
