"""Rows for tests of the objectives, and what the head makes of them."""

import jax
import jax.numpy as jnp
import numpy as np

from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.logits import Head
from distill.ops.objectives import OBJECTIVES, ObjectiveParameters, TargetRows
from tests.distill.ops import reference

DISTRIBUTION_OBJECTIVES = sorted(
    name for name, spec in OBJECTIVES.items() if spec.needs_distribution
)
POLICY_OBJECTIVES = sorted(name for name, spec in OBJECTIVES.items() if spec.needs_advantages)
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def loss_and_rows(logits, token_ids, targets, parameters, name):
    """With the identity as head, so that the logits are the hidden states."""
    spec = OBJECTIVES[name]
    return head_loss(
        logits,
        Head(jnp.eye(logits.shape[-1])),
        HeadTargets(token_ids, targets, jnp.ones(len(logits))),
        HeadSettings(spec.row_loss, with_tail=spec.needs_distribution),
        parameters=parameters,
    )


compiled_losses = jax.jit(
    lambda *args, name: loss_and_rows(*args, name=name)[1].losses, static_argnames="name"
)
compiled_gradient = jax.jit(
    jax.grad(lambda *args, name: loss_and_rows(*args, name=name)[0]), static_argnames="name"
)


def arguments(logits, token_ids, values, tail, *, old_log_probs=None, beta=0.5, clips=(0.8, 1.2)):
    values = jnp.asarray(values, jnp.float32)
    old = jnp.zeros_like(values) if old_log_probs is None else old_log_probs
    return (
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(token_ids, jnp.int32),
        TargetRows(values, jnp.asarray(tail, jnp.float32), jnp.asarray(old, jnp.float32)),
        ObjectiveParameters(*(jnp.float32(value) for value in (beta, *clips))),
    )


def losses_from_logits(name, *rows, **settings):
    """Row losses, [N]."""
    return np.asarray(compiled_losses(*arguments(*rows, **settings), name=name))


def gradient_of_logits(name, *rows, **settings):
    """Gradient of their sum, [N, V]."""
    return np.asarray(compiled_gradient(*arguments(*rows, **settings), name=name))


def random_rows(seed, row_count=8, vocab_size=24, support_size=5, scale=3.0):
    """Student logits and the top-K of a random teacher, as (logits, ids, log p, log tail)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(row_count, vocab_size))
    teacher = reference.log_softmax(rng.normal(scale=scale, size=(row_count, vocab_size)))
    token_ids = np.argsort(-teacher, axis=-1)[:, :support_size]
    log_p = np.take_along_axis(teacher, token_ids, axis=-1)
    return logits, token_ids, log_p, reference.tail_log_probs(teacher, token_ids)


def assert_equals_the_reference(name, logits, token_ids, values, tail, *, ours=None, **settings):
    """Value and gradient; `ours` are settings that only the implementation takes."""
    arguments = (name, logits, token_ids, values, tail)
    own = settings if ours is None else ours
    losses = reference.row_losses(*arguments, **settings)
    np.testing.assert_allclose(losses_from_logits(*arguments, **own), losses, rtol=2e-5, atol=2e-5)
    gradient = reference.logits_gradient(*arguments, **settings)
    np.testing.assert_allclose(gradient_of_logits(*arguments, **own), gradient, atol=3e-6)
