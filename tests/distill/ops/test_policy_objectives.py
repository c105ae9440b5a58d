"""Objectives with advantages, against a float64 reference and by their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.objectives import OBJECTIVES, ObjectiveParameters, StudentRows, TargetRows
from tests.distill.ops import reference
from tests.distill.ops.objective_cases import (
    POLICY_OBJECTIVES,
    assert_equals_the_reference,
    gradient_of_logits,
    losses_from_logits,
    random_rows,
)


def policy_rows(seed, *, drift=0.4):
    """Student logits, ids, advantages of both signs, and the log-probs of an earlier policy."""
    logits, token_ids, _, tail = random_rows(seed)
    rng = np.random.default_rng(seed + 1000)
    log_q = np.take_along_axis(reference.log_softmax(logits), token_ids, axis=-1)
    advantages = rng.normal(size=log_q.shape)
    return logits, token_ids, advantages, tail, log_q - rng.normal(scale=drift, size=log_q.shape)


@pytest.mark.parametrize("clips", [(0.8, 1.2), (0.0, 4.0), (0.0, 0.5)])
@pytest.mark.parametrize("name", POLICY_OBJECTIVES)
def test_policy_objectives_equal_the_float64_reference(name, clips):
    logits, token_ids, advantages, tail, old = policy_rows(37)
    ours = {"old_log_probs": old, "clips": clips}
    frozen = None
    if name == "cispo":
        log_q = np.take_along_axis(reference.log_softmax(logits), token_ids, axis=-1)
        frozen = np.exp(log_q - old)
    rows = (logits, token_ids, advantages, tail)
    assert_equals_the_reference(name, *rows, ours=ours, frozen_ratio=frozen, **ours)


@pytest.mark.parametrize("name", POLICY_OBJECTIVES)
def test_at_the_sampling_policy_the_gradient_is_the_policy_gradient(name):
    logits, token_ids, advantages, tail, old = policy_rows(41, drift=0.0)
    np.testing.assert_allclose(
        gradient_of_logits(name, logits, token_ids, advantages, tail, old_log_probs=old),
        gradient_of_logits("cross_entropy", logits, token_ids, advantages, tail),
        rtol=5e-6,  # the old log-probs are rounded to float32
        atol=2e-6,
    )
    if name != "cispo":  # whose value is weighted log q
        losses = losses_from_logits(name, logits, token_ids, advantages, tail, old_log_probs=old)
        np.testing.assert_allclose(losses, -advantages.sum(-1), rtol=1e-5, atol=1e-5)


def gradient_at_ratio(name, ratio, advantage, clips):
    """Value and d loss / d log q of one token whose log q is -1."""

    def loss(log_q):
        return OBJECTIVES[name].row_loss(
            StudentRows(log_q, jnp.zeros(1)),
            TargetRows(
                jnp.full((1, 1), advantage, jnp.float32),
                jnp.zeros(1),
                jnp.full((1, 1), -1 - np.log(ratio), jnp.float32),
            ),
            ObjectiveParameters(*(jnp.float32(value) for value in (0.5, *clips))),
        )[0]

    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1), -1.0))
    return float(value), float(gradient[0, 0])


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio", [0.01, 0.79, 0.81, 1.0, 1.19, 1.21, 50.0])
def test_ppo_clips_on_the_side_that_its_advantage_would_push_further(ratio, advantage):
    value, gradient = gradient_at_ratio("ppo", ratio, advantage, (0.8, 1.2))
    clipped = ratio > 1.2 if advantage > 0 else ratio < 0.8
    kept = min(max(ratio, 0.8), 1.2) if clipped else ratio
    assert value == pytest.approx(-kept * advantage, rel=1e-5)
    assert gradient == pytest.approx(0.0 if clipped else -ratio * advantage, rel=1e-5)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio", [0.1, 0.49, 0.51, 1.0, 3.9, 4.1, 50.0])
def test_cispo_bounds_the_weight_on_both_sides_and_silences_no_token(ratio, advantage):
    value, gradient = gradient_at_ratio("cispo", ratio, advantage, (0.5, 4.0))
    weight = min(max(ratio, 0.5), 4.0)
    assert gradient == pytest.approx(-weight * advantage, rel=1e-5)
    assert value == pytest.approx(weight * advantage, rel=1e-5)  # log q is -1


@pytest.mark.parametrize("name", ["ppo", "cispo"])
def test_a_ratio_beyond_float32_is_clipped_like_any_other(name):
    value, gradient = gradient_at_ratio(name, 1e200, 2.0, (0.8, 1.2))
    assert value == pytest.approx(-2.4 if name == "ppo" else 2.4)
    assert gradient == pytest.approx(0.0 if name == "ppo" else -2.4)


@pytest.mark.parametrize("name", POLICY_OBJECTIVES)
def test_an_advantage_of_zero_counts_nothing_whatever_else_its_slot_holds(name):
    logits, token_ids, advantages, tail, old = policy_rows(43)
    advantages[:, 2] = 0.0
    kept = [0, 1, 3, 4]
    poisoned = logits.copy()
    poisoned[np.arange(8), token_ids[:, 2]] = -1e30
    old[:, 2] = -200.0
    both = [
        (poisoned, token_ids, advantages, tail, old),
        (poisoned, token_ids[:, kept], advantages[:, kept], tail, old[:, kept]),
    ]
    for function in (losses_from_logits, gradient_of_logits):
        ours, expected = (function(name, *rows[:4], old_log_probs=rows[4]) for rows in both)
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
