"""Objectives towards a distribution, against golden values and a float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.objectives import OBJECTIVES, ObjectiveParameters, StudentRows, TargetRows
from tests.distill.ops import reference
from tests.distill.ops.objective_cases import (
    BETAS,
    DISTRIBUTION_OBJECTIVES,
    POLICY_OBJECTIVES,
    assert_equals_the_reference,
    gradient_of_logits,
    losses_from_logits,
    random_rows,
)

GOLDEN_LOGITS = np.array([[0, 9, 8, 1, 0, 0], [8, 7, 0, 0, 9, 0], [9, 8, 7, 0, 0, 0]], np.float64)
GOLDEN_SUPPORT = np.array([[1, 2], [4, 5], [3, 4]])
GOLDEN_TEACHER = np.array([[0.7, 0.2], [0.6, 0.3], [0.5, 0.4]])
GOLDEN_LOSSES = {
    "renormalized": [0.53600, 3.40785, 9.40785],
    "truncated": [-0.08916, 2.39938, 7.75398],
    "support": [0.00578, 2.36361, 0.00619],
    "tail_bucket": [0.43759, 2.27853, 7.52374],
    # The same rows with the roles swapped, from the formulas in float64.
    "reverse_support": [0.00603, 0.40432, 0.00621],
    "reverse_truncated": [0.11082, 0.06781, -0.00141],
    "reverse_tail_bucket": [0.10810, 0.47246, 2.30063],
    "jsd": [0.03592, 0.13792, 0.52482],  # beta 1/2
}


@pytest.mark.parametrize("name", sorted(GOLDEN_LOSSES))
def test_losses_equal_the_golden_values(name):
    tail = np.log1p(-GOLDEN_TEACHER.sum(-1))
    losses = losses_from_logits(name, GOLDEN_LOGITS, GOLDEN_SUPPORT, np.log(GOLDEN_TEACHER), tail)
    np.testing.assert_allclose(losses, GOLDEN_LOSSES[name], atol=1e-5)


def test_renormalized_weights_equal_the_golden_values():
    weights = jax.nn.softmax(jnp.array([-0.5, -1.5, -2.5]))
    np.testing.assert_allclose(weights, [0.66524, 0.24473, 0.09003], atol=1e-5)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - set(POLICY_OBJECTIVES)))
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_equal_the_float64_reference(name, seed):
    logits, token_ids, log_p, tail = random_rows(seed)
    values = log_p if OBJECTIVES[name].needs_distribution else np.sin(log_p)  # signs of both kinds
    assert_equals_the_reference(name, logits, token_ids, values, tail)


@pytest.mark.parametrize("beta", BETAS)
def test_jsd_equals_the_float64_reference_at_every_beta(beta):
    assert_equals_the_reference("jsd", *random_rows(23), beta=beta)


@pytest.mark.parametrize(("beta", "other"), [(0.0, "tail_bucket"), (1.0, "reverse_tail_bucket")])
def test_jsd_at_its_ends_is_bitwise_the_two_kls(beta, other):
    rows = random_rows(29)
    np.testing.assert_array_equal(
        losses_from_logits("jsd", *rows, beta=beta), losses_from_logits(other, *rows)
    )
    np.testing.assert_array_equal(
        gradient_of_logits("jsd", *rows, beta=beta), gradient_of_logits(other, *rows)
    )


@pytest.mark.parametrize("other", ["tail_bucket", "reverse_tail_bucket"])
def test_jsd_near_its_ends_tends_to_the_kls_in_proportion(other):
    """L / beta to the forward KL, L / (1 - beta) to the reverse one, and so their gradients."""
    rows = random_rows(31, scale=1.0)
    distances = (0.03, 0.003)
    errors = []
    for distance in distances:
        beta = distance if other == "tail_bucket" else 1 - distance
        for function in (losses_from_logits, gradient_of_logits):
            near = np.asarray(function("jsd", *rows, beta=beta)) / distance
            limit = np.asarray(function(other, *rows))
            errors.append(np.abs(near - limit).max() / np.abs(limit).max())
    assert max(errors[:2]) < 0.5
    # The remainder is of first order: ten times nearer, it is about a tenth.
    assert errors[2] < 0.15 * errors[0]
    assert errors[3] < 0.15 * errors[1]


FULL_REVERSE = ["reverse_support", "reverse_truncated", "reverse_tail_bucket"]


@pytest.mark.parametrize(("name", "beta"), [*((n, 0.5) for n in FULL_REVERSE), ("jsd", 0.3)])
def test_full_support_equals_the_dense_reverse_kl_and_jsd(name, beta):
    logits, _, _, _ = random_rows(7, vocab_size=16)
    log_q = reference.log_softmax(logits)
    teacher = reference.log_softmax(np.random.default_rng(8).normal(size=logits.shape))
    token_ids = np.argsort(-teacher, axis=-1)
    log_p = np.take_along_axis(teacher, token_ids, axis=-1)
    rows = (logits, token_ids, log_p, np.full(len(logits), -np.inf))
    p, q = np.exp(teacher), np.exp(log_q)
    if name == "jsd":
        mixture = np.log((1 - beta) * q + beta * p)
        dense = (beta * p * (teacher - mixture) + (1 - beta) * q * (log_q - mixture)).sum(-1)
        direction = (1 - beta) * (log_q - mixture)
    else:
        dense = (q * (log_q - teacher)).sum(-1)
        direction = log_q - teacher
    np.testing.assert_allclose(losses_from_logits(name, *rows, beta=beta), dense, rtol=1e-5)
    # d/dz sum q f(q) = q (direction - its mean under q)
    dense_gradient = q * (direction - (q * direction).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        gradient_of_logits(name, *rows, beta=beta), dense_gradient, atol=2e-6
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


@pytest.mark.parametrize("shift", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("name", DISTRIBUTION_OBJECTIVES)
def test_a_shift_of_all_logits_changes_nothing_also_at_full_support(name, shift):
    logits, _, _, _ = random_rows(9, vocab_size=12)
    logits = np.round(logits * 64) / 64  # so that the shifted ones are exact
    teacher = reference.log_softmax(np.random.default_rng(10).normal(size=logits.shape))
    token_ids = np.argsort(-teacher, axis=-1)
    rows = (token_ids, np.take_along_axis(teacher, token_ids, axis=-1), np.full(8, -np.inf))
    for function in (losses_from_logits, gradient_of_logits):
        np.testing.assert_allclose(
            function(name, logits + shift, *rows), function(name, logits, *rows), atol=1e-6
        )


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


@pytest.mark.parametrize(
    "name", ["tail_bucket", "support", "reverse_support", "reverse_tail_bucket", "jsd"]
)
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


def test_reverse_truncated_is_stationary_at_a_share_of_the_teacher():
    """q = p / e on the support, as documented, whatever the rest is."""
    vocab_size, support_size = 12, 3
    log_p = np.log([[0.5, 0.2, 0.1]])
    on_support = np.exp(log_p - 1)
    rest = (1 - on_support.sum()) / (vocab_size - support_size)
    q = np.concatenate([on_support, np.full((1, vocab_size - support_size), rest)], axis=-1)
    rows = (np.log(q), np.array([[0, 1, 2]]), log_p, np.log([0.2]))
    np.testing.assert_allclose(gradient_of_logits("reverse_truncated", *rows), 0.0, atol=1e-7)
    np.testing.assert_allclose(
        losses_from_logits("reverse_truncated", *rows), -0.8 / np.e, rtol=1e-6
    )
    moved = (np.log(q) + np.eye(1, vocab_size) * 0.1, *rows[1:])
    assert np.abs(gradient_of_logits("reverse_truncated", *moved)).max() > 1e-3


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


@pytest.mark.parametrize("name", DISTRIBUTION_OBJECTIVES)
def test_an_unused_slot_changes_neither_value_nor_gradient(name):
    """Unused: log p = -inf. The token is in S twice, so that nothing else differs either."""
    logits, token_ids, log_p, tail = random_rows(19)
    padded_ids = np.concatenate([token_ids, token_ids[:, :2]], axis=-1)
    padded = np.concatenate([log_p, np.full((8, 2), -np.inf)], axis=-1)
    for function in (losses_from_logits, gradient_of_logits):
        np.testing.assert_allclose(
            function(name, logits, padded_ids, padded, tail),
            function(name, logits, token_ids, log_p, tail),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_reverse_gradient_vanishes_with_the_students_tail_and_stays_finite(beta):
    for gap in (20.0, 60.0, 200.0):  # a tail of 1e-9, of 1e-26 and of nothing
        logits = np.array([[gap + 1, gap, 1.0, 0.0, 2.0, 0.0]])
        rows = (logits, np.array([[0, 1]]), np.log([[0.6, 0.3]]), np.log([0.1]))
        assert_equals_the_reference("jsd", *rows, beta=beta)


@pytest.mark.parametrize("gap", [-200.0, -60.0, -20.0, 20.0, 60.0, 200.0])
@pytest.mark.parametrize("beta", [*BETAS, 1e-9, 1 - 1e-7])
def test_jsd_is_right_where_teacher_and_student_are_far_apart(beta, gap):
    """By such a gap at a token or in the tail, whichever of the two is almost 0 there."""
    beta = float(np.float32(beta))
    even = np.array([[0.5, 0.0, -0.5, 0.3]] * 2)
    uneven = np.array([[0.0, -gap, 1.0, 0.5], [0.0, 1.0, -gap, -gap]])
    student = np.concatenate([even, uneven])
    teacher = reference.log_softmax(np.concatenate([uneven, even]))
    token_ids = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    log_p = np.take_along_axis(teacher, token_ids, axis=-1)
    tail = reference.tail_log_probs(teacher, token_ids)
    name, rows = "jsd", (student, token_ids, log_p, tail)
    np.testing.assert_allclose(
        losses_from_logits(name, *rows, beta=beta),
        reference.row_losses(name, *rows, beta=beta),
        rtol=2e-5,
        atol=2e-5,
    )
    np.testing.assert_allclose(
        gradient_of_logits(name, *rows, beta=beta),
        reference.logits_gradient(name, *rows, beta=beta),
        rtol=1e-6,  # some are 200
        atol=3e-6,
    )


@pytest.mark.parametrize("beta", BETAS)
def test_a_value_of_beta_or_of_a_clip_is_no_new_program(beta):
    traced = []

    @jax.jit
    def loss(student, targets, parameters):
        traced.append(1)
        return OBJECTIVES["jsd"].row_loss(student, targets, parameters)

    student = StudentRows(jnp.full((2, 3), -2.0), jnp.full(2, -0.5))
    targets = TargetRows(jnp.full((2, 3), -1.5), jnp.full(2, -1.0), jnp.zeros((2, 3)))
    for value in (0.25, beta):
        loss(student, targets, ObjectiveParameters(*map(jnp.float32, (value, value, 2.0))))
    assert len(traced) == 1


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
