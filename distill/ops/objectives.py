"""Distillation objectives: pure functions of what the head gives at N rows with support size K.

Letters: S the support, p the teacher, q the student, both normalised over the full vocabulary
after temperature; pbar = p / sum_S p. The wire names are those of the `Objective` enum.
Adding an objective touches this file and the enum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class StudentRows(NamedTuple):
    """The student at N rows."""

    log_probs: jax.Array
    """log q on the support, [N, K]."""

    tail_log_probs: jax.Array
    """log of the student's probability outside the support, [N]."""


class TargetRows(NamedTuple):
    """The targets at N rows."""

    values: jax.Array
    """Weights for cross entropy; the teacher's log p on the support otherwise. [N, K]."""

    tail_log_probs: jax.Array
    """log of the teacher's probability outside the support, [N]. Unused by cross entropy."""


RowLoss = Callable[[StudentRows, TargetRows], jax.Array]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """How an objective is computed and what it needs."""

    name: str
    """Lower-case wire name without its prefix."""

    row_loss: RowLoss
    """Loss of each row, [N]."""

    needs_distribution: bool
    """True where the targets are a teacher's log-probs, False where they are weights."""


def _product(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight * value, exactly 0 in value and gradient where the weight is 0, even at -inf."""
    return weight * jnp.where(weight == 0.0, 0.0, value)


def _gap(weight: jax.Array, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """weight * (log p - log q), where p = 0 with its weight 0 counts nothing."""
    return weight * (jnp.where(weight == 0.0, 0.0, log_p) - jnp.where(weight == 0.0, 0.0, log_q))


def cross_entropy(student: StudentRows, targets: TargetRows) -> jax.Array:
    """-sum_k w_k log q(x_k), weights of any sign. K = 1 and w = 1 is the hard-target loss."""
    return -_product(targets.values, student.log_probs).sum(-1)


def renormalized(student: StudentRows, targets: TargetRows) -> jax.Array:
    """-sum_S pbar log q. Fixed point q = pbar: over-sharp, no mass outside S."""
    return -_product(jax.nn.softmax(targets.values, axis=-1), student.log_probs).sum(-1)


def truncated(student: StudentRows, targets: TargetRows) -> jax.Array:
    """sum_S p (log p - log q), not clamped: it is negative where the student is above the teacher,
    and clamping there would lose the gradient. Fixed point q = pbar."""
    return _gap(jnp.exp(targets.values), targets.values, student.log_probs).sum(-1)


def support(student: StudentRows, targets: TargetRows) -> jax.Array:
    """KL(pbar || qbar), both renormalised over S. Blind to mass outside S; 0 at K = 1."""
    log_p = jax.nn.log_softmax(targets.values, axis=-1)
    log_q = jax.nn.log_softmax(student.log_probs, axis=-1)
    return _gap(jnp.exp(log_p), log_p, log_q).sum(-1)


def tail_bucket(student: StudentRows, targets: TargetRows) -> jax.Array:
    """sum_S p log(p / q) + p_tail log(p_tail / q_tail): the KL over K + 1 outcomes.
    Fixed point q = p on S and equal tails."""
    tail = _gap(jnp.exp(targets.tail_log_probs), targets.tail_log_probs, student.tail_log_probs)
    return truncated(student, targets) + tail


OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        ObjectiveSpec(name="cross_entropy", row_loss=cross_entropy, needs_distribution=False),
        ObjectiveSpec(name="renormalized", row_loss=renormalized, needs_distribution=True),
        ObjectiveSpec(name="truncated", row_loss=truncated, needs_distribution=True),
        ObjectiveSpec(name="support", row_loss=support, needs_distribution=True),
        ObjectiveSpec(name="tail_bucket", row_loss=tail_bucket, needs_distribution=True),
    )
}
"""Every objective by name."""
