"""Every hazard of a scoring request is refused before compute, by field."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from distill.engine.supports import Candidates, Draws
from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.rpc.scoring import parse_scoring
from distill.tensors import encode_int32
from distill.v1 import scoring_pb2, tensor_pb2

V = 100
LIMITS = RequestLimits(max_sequence_tokens=16, max_top_k=50, max_sequences=3, max_request_tokens=30)


def prompt(*token_ids: int, score_from: int | None = None) -> scoring_pb2.ScoredPrompt:
    message = scoring_pb2.ScoredPrompt(token_ids=encode_int32(np.array(token_ids, np.int32)))
    if score_from is not None:
        message.score_from = score_from
    return message


def valid() -> scoring_pb2.Scoring:
    return scoring_pb2.Scoring(prompts=[prompt(1, 2, 3), prompt(4, 5)], top_k=10)


def parse(scoring: scoring_pb2.Scoring) -> list:
    return parse_scoring(scoring, field="scoring", limits=LIMITS, vocab_size=V)


def raw_tokens(shape: list[int], values: list[int]) -> tensor_pb2.Int32Tensor:
    return tensor_pb2.Int32Tensor(shape=shape, values=values)


def test_a_request_becomes_a_job_per_prompt_with_the_defaults_of_the_contract() -> None:
    first, second = parse(valid())
    np.testing.assert_array_equal(first.token_ids, [1, 2, 3])
    assert (first.prompt_index, first.score_from, first.top_k, first.temperature) == (0, 1, 10, 1.0)
    np.testing.assert_array_equal(second.token_ids, [4, 5])
    assert second.prompt_index == 1


def test_given_fields_reach_the_jobs() -> None:
    scoring = scoring_pb2.Scoring(
        prompts=[prompt(1, 2, 3, score_from=2)], top_k=50, temperature=0.25
    )
    (job,) = parse(scoring)
    assert (job.score_from, job.top_k, job.temperature) == (2, 50, 0.25)


def test_the_smallest_temperature_that_the_error_names_is_accepted() -> None:
    scoring = valid()
    scoring.temperature = 0.0
    with pytest.raises(InvalidFieldError, match="at least 1e-06") as caught:
        parse(scoring)
    named = re.search(r"at least (\S+),", str(caught.value))
    assert named is not None
    scoring.temperature = float(named.group(1))  # float32 on the wire
    assert parse(scoring)[0].temperature == scoring.temperature
    scoring.temperature /= 2
    with pytest.raises(InvalidFieldError):
        parse(scoring)


def with_candidates(*ids: list[list[int]]) -> scoring_pb2.Scoring:
    scoring = valid()
    scoring.ClearField("top_k")
    scoring.candidates.SetInParent()
    for target, rows in zip(scoring.prompts, ids, strict=True):
        target.candidate_ids.CopyFrom(encode_int32(np.array(rows, np.int32)))
    return scoring


def test_candidates_become_the_support_of_their_job_and_say_k() -> None:
    first, second = parse(with_candidates([[7, 3], [0, 99]], [[5, 6]]))
    assert first.top_k == second.top_k == 2
    assert isinstance(first.support, Candidates)
    assert isinstance(second.support, Candidates)
    np.testing.assert_array_equal(first.support.token_ids, [[7, 3], [0, 99]])
    np.testing.assert_array_equal(second.support.token_ids, [[5, 6]])


def test_a_sampled_support_reaches_every_job() -> None:
    scoring = valid()
    scoring.sampled.CopyFrom(scoring_pb2.SampledSupport(exact_count=3, seed=-(2**63)))
    assert [job.support for job in parse(scoring)] == [Draws(exact_count=3, seed=-(2**63))] * 2
    scoring.sampled.ClearField("seed")
    assert parse(scoring)[0].support == Draws(exact_count=3, seed=0)


GOOD = ([[7, 3], [0, 99]], [[5, 6]])


@pytest.mark.parametrize(
    ("candidates", "field", "problem"),
    [
        (([[7, 3]], GOOD[1]), "prompts[0].candidate_ids.shape", "[2, K]"),
        ((GOOD[0], [[5, 6, 7]]), "prompts[1].candidate_ids.shape", "K must be 2"),
        (([[7, 100], [0, 9]], GOOD[1]), "prompts[0].candidate_ids", "[0, 100), got 100"),
        (([[7, -1], [0, 9]], GOOD[1]), "prompts[0].candidate_ids", "[0, 100), got -1"),
        (([[7, 3], [9, 9]], GOOD[1]), "prompts[0].candidate_ids", "twice, got 9 again"),
        (([7, 3], GOOD[1]), "prompts[0].candidate_ids.shape", "2 dimensions"),
        (([[], []], GOOD[1]), "prompts[0].candidate_ids.shape", "[1, 50], got 0"),
        ((GOOD[0], [list(range(51))]), "prompts[1].candidate_ids.shape", "[1, 50], got 51"),
    ],
)
def test_bad_candidates_are_refused(candidates, field: str, problem: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        parse(with_candidates(*candidates))
    assert caught.value.field == f"scoring.{field}"
    assert problem in caught.value.problem


def set_candidates(scoring: scoring_pb2.Scoring) -> None:
    scoring.prompts[1].candidate_ids.CopyFrom(encode_int32(np.array([[1, 2]], np.int32)))


def set_exact(count: int) -> Callable[[scoring_pb2.Scoring], None]:
    return lambda scoring: scoring.sampled.CopyFrom(scoring_pb2.SampledSupport(exact_count=count))


def set_tokens(shape: list[int], values: list[int]) -> Callable[[scoring_pb2.Scoring], None]:
    return lambda scoring: scoring.prompts[1].token_ids.CopyFrom(raw_tokens(shape, values))


HAZARDS: dict[str, tuple[Callable[[scoring_pb2.Scoring], object], str, str]] = {
    "no prompt": (lambda s: s.ClearField("prompts"), "scoring.prompts", "empty"),
    "top_k 0": (lambda s: setattr(s, "top_k", 0), "scoring.top_k", "[1, 50], got 0"),
    "top_k negative": (lambda s: setattr(s, "top_k", -1), "scoring.top_k", "got -1"),
    "top_k over limit": (lambda s: setattr(s, "top_k", 51), "scoring.top_k", "got 51"),
    "temperature 0": (lambda s: setattr(s, "temperature", 0), "scoring.temperature", "got 0"),
    "temperature negative": (
        lambda s: setattr(s, "temperature", -1),
        "scoring.temperature",
        "got -1",
    ),
    "temperature nan": (
        lambda s: setattr(s, "temperature", math.nan),
        "scoring.temperature",
        "nan",
    ),
    "temperature inf": (
        lambda s: setattr(s, "temperature", math.inf),
        "scoring.temperature",
        "inf",
    ),
    "no token": (set_tokens([0], []), "scoring.prompts[1].token_ids", "got 0"),
    "one token": (set_tokens([1], [3]), "scoring.prompts[1].token_ids", "at least 2"),
    "no shape": (set_tokens([], [1, 2]), "scoring.prompts[1].token_ids.shape", "dimensions"),
    "rank 2": (set_tokens([1, 2], [1, 2]), "scoring.prompts[1].token_ids.shape", "got 2"),
    "wrong product": (set_tokens([3], [1, 2]), "scoring.prompts[1].token_ids.shape", "[3]"),
    "wildcard": (set_tokens([-1], [1, 2]), "scoring.prompts[1].token_ids.shape", "negative"),
    "overflow": (set_tokens([2**62], [1, 2]), "scoring.prompts[1].token_ids.shape", "product"),
    "negative id": (
        set_tokens([2], [1, -1]),
        "scoring.prompts[1].token_ids.values[1]",
        "[0, 100), got -1",
    ),
    "id V": (set_tokens([2], [100, 1]), "scoring.prompts[1].token_ids.values[0]", "got 100"),
    "candidates with top_k": (
        lambda s: s.candidates.SetInParent(),
        "scoring.top_k",
        "must be 0 with candidates, got 10",
    ),
    "candidates without their support": (
        set_candidates,
        "scoring.prompts[1].candidate_ids",
        "only with scoring.candidates",
    ),
    "a head of every slot": (set_exact(10), "scoring.sampled.exact_count", "[0, 9], got 10"),
    "a negative head": (set_exact(-1), "scoring.sampled.exact_count", "got -1"),
    "score_from 0": (
        lambda s: setattr(s.prompts[0], "score_from", 0),
        "scoring.prompts[0].score_from",
        "[1, 2], got 0",
    ),
    "score_from negative": (
        lambda s: setattr(s.prompts[0], "score_from", -5),
        "scoring.prompts[0].score_from",
        "got -5",
    ),
    "score_from T": (
        lambda s: setattr(s.prompts[0], "score_from", 3),
        "scoring.prompts[0].score_from",
        "got 3",
    ),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_a_hazard_is_refused_with_its_field_and_value(hazard: str) -> None:
    change, field, problem = HAZARDS[hazard]
    scoring = valid()
    change(scoring)
    with pytest.raises(InvalidFieldError) as caught:
        parse(scoring)
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_top_k_is_bounded_by_the_vocabulary_as_well() -> None:
    scoring = scoring_pb2.Scoring(prompts=[prompt(1, 2)], top_k=8)
    with pytest.raises(InvalidFieldError, match=r"\[1, 7\], got 8"):
        parse_scoring(scoring, field="scoring", limits=LIMITS, vocab_size=7)


@pytest.mark.parametrize(
    ("prompts", "field", "limit", "value"),
    [
        ([prompt(1, 2)] * 4, "scoring.prompts", 3, 4),
        ([prompt(*range(17))], "scoring.prompts[0].token_ids", 16, 17),
        ([prompt(*range(16)), prompt(*range(15))], "scoring.prompts", 30, 31),
    ],
    ids=["sequences", "sequence tokens", "request tokens"],
)
def test_a_request_over_a_limit_is_refused(
    prompts: list[scoring_pb2.ScoredPrompt], field: str, limit: int, value: int
) -> None:
    with pytest.raises(LimitExceededError) as caught:
        parse(scoring_pb2.Scoring(prompts=prompts, top_k=1))
    assert (caught.value.field, caught.value.limit, caught.value.value) == (field, limit, value)
