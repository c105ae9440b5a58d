"""Objectives of named tokens with advantages: policy gradients, plain and clipped.

They map [N, K] to the losses [N] of the rows. Letters: N rows, K named tokens, q the student, q_old
the policy that sampled, r = q / q_old, A advantages. A token of advantage 0 counts exactly nothing.

None of these functions raises: compiled code cannot look at values. The student's edge lets through
finite advantages and log-probabilities alone. Values and gradients are then finite, unless r itself
is too large for float32 and its token is not clipped.
"""

import jax
import jax.numpy as jnp
from jax import lax

from distill.ops.objective_rows import (
    ObjectiveParameters,
    StudentRows,
    TargetRows,
    weighted,
)


def _log_ratio(student: StudentRows, targets: TargetRows) -> jax.Array:
    """log r; 0 without a gradient where the advantage is 0."""
    log_ratio = student.log_probs - targets.old_log_probs
    return jnp.where(targets.values == 0.0, 0.0, log_ratio)


def importance_sampling(
    student: StudentRows, targets: TargetRows, _: ObjectiveParameters
) -> jax.Array:
    """-sum_k r_k A_k: the policy gradient of an off-policy sample, unbiased and unbounded.

    At q = q_old its gradient is that of -sum_k A_k log q. It has no fixed point of its own: it is
    stationary where the advantages are 0 on average, so A must be computed anew as q moves. The
    loss of that name in Tinker's API.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.zeros(1))
    >>> log_q_old = jnp.log(jnp.array([[0.25, 0.25]]))
    >>> targets = TargetRows(jnp.array([[1.0, -1.0]]), jnp.zeros(1), log_q_old)
    >>> print(importance_sampling(student, targets, None))  # r = (2, 1)
    [-1.]
    """
    return -(jnp.exp(_log_ratio(student, targets)) * targets.values).sum(-1)


def ppo(student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters) -> jax.Array:
    """-sum_k min(r_k A_k, clip(r_k, low, high) A_k) (https://arxiv.org/abs/1707.06347).

    Clipped at 0.8 and 1.2 by default. No gradient where A > 0 and r > high, or A < 0 and r < low;
    at the bounds themselves the gradient is `importance_sampling`'s. Its fixed points are that
    one's, and every q beyond the bounds.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.zeros(1))
    >>> log_q_old = jnp.log(jnp.array([[0.25, 0.25]]))
    >>> targets = TargetRows(jnp.array([[1.0, -1.0]]), jnp.zeros(1), log_q_old)
    >>> print(ppo(student, targets, ObjectiveParameters(0.0, 0.8, 1.2)))
    [-0.2]
    """
    advantages = targets.values
    log_ratio = _log_ratio(student, targets)
    ratio = jnp.exp(log_ratio)
    is_clipped = jnp.where(
        advantages > 0.0, ratio > parameters.clip_high, ratio < parameters.clip_low
    )
    bound = jnp.where(advantages > 0.0, parameters.clip_high, parameters.clip_low)
    # The exponential again, of 0 where it is clipped: an infinite ratio times a gradient of 0
    # would be NaN.
    kept = jnp.exp(jnp.where(is_clipped, 0.0, log_ratio))
    return -weighted(advantages, jnp.where(is_clipped, bound, kept)).sum(-1)


def cispo(student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters) -> jax.Array:
    """-sum_k sg(clip(r_k, low, high)) A_k log q_k (MiniMax-M1, https://arxiv.org/abs/2506.13585).

    Clipped at 0 and 4 by default; sg stops the gradient. The clip bounds the factor of a token and
    never silences it. At q = q_old its gradient is `importance_sampling`'s, and so are its fixed
    points.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.zeros(1))
    >>> log_q_old = jnp.log(jnp.array([[0.25, 0.25]]))
    >>> targets = TargetRows(jnp.array([[1.0, 0.0]]), jnp.zeros(1), log_q_old)
    >>> print(cispo(student, targets, ObjectiveParameters(0.0, 0.0, 4.0)))  # 2 log 2
    [1.386]
    """
    ratio = jnp.exp(_log_ratio(student, targets))
    factors = jnp.clip(ratio, parameters.clip_low, parameters.clip_high)
    return -weighted(lax.stop_gradient(factors) * targets.values, student.log_probs).sum(-1)
