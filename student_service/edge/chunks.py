"""Chunks of a teacher's rows, relayed by the client or pulled: each checked, and those of a prompt
joined."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from distill.arrays import BoolArray, FloatArray
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

MIN_ENTROPY = -1e-3
"""Smallest entropy that is accepted: one slightly below 0 is rounding."""


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
        parts = by_prompt.setdefault(rows.prompt_index, [])
        if parts:
            _check_same_arrays(rows, parts[0], field)
        parts.append(rows)
    return {prompt: _join(parts) for prompt, parts in by_prompt.items()}


def _check_same_arrays(rows: Rows, before: Rows, field: str) -> None:
    """Raise InvalidFieldError unless two chunks of one prompt have the same optional fields."""
    different = rows.arrays().keys() ^ before.arrays().keys()
    if different:
        name = min(different)
        presence = "is here and was not" if name in rows.arrays() else "is absent here and was"
        raise InvalidFieldError(
            f"{field}.{name}",
            f"all chunks of prompt {rows.prompt_index} must have it, or none: it {presence} in "
            "those before",
        )


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
    for name in ("log_probs", "prompt_log_probs"):
        _check_values(
            f"{field}.{name}",
            getattr(rows, name),
            lambda values: np.isfinite(values) & (values <= MAX_LOG_PROB),
            f"must be finite and at most {MAX_LOG_PROB}",
        )
    _check_tail(rows, f"{field}.tail_log_probs", vocab_size, objective)
    _check_values(
        f"{field}.entropies",
        rows.entropies,
        lambda values: np.isfinite(values) & (values >= MIN_ENTROPY),
        "must be finite and at least 0",
    )
    mass = np.where(used, np.exp(rows.log_probs), 0.0).sum(-1)
    if rows.tail_log_probs is None:
        bad = mass > 1.0 + MASS_TOLERANCE
        owners, bound = "the support must be", "to at most"
    else:
        mass += np.exp(rows.tail_log_probs)
        bad = np.abs(mass - 1.0) > MASS_TOLERANCE
        owners, bound = "support and tail must be", "to"
    if bad.any():
        raise InvalidFieldError(
            f"{field}.log_probs",
            f"{owners} normalised over the full vocabulary: their probabilities must add up "
            f"{bound} 1 within {MASS_TOLERANCE}, got {float(mass[bad][0]):.6g}",
        )


def _check_tail(rows: Rows, field: str, vocab_size: int, objective: ObjectiveSpec) -> None:
    """The tail must be there where the objective reads it, and say what the objective can use."""
    tails = rows.tail_log_probs
    if tails is None:
        if objective.reads_tail:
            raise InvalidFieldError(field, f"must be given for the objective {objective.name}")
        return
    # -inf is right: the tail of a support that holds the whole vocabulary.
    _check_values(
        field, tails, lambda values: values <= MAX_LOG_PROB, f"must be at most {MAX_LOG_PROB}"
    )
    if rows.draw_weights is None and rows.support_size == vocab_size:
        _check_values(
            field,
            tails,
            np.isneginf,
            f"must be -inf with K = {vocab_size}, the vocabulary: nothing lies outside the support",
        )
    if objective.needs_teacher_tail and rows.support_size < vocab_size and np.isneginf(tails).any():
        raise InvalidFieldError(
            field,
            f"must be above -inf for the objective {objective.name} and K below {vocab_size}: "
            "the student's probability outside the support would cost infinitely much",
        )


def _check_values(
    field: str,
    values: FloatArray | None,
    are_right: Callable[[FloatArray], BoolArray],
    allowed: str,
) -> None:
    """Raise InvalidFieldError with the first value that is wrong, NaN included, if there is one."""
    if values is None:
        return
    right = are_right(values)
    if not right.all():
        raise InvalidFieldError(field, f"{allowed}, got {float(values[~right][0])}")


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
    _check_values(
        field,
        weights,
        lambda values: np.isfinite(values) & (values >= 0),
        "must be finite and at least 0",
    )
    total = weights.sum(-1, dtype=np.float64)
    off = np.abs(total - 1.0) > MASS_TOLERANCE
    if off.any():
        raise InvalidFieldError(
            field,
            f"those of a row must add up to 1 within {MASS_TOLERANCE}, "
            f"got {float(total[off][0]):.6g}",
        )
