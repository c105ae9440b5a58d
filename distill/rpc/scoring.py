"""Scoring requests to jobs, and results to messages."""

from distill.engine.scorer import ScoredChunk, ScoreJob
from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.rpc.checks import (
    check_limit,
    check_range,
    check_request_size,
    check_temperature,
    parse_token_ids,
)
from distill.tensors import float_field, int32_field
from distill.v1 import scoring_pb2
from distill.wire import int_field


def parse_scoring(
    scoring: scoring_pb2.Scoring, *, field: str, limits: RequestLimits, vocab_size: int
) -> list[ScoreJob]:
    """Check a scoring request and take it apart into one job per prompt.

    Args:
        scoring: the message.
        field: its name in the request, for the errors.
        limits: what the service accepts.
        vocab_size: V of the model.

    Raises:
        InvalidFieldError: a field is out of its range.
        LimitExceededError: the request is larger than the service accepts.
    """
    check_request_size(f"{field}.prompts", scoring.prompts, limits)
    check_range(f"{field}.top_k", scoring.top_k, 1, min(limits.max_top_k, vocab_size))
    temperature = scoring.temperature if scoring.HasField("temperature") else 1.0
    check_temperature(f"{field}.temperature", temperature)
    jobs = []
    token_count = 0
    for row, prompt in enumerate(scoring.prompts):
        prompt_field = f"{field}.prompts[{row}]"
        token_ids = parse_token_ids(
            prompt.token_ids,
            f"{prompt_field}.token_ids",
            vocab_size=vocab_size,
            max_length=limits.max_sequence_tokens,
        )
        if len(token_ids) < 2:
            raise InvalidFieldError(
                f"{prompt_field}.token_ids", "must have at least 2 tokens to have a row, got 1"
            )
        score_from = prompt.score_from if prompt.HasField("score_from") else 1
        check_range(f"{prompt_field}.score_from", score_from, 1, len(token_ids) - 1)
        token_count += len(token_ids)
        check_limit(f"{field}.prompts", token_count, limits.max_request_tokens)
        jobs.append(
            ScoreJob(
                row=row,
                token_ids=token_ids,
                score_from=score_from,
                top_k=scoring.top_k,
                temperature=temperature,
            )
        )
    return jobs


def chunk_bytes(chunk: ScoredChunk) -> bytes:
    """A `TopKChunk` as protobuf would write it: its fields by ascending number.

    For `MergeFromString` of a response's `chunk`. A message that is given to the constructor of
    another one is copied; this way the arrays are not.
    """
    numbers = scoring_pb2.TopKChunk
    return b"".join(
        (
            int_field(numbers.ROW_FIELD_NUMBER, chunk.row),
            int_field(numbers.POSITION_OFFSET_FIELD_NUMBER, chunk.position_offset),
            *int32_field(numbers.TOKEN_IDS_FIELD_NUMBER, chunk.token_ids),
            *float_field(numbers.LOG_PROBS_FIELD_NUMBER, chunk.log_probs),
            *float_field(numbers.PROMPT_LOG_PROBS_FIELD_NUMBER, chunk.prompt_log_probs),
            *float_field(numbers.TAIL_LOG_PROBS_FIELD_NUMBER, chunk.tail_log_probs),
            *float_field(numbers.ENTROPIES_FIELD_NUMBER, chunk.entropies),
        )
    )
