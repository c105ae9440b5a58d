"""What the language-model head of training is given and what it answers, row by row.

Letters: N rows, K support size, V vocabulary.
"""

from typing import NamedTuple

import jax

from distill.ops.objective_rows import RowLoss, TargetRows

MAX_OVERLAP_SUPPORT = 128
"""Largest K for which the head measures how far the two supports overlap. For more, finding the
student's own top K would cost more than the loss."""


class HeadSettings(NamedTuple):
    """What is known when the program is compiled."""

    row_loss: RowLoss
    """The objective."""

    with_tail: bool
    """Whether it reads the probability outside the support."""

    kernel_gradient: bool = True
    """False where the kernel is frozen: saves a third of the products."""


class HeadTargets(NamedTuple):
    """What each of N rows is trained towards."""

    token_ids: jax.Array
    """The support, [N, K] in [0, V). The gradients of the slots of a repeated id add up."""

    rows: TargetRows
    """The objective's targets."""

    scales: jax.Array
    """Factor of each row's loss, [N] float32. A row of scale 0 adds exactly 0."""


class HeadRows(NamedTuple):
    """What the head knows about each of N rows; none of it carries a gradient."""

    losses: jax.Array
    """Of each row, before its scale, [N] float32."""

    log_probs: jax.Array
    """log q on the support, [N, K] float32."""

    tail_log_probs: jax.Array
    """log of the probability outside the support, [N] float32. -inf where the support is the whole
    vocabulary; 0 (unused) without `with_tail`."""

    entropies: jax.Array
    """Entropy of q in nats, [N] float32."""

    top_token_ids: jax.Array
    """The most probable token, [N] int32."""

    support_overlaps: jax.Array
    """Share of the support that is among the student's own K most probable tokens, [N] float32.
    0 (unused) without `with_tail` or beyond MAX_OVERLAP_SUPPORT."""
