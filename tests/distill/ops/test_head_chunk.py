"""Losses, statistics and gradients of the head's rows against dense logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.head import HeadTargets, head_loss
from distill.ops.logits import Head
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
    dense_loss,
    distribution,
    fused_loss,
    head_inputs,
    weighted,
    weights_of_rows,
)


@pytest.fixture
def inputs():
    return head_inputs()


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
