"""Every hazard of a sampling request is refused before compute, by field."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from distill.engine.samples import SampleJob
from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.rpc.sampling_messages import format_sample, parse_sampling
from distill.samples import Sample, StopReason
from distill.tensors import decode_floats, decode_int32, encode_int32
from distill.v1 import scoring_pb2, tensor_pb2

V = 100
LIMITS = RequestLimits(max_sequence_tokens=16, max_top_k=50, max_sequences=4, max_request_tokens=30)


def tokens(*token_ids: int) -> tensor_pb2.Int32Tensor:
    return encode_int32(np.array(token_ids, np.int32))


def valid() -> scoring_pb2.Sampling:
    return scoring_pb2.Sampling(
        prompts=[tokens(1), tokens(4, 5)], params=scoring_pb2.SamplingParams(max_tokens=8)
    )


def parse(sampling: scoring_pb2.Sampling) -> SampleJob:
    return parse_sampling(sampling, field="sampling", limits=LIMITS, vocab_size=V)


def test_absent_fields_have_the_defaults_of_the_contract() -> None:
    job = parse(valid())
    assert [prompt.tolist() for prompt in job.prompts] == [[1], [4, 5]]
    assert job.max_tokens == 8
    assert (job.temperature, job.top_k, job.top_p, job.seed) == (1.0, None, 1.0, 0)
    assert (job.stop_token_ids, job.stop_strings, job.ignore_end_tokens) == ((), (), False)
    assert job.samples_per_prompt == 1


def test_given_fields_reach_the_job() -> None:
    sampling = valid()
    sampling.params.MergeFrom(
        scoring_pb2.SamplingParams(
            temperature=0.0,
            top_k=1000,
            top_p=0.5,
            seed=-(2**63),
            stop_token_ids=[3, 99],
            stop_strings=["\n", "stop"],
            ignore_end_tokens=True,
            samples_per_prompt=2,
        )
    )
    job = parse(sampling)
    # More than there are tokens is the same as all of them.
    assert (job.temperature, job.top_k, job.top_p, job.seed) == (0.0, V, 0.5, -(2**63))
    assert (job.stop_token_ids, job.stop_strings) == ((3, 99), ("\n", "stop"))
    assert job.ignore_end_tokens
    assert job.samples_per_prompt == 2


def with_param(name: str, value: object) -> Callable[[scoring_pb2.Sampling], object]:
    return lambda sampling: setattr(sampling.params, name, value)


def with_prompt(shape: list[int], values: list[int]) -> Callable[[scoring_pb2.Sampling], object]:
    tensor = tensor_pb2.Int32Tensor(shape=shape, values=values)
    return lambda sampling: sampling.prompts[1].CopyFrom(tensor)


HAZARDS: dict[str, tuple[Callable[[scoring_pb2.Sampling], object], str, str]] = {
    "no prompt": (lambda s: s.ClearField("prompts"), "sampling.prompts", "empty"),
    "no params": (lambda s: s.ClearField("params"), "sampling.params.max_tokens", "got 0"),
    "max_tokens": (with_param("max_tokens", -1), "sampling.params.max_tokens", "got -1"),
    "temperature": (with_param("temperature", -0.5), "sampling.params.temperature", "-0.5"),
    "temperature nan": (with_param("temperature", math.nan), "sampling.params.temperature", "nan"),
    "temperature inf": (with_param("temperature", math.inf), "sampling.params.temperature", "inf"),
    "top_k": (with_param("top_k", 0), "sampling.params.top_k", "got 0"),
    "top_p 0": (with_param("top_p", 0), "sampling.params.top_p", "(0, 1], got 0"),
    "top_p 2": (with_param("top_p", 2), "sampling.params.top_p", "got 2"),
    "top_p nan": (with_param("top_p", math.nan), "sampling.params.top_p", "nan"),
    "samples": (with_param("samples_per_prompt", 0), "sampling.params.samples_per_prompt", "got 0"),
    "stop id": (
        lambda s: s.params.stop_token_ids.extend([1, V]),
        "sampling.params.stop_token_ids[1]",
        "got 100",
    ),
    "stop string": (
        lambda s: s.params.stop_strings.extend(["a", ""]),
        "sampling.params.stop_strings[1]",
        "empty",
    ),
    "no token": (with_prompt([0], []), "sampling.prompts[1]", "got 0"),
    "rank": (with_prompt([1, 2], [1, 2]), "sampling.prompts[1].shape", "got 2"),
    "product": (with_prompt([5], [1, 2]), "sampling.prompts[1].shape", "[5]"),
    "wildcard": (with_prompt([-1], [1]), "sampling.prompts[1].shape", "negative"),
    "id": (with_prompt([2], [0, V]), "sampling.prompts[1].values[1]", "got 100"),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_a_hazard_is_refused_with_its_field_and_value(hazard: str) -> None:
    change, field, problem = HAZARDS[hazard]
    sampling = valid()
    change(sampling)
    with pytest.raises(InvalidFieldError) as caught:
        parse(sampling)
    assert caught.value.field == field
    assert problem in caught.value.problem


OVERSIZED: dict[str, tuple[Callable[[scoring_pb2.Sampling], object], str, int, int]] = {
    "prompts": (
        lambda s: s.prompts.extend([tokens(1)] * 3),
        "sampling.prompts",
        4,
        5,
    ),
    "samples": (
        with_param("samples_per_prompt", 3),
        "sampling.params.samples_per_prompt",
        2,
        3,
    ),
    "prompt": (with_prompt([17], [1] * 17), "sampling.prompts[1]", 16, 17),
    "request": (
        lambda s: s.prompts.extend([tokens(*[1] * 14)] * 2),
        "sampling.prompts",
        30,
        31,
    ),
    "stop ids": (
        lambda s: s.params.stop_token_ids.extend([1] * 65),
        "sampling.params.stop_token_ids",
        64,
        65,
    ),
    "stop string": (
        lambda s: s.params.stop_strings.append("é" * 513),
        "sampling.params.stop_strings[0]",
        1024,
        1026,
    ),
}


@pytest.mark.parametrize("case", OVERSIZED)
def test_a_request_over_a_limit_is_refused(case: str) -> None:
    change, field, limit, value = OVERSIZED[case]
    sampling = valid()
    change(sampling)
    with pytest.raises(LimitExceededError) as caught:
        parse(sampling)
    assert (caught.value.field, caught.value.limit, caught.value.value) == (field, limit, value)


@pytest.mark.parametrize(
    ("reason", "on_wire"),
    [
        (StopReason.STOP, scoring_pb2.STOP_REASON_STOP),
        (StopReason.LENGTH, scoring_pb2.STOP_REASON_LENGTH),
    ],
)
def test_a_sample_keeps_every_value_on_the_wire(reason: StopReason, on_wire: int) -> None:
    sample = Sample(
        prompt_index=2,
        sample_index=1,
        token_ids=np.array([5, 6, 7], np.int32),
        log_probs=np.array([-0.5, -1.5, -2.5], np.float32),
        stop_reason=reason,
        text="völlig",
    )
    message = format_sample(sample)
    assert (message.prompt_index, message.sample_index, message.text) == (2, 1, "völlig")
    assert message.stop_reason == on_wire
    np.testing.assert_array_equal(decode_int32(message.token_ids, "", (1,)), sample.token_ids)
    np.testing.assert_array_equal(decode_floats(message.log_probs, "", (1,)), sample.log_probs)
