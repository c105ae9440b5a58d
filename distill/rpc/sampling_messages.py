"""Sampling requests to jobs, and samples to messages."""

from distill.arrays import Int32Array
from distill.engine.samples import SampleJob
from distill.enum_names import enum_value
from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.rpc.checks import (
    check_limit,
    check_range,
    check_request_size,
    check_temperature,
    parse_token_ids,
)
from distill.rpc.messages import message_from
from distill.samples import Sample
from distill.v1 import scoring_pb2

_MAX_INT32 = 2**31 - 1

_MAX_STOPS = 64
"""Most stop token ids, and most stop strings: each is compared with every token."""

_MAX_STOP_STRING_BYTES = 1024


def parse_sampling(
    sampling: scoring_pb2.Sampling, *, field: str, limits: RequestLimits, vocab_size: int
) -> SampleJob:
    """Check a sampling request.

    Args:
        sampling: the message.
        field: its name in the request, for the errors.
        limits: what the service accepts.
        vocab_size: V of the model.

    Raises:
        InvalidFieldError: a field is out of its range.
        LimitExceededError: the request is larger than the service accepts.
    """
    check_request_size(f"{field}.prompts", sampling.prompts, limits)
    params, params_field = sampling.params, f"{field}.params"
    check_range(f"{params_field}.max_tokens", params.max_tokens, 1, _MAX_INT32)
    temperature = params.temperature if params.HasField("temperature") else 1.0
    if temperature != 0:  # which takes the most probable token
        check_temperature(f"{params_field}.temperature", temperature)
    top_k = params.top_k if params.HasField("top_k") else None
    if top_k is not None:
        check_range(f"{params_field}.top_k", top_k, 1, _MAX_INT32)
    top_p = params.top_p if params.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise InvalidFieldError(f"{params_field}.top_p", f"must be in (0, 1], got {top_p}")
    samples_per_prompt = params.samples_per_prompt if params.HasField("samples_per_prompt") else 1
    check_range(f"{params_field}.samples_per_prompt", samples_per_prompt, 1, _MAX_INT32)
    check_limit(
        f"{params_field}.samples_per_prompt",
        samples_per_prompt,
        limits.max_sequences // len(sampling.prompts),
    )
    return SampleJob(
        prompts=_parse_prompts(sampling, field, limits, vocab_size),
        max_tokens=params.max_tokens,
        temperature=temperature,
        top_k=None if top_k is None else min(top_k, vocab_size),
        top_p=top_p,
        seed=params.seed,
        stop_token_ids=_parse_stop_token_ids(params, params_field, vocab_size),
        stop_strings=_parse_stop_strings(params, params_field),
        ignore_end_tokens=params.ignore_end_tokens,
        samples_per_prompt=samples_per_prompt,
    )


def format_sample(sample: Sample) -> scoring_pb2.SampledSequence:
    """The wire form of a sample."""
    stop_reason = enum_value(scoring_pb2.StopReason, sample.stop_reason, "stop_reason")
    return message_from(scoring_pb2.SampledSequence, sample, stop_reason=stop_reason)


def _parse_prompts(
    sampling: scoring_pb2.Sampling, field: str, limits: RequestLimits, vocab_size: int
) -> list[Int32Array]:
    prompts = []
    token_count = 0
    for index, tensor in enumerate(sampling.prompts):
        prompt = parse_token_ids(
            tensor,
            f"{field}.prompts[{index}]",
            vocab_size=vocab_size,
            max_length=limits.max_sequence_tokens,
        )
        token_count += len(prompt)
        check_limit(f"{field}.prompts", token_count, limits.max_request_tokens)
        prompts.append(prompt)
    return prompts


def _parse_stop_token_ids(
    params: scoring_pb2.SamplingParams, field: str, vocab_size: int
) -> tuple[int, ...]:
    check_limit(f"{field}.stop_token_ids", len(params.stop_token_ids), _MAX_STOPS)
    for index, token_id in enumerate(params.stop_token_ids):
        if not 0 <= token_id < vocab_size:
            raise InvalidFieldError(
                f"{field}.stop_token_ids[{index}]", f"must be in [0, {vocab_size}), got {token_id}"
            )
    return tuple(params.stop_token_ids)


def _parse_stop_strings(params: scoring_pb2.SamplingParams, field: str) -> tuple[str, ...]:
    check_limit(f"{field}.stop_strings", len(params.stop_strings), _MAX_STOPS)
    for index, text in enumerate(params.stop_strings):
        if not text:
            raise InvalidFieldError(f"{field}.stop_strings[{index}]", "must not be empty")
        check_limit(
            f"{field}.stop_strings[{index}]", len(text.encode("utf-8")), _MAX_STOP_STRING_BYTES
        )
    return tuple(params.stop_strings)
