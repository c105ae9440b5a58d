"""Chunks of a teacher's rows, relayed by the client or pulled: each checked, and those of a prompt
joined."""

from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from distill.arrays import BoolArray, FloatArray
from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.ops.objectives import ObjectiveSpec
from distill.rows import Rows, TilingError, check_next, concatenate
from distill.rpc.checks import check_distinct, check_token_ids
from distill.v1 import scoring_pb2
from distill.wire import rows_from_message
from student_service.edge.examples import MAX_LOG_PROB

MASS_TOLERANCE = 1e-2
"""The probabilities of support and tail must add up to 1 within this. It is larger than rounding
and smaller than the error of input that was renormalised over the support."""

MIN_ENTROPY = -1e-3
"""Smallest entropy that is accepted: one slightly below 0 is rounding."""


class _Part(NamedTuple):
    """Rows of one chunk."""

    rows: Rows
    number: int
    """Of the chunk in its stream."""

    @property
    def first_row(self) -> int:
        """Where it stands in its prompt."""
        return self.rows.first_row


class ChunkAssembler:
    """Takes the chunks of a batch one by one, as they arrive, and joins those of each prompt.

    A chunk that is wrong, or that can have no place in the batch, is refused before the next one is
    read, so that a stream holds no more memory than the rows that it may bring. Chunks of different
    prompts may interleave, and those of one prompt may come in any order that tiles its rows.
    """

    def __init__(
        self,
        prompts: Container[int],
        limits: RequestLimits,
        vocab_size: int,
        objective: ObjectiveSpec,
    ) -> None:
        """Args:
        prompts: indices of the prompts that chunks may describe.
        limits: what the service accepts.
        vocab_size: V.
        objective: says what a chunk must have.
        """
        self._prompts = prompts
        self._limits = limits
        self._vocab_size = vocab_size
        self._objective = objective
        self._parts: dict[int, list[_Part]] = {}
        self._chunk_count = 0
        self._row_count = 0
        self._support_size: int | None = None

    def add(self, chunk: scoring_pb2.TopKChunk) -> None:
        """Take the next chunk.

        Raises:
            InvalidFieldError: a bad value, a prompt that is not wanted, another K or other fields
                than in the chunks before, or rows that came before.
            LimitExceededError: more rows than the prompts of one request can have.
        """
        field = f"chunks[{self._chunk_count}]"
        rows = rows_from_message(chunk, field)
        _check_rows(rows, field, self._limits, self._vocab_size, self._objective)
        if rows.prompt_index not in self._prompts:
            raise InvalidFieldError(
                f"{field}.prompt_index", f"no example names prompt {rows.prompt_index}"
            )
        if self._support_size not in (None, rows.support_size):
            raise InvalidFieldError(
                f"{field}.token_ids.shape",
                f"K must be {self._support_size} as in the chunks before it, "
                f"got {rows.support_size}",
            )
        self._row_count += len(rows)
        if self._row_count > self._limits.max_request_tokens:
            raise LimitExceededError(
                f"{field}.token_ids.shape",
                self._limits.max_request_tokens,
                self._row_count,
                unit="rows in all chunks together",
            )
        self._place(_Part(rows, self._chunk_count), field)
        self._support_size = rows.support_size
        self._chunk_count += 1

    def _place(self, part: _Part, field: str) -> None:
        """Put a part between those of its prompt, in the order of their rows."""
        rows = part.rows
        parts = self._parts.setdefault(rows.prompt_index, [])
        if parts:
            _check_same_arrays(rows, parts[0].rows, field)
        place = bisect_left(parts, rows.first_row, key=lambda other: other.first_row)
        begins_inside = place > 0 and parts[place - 1].rows.end_row > rows.first_row
        ends_inside = place < len(parts) and rows.end_row > parts[place].first_row
        if begins_inside or ends_inside:
            raise InvalidFieldError(
                f"{field}.first_row",
                f"the rows of prompt {rows.prompt_index} must be tiled exactly once: some of "
                f"[{rows.first_row}, {rows.end_row}) came in a chunk before",
            )
        parts.insert(place, part)

    def finish(self) -> dict[int, Rows]:
        """The rows of each prompt that a chunk described. The assembler is empty afterwards.

        Raises:
            InvalidFieldError: the chunks of a prompt leave a gap.
        """
        # Taken out one by one: a prompt of several chunks is copied, and its chunks can go then.
        taken = (self._parts.popitem() for _ in range(len(self._parts)))
        return {prompt: _join(parts) for prompt, parts in taken}


def _join(parts: Sequence[_Part]) -> Rows:
    for before, after in pairwise(parts):
        try:
            check_next(after.rows, before.rows.end_row)
        except TilingError as error:
            raise InvalidFieldError(f"chunks[{after.number}].first_row", str(error)) from None
    return concatenate([part.rows for part in parts])


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
