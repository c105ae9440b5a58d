"""One chunk of the head's rows: their losses, and the gradient that is known in closed form.

Everything an objective needs of the student's logits is log q on the support S and the probability
outside it. With g_k = dL/d log q_k, g_t = dL/d log q_tail and z the logits after temperature:

    dL/dz = sum_k g_k (e_k - q) + g_t (q_tail_only - q)

where q_tail_only is the softmax over the tokens outside S (docs/objectives.md). So the gradient
is made of the logits that the loss was made of, and no logit is computed twice.

Letters: P rows of the chunk, K support size, D hidden size, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill.ops.head_rows import MAX_OVERLAP_SUPPORT, HeadRows, HeadSettings, HeadTargets
from distill.ops.logits import Head, head_gradients, head_logits
from distill.ops.objective_rows import ObjectiveParameters, StudentRows
from distill.ops.topk import SupportSummary, summarize_support
from distill.ops.vocabulary import exact_top_k, first_occurrences, sum_exponentials

HeadGradients = tuple[jax.Array, Head]
"""Of the hidden states [P, D], and of the weights as `head_gradients` gives them."""


class Chunk(NamedTuple):
    """What one chunk adds."""

    loss: jax.Array
    """Scalar: the sum of its rows' scaled losses."""

    rows: HeadRows
    """Of its P rows."""

    gradients: HeadGradients | None
    """None where they were not asked for."""


class _Distribution(NamedTuple):
    """The student at P rows, in two parts: the support, and everything outside it."""

    summary: SupportSummary
    peak: jax.Array  # [P], the largest logit of each row, after temperature
    is_counted: jax.Array  # [P, K]: one slot of every token of the support; none without a tail
    outside: jax.Array  # [P, V], logits before temperature; -inf at the support
    outside_peak: jax.Array  # [P], the largest of them, after temperature
    outside_total: jax.Array  # [P], sum of their exponentials relative to `outside_peak`


def compute_chunk(
    settings: HeadSettings,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    scale: jax.Array,
    parameters: ObjectiveParameters,
    *,
    with_gradients: bool,
) -> Chunk:
    """The losses of P rows, and their gradients if asked for: see `head_loss` and the module.

    >>> from distill.ops.divergences import cross_entropy
    >>> from distill.ops.objective_rows import TargetRows
    >>> head, one = Head(jnp.array([[0.0], [1.0]])), jnp.ones((1, 1))  # the logits are 0 and h
    >>> targets = HeadTargets(jnp.array([[1]]), TargetRows(one, one[0], one), one[0])
    >>> settings = HeadSettings(cross_entropy, with_tail=False)
    >>> given = settings, 0.0 * one, head, targets, jnp.float32(1.0), None  # h = 0
    >>> chunk = compute_chunk(*given, with_gradients=True)
    >>> print(chunk.loss[None], chunk.gradients[0])  # log 2; q - 1
    [0.693] [[-0.5]]

    Args:
        settings: the objective, and what is trained.
        hidden: [P, D].
        head: the weights.
        targets: of the P rows.
        scale: the inverse temperature, a scalar.
        parameters: of the objective.
        with_gradients: whether to compute them.
    """
    ids = targets.token_ids
    chunk_rows, support_size = ids.shape
    logits = head_logits(hidden, head)  # [P, V], before temperature
    measures_overlap = settings.with_tail and support_size <= MAX_OVERLAP_SUPPORT
    own_top = exact_top_k(logits, min(support_size, head.token_count) if measures_overlap else 1)
    named = jnp.take_along_axis(logits, ids, axis=-1)
    overlap = (
        (named >= own_top[0][:, -1:]).mean(-1, dtype=jnp.float32)
        if measures_overlap
        else jnp.zeros(chunk_rows)
    )
    student = _distribution(settings, logits, named, own_top[0][:, :1], ids, scale)
    student_rows = StudentRows(
        student.summary.log_probs,
        student.summary.tail_log_probs if settings.with_tail else jnp.zeros(chunk_rows),
    )
    losses, pull_back = jax.vjp(
        lambda rows: settings.row_loss(rows, targets.rows, parameters), student_rows
    )
    has_loss = targets.scales != 0.0
    loss = jnp.where(has_loss, losses * targets.scales, 0.0).sum()
    rows = HeadRows(
        losses=losses,
        log_probs=student_rows.log_probs,
        tail_log_probs=student_rows.tail_log_probs,
        entropies=student.summary.entropies,
        top_token_ids=own_top[1][:, 0].astype(jnp.int32),
        support_overlaps=overlap,
    )
    if not with_gradients:
        return Chunk(loss, rows, None)
    (loss_gradient,) = pull_back(targets.scales)
    loss_gradient = StudentRows(*(_zero_unless(has_loss, array) for array in loss_gradient))
    logit_gradient = _logit_gradient(settings, student, loss_gradient, ids, scale)
    return Chunk(
        loss,
        rows,
        head_gradients(hidden, head, logit_gradient, kernel_gradient=settings.kernel_gradient),
    )


def _distribution(
    settings: HeadSettings,
    logits: jax.Array,
    named: jax.Array,
    peak: jax.Array,
    ids: jax.Array,
    scale: jax.Array,
) -> _Distribution:
    """Normalise the support [P, K], whose logits are `named`, together with what is outside it.

    All logits are before temperature; `peak` [P, 1] is the largest of each row.
    """
    each = jnp.arange(ids.shape[0])[:, None]
    # Without a tail every token counts as outside: one sum gives the normaliser.
    outside = logits.at[each, ids].set(-jnp.inf) if settings.with_tail else logits
    is_counted = first_occurrences(ids) & settings.with_tail
    # The sum is relative to its own maximum: a tail of any smallness keeps its digits and its
    # gradient.
    outside_peak = outside.max(-1)
    # Where nothing is outside, the row's own maximum: exponentials relative to it cannot overflow.
    outside_peak = jnp.where(jnp.isfinite(outside_peak), outside_peak, peak[:, 0]) * scale
    scales = jnp.broadcast_to(scale, (ids.shape[0],))
    sums = sum_exponentials(outside, outside_peak, scales, lambda block, _: block > -jnp.inf)
    scaled_peak = peak[:, 0] * scale
    summary = summarize_support(
        (named - peak) * scale, is_counted, outside_peak - scaled_peak, sums
    )
    return _Distribution(summary, scaled_peak, is_counted, outside, outside_peak, sums[0])


def _logit_gradient(
    settings: HeadSettings,
    student: _Distribution,
    loss_gradient: StudentRows,
    ids: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    """The formula of the module: [P, V], in the logits before temperature.

    Args:
        settings: the objective.
        student: the distribution.
        loss_gradient: g_k [P, K] and g_t [P].
        ids: [P, K].
        scale: the inverse temperature, a scalar.
    """
    each = jnp.arange(ids.shape[0])[:, None]
    g_total = loss_gradient.log_probs.sum(-1) + (
        loss_gradient.tail_log_probs if settings.with_tail else 0.0
    )
    # Of a token outside: -g_total q + g_t q_tail_only, both multiples of exp(z - outside_peak).
    outside_share = jnp.exp(student.outside_peak - student.peak - student.summary.log_total)
    factor = -g_total * outside_share
    if settings.with_tail:
        total = student.outside_total
        # An empty tail has no token and no gradient.
        factor += jnp.where(
            total > 0.0, loss_gradient.tail_log_probs / jnp.maximum(total, 1.0), 0.0
        )
    gradient = factor[:, None] * jnp.exp(student.outside * scale - student.outside_peak[:, None])
    at_support = loss_gradient.log_probs
    if settings.with_tail:
        at_support -= jnp.where(
            student.is_counted, g_total[:, None] * jnp.exp(student.summary.log_probs), 0.0
        )
    return gradient.at[each, ids].add(at_support) * scale


def _zero_unless(has_loss: jax.Array, array: jax.Array) -> jax.Array:
    """0 in rows without a loss, also where an objective made NaN of their unused slots."""
    return jnp.where(has_loss.reshape(-1, *(1 for _ in array.shape[1:])), array, 0.0)
