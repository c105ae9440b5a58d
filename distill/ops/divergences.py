"""Objectives towards a distribution: cross entropies and divergences on a support and its tail.

They map rows [N, K], and [N] of the tails, to the losses [N] of the rows. Letters: S the support of
K tokens, p the teacher, q the student, both normalised over the full vocabulary after temperature;
pbar = p / sum_S p, qbar likewise. docs/objectives.md says why each has its fixed point. In the
examples q = (1/2, 1/4) on S, p = (1/8, 1/2), and the rest is the tail.

Every function is separable by rows. A slot of weight 0, or of log p = -inf, is unused and counts
exactly nothing, whatever else it holds. None of them raises: compiled code cannot look at values.
Values and gradients are finite wherever the student's edge lets the inputs through.
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


def _gap(weight: jax.Array, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """weight * (log p - log q), where p = 0 with its weight 0 counts nothing."""
    return weight * (jnp.where(weight == 0.0, 0.0, log_p) - jnp.where(weight == 0.0, 0.0, log_q))


def _both_finite(log_q: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where neither is -inf, and the two with 0 elsewhere."""
    used = jnp.isfinite(log_q) & jnp.isfinite(log_p)
    return used, jnp.where(used, log_q, 0.0), jnp.where(used, log_p, 0.0)


def _conserved_reverse(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """q * (log q - log p) of outcomes whose q add up to 1; log p = -inf counts nothing.

    The gradient in log q would be q * (log q - log p + 1). Its last term is the gradient of a sum
    that is always 1, so leaving it out changes nothing, and the gradient is then exactly 0 where
    q = p instead of a difference of rounded numbers. It stays right where q goes to 0.
    """
    used, log_q, log_p = _both_finite(log_q, log_p)
    return jnp.where(used, jnp.exp(log_q), 0.0) * lax.stop_gradient(log_q - log_p)


def _outcomes(on_support: jax.Array, tail: jax.Array) -> jax.Array:
    """[N, K] and [N] as the K + 1 outcomes [N, K + 1]."""
    return jnp.concatenate([on_support, tail[:, None]], axis=-1)


def _renormalized(student: StudentRows, targets: TargetRows) -> tuple[jax.Array, jax.Array]:
    """log qbar and log pbar over the slots in use; -inf at the others."""
    used = jnp.isfinite(targets.values)
    log_q = jax.nn.log_softmax(student.log_probs, axis=-1, where=used)
    return log_q, jax.nn.log_softmax(targets.values, axis=-1, where=used)


def cross_entropy(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """-sum_k w_k log q(x_k), for given token weights w of any sign.

    K = 1 and w = 1 is the hard-target loss. Fixed point q ~ w where w >= 0. With soft targets it is
    the loss of distillation (https://arxiv.org/abs/1503.02531).

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> targets = TargetRows(jnp.array([[1.0, 0.0]]), jnp.zeros(1), jnp.zeros((1, 2)))
    >>> print(cross_entropy(student, targets, None))
    [0.693]
    """
    return -weighted(targets.values, student.log_probs).sum(-1)


def renormalized(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """-sum_S pbar log q. Fixed point q = pbar: over-sharp, no mass outside S.

    As in Tinker's SDFT recipe.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(renormalized(student, targets, None))
    [1.248]
    """
    return -weighted(jax.nn.softmax(targets.values, axis=-1), student.log_probs).sum(-1)


def truncated(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """sum_S p (log p - log q), not clamped. Fixed point q = pbar.

    It is negative where the student is above the teacher. Clamping there, as verl does, would lose
    the gradient.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(truncated(student, targets, None))
    [0.173]
    """
    return _gap(jnp.exp(targets.values), targets.values, student.log_probs).sum(-1)


def support(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """KL(pbar || qbar), both renormalised over S. Fixed point any q with qbar = pbar.

    Blind to mass outside S; 0 at K = 1. As in NeMo-RL, Tunix, MaxText and Axolotl.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(support(student, targets, None))
    [0.46]
    """
    log_q, log_p = _renormalized(student, targets)
    return _gap(jnp.exp(log_p), log_p, log_q).sum(-1)


def tail_bucket(
    student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters
) -> jax.Array:
    """sum_S p log(p / q) + p_tail log(p_tail / q_tail): the KL over K + 1 outcomes.

    Fixed point q = p on S and equal tails. As TRL's `add_tail`.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(tail_bucket(student, targets, None))
    [0.325]
    """
    tail = _gap(jnp.exp(targets.tail_log_probs), targets.tail_log_probs, student.tail_log_probs)
    return truncated(student, targets, parameters) + tail


def reverse_support(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """KL(qbar || pbar), both renormalised over S: mode-seeking. Fixed point any q with qbar = pbar.

    Blind to mass outside S; 0 at K = 1. It is `support` with its roles swapped (MiniLLM,
    https://arxiv.org/abs/2306.08543, on a named support).

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(reverse_support(student, targets, None))
    [0.511]
    """
    log_q, log_p = _renormalized(student, targets)
    return _conserved_reverse(log_q, log_p).sum(-1)


def reverse_truncated(
    student: StudentRows, targets: TargetRows, _: ObjectiveParameters
) -> jax.Array:
    """sum_S q (log q - log p), not clamped. Fixed point q = p / e on S.

    Where S is the whole vocabulary the fixed point is q = p. Elsewhere q log(q / p) still falls
    below p, so mass leaks out of S: prefer `reverse_tail_bucket`. It is `truncated` with its roles
    swapped, as on-policy recipes compute it on the student's top K
    (https://arxiv.org/abs/2306.13649).

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(reverse_truncated(student, targets, None))
    [0.52]
    """
    used, log_q, log_p = _both_finite(student.log_probs, targets.values)
    return (jnp.where(used, jnp.exp(log_q), 0.0) * (log_q - log_p)).sum(-1)


def reverse_tail_bucket(
    student: StudentRows, targets: TargetRows, _: ObjectiveParameters
) -> jax.Array:
    """sum_S q log(q / p) + q_tail log(q_tail / p_tail): the reverse KL over K + 1 outcomes.

    Fixed point q = p on S and equal tails. On an S that the student names it is the objective of
    on-policy distillation (https://arxiv.org/abs/2306.13649) without the noise of a sampled KL.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(reverse_tail_bucket(student, targets, None))
    [0.418]
    """
    log_q = _outcomes(student.log_probs, student.tail_log_probs)
    log_p = _outcomes(targets.values, targets.tail_log_probs)
    return _conserved_reverse(log_q, log_p).sum(-1)


def _log_mixture(larger: jax.Array, smaller: jax.Array, gap: jax.Array) -> jax.Array:
    """log(larger + smaller * exp(gap)) of two shares that add up to 1, for gap <= 0.

    Near gap = 0 from the ratio alone, which keeps its digits there. Far from it as a sum of logs:
    one of the two shares may then be all that is left of the mixture.
    """
    near = jnp.log1p(smaller * jnp.expm1(jnp.maximum(gap, -0.5)))
    far = jnp.logaddexp(jnp.log(larger), jnp.log(smaller) + gap)
    return jnp.where(gap > -0.5, near, far)


def jsd(student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters) -> jax.Array:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = (1 - beta) q + beta p, over K + 1 outcomes.

    The generalised Jensen-Shannon divergence of GKD (https://arxiv.org/abs/2306.13649, as in TRL).
    Fixed point q = p on S and equal tails.

    As beta goes to 0 the formula itself vanishes, and divided by beta it tends to KL(p || q). As
    beta goes to 1, divided by 1 - beta, it tends to KL(q || p). So 0 is `tail_bucket` and 1 is
    `reverse_tail_bucket`, as in TRL: the value jumps there.

    The gradient in log q is (1 - beta) q log(q / m): what m contributes cancels exactly.

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> log_p = jnp.log(jnp.array([[0.125, 0.5]]))
    >>> targets = TargetRows(log_p, jnp.log(jnp.array([0.375])), jnp.zeros((1, 2)))
    >>> print(jsd(student, targets, ObjectiveParameters(jnp.float32(0.5), 0.0, 0.0)))
    [0.088]
    """
    beta = parameters.beta
    log_q = _outcomes(student.log_probs, student.tail_log_probs)
    log_p = _outcomes(targets.values, targets.tail_log_probs)
    used = jnp.isfinite(log_p)
    q, p = jnp.where(used, jnp.exp(log_q), 0.0), jnp.exp(log_p)
    gap = lax.stop_gradient(jnp.where(used, log_p, 0.0) - jnp.where(used, log_q, 0.0))
    # At beta 0 and 1 the mixture is not used, but an infinite value would still spoil the gradient.
    share = jnp.where((beta == 0.0) | (beta == 1.0), 0.5, beta)
    below = _log_mixture(1.0 - share, share, jnp.minimum(gap, 0.0))  # log(m / q) where p <= q
    above = _log_mixture(share, 1.0 - share, -jnp.maximum(gap, 0.0))  # log(m / p) where p > q
    mixture_over_q = jnp.where(gap <= 0.0, below, gap + above)
    mixture_over_p = jnp.where(gap <= 0.0, below - gap, above)
    of_q = (1.0 - beta) * weighted(q, mixture_over_q).sum(-1)
    of_p = beta * weighted(p, mixture_over_p).sum(-1)
    return jnp.where(
        beta == 0.0,
        tail_bucket(student, targets, parameters),
        jnp.where(beta == 1.0, reverse_tail_bucket(student, targets, parameters), -of_q - of_p),
    )


def sampled(
    student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters
) -> jax.Array:
    """-sum_j w_j log q(x_j) with the draw weights w that came with the support.

    For x_j drawn from p, and for an exact head with a sampled tail alike. Its mean over the draws
    is the full cross entropy -sum_V p log q, and so is its gradient's: fixed point q = p on
    average. RS-KD (https://arxiv.org/abs/2503.16870).

    >>> student = StudentRows(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([0.25])))
    >>> targets = TargetRows(jnp.array([[0.25, 0.75]]), jnp.zeros(1), jnp.zeros((1, 2)))
    >>> print(sampled(student, targets, None))  # the second token was drawn 3 times of 4
    [1.213]
    """
    return cross_entropy(student, targets, parameters)
