"""Distillation objectives: pure functions of what the head gives at N rows with support size K.

Letters: S the support, p the teacher, q the student, both normalised over the full vocabulary
after temperature; pbar = p / sum_S p; A advantages; r = q / q_old. The wire names are those of the
`Objective` enum. Adding an objective touches this file and the enum.

Every function is separable by rows, and finite in value and gradient wherever its inputs are what
the student's edge lets through: a slot of weight or advantage 0, or of log p = -inf, is unused and
counts exactly nothing, whatever else it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class StudentRows(NamedTuple):
    """The student at N rows."""

    log_probs: jax.Array
    """log q on the support, [N, K]."""

    tail_log_probs: jax.Array
    """log of the student's probability outside the support, [N]."""


class TargetRows(NamedTuple):
    """The targets at N rows."""

    values: jax.Array
    """Weights, advantages or the teacher's log p, as the objective needs, [N, K]."""

    tail_log_probs: jax.Array
    """log of the teacher's probability outside the support, [N]. Used with log p only."""

    old_log_probs: jax.Array
    """log of the sampling policy's probability of the named tokens, [N, K]. Used with advantages
    only; zeros otherwise."""


class ObjectiveParameters(NamedTuple):
    """Settings of a batch, float32 scalars: arguments of compiled code and not constants of it."""

    beta: jax.Array
    """Of `jsd`, in [0, 1]."""

    clip_low: jax.Array
    """Lower bound on the ratio r, of `ppo` and `cispo`."""

    clip_high: jax.Array
    """Upper bound on the ratio r, of `ppo` and `cispo`."""


RowLoss = Callable[[StudentRows, TargetRows, ObjectiveParameters], jax.Array]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """How an objective is computed and what it needs."""

    name: str
    """Lower-case wire name without its prefix."""

    row_loss: RowLoss
    """Loss of each row, [N]."""

    needs_distribution: bool = False
    """The targets are a teacher's log-probs over the full vocabulary, on any support."""

    needs_teacher_tail: bool = False
    """The loss is infinite where the teacher gives no probability to what the student may do."""

    needs_draw_weights: bool = False
    """The targets are the importance weights of a sampled support."""

    needs_advantages: bool = False
    """The targets are named tokens with advantages and the sampling policy's log-probs."""

    uses_beta: bool = False
    """Reads `ObjectiveParameters.beta`."""

    default_clips: tuple[float, float] | None = None
    """`clip_low` and `clip_high` where a request names none; None: the objective has no clips."""

    @property
    def reads_prompts(self) -> bool:
        """The targets are rows of a scored prompt; otherwise tokens that the caller names."""
        return self.needs_distribution or self.needs_draw_weights


def _product(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight * value, exactly 0 in value and gradient where the weight is 0, even at -inf."""
    return weight * jnp.where(weight == 0.0, 0.0, value)


def _gap(weight: jax.Array, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """weight * (log p - log q), where p = 0 with its weight 0 counts nothing."""
    return weight * (jnp.where(weight == 0.0, 0.0, log_p) - jnp.where(weight == 0.0, 0.0, log_q))


def _both_finite(log_q: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where neither is -inf, and the two with 0 elsewhere."""
    used = jnp.isfinite(log_q) & jnp.isfinite(log_p)
    return used, jnp.where(used, log_q, 0.0), jnp.where(used, log_p, 0.0)


def _conserved_reverse(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """q * (log q - log p) of outcomes whose q add up to 1; log p = -inf counts nothing.

    The gradient in log q is q * (log q - log p + 1). The last term is that of a sum which is always
    1: left out it takes nothing away, and the gradient is exactly 0 where q = p rather than a
    difference of rounded numbers. It stays right where q goes to 0.
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
    """-sum_k w_k log q(x_k), weights of any sign. K = 1 and w = 1 is the hard-target loss.
    Fixed point q ~ w where w >= 0."""
    return -_product(targets.values, student.log_probs).sum(-1)


def renormalized(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """-sum_S pbar log q. Fixed point q = pbar: over-sharp, no mass outside S."""
    return -_product(jax.nn.softmax(targets.values, axis=-1), student.log_probs).sum(-1)


def truncated(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """sum_S p (log p - log q), not clamped: it is negative where the student is above the teacher,
    and clamping there would lose the gradient. Fixed point q = pbar."""
    return _gap(jnp.exp(targets.values), targets.values, student.log_probs).sum(-1)


def support(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """KL(pbar || qbar), both renormalised over S. Blind to mass outside S; 0 at K = 1."""
    log_q, log_p = _renormalized(student, targets)
    return _gap(jnp.exp(log_p), log_p, log_q).sum(-1)


def tail_bucket(
    student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters
) -> jax.Array:
    """sum_S p log(p / q) + p_tail log(p_tail / q_tail): the KL over K + 1 outcomes.
    Fixed point q = p on S and equal tails."""
    tail = _gap(jnp.exp(targets.tail_log_probs), targets.tail_log_probs, student.tail_log_probs)
    return truncated(student, targets, parameters) + tail


def reverse_support(student: StudentRows, targets: TargetRows, _: ObjectiveParameters) -> jax.Array:
    """KL(qbar || pbar), both renormalised over S: mode-seeking. Fixed point any q with qbar = pbar:
    blind to mass outside S, 0 at K = 1. `support` with its roles swapped (MiniLLM,
    https://arxiv.org/abs/2306.08543, on a named support)."""
    log_q, log_p = _renormalized(student, targets)
    return _conserved_reverse(log_q, log_p).sum(-1)


def reverse_truncated(
    student: StudentRows, targets: TargetRows, _: ObjectiveParameters
) -> jax.Array:
    """sum_S q (log q - log p), not clamped. Fixed point q = p / e on S (q = p where S is the whole
    vocabulary): what q log(q / p) gains below p lets mass leak out of S, so prefer
    `reverse_tail_bucket`. `truncated` with its roles swapped, as on-policy recipes compute it on
    the student's top K (https://arxiv.org/abs/2306.13649)."""
    used, log_q, log_p = _both_finite(student.log_probs, targets.values)
    return (jnp.where(used, jnp.exp(log_q), 0.0) * (log_q - log_p)).sum(-1)


def reverse_tail_bucket(
    student: StudentRows, targets: TargetRows, _: ObjectiveParameters
) -> jax.Array:
    """sum_S q log(q / p) + q_tail log(q_tail / p_tail): the reverse KL over K + 1 outcomes.
    Fixed point q = p on S and equal tails. On S named by the student it is the objective of
    on-policy distillation (https://arxiv.org/abs/2306.13649) without the noise of a sampled KL."""
    log_q = _outcomes(student.log_probs, student.tail_log_probs)
    log_p = _outcomes(targets.values, targets.tail_log_probs)
    return _conserved_reverse(log_q, log_p).sum(-1)


def _log_mixture(larger: jax.Array, smaller: jax.Array, gap: jax.Array) -> jax.Array:
    """log(larger + smaller * exp(gap)) of two shares that add up to 1, for gap <= 0.

    From the ratio alone, so that it keeps its digits where that is near 1; and as a sum of logs
    where it is far from 1, for there one of the shares may be all that is left of it.
    """
    near = jnp.log1p(smaller * jnp.expm1(jnp.maximum(gap, -0.5)))
    far = jnp.logaddexp(jnp.log(larger), jnp.log(smaller) + gap)
    return jnp.where(gap > -0.5, near, far)


def jsd(student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters) -> jax.Array:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = (1 - beta) q + beta p, over K + 1 outcomes; the
    generalised Jensen-Shannon divergence of GKD (https://arxiv.org/abs/2306.13649, as in TRL).
    Fixed point q = p on S and equal tails.

    As beta goes to 0 the formula itself vanishes and divided by beta tends to KL(p || q); as beta
    goes to 1, divided by 1 - beta, to KL(q || p). So 0 is `tail_bucket` and 1 is
    `reverse_tail_bucket`, as in TRL: the value jumps there.

    The gradient in log q is (1 - beta) q log(q / m): what m contributes cancels exactly.
    """
    beta = parameters.beta
    log_q = _outcomes(student.log_probs, student.tail_log_probs)
    log_p = _outcomes(targets.values, targets.tail_log_probs)
    used = jnp.isfinite(log_p)
    q, p = jnp.where(used, jnp.exp(log_q), 0.0), jnp.exp(log_p)
    gap = lax.stop_gradient(jnp.where(used, log_p, 0.0) - jnp.where(used, log_q, 0.0))
    # At the ends nothing of this is used, but an infinite value would still spoil the gradient.
    share = jnp.where((beta == 0.0) | (beta == 1.0), 0.5, beta)
    below = _log_mixture(1.0 - share, share, jnp.minimum(gap, 0.0))  # log(m / q) where p <= q
    above = _log_mixture(share, 1.0 - share, -jnp.maximum(gap, 0.0))  # log(m / p) where p > q
    mixture_over_q = jnp.where(gap <= 0.0, below, gap + above)
    mixture_over_p = jnp.where(gap <= 0.0, below - gap, above)
    of_q = (1.0 - beta) * _product(q, mixture_over_q).sum(-1)
    of_p = beta * _product(p, mixture_over_p).sum(-1)
    return jnp.where(
        beta == 0.0,
        tail_bucket(student, targets, parameters),
        jnp.where(beta == 1.0, reverse_tail_bucket(student, targets, parameters), -of_q - of_p),
    )


def sampled(
    student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters
) -> jax.Array:
    """-sum_j w_j log q(x_j) with the importance weights that came with the support, for x_j drawn
    from p and for an exact head with a sampled tail alike. Its mean over the draws is the full
    cross entropy -sum_V p log q, and so is its gradient's: fixed point q = p on average. RS-KD
    (https://arxiv.org/abs/2503.16870)."""
    return cross_entropy(student, targets, parameters)


def _ratio(student: StudentRows, targets: TargetRows) -> jax.Array:
    """log r; 0 without a gradient where the advantage is 0."""
    log_ratio = student.log_probs - targets.old_log_probs
    return jnp.where(targets.values == 0.0, 0.0, log_ratio)


def importance_sampling(
    student: StudentRows, targets: TargetRows, _: ObjectiveParameters
) -> jax.Array:
    """-sum_k r_k A_k, r = q / q_old: the policy gradient of an off-policy sample, unbiased and
    unbounded. At q = q_old its gradient is that of -sum_k A_k log q. No fixed point of its own:
    stationary where the advantages are 0 on average, so A must be computed anew as q moves."""
    return -(jnp.exp(_ratio(student, targets)) * targets.values).sum(-1)


def ppo(student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters) -> jax.Array:
    """-sum_k min(r_k A_k, clip(r_k, low, high) A_k) (https://arxiv.org/abs/1707.06347), clipped at
    0.8 and 1.2 by default. No gradient where A > 0 and r > high, or A < 0 and r < low; at the
    bounds themselves the gradient is `importance_sampling`'s. Its fixed points are that one's, and
    every q beyond the bounds."""
    advantages = targets.values
    log_ratio = _ratio(student, targets)
    ratio = jnp.exp(log_ratio)
    is_clipped = jnp.where(
        advantages > 0.0, ratio > parameters.clip_high, ratio < parameters.clip_low
    )
    bound = jnp.where(advantages > 0.0, parameters.clip_high, parameters.clip_low)
    # The exponential again, of 0 where it is clipped: an infinite ratio times a gradient of 0
    # would be NaN.
    kept = jnp.exp(jnp.where(is_clipped, 0.0, log_ratio))
    return -_product(advantages, jnp.where(is_clipped, bound, kept)).sum(-1)


def cispo(student: StudentRows, targets: TargetRows, parameters: ObjectiveParameters) -> jax.Array:
    """-sum_k sg(clip(r_k, low, high)) A_k log q_k (MiniMax-M1, https://arxiv.org/abs/2506.13585),
    clipped at 0 and 4 by default. The clip bounds the weight of a token and never silences it. At
    q = q_old its gradient is `importance_sampling`'s."""
    ratio = jnp.exp(_ratio(student, targets))
    weights = jnp.clip(ratio, parameters.clip_low, parameters.clip_high)
    return -_product(lax.stop_gradient(weights) * targets.values, student.log_probs).sum(-1)


OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        ObjectiveSpec(name="cross_entropy", row_loss=cross_entropy),
        ObjectiveSpec(name="renormalized", row_loss=renormalized, needs_distribution=True),
        ObjectiveSpec(name="truncated", row_loss=truncated, needs_distribution=True),
        ObjectiveSpec(name="support", row_loss=support, needs_distribution=True),
        ObjectiveSpec(name="tail_bucket", row_loss=tail_bucket, needs_distribution=True),
        ObjectiveSpec(name="reverse_support", row_loss=reverse_support, needs_distribution=True),
        ObjectiveSpec(
            name="reverse_truncated", row_loss=reverse_truncated, needs_distribution=True
        ),
        ObjectiveSpec(
            name="reverse_tail_bucket",
            row_loss=reverse_tail_bucket,
            needs_distribution=True,
            needs_teacher_tail=True,
        ),
        ObjectiveSpec(
            name="jsd",
            row_loss=jsd,
            needs_distribution=True,
            needs_teacher_tail=True,
            uses_beta=True,
        ),
        ObjectiveSpec(name="sampled", row_loss=sampled, needs_draw_weights=True),
        ObjectiveSpec(
            name="importance_sampling", row_loss=importance_sampling, needs_advantages=True
        ),
        ObjectiveSpec(name="ppo", row_loss=ppo, needs_advantages=True, default_clips=(0.8, 1.2)),
        ObjectiveSpec(
            name="cispo", row_loss=cispo, needs_advantages=True, default_clips=(0.0, 4.0)
        ),
    )
}
"""Every objective by name."""
