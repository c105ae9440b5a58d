"""Scoring requests into jobs."""

from distill.engine.scoring_jobs import ScoreJob
from distill.engine.supports import Candidates, Draws, Support
from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.rpc.checks import (
    check_distinct,
    check_limit,
    check_range,
    check_request_size,
    check_temperature,
    check_token_ids,
    parse_token_ids,
)
from distill.tensors import decode_int32
from distill.v1 import scoring_pb2


def parse_scoring(
    scoring: scoring_pb2.Scoring, *, field: str, limits: RequestLimits, vocab_size: int
) -> list[ScoreJob]:
    """Check a scoring request and make one job of each prompt.

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
    largest = min(limits.max_top_k, vocab_size)
    kind = scoring.WhichOneof("support")
    if kind == "candidates":
        if scoring.top_k:
            raise InvalidFieldError(
                f"{field}.top_k", f"must be 0 with candidates, got {scoring.top_k}"
            )
    else:
        check_range(f"{field}.top_k", scoring.top_k, 1, largest)
    top_k = scoring.top_k
    support: Support = None
    if kind == "sampled":
        # At least one draw: a head alone would be biased, and have no use for draw weights.
        exact_count = scoring.sampled.exact_count
        check_range(f"{field}.sampled.exact_count", exact_count, 0, scoring.top_k - 1)
        support = Draws(exact_count=exact_count, seed=scoring.sampled.seed)
    temperature = scoring.temperature if scoring.HasField("temperature") else 1.0
    check_temperature(f"{field}.temperature", temperature)
    jobs = []
    token_count = 0
    for prompt_index, prompt in enumerate(scoring.prompts):
        prompt_field = f"{field}.prompts[{prompt_index}]"
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
        if kind == "candidates":
            support = _parse_candidates(
                prompt,
                f"{prompt_field}.candidate_ids",
                row_count=len(token_ids) - score_from,
                support_size=top_k,
                largest=largest,
                vocab_size=vocab_size,
            )
            top_k = support.token_ids.shape[1]
        elif prompt.HasField("candidate_ids"):
            raise InvalidFieldError(
                f"{prompt_field}.candidate_ids", f"only with {field}.candidates"
            )
        jobs.append(
            ScoreJob(
                prompt_index=prompt_index,
                token_ids=token_ids,
                score_from=score_from,
                top_k=top_k,
                temperature=temperature,
                support=support,
            )
        )
    return jobs


def _parse_candidates(
    prompt: scoring_pb2.ScoredPrompt,
    field: str,
    *,
    row_count: int,
    support_size: int,
    largest: int,
    vocab_size: int,
) -> Candidates:
    """The candidates of a prompt.

    Args:
        prompt: the message.
        field: the name of its candidates in the request, for the errors.
        row_count: rows wanted of the prompt.
        support_size: K of the prompts before it; 0 for the first one.
        largest: largest K that the service accepts.
        vocab_size: V of the model.
    """
    ids = decode_int32(prompt.candidate_ids, field, (2,))
    if len(ids) != row_count:
        raise InvalidFieldError(
            f"{field}.shape",
            f"must be [{row_count}, K], a row for each from score_from on, got {list(ids.shape)}",
        )
    check_range(f"{field}.shape", ids.shape[1], 1, largest)
    if support_size not in (0, ids.shape[1]):
        raise InvalidFieldError(
            f"{field}.shape",
            f"K must be {support_size} as in the prompts before it, got {ids.shape[1]}",
        )
    check_token_ids(field, ids, vocab_size)
    check_distinct(field, ids)
    return Candidates(token_ids=ids)
