"""A teacher's chunks into the targets of examples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.ops.objectives import ObjectiveSpec
from distill.rpc.checks import check_distinct
from distill.tensors import BoolArray, FloatArray, Int32Array, decode_floats, decode_int32
from distill.v1 import scoring_pb2
from student_service.edge.examples import (
    MAX_LOG_PROB,
    CheckedExample,
    NamedTokens,
    PromptRows,
    check_token_ids,
)
from student_service.training.batch import ExampleTargets, TrainingExample

MASS_TOLERANCE = 1e-2
"""Support and tail must add up to 1 within this: it tells unnormalised or reweighted input from
rounding."""


@dataclass(frozen=True, kw_only=True)
class PromptDistributions:
    """Consecutive rows of one prompt."""

    first_row: int
    """Row of the first entry, in prompt coordinates."""

    token_ids: Int32Array
    """[R, K]."""

    log_probs: FloatArray
    """[R, K]."""

    tail_log_probs: FloatArray
    """[R]."""

    entropies: FloatArray
    """[R]."""

    most_probable: BoolArray
    """Whether the support is the K most probable tokens, [R]."""

    weights: FloatArray | None = None
    """Importance weights of a sampled support, [R, K]."""


def assemble_prompts(
    chunks: Iterable[scoring_pb2.TopKChunk],
    limits: RequestLimits,
    vocab_size: int,
    objective: ObjectiveSpec,
) -> dict[int, PromptDistributions]:
    """Join the chunks of each prompt, checking every value and that the objective can use it.

    Raises:
        InvalidFieldError: a bad chunk, different K, or chunks that overlap or leave a gap.
    """
    by_prompt: dict[int, list[PromptDistributions]] = {}
    support_size: int | None = None
    for index, chunk in enumerate(chunks):
        field = f"chunks[{index}]"
        if chunk.row < 0:
            raise InvalidFieldError(f"{field}.row", f"must be at least 0, got {chunk.row}")
        part = _parse_chunk(chunk, field, limits, vocab_size, objective)
        if support_size is None:
            support_size = part.token_ids.shape[1]
        if part.token_ids.shape[1] != support_size:
            raise InvalidFieldError(
                f"{field}.token_ids.shape",
                f"K must be {support_size} as in the chunks before it, "
                f"got {part.token_ids.shape[1]}",
            )
        by_prompt.setdefault(chunk.row, []).append(part)
    return {prompt: _join(prompt, parts) for prompt, parts in by_prompt.items()}


def _join(prompt: int, parts: Sequence[PromptDistributions]) -> PromptDistributions:
    ordered = sorted(parts, key=lambda part: part.first_row)
    expected = ordered[0].first_row
    for part in ordered:
        if part.first_row != expected:
            raise InvalidFieldError(
                "chunks.position_offset",
                f"the chunks of prompt {prompt} must tile its rows exactly once: expected row "
                f"{expected}, got {part.first_row}",
            )
        expected += len(part.token_ids)
    return PromptDistributions(
        first_row=ordered[0].first_row,
        token_ids=np.concatenate([part.token_ids for part in ordered]),
        log_probs=np.concatenate([part.log_probs for part in ordered]),
        tail_log_probs=np.concatenate([part.tail_log_probs for part in ordered]),
        entropies=np.concatenate([part.entropies for part in ordered]),
        most_probable=np.concatenate([part.most_probable for part in ordered]),
        weights=_join_weights(ordered),
    )


def _join_weights(parts: Sequence[PromptDistributions]) -> FloatArray | None:
    weights = [part.weights for part in parts if part.weights is not None]
    return np.concatenate(weights) if weights else None


def _parse_chunk(
    chunk: scoring_pb2.TopKChunk,
    field: str,
    limits: RequestLimits,
    vocab_size: int,
    objective: ObjectiveSpec,
) -> PromptDistributions:
    token_ids = decode_int32(chunk.token_ids, f"{field}.token_ids", (2,))
    row_count, support_size = token_ids.shape
    largest = min(limits.max_top_k, vocab_size)
    if row_count < 1 or not 1 <= support_size <= largest:
        raise InvalidFieldError(
            f"{field}.token_ids.shape",
            f"must be [P, K] with P at least 1 and K in [1, {largest}], "
            f"got {list(token_ids.shape)}",
        )
    if chunk.position_offset < 1:
        raise InvalidFieldError(
            f"{field}.position_offset", f"must be at least 1, got {chunk.position_offset}"
        )
    check_token_ids(token_ids, f"{field}.token_ids", vocab_size)
    weights = _parse_weights(chunk, field, token_ids.shape, objective)
    used = np.ones(token_ids.shape, bool) if weights is None else weights > 0
    # An unused slot gets a number of its own, for it may hold a token that another slot names.
    numbers = np.where(used, token_ids, vocab_size + np.arange(support_size))
    check_distinct(f"{field}.token_ids", numbers)
    log_probs = decode_floats(chunk.log_probs, f"{field}.log_probs", (2,))
    if log_probs.shape != token_ids.shape:
        raise InvalidFieldError(
            f"{field}.log_probs.shape",
            f"must be that of the token ids {list(token_ids.shape)}, got {list(log_probs.shape)}",
        )
    bad = ~(np.isfinite(log_probs) & (log_probs <= MAX_LOG_PROB))
    if bad.any():
        raise InvalidFieldError(
            f"{field}.log_probs",
            f"must be finite and at most {MAX_LOG_PROB}, got {float(log_probs[bad][0])}",
        )
    tails = _one_per_row(chunk.tail_log_probs, f"{field}.tail_log_probs", row_count)
    # -inf is the tail of a support that holds everything.
    bad = np.isnan(tails) | (tails > MAX_LOG_PROB)
    if bad.any():
        raise InvalidFieldError(
            f"{field}.tail_log_probs", f"must be at most {MAX_LOG_PROB}, got {float(tails[bad][0])}"
        )
    bad = ~np.isneginf(tails)
    if weights is None and support_size == vocab_size and bad.any():
        raise InvalidFieldError(
            f"{field}.tail_log_probs",
            f"must be -inf with K = {vocab_size}, the vocabulary: nothing lies outside the "
            f"support, got {float(tails[bad][0])}",
        )
    if objective.needs_teacher_tail and support_size < vocab_size and np.isneginf(tails).any():
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
    entropies = _one_per_row(chunk.entropies, f"{field}.entropies", row_count)
    bad = ~np.isfinite(entropies)
    if bad.any():
        raise InvalidFieldError(
            f"{field}.entropies", f"must be finite, got {float(entropies[bad][0])}"
        )
    return PromptDistributions(
        first_row=chunk.position_offset,
        token_ids=token_ids,
        log_probs=log_probs,
        tail_log_probs=tails,
        entropies=entropies,
        most_probable=np.full(row_count, chunk.most_probable),
        weights=weights,
    )


def _parse_weights(
    chunk: scoring_pb2.TopKChunk, field: str, shape: tuple[int, ...], objective: ObjectiveSpec
) -> FloatArray | None:
    """The importance weights, where the objective needs them and nowhere else."""
    field = f"{field}.weights"
    if not objective.needs_chunk_weights:
        if chunk.HasField("weights"):
            raise InvalidFieldError(
                field,
                f"a sampled support is no distribution, which the objective {objective.name} needs",
            )
        return None
    if not chunk.HasField("weights"):
        raise InvalidFieldError(
            field, f"must be given for the objective {objective.name}: score a sampled support"
        )
    weights = decode_floats(chunk.weights, field, (2,))
    if weights.shape != shape:
        raise InvalidFieldError(
            f"{field}.shape",
            f"must be that of the token ids {list(shape)}, got {list(weights.shape)}",
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
    return weights


def _one_per_row(tensor: object, field: str, row_count: int) -> FloatArray:
    values = decode_floats(tensor, field, (1,))  # type: ignore[arg-type]
    if len(values) != row_count:
        raise InvalidFieldError(
            f"{field}.shape", f"must be [{row_count}], one per row, got {list(values.shape)}"
        )
    return values


def attach_targets(
    examples: Sequence[CheckedExample], prompts: Mapping[int, PromptDistributions]
) -> tuple[TrainingExample, ...]:
    """Give every example its targets.

    Raises:
        InvalidFieldError: an example names a prompt or rows that no chunk described.
    """
    return tuple(
        TrainingExample(
            input_tokens=example.input_tokens,
            targets=_named(example, example.targets)
            if isinstance(example.targets, NamedTokens)
            else _distributed(example, example.targets, prompts, f"examples[{index}]"),
        )
        for index, example in enumerate(examples)
    )


def _named(example: CheckedExample, targets: NamedTokens) -> ExampleTargets:
    rows = len(targets.token_ids)
    return ExampleTargets(
        offset=example.target_offset,
        token_ids=targets.token_ids,
        values=targets.weights,
        tail_log_probs=np.zeros(rows, np.float32),
        teacher_entropies=np.zeros(rows, np.float32),
        most_probable=np.zeros(rows, bool),
        row_weights=np.ones(rows, np.float32),
        hard=targets.hard,
        old_log_probs=targets.old_log_probs,
    )


def _distributed(
    example: CheckedExample,
    rows: PromptRows,
    prompts: Mapping[int, PromptDistributions],
    field: str,
) -> ExampleTargets:
    field = f"{field}.distribution_targets"
    prompt = prompts.get(rows.prompt_index)
    if prompt is None:
        raise InvalidFieldError(
            f"{field}.prompt_index", f"no chunk describes prompt {rows.prompt_index}"
        )
    start = rows.prompt_offset - prompt.first_row
    end = start + rows.row_count
    if start < 0 or end > len(prompt.token_ids):
        raise InvalidFieldError(
            f"{field}.prompt_offset",
            f"rows [{rows.prompt_offset}, {rows.prompt_offset + rows.row_count}) of prompt "
            f"{rows.prompt_index} are wanted, but its chunks describe "
            f"[{prompt.first_row}, {prompt.first_row + len(prompt.token_ids)})",
        )
    values = prompt.log_probs if prompt.weights is None else prompt.weights
    return ExampleTargets(
        offset=example.target_offset,
        token_ids=prompt.token_ids[start:end],
        values=values[start:end],
        tail_log_probs=prompt.tail_log_probs[start:end],
        teacher_entropies=prompt.entropies[start:end],
        most_probable=prompt.most_probable[start:end],
        row_weights=rows.row_weights,
        hard=False,
    )
