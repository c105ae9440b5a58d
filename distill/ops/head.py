"""The language-model head of training: losses of rows and their gradients, never the logits.

The head goes through the rows in chunks. While it has a chunk's logits it computes the losses and,
where a gradient is wanted, the gradient as well (`head_chunk`): neither pass ever holds more than
one chunk [P, V], and no logit is computed twice.

Letters: N rows, P rows of a chunk, K support size, D hidden size, V vocabulary.
"""

from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from distill.kernels.head_kernel import empty_kernel_sum, kernel_columns, summed_kernel_gradient
from distill.ops.head_chunk import HeadGradients, compute_chunk
from distill.ops.head_rows import MAX_OVERLAP_SUPPORT, HeadRows, HeadSettings, HeadTargets
from distill.ops.logits import Head, chunk_row_count
from distill.ops.objective_rows import ObjectiveParameters

__all__ = ["MAX_OVERLAP_SUPPORT", "HeadRows", "HeadSettings", "HeadTargets", "head_loss"]

_UNUSED = ObjectiveParameters(0.0, 0.0, 0.0)  # type: ignore[arg-type]  # traced as scalars

Tree = TypeVar("Tree")


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
    """sum_n scale_n loss(log q on S_n, log q_tail) with q = softmax(logits / temperature).

    The loss and its gradient come out of one pass over the rows. Cut Cross-Entropy avoids the
    logits in the same way (https://arxiv.org/abs/2411.09009), for one target token a row.

    >>> from distill.ops.divergences import cross_entropy
    >>> from distill.ops.objective_rows import TargetRows
    >>> hidden, head = jnp.eye(2), Head(jnp.zeros((4, 2)))  # two rows; the four tokens are alike
    >>> ids, ones = jnp.array([[1], [3]]), jnp.ones((2, 1))
    >>> targets = HeadTargets(ids, TargetRows(ones, jnp.zeros(2), ones), jnp.array([1.0, 2.0]))
    >>> loss, rows = head_loss(hidden, head, targets, HeadSettings(cross_entropy, with_tail=False))
    >>> print(f"{loss:.3f}", rows.losses)  # 3 log 4; log 4 each
    4.159 [1.386 1.386]

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


def _forward(
    settings: HeadSettings,
    chunk_rows: int,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    temperature: jax.Array,
    parameters: ObjectiveParameters,
    row_count: jax.Array,
) -> tuple[tuple[jax.Array, HeadRows], tuple[HeadGradients, jax.Array, Head]]:
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
    # The backward pass needs the dtype of the hidden states, which an array without rows carries,
    # and the dtypes and shapes of the head.
    return (loss, rows), (found, hidden[:0], head)


def _backward(
    settings: HeadSettings,
    chunk_rows: int,  # noqa: ARG001 - the signature of a custom gradient
    residuals: tuple[HeadGradients, jax.Array, Head],
    cotangents: tuple[jax.Array, HeadRows],
) -> tuple[Any, ...]:
    (hidden_gradient, head_gradient), like, head = residuals
    factor = cotangents[0]
    # Nothing uses the gradient of a frozen kernel, so XLA leaves it out.
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


def _visit_chunks(
    settings: HeadSettings,
    chunk_rows: int,
    hidden: jax.Array,
    head: Head,
    targets: HeadTargets,
    temperature: jax.Array,
    parameters: ObjectiveParameters,
    row_count: jax.Array,
    gradients: HeadGradients | None,
) -> tuple[jax.Array, HeadRows, HeadGradients | None]:
    """Visit the chunks that have a row in use.

    `gradients` are zeros to add the gradients of the chunks to; None: compute no gradient.
    """
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
        chunk = compute_chunk(
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
    result: tuple[jax.Array, HeadRows, HeadGradients | None] = lax.fori_loop(
        0, chunk_count, visit, carry
    )
    return result


def _write(start: jax.Array, whole: jax.Array, part: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)
