"""Chunks of a teacher's rows, relayed by the client or pulled: each checked, and those of a prompt
joined."""

from collections.abc import Iterable, Sequence

import numpy as np

from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.ops.objectives import ObjectiveSpec
from distill.rows import Rows, TilingError, concatenate
from distill.rpc.checks import check_distinct, check_token_ids
from distill.v1 import scoring_pb2
from distill.wire import rows_from_message
from student_service.edge.examples import MAX_LOG_PROB

MASS_TOLERANCE = 1e-2
"""The probabilities of support and tail must add up to 1 within this. It is larger than rounding
and smaller than the error of input that was renormalised over the support."""


def assemble_prompts(
    chunks: Iterable[scoring_pb2.TopKChunk],
    limits: RequestLimits,
    vocab_size: int,
    objective: ObjectiveSpec,
) -> dict[int, Rows]:
    """Join the chunks of each prompt, checking every value and that the objective can use it.

    Raises:
        InvalidFieldError: a bad chunk, different K, or chunks that overlap or leave a gap.
    """
    by_prompt: dict[int, list[Rows]] = {}
    support_size: int | None = None
    for index, chunk in enumerate(chunks):
        field = f"chunks[{index}]"
        rows = rows_from_message(chunk, field)
        _check_rows(rows, field, limits, vocab_size, objective)
        if support_size is None:
            support_size = rows.support_size
        if rows.support_size != support_size:
            raise InvalidFieldError(
                f"{field}.token_ids.shape",
                f"K must be {support_size} as in the chunks before it, got {rows.support_size}",
            )
        by_prompt.setdefault(rows.prompt_index, []).append(rows)
    return {prompt: _join(parts) for prompt, parts in by_prompt.items()}


def _join(parts: Sequence[Rows]) -> Rows:
    try:
        return concatenate(sorted(parts, key=lambda part: part.first_row))
    except TilingError as error:
        raise InvalidFieldError("chunks.first_row", str(error)) from None


def _check_rows(
    rows: Rows, field: str, limits: RequestLimits, vocab_size: int, objective: ObjectiveSpec
) -> None:
    for name, least in (("prompt_index", 0), ("first_row", 1)):
        if getattr(rows, name) < least:
            raise InvalidFieldError(
                f"{field}.{name}", f"must be at least {least}, got {getattr(rows, name)}"
            )
    largest = min(limits.max_top_k, vocab_size)
    if len(rows) < 1 or not 1 <= rows.support_size <= largest:
        raise InvalidFieldError(
            f"{field}.token_ids.shape",
            f"must be [P, K] with P at least 1 and K in [1, {largest}], "
            f"got {list(rows.token_ids.shape)}",
        )
    check_token_ids(f"{field}.token_ids", rows.token_ids, vocab_size)
    _check_draw_weights(rows, field, objective)
    weights = rows.draw_weights
    used = np.ones(rows.token_ids.shape, bool) if weights is None else weights > 0
    # An unused slot may repeat the token of another slot, so it gets a number of its own here.
    numbers = np.where(used, rows.token_ids, vocab_size + np.arange(rows.support_size))
    check_distinct(f"{field}.token_ids", numbers)
    log_probs, tails = rows.log_probs, rows.tail_log_probs
    bad = ~(np.isfinite(log_probs) & (log_probs <= MAX_LOG_PROB))
    if bad.any():
        raise InvalidFieldError(
            f"{field}.log_probs",
            f"must be finite and at most {MAX_LOG_PROB}, got {float(log_probs[bad][0])}",
        )
    # -inf is right: the tail of a support that holds the whole vocabulary.
    bad = np.isnan(tails) | (tails > MAX_LOG_PROB)
    if bad.any():
        raise InvalidFieldError(
            f"{field}.tail_log_probs", f"must be at most {MAX_LOG_PROB}, got {float(tails[bad][0])}"
        )
    bad = ~np.isneginf(tails)
    if weights is None and rows.support_size == vocab_size and bad.any():
        raise InvalidFieldError(
            f"{field}.tail_log_probs",
            f"must be -inf with K = {vocab_size}, the vocabulary: nothing lies outside the "
            f"support, got {float(tails[bad][0])}",
        )
    if objective.needs_teacher_tail and rows.support_size < vocab_size and np.isneginf(tails).any():
        raise InvalidFieldError(
            f"{field}.tail_log_probs",
            f"must be above -inf for the objective {objective.name} and K below {vocab_size}: "
            "the student's probability outside the support would cost infinitely much",
        )
    mass = np.where(used, np.exp(log_probs), 0.0).sum(-1) + np.exp(tails)
    bad = np.abs(mass - 1.0) > MASS_TOLERANCE
    if bad.any():
        raise InvalidFieldError(
            f"{field}.log_probs",
            "support and tail must be normalised over the full vocabulary: their probabilities "
            f"must add up to 1 within {MASS_TOLERANCE}, got {float(mass[bad][0]):.6g}",
        )
    bad = ~np.isfinite(rows.entropies)
    if bad.any():
        raise InvalidFieldError(
            f"{field}.entropies", f"must be finite, got {float(rows.entropies[bad][0])}"
        )


def _check_draw_weights(rows: Rows, field: str, objective: ObjectiveSpec) -> None:
    """Draw weights must be there where the objective needs them, and only there."""
    field = f"{field}.draw_weights"
    weights = rows.draw_weights
    if not objective.needs_draw_weights:
        if weights is not None:
            raise InvalidFieldError(
                field,
                f"a sampled support is no distribution, which the objective {objective.name} needs",
            )
        return
    if weights is None:
        raise InvalidFieldError(
            field, f"must be given for the objective {objective.name}: score a sampled support"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise InvalidFieldError(
            field, f"must be finite and at least 0, got {float(weights[bad][0])}"
        )
    total = weights.sum(-1, dtype=np.float64)
    off = np.abs(total - 1.0) > MASS_TOLERANCE
    if off.any():
        raise InvalidFieldError(
            field,
            f"those of a row must add up to 1 within {MASS_TOLERANCE}, "
            f"got {float(total[off][0]):.6g}",
        )
