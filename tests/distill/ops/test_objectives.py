"""The objectives on top of the head, against the golden values and a float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.head import selected_log_probs
from distill.ops.objectives import OBJECTIVES, StudentRows, TargetRows
from tests.distill.ops import reference

GOLDEN_LOGITS = np.array([[0, 9, 8, 1, 0, 0], [8, 7, 0, 0, 9, 0], [9, 8, 7, 0, 0, 0]], np.float64)
GOLDEN_SUPPORT = np.array([[1, 2], [4, 5], [3, 4]])
GOLDEN_TEACHER = np.array([[0.7, 0.2], [0.6, 0.3], [0.5, 0.4]])
GOLDEN_LOSSES = {
    "renormalized": [0.53600, 3.40785, 9.40785],
    "truncated": [-0.08916, 2.39938, 7.75398],
    "support": [0.00578, 2.36361, 0.00619],
    "tail_bucket": [0.43759, 2.27853, 7.52374],
}
DISTRIBUTION_OBJECTIVES = sorted(
    name for name, spec in OBJECTIVES.items() if spec.needs_distribution
)


def losses_from_logits(name, logits, token_ids, values, tail):
    """Row losses with the identity as head, so that the logits are the hidden states."""
    output = selected_log_probs(
        jnp.asarray(logits, jnp.float32),
        jnp.eye(np.shape(logits)[-1]),
        jnp.asarray(token_ids, jnp.int32),
        with_tail=OBJECTIVES[name].needs_distribution,
    )
    return OBJECTIVES[name].row_loss(
        StudentRows(output.log_probs, output.tail_log_probs),
        TargetRows(jnp.asarray(values, jnp.float32), jnp.asarray(tail, jnp.float32)),
    )


def gradient_of_logits(name, logits, token_ids, values, tail):
    return np.asarray(
        jax.grad(lambda z: losses_from_logits(name, z, token_ids, values, tail).sum())(
            jnp.asarray(logits, jnp.float32)
        )
    )


def random_rows(seed, row_count=8, vocab_size=24, support_size=5):
    """Student logits and the top-K of a random teacher, as (logits, ids, log p, log tail)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3.0, size=(row_count, vocab_size))
    teacher = reference.log_softmax(rng.normal(scale=3.0, size=(row_count, vocab_size)))
    token_ids = np.argsort(-teacher, axis=-1)[:, :support_size]
    log_p = np.take_along_axis(teacher, token_ids, axis=-1)
    return logits, token_ids, log_p, reference.tail_log_probs(teacher, token_ids)


@pytest.mark.parametrize("name", sorted(GOLDEN_LOSSES))
def test_losses_equal_the_golden_values(name):
    tail = np.log1p(-GOLDEN_TEACHER.sum(-1))
    losses = losses_from_logits(name, GOLDEN_LOGITS, GOLDEN_SUPPORT, np.log(GOLDEN_TEACHER), tail)
    np.testing.assert_allclose(losses, GOLDEN_LOSSES[name], atol=1e-5)


def test_renormalized_weights_equal_the_golden_values():
    weights = jax.nn.softmax(jnp.array([-0.5, -1.5, -2.5]))
    np.testing.assert_allclose(weights, [0.66524, 0.24473, 0.09003], atol=1e-5)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_equal_the_float64_reference(name, seed):
    logits, token_ids, log_p, tail = random_rows(seed)
    values = log_p if OBJECTIVES[name].needs_distribution else np.sin(log_p)  # signs of both kinds
    np.testing.assert_allclose(
        losses_from_logits(name, logits, token_ids, values, tail),
        reference.row_losses(name, logits, token_ids, values, tail),
        rtol=2e-5,
        atol=2e-5,
    )
    np.testing.assert_allclose(
        gradient_of_logits(name, logits, token_ids, values, tail),
        reference.logits_gradient(name, logits, token_ids, values, tail),
        atol=2e-6,
    )


@pytest.mark.parametrize("name", ["truncated", "tail_bucket", "support"])
def test_full_support_equals_dense_kl(name):
    logits, _, _, _ = random_rows(7, vocab_size=16)
    teacher = reference.log_softmax(np.random.default_rng(8).normal(size=logits.shape))
    token_ids = np.argsort(-teacher, axis=-1)
    log_p = np.take_along_axis(teacher, token_ids, axis=-1)
    dense = (np.exp(teacher) * (teacher - reference.log_softmax(logits))).sum(-1)
    tail = np.full(len(logits), -np.inf)
    losses = losses_from_logits(name, logits, token_ids, log_p, tail)
    np.testing.assert_allclose(losses, dense, rtol=1e-5)
    gradient = gradient_of_logits(name, logits, token_ids, log_p, tail)
    dense_gradient = np.exp(reference.log_softmax(logits)) - np.exp(teacher)
    np.testing.assert_allclose(gradient, dense_gradient, atol=1e-6)


def test_truncated_gradient_is_the_support_mass_times_the_renormalized_one():
    logits, token_ids, log_p, tail = random_rows(11)
    mass = np.exp(log_p).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        gradient_of_logits("truncated", logits, token_ids, log_p, tail),
        mass * gradient_of_logits("renormalized", logits, token_ids, log_p, tail),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", DISTRIBUTION_OBJECTIVES)
def test_order_of_the_support_does_not_matter(name):
    logits, token_ids, log_p, tail = random_rows(13)
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        losses_from_logits(name, logits, token_ids, log_p, tail),
        losses_from_logits(name, logits, token_ids[:, order], log_p[:, order], tail),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["tail_bucket", "support"])
def test_teacher_equal_to_the_student_gives_zero_loss_and_gradient(name):
    _, token_ids, _, _ = random_rows(17)
    logits = np.random.default_rng(17).normal(scale=3.0, size=(8, 24))
    log_q = reference.log_softmax(logits)
    log_p = np.take_along_axis(log_q, token_ids, axis=-1)
    tail = reference.tail_log_probs(log_q, token_ids)
    losses = losses_from_logits(name, logits, token_ids, log_p, tail)
    np.testing.assert_allclose(losses, 0.0, atol=1e-5)
    gradient = gradient_of_logits(name, logits, token_ids, log_p, tail)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_zero_weights_meet_infinite_log_probs_without_a_trace():
    logits = np.zeros((1, 6))
    logits[0, 3] = -3e38  # its log q is as good as -inf
    token_ids = np.array([[0, 3]])
    weights = np.array([[1.0, 0.0]])
    loss = losses_from_logits("cross_entropy", logits, token_ids, weights, [0.0])
    gradient = gradient_of_logits("cross_entropy", logits, token_ids, weights, [0.0])
    np.testing.assert_allclose(loss, np.log(5.0), rtol=1e-6)
    assert np.isfinite(gradient).all()
    masked = np.array([[0.0, -np.inf]])
    for name in DISTRIBUTION_OBJECTIVES:
        value = losses_from_logits(name, np.zeros((1, 6)), [[0, 0]], masked, [-np.inf])
        gradient = gradient_of_logits(name, np.zeros((1, 6)), [[0, 0]], masked, [-np.inf])
        assert np.isfinite(value).all(), name
        assert np.isfinite(gradient).all(), name


def test_tail_gradient_stays_right_when_the_student_has_almost_no_tail():
    # The student's tail is 3e-12: 1 - sum would be rounding noise, or 0.
    logits = np.array([[30.0, 29.0, 1.0, 0.0, 2.0, 0.0]])
    token_ids = np.array([[0, 1]])
    log_p, tail = np.log([[0.6, 0.3]]), np.log([0.1])
    np.testing.assert_allclose(
        losses_from_logits("tail_bucket", logits, token_ids, log_p, tail),
        reference.row_losses("tail_bucket", logits, token_ids, log_p, tail),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        gradient_of_logits("tail_bucket", logits, token_ids, log_p, tail),
        reference.logits_gradient("tail_bucket", logits, token_ids, log_p, tail),
        atol=1e-6,
    )
