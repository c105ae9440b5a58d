"""A scoring request that the student sends to a teacher: whether it fits the batch, and what it
asks for. The teacher checks the rest, against limits that are its own."""

from collections.abc import Mapping, Sequence

import numpy as np

from distill.errors import InvalidFieldError
from distill.ops.objectives import ObjectiveSpec
from distill.v1 import scoring_pb2, tensor_pb2
from student_service.edge.examples import CheckedExample, PromptRows

FIRST_ROW = 1
"""The first row wanted of a prompt that does not say it."""


def check_pulled_support(scoring: scoring_pb2.Scoring, objective: ObjectiveSpec) -> None:
    """Refuse a kind of support that the objective cannot use, before the teacher computes it.

    Raises:
        InvalidFieldError: a sampled support where none is needed, or the other way round.
    """
    is_sampled = scoring.HasField("sampled")
    if is_sampled != objective.needs_draw_weights:
        wanted = "must be" if objective.needs_draw_weights else "must not be"
        raise InvalidFieldError(
            "header.batch.pull.scoring.support",
            f"{wanted} sampled for the objective {objective.name}, got "
            f"{scoring.WhichOneof('support') or 'top_k'}",
        )


def check_pulled_rows(examples: Sequence[CheckedExample], scoring: scoring_pb2.Scoring) -> None:
    """Refuse rows that the scoring request will not return, before the teacher computes any.

    Raises:
        InvalidFieldError: an example names tokens, or rows that are not asked for.
    """
    for index, example in enumerate(examples):
        rows = example.targets
        if not isinstance(rows, PromptRows):
            raise InvalidFieldError(
                "header.batch.pull", "the examples name their targets themselves"
            )
        field = f"examples[{index}].distribution_targets"
        if rows.prompt_index >= len(scoring.prompts):
            raise InvalidFieldError(
                f"{field}.prompt_index",
                f"must be in [0, {len(scoring.prompts)}), got {rows.prompt_index}",
            )
        prompt = scoring.prompts[rows.prompt_index]
        first = _first_row(prompt)
        last = len(prompt.token_ids.values)
        end = rows.prompt_offset + rows.row_count
        if rows.prompt_offset < first or end > last:
            raise InvalidFieldError(
                f"{field}.prompt_offset",
                f"rows [{rows.prompt_offset}, {end}) are wanted, but the scoring request asks for "
                f"[{first}, {last})",
            )


def understood_scoring(scoring: scoring_pb2.Scoring) -> Mapping[str, object]:
    """What a scoring request asks for, by the names of its fields and with its defaults filled in,
    for a digest. Nothing of it is checked."""
    sampled = scoring.sampled
    return {
        "prompts": [
            {
                "token_ids": _numbers(prompt.token_ids),
                "score_from": _first_row(prompt),
                "candidate_ids": _numbers(prompt.candidate_ids),
            }
            for prompt in scoring.prompts
        ],
        "top_k": scoring.top_k,
        "temperature": scoring.temperature if scoring.HasField("temperature") else 1.0,
        "candidates": scoring.HasField("candidates"),
        "sampled": {"exact_count": sampled.exact_count, "seed": sampled.seed}
        if scoring.HasField("sampled")
        else None,
    }


def _first_row(prompt: scoring_pb2.ScoredPrompt) -> int:
    return prompt.score_from if prompt.HasField("score_from") else FIRST_ROW


def _numbers(tensor: tensor_pb2.Int32Tensor) -> Mapping[str, object]:
    return {"shape": tuple(tensor.shape), "values": np.asarray(tensor.values, np.int32)}
