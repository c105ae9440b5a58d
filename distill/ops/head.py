"""The language-model head of training: losses of rows and their gradients, never the logits.

Everything an objective needs of the student's logits is log q on the support S and the probability
outside it. The head computes both over chunks of rows and, while it has a chunk's logits, the
gradient as well: neither pass holds more than one chunk [P, V], and no logit is computed twice.

With g_k = dL/d log q_k, g_t = dL/d log q_tail and z the logits after temperature:

    dL/dz = sum_k g_k (e_k - q) + g_t (q_tail_only - q)

where q_tail_only is the softmax over the tokens outside S.

Letters: N rows, P rows of a chunk, K support size, D hidden size, V vocabulary.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from distill.kernels.head_kernel import empty_kernel_sum, kernel_columns, summed_kernel_gradient
from distill.ops.logits import Head, chunk_row_count, head_gradients, head_logits
from distill.ops.objectives import ObjectiveParameters, RowLoss, StudentRows, TargetRows
from distill.ops.topk import summarize_support
from distill.ops.vocabulary import exact_top_k, first_occurrences, sum_exponentials

MAX_OVERLAP_SUPPORT = 128
"""Largest K for which the overlap of the two supports is measured: beyond it the student's own
top K would cost more than the loss."""

_UNUSED = ObjectiveParameters(0.0, 0.0, 0.0)  # type: ignore[arg-type]  # traced as scalars

Tree = TypeVar("Tree")


class HeadRows(NamedTuple):
    """What the head knows about each of N rows; none of it carries a gradient."""

    losses: jax.Array
    """Of each row, before its scale, [N] float32."""

    log_probs: jax.Array
    """log q at the named tokens, [N, K] float32."""

    tail_log_probs: jax.Array
    """log of the probability outside the named tokens, [N] float32. -inf where they are the whole
    vocabulary; 0 (unused) without `with_tail`."""

    entropies: jax.Array
    """Entropy of q in nats, [N] float32."""

    top_token_ids: jax.Array
    """The most probable token, [N] int32."""

    support_overlaps: jax.Array
    """Share of the named tokens that are among the student's own K most probable, [N] float32.
    0 (unused) without `with_tail` or beyond MAX_OVERLAP_SUPPORT."""


class HeadTargets(NamedTuple):
    """What each of N rows is trained towards."""

    token_ids: jax.Array
    """[N, K] in [0, V). What falls on a repeated id adds up."""

    rows: TargetRows
    """The objective's targets."""

    scales: jax.Array
    """Factor of each row's loss, [N] float32. A row of scale 0 adds exactly 0."""


class HeadSettings(NamedTuple):
    """What is known when the program is compiled."""

    row_loss: RowLoss
    """The objective."""

    with_tail: bool
    """Whether it reads the probability outside the support."""

    kernel_gradient: bool = True
    """False where the kernel is frozen: saves a third of the products."""


def head_loss(
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    settings: HeadSettings,
    *,
    temperature: jax.Array | float = 1.0,
    parameters: ObjectiveParameters | None = None,
    row_count: jax.Array | int | None = None,
) -> tuple[jax.Array, HeadRows]:
    """The sum over rows of scale times loss, and what is known of each row.

    Args:
        hidden: [N, D] final hidden states.
        head: the weights.
        targets: of every row.
        settings: the objective, and what is trained.
        temperature: divides the logits; greater than 0.
        parameters: of the objective.
        row_count: rows in use, from the first on; the others cost nothing. None: all.

    Returns:
        A float32 scalar, differentiable in `hidden` and `head`, and the rows' values.
    """
    total_rows = hidden.shape[0]
    chunk_rows = chunk_row_count(total_rows, head.kernel.shape[0])
    padding = -total_rows % chunk_rows
    if padding:
        hidden, targets = _pad_rows((hidden, targets), padding)
    loss, rows = _head_loss(
        settings,
        chunk_rows,
        hidden,
        head,
        targets,
        jnp.float32(temperature),
        _UNUSED if parameters is None else parameters,
        jnp.int32(total_rows if row_count is None else row_count),
    )
    return loss, jax.tree.map(lambda array: array[:total_rows], rows)


def _pad_rows(tree: Tree, count: int) -> Tree:
    padded: Tree = jax.tree.map(
        lambda array: jnp.pad(array, ((0, count), *((0, 0) for _ in array.shape[1:]))), tree
    )
    return padded


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_loss(
    settings: HeadSettings,
    chunk_rows: int,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    temperature: jax.Array,
    parameters: ObjectiveParameters,
    row_count: jax.Array,
) -> tuple[jax.Array, HeadRows]:
    loss, rows, _ = _visit_chunks(
        settings, chunk_rows, hidden, head, targets, temperature, parameters, row_count, None
    )
    return loss, rows


_Gradients = tuple[jax.Array, Head]


def _forward(
    settings: HeadSettings,
    chunk_rows: int,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    temperature: jax.Array,
    parameters: ObjectiveParameters,
    row_count: jax.Array,
) -> tuple[tuple[jax.Array, HeadRows], tuple[_Gradients, jax.Array, Head]]:
    frozen = replace(head, kernel=jnp.float32(0.0), columns=None)
    start: Head = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), frozen)
    if settings.kernel_gradient:
        start = replace(start, kernel=empty_kernel_sum(head.kernel))
    # Rows that no chunk visits keep a gradient of 0.
    gradients = (jnp.zeros(hidden.shape, hidden.dtype), start)
    loss, rows, found = _visit_chunks(
        settings, chunk_rows, hidden, head, targets, temperature, parameters, row_count, gradients
    )
    assert found is not None
    # Empty arrays carry the dtypes, and the shape of a kernel without a gradient.
    return (loss, rows), (found, hidden[:0], head)


def _backward(
    settings: HeadSettings,
    chunk_rows: int,  # noqa: ARG001 - the signature of a custom gradient
    residuals: tuple[_Gradients, jax.Array, Head],
    cotangents: tuple[jax.Array, HeadRows],
) -> tuple[Any, ...]:
    (hidden_gradient, head_gradient), like, head = residuals
    factor = cotangents[0]
    # That of a frozen kernel is never used, and compiled away.
    kernel = (
        summed_kernel_gradient(head_gradient.kernel)
        if settings.kernel_gradient
        else jnp.zeros_like(head.kernel)
    )
    head_gradient = replace(head_gradient, kernel=kernel)
    of_head = jax.tree.map(
        lambda gradient, leaf: (gradient * factor).astype(leaf.dtype),
        head_gradient,
        replace(head, columns=None),
    )
    return (hidden_gradient * factor).astype(like.dtype), of_head, None, None, None, None


_head_loss.defvjp(_forward, _backward)


class _Chunk(NamedTuple):
    """What one chunk adds."""

    loss: jax.Array
    rows: HeadRows
    gradients: _Gradients | None


def _visit_chunks(
    settings: HeadSettings,
    chunk_rows: int,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    temperature: jax.Array,
    parameters: ObjectiveParameters,
    row_count: jax.Array,
    gradients: _Gradients | None,
) -> tuple[jax.Array, HeadRows, _Gradients | None]:
    """Visit the chunks that have a row in use; with `gradients` as zeros, add those up as well."""
    total_rows, support_size = targets.token_ids.shape
    if head.columns is None:
        head = replace(head, columns=kernel_columns(head.kernel))
    empty = jnp.zeros(total_rows)
    rows = HeadRows(
        losses=empty,
        log_probs=jnp.zeros((total_rows, support_size)),
        tail_log_probs=empty,
        entropies=empty,
        top_token_ids=jnp.zeros(total_rows, jnp.int32),
        support_overlaps=empty,
    )

    def visit(index: jax.Array, carry: Any) -> Any:
        loss, rows, gradients = carry
        start = index * chunk_rows
        chunk_hidden, chunk_targets = jax.tree.map(
            lambda array: lax.dynamic_slice_in_dim(array, start, chunk_rows), (hidden, targets)
        )
        chunk = _compute_chunk(
            settings,
            chunk_hidden,
            head,
            chunk_targets,
            1.0 / temperature,
            parameters,
            with_gradients=gradients is not None,
        )
        rows = jax.tree.map(partial(_write, start), rows, chunk.rows)
        if gradients is not None:
            assert chunk.gradients is not None
            gradients = (
                _write(start, gradients[0], chunk.gradients[0].astype(hidden.dtype)),
                jax.tree.map(jnp.add, gradients[1], chunk.gradients[1]),
            )
        return loss + chunk.loss, rows, gradients

    chunk_count = (row_count + chunk_rows - 1) // chunk_rows
    carry = (jnp.float32(0.0), rows, gradients)
    result: tuple[jax.Array, HeadRows, _Gradients | None] = lax.fori_loop(
        0, chunk_count, visit, carry
    )
    return result


def _write(start: jax.Array, whole: jax.Array, part: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)


def _compute_chunk(
    settings: HeadSettings,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    scale: jax.Array,
    parameters: ObjectiveParameters,
    *,
    with_gradients: bool,
) -> _Chunk:
    """One chunk of P rows; `scale` is the inverse temperature."""
    ids = targets.token_ids
    chunk_rows, support_size = ids.shape
    each = jnp.arange(chunk_rows)[:, None]
    logits = head_logits(hidden, head)  # [P, V], before temperature
    measures_overlap = settings.with_tail and support_size <= MAX_OVERLAP_SUPPORT
    own_top = exact_top_k(logits, min(support_size, head.token_count) if measures_overlap else 1)
    peak = own_top[0][:, :1]
    named = jnp.take_along_axis(logits, ids, axis=-1)
    overlap = (
        (named >= own_top[0][:, -1:]).mean(-1, dtype=jnp.float32)
        if measures_overlap
        else jnp.zeros(chunk_rows)
    )
    # Without a tail everything counts as outside: one sum gives the normaliser.
    outside = logits.at[each, ids].set(-jnp.inf) if settings.with_tail else logits
    is_counted = first_occurrences(ids) & settings.with_tail
    # Relative to its own maximum: a tail of any smallness keeps its digits and its gradient.
    outside_peak = outside.max(-1)
    # Of an empty outside the row's own: what is relative to both must not overflow.
    outside_peak = jnp.where(jnp.isfinite(outside_peak), outside_peak, peak[:, 0]) * scale
    scales = jnp.broadcast_to(scale, (chunk_rows,))
    sums = sum_exponentials(outside, outside_peak, scales, lambda block, _: block > -jnp.inf)
    summary = summarize_support(
        (named - peak) * scale,
        is_counted,
        outside_peak - peak[:, 0] * scale,
        sums,
    )
    student = StudentRows(
        summary.log_probs,
        summary.tail_log_probs if settings.with_tail else jnp.zeros(chunk_rows),
    )
    losses, pull_back = jax.vjp(
        lambda rows: settings.row_loss(rows, targets.rows, parameters), student
    )
    counted = targets.scales != 0.0
    loss = jnp.where(counted, losses * targets.scales, 0.0).sum()
    rows = HeadRows(
        losses=losses,
        log_probs=student.log_probs,
        tail_log_probs=student.tail_log_probs,
        entropies=summary.entropies,
        top_token_ids=own_top[1][:, 0].astype(jnp.int32),
        support_overlaps=overlap,
    )
    if not with_gradients:
        return _Chunk(loss, rows, None)
    (g,) = pull_back(targets.scales)
    g = StudentRows(*(_zero_unless(counted, array) for array in g))
    g_total = g.log_probs.sum(-1) + (g.tail_log_probs if settings.with_tail else 0.0)
    # Of the tokens outside: -g_total q + g_t q_tail_only, both multiples of exp(z - outside_peak).
    outside_share = jnp.exp(outside_peak - peak[:, 0] * scale - summary.log_total)
    factor = -g_total * outside_share
    if settings.with_tail:
        # An empty tail has no token and no gradient.
        factor += jnp.where(sums[0] > 0.0, g.tail_log_probs / jnp.maximum(sums[0], 1.0), 0.0)
    logit_gradient = factor[:, None] * jnp.exp(outside * scale - outside_peak[:, None])
    at_support = g.log_probs
    if settings.with_tail:
        at_support -= jnp.where(is_counted, g_total[:, None] * jnp.exp(student.log_probs), 0.0)
    logit_gradient = logit_gradient.at[each, ids].add(at_support) * scale
    return _Chunk(
        loss,
        rows,
        head_gradients(hidden, head, logit_gradient, kernel_gradient=settings.kernel_gradient),
    )


def _zero_unless(counted: jax.Array, array: jax.Array) -> jax.Array:
    """0 in the rows that do not count, whatever an objective made of their unused slots."""
    return jnp.where(counted.reshape(-1, *(1 for _ in array.shape[1:])), array, 0.0)
