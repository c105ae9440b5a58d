"""Inputs of tests of the head, and the same loss densely."""

import jax
import jax.numpy as jnp
import numpy as np

from distill.ops.divergences import cross_entropy, tail_bucket
from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.objectives import TargetRows

ROWS, HIDDEN, VOCAB, SUPPORT, RANK = 64, 12, 50, 4, 3


def head_inputs():
    """Hidden states [ROWS, HIDDEN], a kernel [VOCAB, HIDDEN], distinct ids [ROWS, SUPPORT]."""
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
